"""A step law whose steps all take longer or shorter: what to simulate with where the law itself may be off."""

from __future__ import annotations

import msgspec
import numpy as np

from headway.cost.steptable import StepTable

__all__ = ["stretched"]


def stretched(table: StepTable, factor: float) -> StepTable:
    """Return the law with every time multiplied by `factor`, above 0; joules, pages and limits stay."""
    if factor == 1.0:
        return table
    times = {}
    for name in table.__struct_fields__:
        seconds = getattr(table, name)
        if name.endswith("_s") and seconds is not None:
            times[name] = seconds * factor
            if isinstance(seconds, np.ndarray):
                times[name].setflags(write=False)
    return msgspec.structs.replace(table, **times)
