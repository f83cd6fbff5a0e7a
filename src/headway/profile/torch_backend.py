"""Operators on a local NVIDIA GPU through PyTorch, timed by CUDA events around a captured graph of launches."""

from __future__ import annotations

import ctypes
import itertools
import sys
from collections.abc import Callable
from typing import Any, Final

from headway.errors import MissingExtra
from headway.profile.operators import AllReduce, Decode, Gemm, Operator, Prefill
from headway.profile.profiling import NoGpu, Run

__all__ = ["TorchBackend", "check_gpu"]

Launch = Callable[[], object]
_FP8_SINCE: Final = (8, 9)  # compute capability of the first GPUs with fp8 products
_MS: Final = 1e-3
_WARM_LAUNCHES: Final = 3
_SCALE: Final = 0.1  # of random values: sums stay far from overflow


_WOULD: Final = (
    "headway profile would time matrix products, attention and, over several GPUs, sums on it, to write them with "
    "--out DIR or to show them beside our law with --compare; run it on a machine with one"
)


def check_gpu() -> None:
    """Ask the driver, which needs no PyTorch, for a GPU.

    Raises:
        NoGpu: there is no NVIDIA driver here, or it knows no GPU.
    """
    if not _driver_gpus():
        raise NoGpu(f"there is no NVIDIA GPU here: {_WOULD}")


def _driver_gpus() -> int:
    """GPUs that NVIDIA's driver sees; 0 without a driver."""
    count = ctypes.c_int(0)
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
        if driver.cuInit(0) == 0:
            driver.cuDeviceGetCount(ctypes.byref(count))
    except (OSError, AttributeError):
        return 0
    return count.value


class TorchBackend:
    """The first local GPU; all of them for sums over GPUs.

    Raises:
        MissingExtra: PyTorch is not installed.
        NoGpu: it sees no GPU.
    """

    def __init__(self) -> None:
        try:
            import torch
        except ImportError:
            raise MissingExtra("measuring on a GPU needs PyTorch", "profile") from None
        if not torch.cuda.is_available() or torch.version.cuda is None:
            raise NoGpu(f"there is no NVIDIA GPU here that PyTorch can use: {_WOULD}")
        self.torch: Any = torch
        self.properties = torch.cuda.get_device_properties(0)
        self.cache_bytes = float(getattr(self.properties, "L2_cache_size", 0) or 64e6)
        self.gpus = torch.cuda.device_count()
        capability = (self.properties.major, self.properties.minor)
        self.dtypes = ("bf16", "fp8") if capability >= _FP8_SINCE and hasattr(torch, "_scaled_mm") else ("bf16",)

    def fingerprint(self) -> dict[str, Any]:
        """Return GPU, driver and versions."""
        cuda, properties = self.torch.cuda, self.properties
        driver = getattr(self.torch._C, "_cuda_getDriverVersion", lambda: 0)()
        return {
            "gpu": properties.name,
            "gpus": self.gpus,
            "memory_bytes": properties.total_memory,
            "multiprocessors": properties.multi_processor_count,
            "capability": f"{properties.major}.{properties.minor}",
            "cuda_driver_api": f"{driver // 1000}.{driver % 1000 // 10}",
            "cuda": self.torch.version.cuda,
            "pytorch": self.torch.__version__,
            "nccl": ".".join(map(str, cuda.nccl.version())) if self.gpus > 1 else "",
        }

    def prepare(self, operator: Operator, copies: int) -> Run | None:
        """Return the operator on `copies` sets of random buffers; None where this GPU cannot run it."""
        torch = self.torch
        make: dict[type, Callable[[Any], Launch]] = {
            Gemm: self._gemm, Prefill: self._prefill, Decode: self._decode, AllReduce: self._all_reduce,
        }
        try:
            launches = [make[type(operator)](operator) for _ in range(copies)]
            for launch in launches[:_WARM_LAUNCHES]:
                launch()
            torch.cuda.synchronize()
        except (RuntimeError, NotImplementedError):  # too large for the memory, or no such kernel
            torch.cuda.empty_cache()
            return None
        captured = not isinstance(operator, AllReduce)
        graphs: dict[int, Any] = {}

        def run(count: int) -> float:
            if captured and count not in graphs:
                graphs[count] = self._graph(launches, count)
            return self._timed(graphs[count].replay if captured else lambda: _turn(launches, count))

        return run

    def _graph(self, launches: list[Launch], count: int) -> Any:
        """A graph of launches: nothing waits for Python between them."""
        graph = self.torch.cuda.CUDAGraph()
        with self.torch.cuda.graph(graph):
            _turn(launches, count)
        return graph

    def _timed(self, act: Launch) -> float:
        start, end = (self.torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        act()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) * _MS

    def _random(self, *shape: int) -> Any:
        return self.torch.randn(*shape, device="cuda", dtype=self.torch.bfloat16) * _SCALE

    def _gemm(self, shape: Gemm) -> Launch:
        torch = self.torch
        inputs, weights = self._random(shape.m, shape.k), self._random(shape.n, shape.k)
        out = torch.empty(shape.m, shape.n, device="cuda", dtype=torch.bfloat16)
        if shape.dtype == "bf16":
            return lambda: torch.mm(inputs, weights.t(), out=out)
        one = torch.ones((), device="cuda")
        inputs, weights = (tensor.to(torch.float8_e4m3fn) for tensor in (inputs, weights))
        return lambda: torch._scaled_mm(inputs, weights.t(), one, one, out_dtype=torch.bfloat16)

    def _prefill(self, shape: Prefill) -> Launch:
        query = self._random(shape.batch, shape.heads, shape.isl, shape.head_dim)
        return self._attention(query, shape, shape.isl, causal=True)

    def _decode(self, shape: Decode) -> Launch:
        """The query heads that share a KV head stand as queries beside each other: each KV head is read once."""
        query = self._random(shape.batch, shape.kv_heads, shape.heads // shape.kv_heads, shape.head_dim)
        return self._attention(query, shape, shape.step + 1, causal=False)

    def _attention(self, query: Any, shape: Prefill | Decode, tokens: int, causal: bool) -> Launch:
        attend = self.torch.nn.functional.scaled_dot_product_attention
        keys, values = (self._random(shape.batch, shape.kv_heads, tokens, shape.head_dim) for _ in range(2))
        grouped = causal and shape.heads != shape.kv_heads
        return lambda: attend(query, keys, values, is_causal=causal, enable_gqa=grouped)

    def _all_reduce(self, shape: AllReduce) -> Launch:
        torch, count = self.torch, shape.message_bytes // 2
        parts = [torch.ones(count, device=f"cuda:{i}", dtype=torch.bfloat16) for i in range(shape.gpus)]
        return lambda: torch.cuda.nccl.all_reduce(parts)


def _turn(launches: list[Launch], count: int) -> None:
    for launch in itertools.islice(itertools.cycle(launches), count):
        launch()
