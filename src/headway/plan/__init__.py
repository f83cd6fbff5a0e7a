"""The planner: which deployments serve a workload within its SLO, ranked; what if; how many over a day.

What lives here: `Question` and `Plan`, the search space, the search on the rate; `plans`, `whatif`, `capacity`.
May import: sim and every room below it; never report or cli, nor gateway or bench.
Start reading in `run.py` (`plan`), then `contest.py` (what is simulated, and how long) and `search.py` (goodput).
"""

from headway.plan.answer import Candidate, Plan
from headway.plan.crew import RayCluster
from headway.plan.day import Capacity, capacity
from headway.plan.many import plans
from headway.plan.otherwise import Case, WhatIf, whatif
from headway.plan.pools import fleet
from headway.plan.question import Question
from headway.plan.run import plan

__all__ = [
    "Candidate",
    "Capacity",
    "Case",
    "Plan",
    "Question",
    "RayCluster",
    "WhatIf",
    "capacity",
    "fleet",
    "plan",
    "plans",
    "whatif",
]
