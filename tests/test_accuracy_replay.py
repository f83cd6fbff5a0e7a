"""Recorded runs: a run that the simulator recorded itself is replayed without error."""

import csv
import gzip
import io
import json

import msgspec
import numpy as np
import pytest

from headway.accuracy import replay_requests
from headway.cost import EngineSettings, Replica, compile_replica
from headway.errors import BadInput
from headway.sim import Deployment, Pool, simulate
from headway.workload import workload, write

NAME = "made-up_vllm_H100_Llama-3.1-8B"
ARGUMENTS = {
    "tensor_parallel_size": 1,
    "data_parallel_size": 1,
    "max_num_seqs": 16,
    "max_num_batched_tokens": 2048,
    "dtype": "bfloat16",
    "kv_cache_dtype": "auto",
}
COLUMNS = ("input_tokens", "output_tokens", "arrival_s", "queued_s", "scheduled_s", "first_token_s", "last_token_s")


def table(columns, rows):
    text = io.StringIO()
    lines = csv.writer(text)
    lines.writerow(columns)
    lines.writerows([[repr(float(value)) for value in row] for row in rows])
    return gzip.compress(text.getvalue().encode())


def record(folder, later_s=0.0, slower=1.0, **changes):
    """Write what a log of our own run of 60 requests would hold, `later_s` after the clock's zero."""
    made = workload("chat", rate=40.0, requests=60)
    write(made, folder / "trace.jsonl")
    engine = EngineSettings(max_batched_tokens=2048, max_seqs=16)
    replica = Replica(model="llama-3.1-8b", gpu="h100-sxm", engine=engine)
    requests = workload(str(folder / "trace.jsonl"))
    inside = msgspec.structs.replace(compile_replica(replica), intake_s=0.0)
    records = simulate(Deployment(pools=(Pool(replica=replica),)), requests, warmup=0.0, tables=(inside,)).records
    start_s = records["arrival_s"].min()
    times = {name: (records[name] - start_s) for name in ("arrival_s", "admitted_s", "first_token_s", "last_token_s")}
    arrived = times["arrival_s"]
    slow = {name: arrived + (times[name] - arrived) * slower + later_s for name in times}
    order = ("arrival_s", "arrival_s", "admitted_s", "first_token_s", "last_token_s")
    rows = zip(records["prompt_tokens"], records["output_tokens"], *(slow[name] for name in order), strict=True)
    (folder / f"{NAME}.requests.csv.gz").write_bytes(table(COLUMNS, rows))
    seconds = np.arange(0.1, times["last_token_s"].max(), 0.1)

    def count(name):
        return (times[name][None, :] <= seconds[:, None]).sum(axis=1)

    running, waiting = count("admitted_s") - count("last_token_s"), count("arrival_s") - count("admitted_s")
    series = table(("t", "running", "waiting"), zip(seconds, running, waiting, strict=True))
    (folder / f"{NAME}.timeseries.csv.gz").write_bytes(series)
    meta = {"model": "meta-llama/Llama-3.1-8B", "engine_kwargs": ARGUMENTS | changes, "workload": "traces/trace.jsonl"}
    (folder / f"{NAME}.meta.json").write_text(json.dumps(meta))


def test_our_own_run_is_replayed_without_error(tmp_path):
    record(tmp_path)
    found = replay_requests(tmp_path)
    assert (list(found.runs), found.skipped) == ([NAME], {})
    run = found.runs[NAME]
    assert run.requests == 60
    points = [point for stats in run.latencies.values() for point in stats.values()]
    assert len(points) == 12 and run.curves["waiting"].measured_mean > 0
    assert [point.error for point in (*points, run.makespan_s)] == pytest.approx([0] * 13, abs=1e-6)
    assert [curve.max_distance for curve in run.curves.values()] == [0, 0]


def test_times_count_from_the_first_arrival(tmp_path):
    record(tmp_path, later_s=100.0)
    assert replay_requests(tmp_path).runs[NAME].latencies["e2e"]["p99"].error == pytest.approx(0, abs=1e-6)


def test_a_run_twice_as_slow_shows_half_the_latency(tmp_path):
    record(tmp_path, slower=2.0)
    run = replay_requests(tmp_path).runs[NAME]
    assert [run.latencies[name]["mean"].error for name in ("ttft", "tpot", "e2e")] == pytest.approx([-0.5] * 3)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"data_parallel_size": 2}, "data-parallel ranks refused by the cost model"),
        ({"dtype": "int3"}, "precision of the weights not modelled"),
        ({"tensor_parallel_size": 3}, "TP degree refused by the cost model"),
    ],
)
def test_a_run_that_cannot_be_expressed_is_counted(changes, reason, tmp_path):
    record(tmp_path, **changes)
    found = replay_requests(tmp_path)
    assert (found.runs, found.skipped, found.reasons) == ({}, {reason: 1}, {NAME: reason})
    assert json.loads(found.to_json())["skipped"] == {reason: 1}


def test_names_of_models_and_gpus_are_looked_up(tmp_path):
    record(tmp_path)
    for old, new, reason in (("H100", "Abacus", "GPU"), ("Abacus", "H100", "")):
        for path in list(tmp_path.glob("made-up*")):
            path.rename(tmp_path / path.name.replace(old, new))
        assert replay_requests(tmp_path).skipped == ({f"{reason} not in the catalogue": 1} if reason else {})
    meta = tmp_path / f"{NAME}.meta.json"
    meta.write_text(meta.read_text().replace("Llama-3.1-8B", "Abacus-1"))
    assert replay_requests(tmp_path).skipped == {"model not in the catalogue": 1}


def spoil(folder, what):
    if what == "nothing":
        for path in list(folder.iterdir()):
            path.unlink()
    elif what == "trace":
        (folder / "trace.jsonl").unlink()
    elif what == "other":
        write(workload("chat", requests=60, rate=1.0).at_rate(2.0), folder / "trace.jsonl")
        lines = (folder / "trace.jsonl").read_text().splitlines()
        (folder / "trace.jsonl").write_text("\n".join(lines[:-1]) + "\n")
    elif what == "requests":
        (folder / f"{NAME}.requests.csv.gz").unlink()
    elif what == "column":
        (folder / f"{NAME}.requests.csv.gz").write_bytes(gzip.compress(b"input_tokens\n1\n"))
    elif what == "meta":
        (folder / f"{NAME}.meta.json").write_text('{"model": "x"}')


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("nothing", "a recorded run is"),
        ("trace", "name it with --trace FILE"),
        ("other", "the trace holds other requests than the run"),
        ("requests", "no such file"),
        ("column", "expected a CSV with numbers in"),
        ("meta", "expected a JSON object with model and engine_kwargs"),
    ],
)
def test_what_is_missing_or_broken_is_named(what, said, tmp_path):
    record(tmp_path)
    spoil(tmp_path, what)
    with pytest.raises(BadInput, match=said):
        replay_requests(tmp_path)


def test_a_trace_can_be_named(tmp_path):
    record(tmp_path)
    (tmp_path / "trace.jsonl").rename(tmp_path / "elsewhere.jsonl")
    assert replay_requests(tmp_path, tmp_path / "elsewhere.jsonl").runs[NAME].requests == 60


def test_the_published_runs(shared_data):
    found = replay_requests(shared_data / "measured" / "requests")
    assert len(found.runs) == 2 and not found.skipped
    for kind, run in found.runs.items():
        assert run.requests == 300
        for name in ("ttft", "tpot", "e2e"):
            limit = 0.03 if "Llama" in kind else 0.15 if name == "ttft" else 0.05  # a queue of experts near its limit
            assert abs(run.latencies[name]["mean"].error) < limit
            assert abs(run.latencies[name]["p99"].error) < 0.12


def with_kv(folder, percent):
    """Add a column of KV use to the log: what our own engine used, times `percent` / 100."""
    from headway.accuracy import replay

    path = folder / f"{NAME}.timeseries.csv.gz"
    rows = list(csv.reader(io.TextIOWrapper(io.BytesIO(gzip.decompress(path.read_bytes())), newline="")))[1:]
    engine = EngineSettings(max_batched_tokens=2048, max_seqs=16)
    replica = Replica(model="llama-3.1-8b", gpu="h100-sxm", engine=engine)
    inside = msgspec.structs.replace(compile_replica(replica), intake_s=0.0)
    requests = workload(str(folder / "trace.jsonl"))
    at_s = np.array([float(row[0]) for row in rows])
    used = replay._kv_pct(Deployment(pools=(Pool(replica=replica),)), requests, inside, at_s)
    series = [(*map(float, row), use * percent / 100) for row, use in zip(rows, used, strict=True)]
    path.write_bytes(table(("t", "running", "waiting", "kv_cache_pct"), series))
    return used, np.array([float(row[1]) for row in rows])


def test_the_kv_curve_is_compared_where_the_log_has_one(tmp_path):
    record(tmp_path)
    used, running = with_kv(tmp_path, 50)
    assert 0 < used.max() < 100 and np.corrcoef(used, running)[0, 1] > 0.8
    found = replay_requests(tmp_path).runs[NAME].curves["kv"]
    assert found.measured_mean == pytest.approx(used.mean() / 2)
    assert (found.mean_distance, found.max_distance) == pytest.approx((used.mean() / 2, used.max() / 2), rel=0.1)


def test_a_kv_curve_of_zeros_is_no_measurement(tmp_path):
    record(tmp_path)
    with_kv(tmp_path, 0)
    assert set(replay_requests(tmp_path).runs[NAME].curves) == {"running", "waiting"}
