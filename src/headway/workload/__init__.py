"""Requests over time: arrivals, lengths, prefix identity, sessions, and readers of trace files.

May import layer 0 only (errors, units, specs). Lengths are tokens, times seconds from the workload's start.
Start reading at `workloads.py` (`Workload.batches`), then `spec.py` (what a workload is made of),
`generate.py` (how a spec becomes batches) and `batch.py` (what everything above sees). Presets are data:
`data/*.yaml`, fitted by `scripts/fit_workloads.py`; `docs/workloads.md` says on what and how well.
"""

from headway.workload.arrivals import parse_arrival
from headway.workload.batch import Batch
from headway.workload.lengths import parse_length
from headway.workload.spec import RequestClass, Sessions, SharedPrefix, WorkloadSpec
from headway.workload.workloads import Workload, workload, workload_names, write

__all__ = [
    "Batch",
    "RequestClass",
    "Sessions",
    "SharedPrefix",
    "Workload",
    "WorkloadSpec",
    "parse_arrival",
    "parse_length",
    "workload",
    "workload_names",
    "write",
]
