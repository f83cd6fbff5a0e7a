"""Timing operators: the loop on a backend with a clock of its own, its files, and the comparison with our law."""

import csv
import gzip
import json
import sys
import types

import pytest

from cli_cases import refused, run
from headway.hardware import gpu, gpu_keys
from headway.profile import AllReduce, Decode, Gemm, Prefill, Timing, compare, grid, measure
from headway.profile.comparing import predicted_seconds
from headway.profile.profiling import BUFFERS_BYTES, COLD_CACHES
from headway.profile.timings import COLUMNS, write_timings

L2_BYTES = 50e6
GEMM = Gemm("bf16", 16, 4096, 4096)


class FakeBackend:
    """Takes a second per gigabyte, with launches that jitter; knows no fp8."""

    cache_bytes = L2_BYTES

    def __init__(self, slow_launches: tuple[int, ...] = ()) -> None:
        self.slow = slow_launches
        self.copies: dict[object, int] = {}
        self.runs = 0

    def fingerprint(self) -> dict[str, object]:
        return {"gpu": "NVIDIA Fake", "pytorch": "9.9", "nccl": "2.2"}

    def prepare(self, operator, copies):
        if getattr(operator, "dtype", "bf16") == "fp8":
            return None
        self.copies[operator] = copies

        def run_(launches: int) -> float:
            self.runs += 1
            jitter = 50.0 if self.runs in self.slow else 1.0
            return jitter * launches * operator.moved_bytes / 1e9

        return run_


def test_a_launch_is_the_median_of_repeats_without_the_first_run():
    backend = FakeBackend(slow_launches=(1, 3))  # the warm-up, and one of seven repeats
    (timing,) = measure(backend, [GEMM], repeats=7)
    assert timing.seconds == pytest.approx(GEMM.moved_bytes / 1e9)
    assert backend.runs == 8


@pytest.mark.parametrize("operator", [GEMM, Gemm("bf16", 1, 512, 512), Decode(64, 4095, 32, 8, 128),
                                      Prefill(1, 4096, 32, 8, 128), AllReduce(2, 1 << 20)])  # fmt: skip
def test_buffers_are_cold_and_fit(operator):
    backend = FakeBackend()
    measure(backend, [operator], repeats=1)
    copies = backend.copies[operator]
    assert copies * operator.moved_bytes <= BUFFERS_BYTES
    assert copies == 64 or (copies - 1) * operator.moved_bytes > COLD_CACHES * L2_BYTES


def test_what_cannot_run_is_left_out_and_progress_counts_all():
    told = []
    shapes = [Gemm("fp8", 1, 64, 64), GEMM]
    found = measure(FakeBackend(), shapes, progress=lambda done, total: told.append((done, total)))
    assert [timing.operator for timing in found] == [GEMM]
    assert told == [(1, 2), (2, 2)]


@pytest.mark.parametrize("full", [False, True])
def test_the_grid_has_every_kind_once_and_sums_only_with_several_gpus(full):
    alone, four = grid(("bf16", "fp8"), 1, full), grid(("bf16", "fp8"), 4, full)
    assert len(set(four)) == len(four)
    assert {type(shape) for shape in alone} == {Gemm, Prefill, Decode}
    assert {shape.gpus for shape in four if isinstance(shape, AllReduce)} == {2, 4}
    assert {shape.dtype for shape in four if isinstance(shape, Gemm)} == {"bf16", "fp8"}


def test_timings_are_written_in_the_columns_of_the_public_tables(tmp_path):
    shapes = [GEMM, Prefill(2, 512, 32, 8, 128), Decode(4, 1023, 32, 8, 128), AllReduce(2, 1 << 20)]
    backend = FakeBackend()
    written = write_timings(tmp_path / "new", measure(backend, shapes), backend.fingerprint(), "h100-sxm")
    assert json.loads(written[0].read_text())["pytorch"] == "9.9"
    tables = {}
    for path in written[1:]:
        with gzip.open(path, "rt", newline="") as file:
            tables[path.name.partition(".")[0]] = list(csv.DictReader(file))
    assert set(tables) == set(COLUMNS)
    (product,), (prompt,) = tables["ops_gemm"], tables["ops_attention_prefill"]
    assert (product["dtype"], product["m"], product["n"], product["k"]) == ("bfloat16", "16", "4096", "4096")
    assert float(product["time_us"]) == pytest.approx(GEMM.moved_bytes / 1e3, rel=1e-3)
    assert (prompt["isl"], prompt["step"], prompt["batch_size"]) == ("512", "0", "2")
    (decode,), (summed,) = tables["ops_attention_decode"], tables["ops_collectives"]
    assert (decode["isl"], decode["step"], decode["num_key_value_heads"]) == ("1", "1023", "8")
    assert (summed["num_gpus"], summed["message_bytes"], summed["lib_version"]) == ("2", "1048576", "2.2")


def test_the_columns_are_those_of_the_public_tables(shared_data):
    for name, columns in COLUMNS.items():
        with gzip.open(shared_data / "measured" / f"{name}.csv.gz", "rt") as file:
            assert file.readline().strip().split(",") == list(columns)


@pytest.mark.parametrize("key", sorted(key for key in gpu_keys() if gpu(key).vendor.lower() == "nvidia"))
def test_our_law_has_a_time_no_shorter_than_the_data_sheet_for_every_shape(key):
    card = gpu(key)
    for shape in grid(("bf16", "fp8"), card.gpus_per_node):
        said = predicted_seconds(shape, key)
        if said is None:
            assert shape.dtype not in card.peak_flops
        elif not isinstance(shape, AllReduce):
            bytes_moved = shape.moved_bytes if isinstance(shape, Gemm | Decode) else 0.0
            assert said >= 0.999 * bytes_moved / card.memory_bytes_per_s


def test_timings_of_our_own_law_compare_as_equal():
    shapes = grid(("bf16",), 2)
    timings = [Timing(shape, 2.0 * predicted_seconds(shape, "h100-sxm")) for shape in shapes]
    compared = compare(timings, "h100-sxm")
    assert {one.kind for one in compared} >= {"attention, prompts", "attention, decoding", "all-reduce, 2 GPUs"}
    assert all(one.ratio == pytest.approx(0.5) and one.error == pytest.approx(0.5) for one in compared)
    assert sum(one.n for one in compared) == len(shapes)


# --- the verb -----------------------------------------------------------------------------------------------


def fake_torch(available: bool) -> types.ModuleType:
    torch = types.ModuleType("torch")
    torch.cuda = types.SimpleNamespace(is_available=lambda: available)
    torch.version = types.SimpleNamespace(cuda=None)
    return torch


@pytest.fixture
def driver(monkeypatch):
    """A machine whose driver sees a GPU."""
    monkeypatch.setattr("headway.profile.torch_backend._driver_gpus", lambda: 1)


@pytest.mark.parametrize("asked", [(), ("--compare",), ("--out", "timings")])
@pytest.mark.parametrize("torch", [None, "there"])
def test_without_a_gpu_that_is_said_first_and_what_one_would_be_for(monkeypatch, tmp_path, asked, torch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("headway.profile.torch_backend._driver_gpus", lambda: 0)
    monkeypatch.setitem(sys.modules, "torch", torch and fake_torch(available=False))
    said = run("profile", *asked)
    refused(said, "no NVIDIA GPU here", "would time matrix products", "--out DIR", "--compare", code=1)
    assert "PyTorch" not in said.stderr and "nothing to do" not in said.stderr


def test_without_pytorch_the_extra_is_named(monkeypatch, driver):
    monkeypatch.setitem(sys.modules, "torch", None)
    refused(run("profile", "--compare"), "needs PyTorch", "headway[profile]")


def test_without_a_gpu_for_pytorch_one_line_says_so(monkeypatch, driver):
    monkeypatch.setitem(sys.modules, "torch", fake_torch(available=False))
    said = run("profile", "--compare")
    refused(said, "no NVIDIA GPU here", code=1)
    assert said.stderr.count("\n") == 1


def test_timings_that_would_go_nowhere_are_refused(driver):
    refused(run("profile"), "--out DIR", "--compare")


def test_the_verb_measures_writes_and_compares(monkeypatch, driver, tmp_path):
    class Local(FakeBackend):
        dtypes, gpus = ("bf16",), 1
        properties = types.SimpleNamespace(name="NVIDIA H100 80GB HBM3")

        def fingerprint(self):
            return super().fingerprint() | {"gpu": self.properties.name}

    monkeypatch.setattr("headway.profile.torch_backend.TorchBackend", Local)
    said = run("profile", "--out", tmp_path / "t", "--compare", "--json", tmp_path / "told.json")
    assert said.exit_code == 0, said.output
    assert "attention, decoding" in said.stdout
    told = json.loads((tmp_path / "told.json").read_text())
    assert told["timings"] == len(grid(("bf16",)))
    with gzip.open(tmp_path / "t" / "ops_gemm.csv.gz", "rt") as file:
        assert next(csv.DictReader(file))["gpu"].startswith("h100")
