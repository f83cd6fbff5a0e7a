"""How good the simulator is: its figures against published measurements, row by row and request by request.

Lives here: reading of measurements (`rows.py`, `reading.py`), what a row stands for (`express.py`), errors, ranks and
regret (`score.py`, `ranking.py`), replay of recorded requests (`replay.py`). It measures and changes no coefficient.
May import: sim and every room below it. Start reading at `run.py` (`validate`), then `express.py`.
"""

from headway.accuracy.judge import Outcome, judge, make_judge
from headway.accuracy.ranking import kendall_tau
from headway.accuracy.replay import Replay, replay_requests
from headway.accuracy.rows import Row, read_rows
from headway.accuracy.run import Accuracy, sample, validate
from headway.accuracy.score import Errors

__all__ = [
    "Accuracy",
    "Errors",
    "Outcome",
    "Replay",
    "Row",
    "judge",
    "kendall_tau",
    "make_judge",
    "read_rows",
    "replay_requests",
    "sample",
    "validate",
]
