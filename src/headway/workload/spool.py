"""The rows of a file as columns, however many: beyond some millions of bytes they lie in temporary files.

The columns are then mapped from there, so that memory holds only the parts in use, which it may drop at any time.
`TMPDIR` says where the files are; they have no name, and vanish with the columns.
"""

from __future__ import annotations

import mmap
import tempfile
from collections.abc import Iterable
from typing import IO, Any

import msgspec
import numpy as np

from headway.workload.batch import COLUMNS, Batch, Ints, join

__all__ = ["gather", "in_order", "release"]

HELD_BYTES = 32 << 20
_CHAINS = ("hash_offsets", "hashes")
_CHUNK = 1 << 16


def gather(batches: Iterable[Batch]) -> Batch | None:
    """Return all requests of the batches in one, numbered from 0; None if there are none.

    More than `HELD_BYTES` of them lie in temporary files.
    """
    held: list[Batch] = []
    files: _Files | None = None
    size = count = 0
    for part in batches:
        batch = msgspec.structs.replace(part, id=np.arange(count, count + len(part)))
        count += len(batch)
        size += _bytes(batch)
        if files is None and size > HELD_BYTES:
            files = _Files(chains=batch.has_chains)
            for each in held:
                files.add(each)
            held = []
        if files is None:
            held.append(batch)
        else:
            files.add(batch)
    if files is not None:
        return files.mapped()
    return join(held) if held else None


def in_order(times: Any) -> bool:
    """Whether times never fall, looked at in parts."""
    return not any((np.diff(times[at : at + _CHUNK + 1]) < 0).any() for at in range(0, len(times), _CHUNK))


def _bytes(batch: Batch) -> int:
    columns = (getattr(batch, name) for name in (*COLUMNS, *_CHAINS))
    return sum(column.nbytes for column in columns if column is not None)


def release(batch: Batch) -> None:
    """Give back the memory of columns that are mapped from files; what is used again is read again."""
    for name in COLUMNS:
        mapped = getattr(getattr(batch, name), "_mmap", None)
        if mapped is not None and hasattr(mmap, "MADV_DONTNEED"):
            mapped.madvise(mmap.MADV_DONTNEED)


class _Files:
    """A temporary file for each column."""

    def __init__(self, *, chains: bool) -> None:
        names = (*COLUMNS, *(_CHAINS if chains else ()))
        self.files: dict[str, IO[bytes]] = {name: tempfile.TemporaryFile() for name in names}  # noqa: SIM115 - mapped
        self.types: dict[str, Any] = {}
        self.blocks = 0
        if chains:
            self._write("hash_offsets", np.zeros(1, np.int64))

    def add(self, batch: Batch) -> None:
        for name in COLUMNS:
            self._write(name, getattr(batch, name))
        if batch.hash_offsets is not None and batch.hashes is not None:
            self._write("hash_offsets", batch.hash_offsets[1:] + self.blocks)
            self._write("hashes", batch.hashes)
            self.blocks += len(batch.hashes)

    def _write(self, name: str, column: Ints) -> None:
        self.types[name] = column.dtype
        self.files[name].write(np.ascontiguousarray(column).data)

    def mapped(self) -> Batch:
        """The columns, to be read: what is written to them stays with the reader."""
        columns: dict[str, Any] = {}
        for name, file in self.files.items():
            with file:
                file.flush()
                columns[name] = np.memmap(file, self.types[name], mode="c") if file.tell() else np.zeros(0, np.int64)
        return Batch(**columns)
