"""GPUs that are named by the path of a file which describes them: what such a path means, and how people read it."""

from __future__ import annotations

import os
from pathlib import Path

from headway.errors import BadInput

__all__ = ["beside", "gpu_name", "is_file", "located"]


def is_file(key: str) -> bool:
    """Return whether a GPU is named by the path of a file rather than by its key in the catalogue."""
    return key.endswith((".yaml", ".yml"))


def located(key: str) -> str:
    """Return the name of a GPU such that it means the same in every folder: the path of a file from the root on."""
    return os.path.abspath(key) if is_file(key) else key


def beside(key: str, file: str | Path) -> str:
    """Return the name of a GPU that a file says; a path that leads nowhere from here is meant from that file's folder.

    Raises:
        BadInput: neither leads anywhere; names both.
    """
    if not is_file(key) or os.path.isabs(key) or os.path.exists(key):
        return key
    other = os.path.join(os.path.dirname(file), key)
    if not os.path.exists(other):
        raise BadInput(f"{file}: gpu {key}: no such file here ({located(key)}), nor beside that one ({other})")
    return located(other)


def gpu_name(key: str) -> str:
    """Return a GPU's name as people read it: of a file without its folder."""
    return Path(key).name if is_file(key) else key
