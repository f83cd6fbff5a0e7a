"""Results of bench as points: what comes back of a law that is known, and what is refused."""

import json
from pathlib import Path

import msgspec
import pytest

from cli_cases import refused, run
from headway.accuracy import calibrate
from headway.accuracy.judge import deployed
from headway.accuracy.predict import predict
from headway.accuracy.runs import run_of
from headway.cost.calibration import Calibration, Term
from headway.errors import BadInput
from headway.metrics import Result
from headway.sim import Deployment, simulate
from headway.specs import from_mapping, read_yaml, to_mapping
from headway.workload import WorkloadSpec, parse_arrival, parse_length, workload

ENGINE = Path(__file__).resolve().parents[1] / "examples" / "llamacpp"
MEASURED = {"measured": {"kind": "measured"}}
GRID = [(users, prompt, 16) for users in (1, 6, 18) for prompt in (32, 64, 200, 400)]


def tiny() -> Deployment:
    data = read_yaml(ENGINE / "deployment.yaml")
    del data["gateway"]
    replica = data["pools"][0]["replica"]
    replica["model"], replica["gpu"] = str(ENGINE / "config.json"), str(ENGINE / "core-share.yaml")
    return from_mapping(Deployment, data, "deployment.yaml")


def term(value: float) -> Term:
    return Term(value=value, low=value, high=value)


def truth() -> Calibration:
    """Hardware that is nothing like its data sheet."""
    return Calibration(gpu=str(ENGINE / "core-share.yaml"), engine="llama.cpp", few_tokens=term(2.5),
                       many_tokens=term(1.6), context=term(10.0), sequence_s=term(1.5e-3))  # fmt: skip


def measured(arrival: str, prompt: str, output: str, seed: int = 3, requests: int = 40, **changes: object) -> Result:
    """A run as the truth has it, said to be measured by a client that knows nothing of the truth."""
    replace = msgspec.structs.replace
    plain = tiny()
    pools = tuple(replace(pool, replica=replace(pool.replica, calibration=truth())) for pool in plain.pools)
    spec = WorkloadSpec(prompt=parse_length(prompt), output=parse_length(output), requests=requests,
                        arrival=parse_arrival(arrival))  # fmt: skip
    if "rate" in changes:
        spec = to_spec(spec, float(str(changes.pop("rate"))))
    result = simulate(replace(plain, pools=pools), workload(spec), seed=seed)
    return replace(result, deployment=to_mapping(plain), provenance=MEASURED, **changes)


def to_spec(spec: WorkloadSpec, rate: float) -> WorkloadSpec:
    return workload(spec, rate=rate).spec


def grid() -> list[Result]:
    return [
        measured(f"closed:{users}", str(prompt), str(output), seed) for seed, (users, prompt, output) in enumerate(GRID)
    ]


def test_closed_loops_teach_what_open_ones_will_be() -> None:
    found = calibrate([run_of(result, f"{place}.json") for place, result in enumerate(grid())])
    assert found.evidence.kept
    unseen = run_of(measured("poisson", "uniform:32:256", "uniform:8:40", 9, 300, rate=4.0), "unseen")
    shipped, learned = predict(unseen.case), predict(deployed(unseen.case, found.calibration))
    for figure in ("ttft_mean", "tpot_mean", "e2e_mean"):
        was = unseen.row.measured[figure]
        assert abs(learned[figure] / was - 1.0) < 0.03, figure
        assert abs(shipped[figure] / was - 1.0) > 0.2, figure


def test_a_run_is_simulated_with_its_own_draws_and_warm_up() -> None:
    result = measured("poisson", "uniform:32:256", "uniform:8:40", 5, 200, rate=4.0)
    case = run_of(result, "a").case
    assert (case.kind, case.seed, case.warmup) == ("open", 5, result.window.warmup_fraction)
    again = predict(deployed(case, truth()))
    assert again["ttft_mean"] == pytest.approx(result.ttft_s.mean, rel=1e-9)
    assert again["e2e_mean"] == pytest.approx(result.e2e_s.mean, rel=1e-9)


def test_what_teaches_nothing_is_refused() -> None:
    replace = msgspec.structs.replace
    good = measured("closed:2", "64", "8")
    with pytest.raises(BadInput, match="a simulation's result"):
        run_of(replace(good, provenance={}), "a")
    with pytest.raises(BadInput, match="--deployment FILE"):
        run_of(replace(good, deployment=None), "a")
    lost = replace(good.requests, finished=good.requests.finished - 2, failed=2)
    with pytest.raises(BadInput, match="2 of 40 requests did not finish"):
        run_of(replace(good, requests=lost), "a")


def test_results_and_tables_from_the_command_line(tmp_path: Path) -> None:
    files = []
    for place, result in enumerate(grid()):
        files.append(tmp_path / f"{place}.json")
        files[-1].write_text(result.to_json())
    said = run("calibrate", *files, "--out", tmp_path / "cal.yaml", "-q", "--json", tmp_path / "cal.json")
    assert said.exit_code == 0, said.output
    told = json.loads((tmp_path / "cal.json").read_text())
    assert told["file"] == "0.json and 11 more"
    assert not any("256 requests in flight" in text for text in told["advice"])  # there are 24 slots
    (tmp_path / "table.csv").write_text("")
    refused(run("calibrate", *files, tmp_path / "table.csv"), "1 tables and 12 results")
    refused(run("calibrate", *files, "--where", "engine=vllm"), "chooses rows of a table")
