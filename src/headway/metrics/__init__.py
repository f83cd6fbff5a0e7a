"""Metrics: what happened, in numbers defined once (percentiles, SLO attainment, energy, cost, carbon).

Here live `Slo`, `Prices`, `Records` (a row per request), `Counters` (what only the run knows), `Result`.
May import `errors`, `units`, `specs`, `workload`; never a simulator or a gateway: both fill the same types.
Start reading at `summary.summarize`, then `result.Result`; `docs/result-schema.md` has every field.
Tests hold the laws: conservation, monotone percentiles and attainment, histogram error, energy sums up.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # loaded when first used: who needs limits alone, as the gateway's supervisor, is spared NumPy
    from typing import Any

    from headway.metrics.columns import Status
    from headway.metrics.counters import Counters, Tally
    from headway.metrics.histogram import Histogram
    from headway.metrics.records import Records
    from headway.metrics.result import Latency, Result
    from headway.metrics.slo import Prices, Slo
    from headway.metrics.summary import summarize, warmup_requests

__all__ = [
    "Counters",
    "Histogram",
    "Latency",
    "Prices",
    "Records",
    "Result",
    "Slo",
    "Status",
    "Tally",
    "summarize",
    "warmup_requests",
]

_HOME = {
    "Counters": "counters",
    "Histogram": "histogram",
    "Latency": "result",
    "Prices": "slo",
    "Records": "records",
    "Result": "result",
    "Slo": "slo",
    "Status": "columns",
    "Tally": "counters",
    "summarize": "summary",
    "warmup_requests": "summary",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'headway.metrics' has no attribute {name!r}")
    return getattr(importlib.import_module(f"headway.metrics.{_HOME[name]}"), name)
