"""An OpenAI-compatible engine without a GPU, whose timing is the simulator's.

Lives here: virtual replicas, the prompt rule, HTTP, faults, vLLM's metric names. One process, a port per replica.
May import: engine, workload, metrics, cost, model, hardware, state; not sim, gateway, bench.
Start reading in `replica.py` (virtual time), then `port.py`, where the wall clock follows it.
"""

from headway.emulate.faults import Fault, parse_fault
from headway.emulate.http import Limits
from headway.emulate.replica import PacedReplica
from headway.emulate.server import Emulator, Split
from headway.emulate.settings import Settings

__all__ = ["Emulator", "Fault", "Limits", "PacedReplica", "Settings", "Split", "parse_fault"]
