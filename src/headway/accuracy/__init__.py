"""How good the simulator is: its figures against published measurements, row by row and request by request.

Lives here: reading of measurements (`rows.py`, `reading.py`), what a row stands for (`express.py`), errors, ranks and
regret (`score.py`, `ranking.py`), replay of recorded requests (`replay.py`), calibration on own ones (`calibrate.py`).
May import: sim and every room below it. Start reading at `run.py` (`validate`), then `express.py`.
"""

from headway.accuracy.calibrate import Calibrated, calibrate
from headway.accuracy.judge import Outcome, judge, make_judge
from headway.accuracy.replay import Replay, replay_requests
from headway.accuracy.rows import Row, read_rows
from headway.accuracy.run import Accuracy, sample, validate

__all__ = [
    "Accuracy",
    "Calibrated",
    "Outcome",
    "Replay",
    "Row",
    "calibrate",
    "judge",
    "make_judge",
    "read_rows",
    "replay_requests",
    "sample",
    "validate",
]
