"""Host terms of engines: rows as sums, terms found from synthetic steps, releases that borrow, the data file."""

from __future__ import annotations

import functools
from concurrent.futures import ThreadPoolExecutor

import msgspec
import numpy as np
import pytest
import yaml
from engine_cases import ALIKE, BLACKWELL_S, TERMS, TRUE_S, every, host_s, synthetic

from accuracy_cases import as_csv, measured_by_ourselves, point
from fit import engines
from fit.engines import NAMES, OF_FAMILIES, SHARED, SIZES, fitted, gpus_of, grouped, left_out, predicted_s, release
from headway.accuracy import schedule as scheduling
from headway.accuracy.express import express
from headway.cost.engines import _File as EngineFile
from headway.cost.engines import engine_facts
from headway.specs import from_mapping

LAYER = len(SHARED) + OF_FAMILIES.index(("layer_s", "hopper"))

# --- the fit


@pytest.mark.parametrize(("spread", "within"), [(0.0, 0.01), (0.05, 0.1)])
def test_the_terms_are_found_from_what_they_add(spread, within):
    values = fitted(grouped(every(spread=spread), {}), ridge=1e-3)
    for name, value, true in zip((*SHARED, *OF_FAMILIES), values * SIZES, TERMS, strict=True):
        assert value == pytest.approx(true, rel=within, abs=6e-6 * spread / 0.05), name


def test_the_ridge_that_is_used_moves_terms_and_hardly_predictions():
    group = grouped(every(), {})
    values = fitted(group)
    assert np.quantile(np.abs(np.log(predicted_s(values, group) / group.measured_s)), 0.9) < 0.02
    assert values[LAYER] * SIZES[LAYER] == pytest.approx(TRUE_S["layer_s"], rel=0.1)


def test_outliers_do_not_move_the_terms():
    points = every(spread=0.03)
    wild = [
        one._replace(figures=tuple(f._replace(measured_s=6.0 * f.measured_s) for f in one.figures))
        if i % 20 == 0
        else one
        for i, one in enumerate(points)
    ]
    clean, spoilt = (fitted(grouped(some, {})) * SIZES for some in (points, wild))
    assert spoilt == pytest.approx(clean, rel=0.2, abs=6e-6)


def test_a_gpu_whose_kernels_were_not_timed_gets_a_factor_of_its_own():
    group = grouped(every() + synthetic("dense", "mi300x", factor=1.6), {"mi300x": 0})
    values = fitted(group)
    assert np.exp(values[-1]) == pytest.approx(1.6, rel=0.05)
    assert values[LAYER] * SIZES[LAYER] == pytest.approx(TRUE_S["layer_s"], rel=0.05)


def test_every_gpu_gets_a_factor_and_one_with_kernels_timed_is_drawn_to_one():
    """The stronger pull leaves host terms what differs between GPUs that the laws were fitted on."""
    cards = ("h100-sxm", "h200-nvl", "mi300x", "rx-7900-xt")
    points = [one for card in cards for one in synthetic("dense", card, factor=1.3, terms=ALIKE)]
    slow = gpus_of(points[::-1])
    assert slow == {gpu: i for i, gpu in enumerate(cards)}
    group = grouped(points, slow)
    assert group.pulls.tolist() == [engines.PULL_TIMED, engines.PULL_TIMED, engines.PULL, engines.PULL]
    assert group.counts[:, len(SIZES) :].sum(axis=0).tolist() == [80.0] * 4
    factors = fitted(group)[len(SIZES) :]
    assert factors[2:] == pytest.approx(np.log(1.3), abs=0.05)
    assert np.all(factors[:2] > 0.0) and factors[:2].max() < factors[2:].min()


def test_a_pull_without_rows_leaves_a_factor_at_one():
    """A GPU of which all rows are left out."""
    points = every() + synthetic("dense", "mi300x", factor=1.6)
    group = grouped(points, gpus_of(points))
    gpus = np.array([gpu for _, gpu in group.pairs])
    found = dict(zip(gpus_of(points), fitted(group, only=gpus != "mi300x")[len(SIZES) :], strict=True))
    assert abs(found["mi300x"]) < 1e-3


@functools.cache
def whole():
    return fitted(grouped(every(), {}))


@pytest.mark.parametrize(
    ("kind", "name"),
    [("state", "state_layer_s"), ("mla", "prompt_mla_layer_s"), ("state", "prompt_state_layer_s")],
)
def test_a_term_of_some_models_is_found_from_them_alone(kind, name):
    at = SHARED.index(name)
    plain = fitted(grouped([one for one in every() if kind not in one.pair[0]], {}))
    assert abs(plain[at]) < 1e-3
    assert whole()[at] * SIZES[at] == pytest.approx(TRUE_S[name], rel=0.25)


def test_a_pair_with_many_rows_weighs_as_the_root_of_them():
    group = grouped(synthetic("dense", count=100) + synthetic("moe", count=4), {})
    tpot = group.kinds == "tpot"
    first, second = (
        group.weights[tpot & np.array([pair[0] == name for pair in group.pairs])] for name in ("dense", "moe")
    )
    assert second[0] / first[0] == pytest.approx(5.0)


def test_terms_without_evidence_stay_small():
    values = fitted(grouped(synthetic("dense"), {}))
    nothing = [SHARED.index("moe_layer_s"), SHARED.index("fp8_experts_s"), *range(len(SIZES) - 3, len(SIZES))]
    assert np.abs(values[nothing]).max() < 1e-3  # experts, Blackwell


def test_kernels_slower_than_what_was_measured_push_no_term_below_its_floor():
    values = fitted(grouped(synthetic("dense", factor=0.6, terms=np.zeros(len(TERMS))), {}))
    assert np.all(values >= engines.FLOORS / engines.SIZES - 1e-8)
    assert values[LAYER] < 0.0


def test_a_pair_left_out_takes_no_part_in_its_own_prediction():
    points = every(count=10)
    base = left_out(grouped(points, {}))
    moved = [
        one._replace(figures=tuple(f._replace(measured_s=3.0 * f.measured_s) for f in one.figures))
        if one.pair == ("moe", "b200")
        else one
        for one in points
    ]
    pairs = grouped(points, {}).pairs
    mine = np.array([pair == ("moe", "b200") for pair in pairs])
    fold = {pair: i % engines.FOLDS for i, pair in enumerate(sorted(set(pairs)))}
    beside = np.array([fold[pair] == fold["moe", "b200"] for pair in pairs])
    logs = left_out(grouped(moved, {}))
    assert logs[mine] == pytest.approx(base[mine] - np.log(3.0))
    assert logs[beside & ~mine] == pytest.approx(base[beside & ~mine])
    assert not np.allclose(logs[~beside], base[~beside])


# --- rows as sums


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"isl_mean": 3000.0, "concurrency": 1.0},
        {"model_key": "qwen3-30b-a3b", "gpu_count": 2, "ep": 2, "dp": 1},
        {"gpu_key": "B200", "model_key": "llama-3-70b"},
        {"engine": "sglang", "engine_version": "0.5.8"},
        {"engine": "trtllm", "engine_version": "1.2.0", "concurrency": 1.0},
        {"engine_version": "0.11.1"},
        {"model_key": "nemotron-nano-9b", "precision_weights": "bf16", "engine": "sglang"},
        {"model_key": "deepseek-v3-r1", "gpu_key": "B200", "engine": "trtllm", "tp": 8, "gpu_count": 8},
    ],
    ids=[
        "plain",
        "long prompts",
        "experts",
        "Blackwell",
        "SGLang",
        "TensorRT-LLM",
        "older vLLM",
        "states",
        "latent attention",
    ],
)
def test_a_figure_simulated_is_its_kernels_and_its_host_terms(changes):
    row = measured_by_ourselves(**changes)
    made = engines.point(row)
    replica = express(row).deployment.pools[-1].replica
    host = engine_facts(replica.engine.name, replica.engine.version, replica.gpu).host
    terms = np.array([getattr(host, name) for name in NAMES])
    assert {figure.kind for figure in made.figures} == {"tpot", "ttft"}
    for figure in made.figures:
        total = host.kernels * figure.kernels_s + float(np.dot(figure.counts, terms))
        assert total == pytest.approx(figure.measured_s, rel=1e-3), figure.kind


@pytest.mark.parametrize(("decodes", "kept"), [((2.0, 3.0), (6.0, 0.0)), ((2.0, 4.0), (0.0, 8.0))])
def test_the_median_gap_is_among_the_steps_of_the_kind_with_more_gaps(decodes, kept):
    none = np.zeros(2)
    times, chunks = np.array([3.0, 2.0]), np.array([0.0, 1.0])
    steps = scheduling.Steps(times, np.array(decodes), none, none, none, chunks, none, none, none, none)
    assert engines._usual_gaps(steps).tolist() == list(kept)


def test_terms_are_found_from_simulated_rows():
    shapes = [
        {"isl_mean": prompt, "osl_mean": 32.0, "concurrency": users, "model_key": model, "gpu_key": gpu}
        for prompt, users in ((128.0, 1.0), (256.0, 4.0), (2048.0, 2.0), (512.0, 8.0))
        for model, gpu in (("llama-3-8b", "H100"), ("qwen3-8b", "H200"), ("qwen3-30b-a3b", "H100"))
    ]
    points = [engines.point(measured_by_ourselves(row_id=str(i), **shape)) for i, shape in enumerate(shapes)]
    slow = gpus_of(points)
    group = grouped(points, slow)
    found = fitted(group._replace(pulls=np.full(len(slow), 5e-4)), ridge=5e-4)
    assert np.abs(np.log(predicted_s(found, group) / group.measured_s)).max() < 0.01
    terms, factors = found[: len(SIZES)] * SIZES, np.exp(found[len(SIZES) :])
    host = engine_facts("vllm", "", "h100-sxm").host
    assert terms[LAYER] == pytest.approx(host.layer_s, abs=1e-6)
    assert terms[SHARED.index("intake_s")] == pytest.approx(host.intake_s, rel=0.05)
    assert dict(zip(slow, factors, strict=True)) == pytest.approx(
        {gpu: engine_facts("vllm", "", gpu).host.kernels for gpu in slow}, rel=0.01
    )


@pytest.mark.parametrize(
    "row",
    [
        point(concurrency=None, request_rate=20.0, num_prompts=80.0, measured={"tpot_mean": 0.01}),
        point(model_key="unheard-of", measured={"tpot_mean": 0.01}),
        point(measured={"power": 300.0}),
        point(measured={"tpot_mean": 1e-6, "ttft_mean": 0.1}),
    ],
    ids=["open loop", "unknown model", "no time", "faster than physics"],
)
def test_nothing_is_made_of_a_row_that_is(row):
    assert engines.point(row) is None
    assert engines.point(measured_by_ourselves())


def test_of_a_steady_state_the_warm_up_is_left_out_and_the_end_when_users_leave():
    case = express(point(batch_size=6.5, dist_note="avg running batch", workload="gpqa", isl_mean=None))
    assert case.kind == "steady"
    every = scheduling.schedule(msgspec.structs.replace(case, kind="closed")).pools[0]
    kept = engines.scheduled(case).pools[0]
    first = int(engines.STEADY_WARMUP * len(every.times))
    last = first + len(kept.times)
    assert np.array_equal(kept.times, every.times[first:last])
    users, there = (steps.waiting + steps.resident for steps in (kept, every))
    usual = np.median(there[first:])
    assert users[-1] >= scheduling.FULL * usual
    assert last < len(there) and np.all(there[last:] < scheduling.FULL * usual)


# --- releases and the file


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("", "0.12"),
        ("0.12.1", "0.12"),
        ("0.11.1", "0.11"),
        ("0.10.2", "0.9"),
        ("0.1", "0.2"),
        ("0.6.3.post1", "0.6"),
    ],
)
def test_a_version_is_of_the_newest_release_up_to_it(version, expected):
    assert release("vllm", version) == expected


def test_a_release_takes_what_it_has_no_figures_for_from_the_newer_or_else_the_older():
    fits = {("vllm", "0.12"): engines.report(("vllm", "0.12"), every())}
    fits[("vllm", "0.9")] = engines.report(("vllm", "0.9"), synthetic("dense", terms=TERMS * 1.5))
    alone = fits[("vllm", "0.9")]
    whole = engines.completed(fits)
    newer, older = whole[("vllm", "0.12")], whole[("vllm", "0.9")]
    assert np.array_equal(newer.values, fits[("vllm", "0.12")].values)
    swapped = engines.completed({("vllm", "0.12"): alone, ("vllm", "0.9"): fits[("vllm", "0.12")]})
    passed = np.isin(engines.SIZED, engines.PASSED)
    later = swapped[("vllm", "0.12")].values[: len(SIZES)]
    assert np.array_equal(later[~passed], older.values[: len(SIZES)][~passed])
    assert np.array_equal(later[passed], alone.values[: len(SIZES)][passed])
    assert (older.values[: len(SIZES)][passed] > 10 * later[passed]).all()
    terms = older.values[: len(SIZES)] * SIZES
    told = dict(zip((*SHARED, *OF_FAMILIES), terms, strict=True))
    assert told["layer_s", "hopper"] == pytest.approx(1.5 * TRUE_S["layer_s"], rel=0.1)
    assert told["moe_layer_s"] == pytest.approx(TRUE_S["moe_layer_s"], rel=0.05)
    assert told["layer_s", "blackwell"] == pytest.approx(BLACKWELL_S, abs=2e-6)
    for name in ("state_layer_s", "prompt_mla_layer_s", "prompt_state_layer_s"):
        assert told[name] == newer.values[SHARED.index(name)] * SIZES[SHARED.index(name)]


def test_rows_of_which_nothing_can_be_made_leave_the_file_as_it_is(monkeypatch, tmp_path, capsys):
    table, data = tmp_path / "serving.csv", tmp_path / "engines.yaml"
    table.write_bytes(as_csv([point(gpu_key="abacus", measured={"tpot_mean": 0.01})]))
    data.write_text("as before")
    monkeypatch.setattr(engines, "DATA", data)
    monkeypatch.setattr(engines, "ProcessPoolExecutor", ThreadPoolExecutor)
    monkeypatch.setattr("sys.argv", ["fit.engines", str(table), "--write"])
    with pytest.raises(SystemExit):
        engines.main()
    assert data.read_text() == "as before"
    assert "nothing is fitted or written" in capsys.readouterr().err


def test_the_file_written_is_the_file_read():
    points = every() + synthetic("dense", "mi300x", factor=1.6)
    text = engines.document({("vllm", "0.12"): engines.report(("vllm", "0.12"), points)})
    file = from_mapping(EngineFile, yaml.safe_load(text), "engines.yaml")
    (made,) = file.engines["vllm"].releases
    assert made.since == "0.12"
    host = msgspec.to_builtins(made.host)
    others = dict(zip(NAMES, host_s(TERMS, "mi300x"), strict=True))
    for name, true in others.items():
        assert host[name] == pytest.approx(true, rel=0.2), name
    for family, starts in engines.FAMILIES.items():
        own = {name: TERMS[len(SHARED) + OF_FAMILIES.index((name, family))] for name in engines.OWN}
        for start in starts:
            assert {name: made.by_gpu[start][name] for name in own} == pytest.approx(own, rel=0.2, abs=2e-6)
    assert made.by_gpu["mi300x"]["kernels"] == pytest.approx(1.6, rel=0.05)
    assert made.by_gpu["b200"].keys() == {*engines.OWN, "kernels"}
    assert made.by_gpu["b200"]["kernels"] == pytest.approx(1.0, abs=0.02)
    assert file.engines["sglang"].prefill_alone and not file.engines["vllm"].prefill_alone
    assert file.engines["vllm"].ahead_since == "0.14"
