"""What a step of a replica costs in seconds and joules, what moving its KV costs, and whether it fits.

What lives here: `Replica` (`replica.py`), `memory_fit`, the laws per operator (`physics.py`) with their
coefficients (`data/efficiency.yaml`), `compile_replica`, which sums them into a `StepTable`, and laws
published by others. May import: errors, units, specs, hardware, model. Start reading at `steptable.py` for
the formula of a step, then `compiler.py` for where each array is from.
"""

from headway.cost.compiler import compile_replica
from headway.cost.efficiency import Estimate
from headway.cost.laws import distserve_table
from headway.cost.memory import MemoryFit, memory_fit
from headway.cost.replica import EngineSettings, Replica
from headway.cost.steptable import StepTable, chunk_area
from headway.cost.transfer import kv_links, kv_transfer_bytes

__all__ = [
    "EngineSettings",
    "Estimate",
    "MemoryFit",
    "Replica",
    "StepTable",
    "chunk_area",
    "compile_replica",
    "distserve_table",
    "kv_links",
    "kv_transfer_bytes",
    "memory_fit",
]
