"""The planner: which deployments serve a workload within its SLO, ranked by cost, energy or goodput.

What lives here: `Question` and `Plan` (what goes in and comes out), the search space, the search on the rate, ranks.
May import: sim and every room below it; never report or cli, nor gateway or bench.
Start reading in `run.py` (`plan`), then `contest.py` (what is simulated, and how long) and `search.py` (goodput).
"""

from headway.plan.answer import Candidate, Plan
from headway.plan.question import Question
from headway.plan.run import plan

__all__ = ["Candidate", "Plan", "Question", "plan"]
