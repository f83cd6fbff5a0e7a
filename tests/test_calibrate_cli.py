"""`headway calibrate`, and `--calibration` of the other verbs: what they print, write and refuse."""

import json

import msgspec
import pytest
import yaml

from accuracy_cases import as_csv, point
from calibration_cases import law, measured_grid
from cli_cases import refused, run
from headway.cost.calibration import SCHEMA, CalibrationFile, Evidence, read_calibration
from headway.specs import write_yaml

H100 = ("--model", "llama-3.1-8b", "--gpu", "h100-sxm")
SHORT = ("--input", "512", "--output", "32", "--rate", "4", "--requests", "60", "-q", "--json", "-")


@pytest.fixture(scope="module")
def points(tmp_path_factory):
    path = tmp_path_factory.mktemp("measured") / "mine.csv.gz"
    path.write_bytes(as_csv(measured_grid(law(few_tokens=1.5, many_tokens=1.4)), zipped=True))
    return path


@pytest.fixture(scope="module")
def written(points, tmp_path_factory):
    path = tmp_path_factory.mktemp("calibration") / "cal.yaml"
    said = run("calibrate", points, "--out", path)
    assert said.exit_code == 0, said.output
    return path


def saved(tmp_path, **changes):
    """A calibration file made by hand."""
    calibration = msgspec.structs.replace(law(few_tokens=1.5), **changes)
    file = CalibrationFile(schema=SCHEMA, calibration=calibration, evidence=Evidence(points=12))
    write_yaml(file, tmp_path / "hand.yaml")
    return tmp_path / "hand.yaml"


def test_points_become_a_table_and_a_file_that_names_its_source(points, written):
    said = run("calibrate", points)
    text = " ".join(said.stdout.split())
    assert "h100-sxm with vllm: 15 points of llama-3.1-8b, qwen3-32b" in text
    assert "few_tokens x 1." in text and "held-out points" in text
    assert "--out cal.yaml keeps the calibration" in said.stderr
    file = read_calibration(written)
    assert file.file == "mine.csv.gz"
    assert len(file.sha256) == 64
    assert file.evidence.kept
    assert 1.15 < file.calibration.few_tokens.value < 1.6
    assert file.evidence.held_out["tpot"] < file.evidence.before["tpot"]


def test_json_alone_goes_to_stdout(points, tmp_path):
    (tmp_path / "machine.json").write_text('{"gpu": "NVIDIA H100", "cuda": "12.8"}')
    said = run("calibrate", points, "-q", "--json", "-", "--fingerprint", tmp_path / "machine.json")
    told = json.loads(said.stdout)
    assert told["schema"] == SCHEMA
    assert told["fingerprint"]["cuda"] == "12.8"
    assert {"broken", "suspects", "contradictions", "advice"} <= told.keys()


def test_rows_are_chosen_by_any_column(tmp_path):
    rows = [*measured_grid(law(few_tokens=1.5)), point(row_id="other", gpu_key="H200")]
    (tmp_path / "two.csv").write_bytes(as_csv(rows))
    refused(run("calibrate", tmp_path / "two.csv"), "one GPU and one engine", "h200 with vllm (1 rows)", "--where")
    assert run("calibrate", tmp_path / "two.csv", "--where", "gpu_key=H100").exit_code == 0
    refused(run("calibrate", tmp_path / "two.csv", "--where", "gpu_key=A100"), "no row is left; there is H100, H200")
    refused(run("calibrate", tmp_path / "two.csv", "--where", "gpu=H100=", "--where", "gpus=1"), "no row is left")
    refused(run("calibrate", tmp_path / "two.csv", "--where", "gpu_kei=H100"), "nearest: gpu_key")
    refused(run("calibrate", tmp_path / "two.csv", "--where", "H100"), "write COLUMN=VALUE")


def test_too_few_points_are_refused_with_what_to_measure(tmp_path):
    (tmp_path / "few.csv").write_bytes(as_csv(measured_grid(None)[:3]))
    refused(run("calibrate", tmp_path / "few.csv"), "3 usable points", "Measure next: 256 requests in flight")


def test_a_simulation_is_slower_by_the_calibration_and_says_so(written):
    plain, slow = (json.loads(run("simulate", *H100, "--weights", "fp8", *SHORT, *extra).stdout)
                   for extra in ((), ("--calibration", written)))  # fmt: skip
    assert slow["tpot_s"]["mean"] > 1.2 * plain["tpot_s"]["mean"]
    said = slow["provenance"]["mixed"]["calibration.few_tokens"]
    assert said["kind"] == "fitted"
    assert "mine.csv.gz" in said["source"]


def test_other_hardware_or_another_engine_is_refused_by_name(written):
    h200 = ("--model", "llama-3.1-8b", "--gpu", "h200", *SHORT)
    refused(run("simulate", *h200, "--calibration", written), "GPU h200 here, h100-sxm in the calibration")
    sglang = ("--set", "pools.0.replica.engine.name=sglang")
    refused(run("simulate", *H100, *SHORT, *sglang, "--calibration", written), "engine sglang here, vllm")
    plan = ("plan", "--model", "llama-3.1-8b", "--gpu", "h200", "--gpus", "1", "--tpot", "50ms", "--rate", "1")
    refused(run(*plan, "--calibration", written), "GPU h200 here")


def test_a_table_of_other_hardware_is_refused_by_name(written, tmp_path):
    (tmp_path / "h200.csv").write_bytes(as_csv([point(gpu_key="H200", measured={"tpot_mean": 0.01})]))
    refused(run("validate", tmp_path / "h200.csv", "--calibration", written), "GPU h200 here, h100-sxm")


def test_validation_of_the_measured_points_is_better_with_their_calibration(points, written):
    before, after = (json.loads(run("validate", points, "-q", "--workers", "1", "--json", "-", *extra).stdout)
                     for extra in ((), ("--calibration", written)))  # fmt: skip
    assert after["errors"]["tpot"]["median"] < 0.5 * before["errors"]["tpot"]["median"]


def test_what_was_not_measured_is_noted(tmp_path):
    measured = {"versions": ("0.11.1",), "models": ("qwen3-32b",), "weights": ("bf16",), "kv": ("fp8",)}
    path = saved(tmp_path, **measured, layouts=((2, 1, 1, 1), (4, 1, 1, 1)))
    loud = tuple(word for word in SHORT if word != "-q")
    version = ("--set", "pools.0.replica.engine.version=0.9.1")
    said = run("simulate", *H100, *loud, *version, "--calibration", path)
    assert said.exit_code == 0
    assert "measured with vllm 0.11.1, not 0.9.1" in said.stderr
    assert "no points of model llama-3.1-8b (it has qwen3-32b)" in said.stderr
    assert "no points of KV precision bf16 (it has fp8)" in said.stderr
    assert "no points of TP degree 1 (it has 2, 4)" in said.stderr
    adopted = json.loads(run("simulate", *H100, *SHORT, "--calibration", path).stdout)
    assert adopted["deployment"]["pools"][0]["replica"]["engine"]["version"] == "0.11.1"


def test_a_calibration_that_changes_nothing_says_so(tmp_path):
    path = saved(tmp_path)
    file = msgspec.structs.replace(read_calibration(path), evidence=Evidence(points=12, kept=False))
    write_yaml(file, path)
    said = run("simulate", *H100, "--rate", "2", "--requests", "20", "--calibration", path)
    assert "changes nothing" in said.stderr


def test_the_deployment_a_plan_prints_can_be_simulated_unchanged(written, tmp_path):
    ask = ("--rate", "2", "--input", "256", "--output", "32", "--ttft", "1s", "--tpot", "100ms")
    small = ("--set", "layouts=[mixed]", "--set", "budget_tokens=[2048]", "--set", "requests=300",
             "--set", "weights=[fp8]", "--set", "kv=[bf16]", "--workers", "1")  # fmt: skip
    said = run("plan", *H100, "--gpus", "1", *ask, *small, "-q", "--yaml", tmp_path / "best.yaml",
               "--calibration", written)  # fmt: skip
    assert said.exit_code == 0, said.output
    best = yaml.safe_load((tmp_path / "best.yaml").read_text())
    assert best["pools"][0]["replica"]["calibration"]["gpu"] == "h100-sxm"
    told = json.loads(run("simulate", tmp_path / "best.yaml", *ask, "-q", "--json", "-").stdout)
    assert "calibration.few_tokens" in told["provenance"]["mixed"]


def test_a_calibration_belongs_to_tables_not_to_recorded_runs(written, tmp_path):
    refused(run("validate", "--requests", tmp_path, "--calibration", written), "--calibration belongs to a table")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("schema: x", "no calibration but of the schema 'x'"),
        ("a: 1", "no calibration but a mapping without a schema"),
        ("a: [", "not YAML"),
        ("row_id,source,engine\n" + 5000 * "a,b,c\n", "came 'row_id,source,engine a,b,c"),
    ],
)
def test_a_file_that_is_no_calibration_is_named_in_two_lines(tmp_path, text, said):
    (tmp_path / "bad.yaml").write_text(text)
    told = run("simulate", *H100, *SHORT, "--calibration", tmp_path / "bad.yaml")
    refused(told, said, "headway calibrate TABLE.csv --out FILE", "headway.calibration/1")
    assert len(told.stderr.splitlines()) == 2
    assert len(told.stderr) < 500


def test_a_calibration_that_is_not_there_is_only_that(tmp_path):
    told = run("simulate", *H100, *SHORT, "--calibration", tmp_path / "none.yaml")
    refused(told, "no such file")
    assert len(told.stderr.splitlines()) == 1


def test_a_fingerprint_of_another_machine_is_refused_before_the_fit(points, tmp_path, monkeypatch):
    monkeypatch.setattr("headway.accuracy.calibrate", None)  # the fit
    (tmp_path / "machine.json").write_text('{"gpu": "NVIDIA L4"}')
    refused(run("calibrate", points, "--fingerprint", tmp_path / "machine.json"), "'NVIDIA L4', the points of h100-sxm")


def test_a_fingerprint_that_is_no_json_is_refused(points, tmp_path):
    (tmp_path / "machine.json").write_text("GPU")
    refused(run("calibrate", points, "--fingerprint", tmp_path / "machine.json"), "not the JSON of `headway profile`")


def machines(tmp_path, there, here):
    """A calibration of one machine, and the fingerprint of another: the options that compare them."""
    file = CalibrationFile(
        schema=SCHEMA, calibration=law(few_tokens=1.5), evidence=Evidence(points=12), fingerprint=there
    )
    write_yaml(file, tmp_path / "hand.yaml")
    (tmp_path / "here.json").write_text(json.dumps(here))
    return ("--calibration", tmp_path / "hand.yaml", "--fingerprint", tmp_path / "here.json")


SXM = {"gpu": "NVIDIA H100 80GB HBM3", "cuda": "12.8"}


@pytest.mark.parametrize("verb", ["simulate", "plan", "serve", "whatif"])
def test_a_calibration_of_another_gpu_is_refused_by_its_fingerprint(tmp_path, verb):
    options = machines(tmp_path, SXM, {**SXM, "gpu": "NVIDIA H100 PCIe"})
    (tmp_path / "one.yaml").write_text("pools: [{replica: {model: llama-3.1-8b, gpu: h100-sxm}}]")
    of_verb = {
        "simulate": (*H100, *SHORT),
        "plan": (*H100, "--gpus", "1", "--rate", "1", "--workload", "chat", "--ttft", "1s"),
        "serve": ("examples/gateway.yaml", "--check"),
        "whatif": (tmp_path / "one.yaml", "--workload", "chat", "--rate", "1", "--replicas", "+1"),
    }
    refused(run(verb, *of_verb[verb], *options), "gpu NVIDIA H100 PCIe here, NVIDIA H100 80GB HBM3 there")


def test_another_driver_is_named_and_the_same_machine_is_not(tmp_path):
    said = run("simulate", *H100, *SHORT[:-3], "--json", "-", *machines(tmp_path, SXM, {**SXM, "cuda": "13.0"}))
    assert said.exit_code == 0 and "cuda 13.0 here, 12.8 there; times may differ" in said.stderr
    said = run("simulate", *H100, *SHORT[:-3], "--json", "-", *machines(tmp_path, SXM, SXM))
    assert said.exit_code == 0 and "another machine" not in said.stderr


def test_a_fingerprint_needs_one_to_be_compared_with(tmp_path):
    refused(run("simulate", *H100, *SHORT, *machines(tmp_path, {}, SXM)), "does not say on which machine")
    refused(run("simulate", *H100, *SHORT, "--fingerprint", tmp_path / "here.json"), "name that with --calibration")
