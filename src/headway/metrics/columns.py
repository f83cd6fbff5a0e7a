"""The columns of per-request records: names, types and defaults, for memory and for files alike."""

from __future__ import annotations

from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np

__all__ = ["COLUMNS", "STATUS_WORDS", "Column", "Status"]


class Status(IntEnum):
    """How a request ended: the code in the column `status`; in files it is the word, in lower case."""

    FINISHED = 0
    REJECTED = 1
    FAILED = 2
    UNFINISHED = 3


STATUS_WORDS = tuple(status.name.lower() for status in Status)


class Column(NamedTuple):
    """Type of a column, and its value where whoever made the records does not know it (None: must know)."""

    dtype: type[np.generic]
    default: Any = None


COLUMNS: dict[str, Column] = {
    "id": Column(np.int64),
    "arrival_s": Column(np.float64),
    "admitted_s": Column(np.float64, np.nan),
    "first_token_s": Column(np.float64),
    "last_token_s": Column(np.float64),
    "prompt_tokens": Column(np.int64),
    "output_tokens": Column(np.int64),
    "cached_tokens": Column(np.int64, 0),
    "preemptions": Column(np.int32, 0),
    "pool": Column(np.int32, 0),
    "replica": Column(np.int32, 0),
    "status": Column(np.int8),
    "slo_class": Column(np.int32, 0),
    "tenant": Column(np.int32, 0),
    "measured": Column(np.bool_, True),
}
