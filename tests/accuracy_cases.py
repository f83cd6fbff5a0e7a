"""Operating points made up for the tests of accuracy: one of every kind that can be expressed."""

import csv
import gzip
import io

from headway.accuracy.express import express
from headway.accuracy.predict import predict
from headway.accuracy.rows import FIGURES, Row

POINT = {
    "row_id": "a",
    "source": "made-up",
    "engine": "vllm",
    "model_key": "llama-3-8b",
    "precision_weights": "fp8",
    "gpu_key": "H100",
    "gpu_count": 1,
    "tp": 1,
    "mode": "agg",
    "workload": "synthetic 512/64",
    "isl_mean": 512.0,
    "osl_mean": 64.0,
    "concurrency": 8.0,
}
SPLIT = (
    "prefill[num_workers=2 tp_size=1 pp_size=1 attention_dp_size=1 batch_size=1]; "
    "decode[num_workers=1 tp_size=2 pp_size=1 attention_dp_size=1 batch_size=nan]"
)
KINDS = {
    "closed": {},
    "closed, jittered": {"notes": "measured=2026-01-01", "concurrency": 5.0},
    "replicas": {"dp": 2, "gpu_count": 2},
    "experts on the same GPUs": {"model_key": "qwen3-30b-a3b", "gpu_count": 2, "ep": 2, "dp": 1},
    "ranks that share experts": {"model_key": "qwen3-30b-a3b", "gpu_count": 2, "ep": 2, "dp": 2},
    "pipeline": {"pp": 2, "tp": None, "gpu_count": 2, "workload": "static batch 512/64", "batch_size": 4.0},
    "static batch": {"workload": "static batch 512/64", "batch_size": 16.0, "concurrency": None},
    "open": {"request_rate": 20.0, "num_prompts": 80.0, "concurrency": None},
    "steady": {"batch_size": 6.5, "dist_note": "avg running batch", "workload": "gpqa", "isl_mean": None},
    "saturated": {"workload": "offline max throughput 512/64", "concurrency": None, "gpu_key": "L40S"},
    "single stream": {"mode": "single-stream", "concurrency": 1.0},
    "MLPerf, offline": {"workload": "mlperf Offline", "tp": None, "gpu_count": 8, "isl_mean": None, "osl_mean": None},
    "MLPerf, under limits": {"workload": "mlperf Server", "tp": None, "gpu_count": 8, "isl_mean": None},
    "community file": {
        "mode": "single-stream",
        "engine": "llamacpp",
        "model_key": "some-finetune-7b-q4-k-m.gguf",
        "model": "Some-Finetune-7B-Q4_K_M.gguf",
        "gpu": "NVIDIA GB10",
        "gpu_key": "GB10",
        "precision_weights": "Q4_K_M",
        "tp": None,
    },
    "drafted": {"notes": "speculative_tokens=2 draft=mtp acceptance=0.7"},
    "states": {"model_key": "nemotron-nano-9b", "precision_weights": "bf16"},
    "split": {"mode": "disagg", "notes": SPLIT, "gpu_count": 4, "tp": None},
}


def point(**changes) -> Row:
    return Row(**{name: value for name, value in (POINT | changes).items() if value is not None})


def measured_by_ourselves(factor: float = 1.0, **changes) -> Row:
    """A row whose figures are the simulator's own times a factor."""
    row = point(**changes)
    figures = {name: value * factor for name, value in predict(express(row)).items() if value > 0}
    return Row(**{name: getattr(row, name) for name in row.__struct_fields__ if name != "measured"}, measured=figures)


def as_csv(rows: list[Row], zipped: bool = False) -> bytes:
    columns = [name for name in Row.__struct_fields__ if name != "measured"]
    text = io.StringIO()
    lines = csv.writer(text)
    lines.writerow([*columns, *FIGURES])
    for row in rows:
        cells = ["" if getattr(row, name) is None else getattr(row, name) for name in columns]
        figures = ((row.measured.get(name), factor) for name, factor in FIGURES.values())
        lines.writerow([*cells, *("" if value is None else repr(value / factor) for value, factor in figures)])
    data = text.getvalue().encode()
    return gzip.compress(data) if zipped else data
