"""The simulator: a deployment of engines under a virtual clock, fed by a workload.

Lives here: `Deployment`, `Pool`, `Policies` (specs) and `simulate`, which gives a `Result`.
May import: engine and every room below it; never gateway or bench.
Start reading in `run.py` (`simulate`), then `cluster.py` (`Cluster.advance`), the loop.
"""

from headway.sim.deployment import Deployment, Policies, Pool
from headway.sim.interrupt import CtrlC
from headway.sim.run import handoff, simulate

__all__ = ["CtrlC", "Deployment", "Policies", "Pool", "handoff", "simulate"]
