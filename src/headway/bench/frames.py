"""Messages between processes through pipes: a length and a pickle, read without looking ahead."""

from __future__ import annotations

import os
import pickle
import struct
from typing import Any

__all__ = ["receive", "send"]

_LENGTH = struct.Struct("!Q")


def send(fd: int, message: Any) -> None:
    """Write a message.

    Raises:
        OSError: nobody reads any more.
    """
    data = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
    left = memoryview(_LENGTH.pack(len(data)) + data)
    while left:
        left = left[os.write(fd, left) :]


def receive(fd: int) -> Any:
    """Read a message.

    Raises:
        EOFError: the other side is gone.
    """
    return pickle.loads(_read(fd, _LENGTH.unpack(_read(fd, _LENGTH.size))[0]))


def _read(fd: int, length: int) -> bytes:
    parts = []
    while length:
        part = os.read(fd, min(length, 1 << 20))
        if not part:
            raise EOFError
        parts.append(part)
        length -= len(part)
    return b"".join(parts)
