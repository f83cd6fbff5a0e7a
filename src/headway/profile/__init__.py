"""Measuring on real hardware: operators of a local GPU, in the form of the public timings the cost model is fitted on.

Lives here: shapes (`operators.py`), the loop (`profiling.py`), PyTorch on a GPU (`torch_backend.py`), files
(`timings.py`), the cost model's say on the same shapes (`comparing.py`). May import: cost, hardware. PyTorch is
imported where a GPU is asked for, nowhere else. Start reading at `profiling.py`.
"""

from headway.profile.comparing import Comparison, compare
from headway.profile.operators import AllReduce, Decode, Gemm, Operator, Prefill, grid
from headway.profile.profiling import Backend, NoGpu, Timing, measure

__all__ = [
    "AllReduce",
    "Backend",
    "Comparison",
    "Decode",
    "Gemm",
    "NoGpu",
    "Operator",
    "Prefill",
    "Timing",
    "compare",
    "grid",
    "measure",
]
