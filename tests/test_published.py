"""Calibrations that come with the package: where they hold, what they may say, and that they reach every verb."""

import json
from itertools import chain

import msgspec
import pytest

from accuracy_cases import measured_by_ourselves
from cli_cases import refused, run
from headway.accuracy.express import express
from headway.accuracy.judge import deployed, judge
from headway.cli.calibration import read_calibrated
from headway.cli.terminal import Terminal
from headway.cost import EngineSettings, Replica, compile_replica
from headway.cost.calibration import FACTORS
from headway.cost.published import _by_place, followed, offered, published, with_published
from headway.cost.speculation import Speculation
from headway.cost.uncertainty import evidence_level, interval
from headway.errors import DoesNotFit
from headway.hardware import gpu
from headway.metrics import Slo
from headway.model import model
from headway.plan import Question, plan
from headway.sim import Deployment, Pool, simulate
from headway.specs import from_mapping
from headway.workload import workload

GROUPS = list(_by_place().values())
KNOWN = next(one for one in GROUPS if one.model == "qwen3-32b" and one.gpu == "h100-sxm" and one.engine == "vllm")
FLAGS = ("--input", "512", "--output", "32", "--rate", "2", "--requests", "40", "-q", "--json", "-")


def replica(one, layout, **changes) -> Replica:
    tp, pp, dp, ep = layout
    version = "" if one.since == "0" else one.since
    engine = EngineSettings(name=one.engine, version=version, max_batched_tokens=4096, max_seqs=4, memory_utilization=1)
    here = {"model": one.model, "gpu": one.gpu, "weights": one.weights, "kv": one.kv, "engine": engine}
    return Replica(**here | {"tp": tp, "pp": pp, "dp": dp, "ep": ep} | changes)


def flags(one, **changes):
    layout = dict(zip(("tp", "pp"), one.layouts[0], strict=False)) | changes
    engine = f"pools.0.replica.engine.version='{one.since}'"
    asked = {"model": one.model, "gpu": one.gpu, "weights": one.weights, "kv": one.kv} | layout
    return [*chain(*((f"--{name}", str(value)) for name, value in asked.items())), "--set", engine]


PLACES = [(one, layout) for one in GROUPS for layout in one.layouts]


@pytest.mark.parametrize("one", GROUPS, ids=lambda one: f"{one.model} {one.gpu} {one.engine} {one.since} {one.weights}")
def test_no_step_is_faster_than_peak_and_bandwidth_allow(one):
    card, spec, compiled = gpu(one.gpu), model(one.model), 0
    tables = (1 if spec.tied_embeddings else 2) * spec.vocab * spec.hidden
    share = (spec.active_params() - tables) / (spec.total_params() - tables)
    read_bytes = (spec.weight_bytes(one.weights) - 2 * tables) * share + 2 * spec.vocab * spec.hidden
    for layout in one.layouts:
        try:
            table = compile_replica(with_published(replica(one, layout)))
        except DoesNotFit:
            continue
        compiled += 1
        gpus = layout[0] * layout[1]
        assert table.step_seconds(1, 1, 1) >= read_bytes / (card.memory_bytes_per_s * gpus) * (1 - 1e-9), layout
        assert (table.linear_s[1:] >= table.linear_s[:-1]).all()
        held = spec.kv_full_bytes_per_token(one.kv) / min(layout[0], spec.kv_heads) / layout[1]
        assert table.decode_ctx_s[1:].min() >= held / card.memory_bytes_per_s * (1 - 1e-9), layout
    assert compiled


@pytest.mark.parametrize(("one", "layout"), [(one, one.layouts[0]) for one in GROUPS[::6]], ids=str)
def test_what_was_measured_is_sure_as_its_points_left_out_say(one, layout):
    plain = replica(one, layout)
    made = with_published(plain)
    assert made.calibration is not None and made.calibration.changes
    for metric, (off, _) in one.off.items():
        assert evidence_level(made, metric) == "calibrated"
        low, high, _ = interval(made, metric)
        assert low < 1 - off / 2 < 1 + off / 2 < high
    assert set(FACTORS) <= {name.removeprefix("calibration.") for name in compile_replica(made).provenance}


def test_it_is_of_one_release_precision_and_way_to_run_alone():
    here = replica(KNOWN, KNOWN.layouts[0])
    assert published(here) is not None
    engine = here.engine
    others = (
        {"weights": "int8"}, {"gpu": "l40s"}, {"model": "llama-2-13b"}, {"cap_watts": 500.0}, {"clock_mhz": 1200.0},
        {"media": "image"},
        {"engine": msgspec.structs.replace(engine, name="llama.cpp", version="")},
        {"engine": msgspec.structs.replace(engine, version="0.6")},
        {"engine": msgspec.structs.replace(engine, speculation=Speculation(tokens=2, draft="ngram", acceptance=0.5))},
    )  # fmt: skip
    for changes in others:
        other = msgspec.structs.replace(here, **changes)
        assert published(other) is None
        assert with_published(other) is other
    assert any(f"{KNOWN.engine} {KNOWN.since} in {KNOWN.weights}" in said for said in offered(here.model, here.gpu))


def test_a_layout_without_terms_of_its_own_has_those_of_all():
    one = next(one for one in GROUPS if one.own and len(one.own) < len(one.layouts))
    own = {each.layout: each.terms for each in one.own}
    for layout in one.layouts:
        found = published(replica(one, layout))
        assert found is not None
        said = tuple(getattr(found, name).value for name in FACTORS)
        assert said == own.get(layout, one.terms)[: len(FACTORS)]
        assert found.layouts == (layout,)


def test_a_layout_that_was_not_measured_is_no_surer_than_by_the_shipped_law():
    asked = {(tp, 1, 1, ep) for tp in (1, 2, 4, 8) for ep in {1, tp}}
    one, layout = next(
        (one, here) for one in GROUPS for here in sorted(asked - set(one.layouts))
        if all(min(of) <= degree <= max(of) for degree, of in zip(here, zip(*one.layouts, strict=True), strict=True))
    )  # fmt: skip
    plain = replica(one, layout)
    made = with_published(plain)
    assert made.calibration is not None and made.calibration.changes
    assert interval(made, "tpot") == interval(plain, "tpot")


def test_a_changed_replica_takes_what_is_published_of_it_now():
    one = next(one for one in GROUPS if len(one.own) > 1)
    first, second = (with_published(replica(one, own.layout)) for own in one.own[:2])
    tp, pp, dp, ep = one.own[1].layout
    moved = msgspec.structs.replace(first, tp=tp, pp=pp, dp=dp, ep=ep)
    assert moved != second and followed(moved, [first.calibration]) == second
    assert followed(msgspec.structs.replace(first, weights="int8"), [first.calibration]).calibration is None
    assert followed(moved, []) is moved


def test_what_if_takes_it_for_the_changed_deployment_too(tmp_path):
    file = tmp_path / "d.yaml"
    file.write_text("pools:\n- replica: {model: qwen3-32b, gpu: h100-sxm, tp: 2}\n")
    asked = ("--workload", "chat", "--rate", "2", "--requests", "40", "--ttft", "1s", "--calibration", "published")
    for change in (("--gpu", "b200"), ("--weights", "fp8"), ("--tp", "4")):
        said = run("whatif", file, *asked, *change, "--out", tmp_path / change[0], "-q")
        assert said.exit_code == 0, said.output
        told = json.loads((tmp_path / change[0] / "changed.json").read_text())["deployment"]
        (now,) = from_mapping(Deployment, told, "").pools
        assert now.replica.calibration == published(msgspec.structs.replace(now.replica, calibration=None))


def test_pools_of_their_own_for_prefill_and_decode_stay():
    here = replica(KNOWN, KNOWN.layouts[0])
    split = Deployment(pools=(Pool(role="prefill", replica=here), Pool(role="decode", replica=here)))
    assert split.as_published() == split
    mixed = Deployment(pools=(Pool(replica=here),)).as_published()
    assert mixed.pools[0].replica.calibration == published(here)


def test_a_row_is_judged_by_it():
    row = measured_by_ourselves(model_key=KNOWN.model, gpu_key="H100", engine=KNOWN.engine, engine_version=KNOWN.since,
                precision_weights=KNOWN.weights, precision_kv=KNOWN.kv, tp=KNOWN.layouts[0][0],
                gpu_count=KNOWN.layouts[0][0])  # fmt: skip
    used = deployed(express(row), "published").deployment.pools[0].replica.calibration
    assert used is not None
    plain, moved = judge(row), judge(row, "published")
    assert plain.predicted["tpot_mean"] != moved.predicted["tpot_mean"]
    assert (plain.levels["tpot"], moved.levels["tpot"]) == ("seen pair", "calibrated")
    assert judge(row, used).predicted == moved.predicted


def test_the_command_line_says_what_it_rests_on_and_keeps_it_in_the_deployment():
    said = run("simulate", *flags(KNOWN), *FLAGS[:-3], "--json", "-", "--calibration", "published")
    assert said.exit_code == 0, said.output
    assert f"{KNOWN.points} published operating points of {KNOWN.model}" in " ".join(said.stderr.split())
    told = json.loads(said.stdout)
    again = simulate(from_mapping(Deployment, told["deployment"], ""), workload_of(told), seed=told["seed"])
    assert again.tpot_s.mean == pytest.approx(told["tpot_s"]["mean"])
    plain = json.loads(run("simulate", *flags(KNOWN), *FLAGS).stdout)
    assert plain["tpot_s"]["mean"] != told["tpot_s"]["mean"]


def workload_of(told):
    from headway.workload import WorkloadSpec

    return workload(from_mapping(WorkloadSpec, told["workload"], ""))


def test_where_nothing_is_published_the_shipped_law_stays_and_what_there_is_is_named():
    asked = ["simulate", *flags(KNOWN, weights="int8"), *FLAGS[:-3], "--json", "-"]
    plain, said = run(*asked), run(*asked, "--calibration", "published")
    assert json.loads(plain.stdout) == json.loads(said.stdout)
    text = " ".join(said.stderr.split())
    assert "the shipped law stays" in text and f"{KNOWN.engine} {KNOWN.since} in {KNOWN.weights}" in text
    assert f"with {KNOWN.engine} {KNOWN.since} in int8" in text


def test_a_machine_is_not_compared_with_those_of_others(tmp_path):
    (tmp_path / "machine.json").write_text('{"gpu": "NVIDIA H100"}')
    asked = ("--calibration", "published", "--fingerprint", tmp_path / "machine.json")
    refused(run("simulate", *flags(KNOWN), *FLAGS, *asked), "--calibration FILE")


def test_a_plan_takes_it_where_it_holds():
    engine = EngineSettings(name=KNOWN.engine, version=KNOWN.since)
    question = Question(
        model=KNOWN.model, gpu=KNOWN.gpu, gpus=4, rate_req_s=1.0, slo=Slo(ttft_s=4.0, tpot_s=0.1), requests=200,
        weights=(KNOWN.weights, "int8"), kv=(KNOWN.kv,), engine=engine, calibration="published",
    )  # fmt: skip
    found = plan(question)
    replicas = [
        from_mapping(Deployment, candidate.deployment, "").pools[0].replica
        for candidate in found.ranked if len(candidate.deployment["pools"]) == 1
    ]  # fmt: skip
    assert {one.weights for one in replicas} == {KNOWN.weights, "int8"}
    for one in replicas:
        assert one.calibration == published(msgspec.structs.replace(one, calibration=None))
        assert (one.calibration is None) == (one.weights == "int8")


def test_a_plan_says_what_there_is_and_a_table_what_its_errors_are_not(capsys):
    asked = ("--gpus", "1", "--rate", "1", "--ttft", "4s", "--calibration", "published")
    said = run("plan", "--model", KNOWN.model, "--gpu", f"{KNOWN.gpu},a100-80gb-sxm", *asked)
    assert f"{KNOWN.engine} {KNOWN.since} in {KNOWN.weights}" in " ".join(said.stderr.split())
    assert "on a100-80gb-sxm: nothing is published" in " ".join(said.stderr.split())
    terminal = Terminal()
    assert read_calibrated("published", terminal) == "published"
    assert "no forecast" in capsys.readouterr().err
