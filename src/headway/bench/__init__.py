"""The load generator: drives an OpenAI-compatible endpoint with any workload, and measures its own error as it does.

Lives here: what is asked (`target.py`, `prompts.py`), the stream of an answer (`answer.py`), connections and schedule
(`connection.py`, `driver.py`), processes (`crew.py`, `worker.py`), the source of known timing (`paced.py`) and what is
said of it (`selfcheck.py`), the sum (`measured.py`). May import workload, metrics. Start reading at `run.py`.
"""

from headway.bench.driver import Job
from headway.bench.measured import Log
from headway.bench.paced import PacedSource
from headway.bench.probe import probe
from headway.bench.prompts import Prompts
from headway.bench.run import bench
from headway.bench.selfcheck import ClientError
from headway.bench.target import Target

__all__ = ["ClientError", "Job", "Log", "PacedSource", "Prompts", "Target", "bench", "probe"]
