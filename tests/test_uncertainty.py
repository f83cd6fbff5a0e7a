"""Intervals of estimates: laws of evidence and coverage, what results and plans say of them, and whether they hold."""

import itertools
import math
import re
from statistics import median

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

import report_cases as cases
from calibration_cases import term as law_term
from headway.accuracy.coverage import cover
from headway.accuracy.judge import Outcome
from headway.accuracy.rows import Row
from headway.cost import EngineSettings, Replica
from headway.cost.calibration import Calibration
from headway.cost.engines import engine_names
from headway.cost.replica import limits
from headway.cost.speculation import Speculation
from headway.cost.uncertainty import LEVELS, METRICS, evidence_level, factors, interval, levels, ranking_spread
from headway.errors import BadInput
from headway.hardware import gpu_keys
from headway.metrics import Result, Slo
from headway.model import model_keys
from headway.plan import plan
from headway.plan.doubt import doubt
from headway.plan.evaluate import Asked, Goodput
from headway.plan.evaluate import Outcome as Found
from headway.plan.question import Question
from headway.plan.ranking import Entry
from headway.report import plan_text, result_text
from headway.sim import Deployment, Pool, simulate
from headway.workload import workload
from report_cases import shown

ENGINES = engine_names()
RATES = ("output_throughput", "energy_per_token")
replicas = st.builds(
    Replica,
    model=st.sampled_from(model_keys()),
    gpu=st.sampled_from(gpu_keys()),
    engine=st.sampled_from([EngineSettings(name=name) for name in ENGINES]),
)


def at_every_level(engine, metric="tpot"):
    """A replica under the engine for each level of evidence that there is of a metric."""
    found = {}
    for card in gpu_keys():
        for name in ("llama-3-70b", "llama-3.1-8b", "llama-2-7b", "qwen3-32b", "gpt-oss-120b", "phi-4"):
            replica = Replica(model=name, gpu=card, engine=EngineSettings(name=engine))
            found.setdefault(evidence_level(replica, metric), replica)
    return found


@given(replicas, st.sampled_from(METRICS), st.floats(0.01, 0.90))
def test_an_interval_holds_its_prediction(replica, metric, coverage):
    low, high, level = interval(replica, metric, coverage)
    assert 0.0 < low <= 1.0 <= high < math.inf
    assert level in LEVELS


@given(replicas, st.sampled_from(METRICS), st.floats(0.01, 0.90), st.floats(0.01, 0.90))
def test_more_coverage_is_never_narrower(replica, metric, one, other):
    less, more = sorted((one, other))
    inner, outer = interval(replica, metric, less), interval(replica, metric, more)
    assert outer[0] <= inner[0] and inner[1] <= outer[1]


@pytest.mark.parametrize("engine", ENGINES)
def test_poorer_evidence_is_never_narrower(engine):
    for metric in ("ttft", "tpot", "e2e", "output_throughput"):
        found = at_every_level(engine, metric)
        ordered = [found[level] for level in LEVELS if level in found]
        assert len(ordered) > 1
        for better, poorer in itertools.pairwise(ordered):
            inner, outer = interval(better, metric), interval(poorer, metric)
            assert outer[0] <= inner[0] and inner[1] <= outer[1], (metric, better, poorer)


def test_levels_follow_what_was_measured():
    found = at_every_level("vllm")
    assert {"seen pair", "seen GPU", "family", "data sheet"} <= found.keys()
    for same in ("llama-3.1-70b", "llama-3.3-70b", "llama-3.1-70b:262144"):
        assert evidence_level(Replica(model=same, gpu="h100-sxm"), "tpot") == "seen pair"
    assert evidence_level(msgspec.structs.replace(found["seen pair"], model="sized:9b"), "tpot") == "seen GPU"


def test_throughput_alone_is_no_evidence_of_times_per_token():
    """Llama-2-70B on MI300X under vLLM 0.6: MLPerf publishes tokens/s and nothing else."""
    engine = EngineSettings(name="vllm", version="0.6")
    replica = Replica(model="llama-2-70b", gpu="mi300x", engine=engine)
    found = {metric: evidence_level(replica, metric) for metric in METRICS}
    assert found["output_throughput"] == "seen pair"
    assert {found[metric] for metric in ("ttft", "tpot")} == {"data sheet"}
    assert levels([replica]) == found
    low, high, _ = interval(replica, "tpot")
    sure = interval(Replica(model="llama-3.1-70b", gpu="h100-sxm"), "tpot")
    assert low < sure[0] and sure[1] < high


def test_watts_of_another_release_are_as_sure_as_throughput_and_no_pair_that_was_seen():
    measured = Replica(model="llama-3.1-8b", gpu="h100-sxm", engine=EngineSettings(version="0.11"))
    newer = Replica(model="llama-3.1-8b", gpu="h100-sxm")
    assert evidence_level(measured, "energy_per_token") == "seen pair"
    times = evidence_level(newer, "output_throughput")
    assert evidence_level(newer, "energy_per_token") == max("seen GPU", times, key=LEVELS.index)
    assert evidence_level(msgspec.structs.replace(measured, cap_watts=400.0), "power") == "family"
    assert evidence_level(Replica(model="llama-3.1-8b", gpu="l4"), "power") == "family"


@pytest.mark.parametrize("metric", RATES)
def test_ratios_are_surer_the_better_the_evidence_and_surer_than_single_figures(metric):
    """Ratios are of all engines' rows together, so they are held against the engine in the middle, not the surest."""
    spreads = [ranking_spread(level, metric) for level in LEVELS]
    assert spreads == sorted(spreads)
    level = "seen pair" if metric == "output_throughput" else "seen GPU"  # joules are of an older release
    seen = [found[level] for name in ENGINES if level in (found := at_every_level(name, metric))]
    ends = [interval(replica, metric)[:2] for replica in seen]
    assert len(ends) > 3
    assert 0.0 < spreads[0] < median(math.log(high / low) for low, high in ends)


def measured(bare, few_tokens=1.1, **changes):
    """A calibration on points of just this replica."""
    said = {
        "versions": (bare.engine.version,) if bare.engine.version else (),
        "models": (bare.model,),
        "weights": (bare.weights,),
        "kv": (bare.kv,),
        "precisions": ((bare.weights, bare.kv),),
        "layouts": ((bare.tp, bare.pp, bare.dp, bare.ep),),
        "limits": (limits(bare),),
        "held_out": (("tpot", 0.03), ("ttft", 9.0)),
        "held_out_figures": (("tpot", 40), ("ttft", 40)),
    }
    return Calibration(gpu=bare.gpu, engine=bare.engine.name, few_tokens=law_term(few_tokens), **said | changes)


def test_a_calibrations_interval_is_as_wide_as_its_own_points_were_off():
    bare = Replica(model="llama-3.1-8b", gpu="rtx-4090")
    own = measured(bare)
    replica = msgspec.structs.replace(bare, calibration=own)
    assert [evidence_level(replica, metric) for metric in ("tpot", "ttft")] == ["calibrated", "calibrated"]
    assert interval(replica, "e2e") == interval(bare, "e2e")  # was not measured
    for coverage in (0.5, 0.9):
        tight, wide = interval(replica, "tpot", coverage), interval(bare, "tpot", coverage)
        assert wide[0] < tight[0] < 1.0 < tight[1] < wide[1]
        far, usual = interval(replica, "ttft", coverage), interval(bare, "ttft", coverage)
        assert far[0] < usual[0] < usual[1] < far[1]


SEEN = Replica(model="qwen3-32b", gpu="h100-sxm", tp=4, engine=EngineSettings(version="0.12.0"))
NGRAM = Speculation(draft="ngram", tokens=2, acceptance=0.6)
LAYOUTS = ((2, 1, 1, 1), (8, 1, 1, 1))


@pytest.mark.parametrize(
    ("changes", "covered"),
    [
        ({}, True),
        ({"model": "qwen3-32b:65536"}, True),  # the shape is the same
        ({"engine": EngineSettings(version="0.12.1")}, True),
        ({"tp": 2}, True),
        ({"cap_watts": 700.0}, True),  # that of the GPU
        ({"clock_mhz": 1980.0}, True),
        ({"tp": 1}, False),
        ({"pp": 2}, False),
        ({"model": "llama-3.1-70b"}, False),
        ({"weights": "fp8"}, False),
        ({"kv": "fp8"}, False),
        ({"engine": EngineSettings(version="0.5.1")}, False),
        ({"cap_watts": 200.0}, False),
        ({"clock_mhz": 1200.0}, False),
        ({"engine": EngineSettings(version="0.12.0", speculation=NGRAM)}, False),
    ],
    ids=str,
)
def test_only_what_was_measured_is_calibrated(changes, covered):
    bare = msgspec.structs.replace(SEEN, **changes)
    replica = msgspec.structs.replace(bare, calibration=measured(SEEN, layouts=LAYOUTS))
    assert evidence_level(replica, "tpot") == ("calibrated" if covered else evidence_level(bare, "tpot"))
    if not covered:
        assert interval(replica, "tpot") == interval(bare, "tpot")


def test_a_calibration_under_a_power_limit_is_of_that_limit():
    capped = msgspec.structs.replace(SEEN, cap_watts=350.0)
    own = measured(capped)
    assert evidence_level(msgspec.structs.replace(capped, calibration=own), "tpot") == "calibrated"
    for other in (None, 400.0):
        elsewhere = msgspec.structs.replace(capped, cap_watts=other)
        level = evidence_level(elsewhere, "tpot")
        assert evidence_level(msgspec.structs.replace(elsewhere, calibration=own), "tpot") == level


@pytest.mark.parametrize("error", [0.001, 0.5])
def test_a_calibration_that_changes_nothing_makes_nothing_surer(error):
    """The user's own points can only say that the shipped law is less sure here than elsewhere."""
    own = measured(SEEN, few_tokens=1.0, held_out=(("tpot", error),))
    replica = msgspec.structs.replace(SEEN, calibration=own)
    assert evidence_level(replica, "tpot") == evidence_level(SEEN, "tpot") == "seen pair"
    inner, outer = interval(SEEN, "tpot"), interval(replica, "tpot")
    assert outer == inner if error < 0.01 else outer[0] < inner[0] and inner[1] < outer[1]


def test_fewer_points_left_out_make_a_calibration_less_sure():
    def width(figures):
        own = measured(SEEN, held_out_figures=(("tpot", figures),))
        low, high, _ = interval(msgspec.structs.replace(SEEN, calibration=own), "tpot")
        return math.log(high / low)

    widths = [width(figures) for figures in (3, 10, 20, 1000)]
    assert widths == sorted(widths, reverse=True)
    assert widths[1] > 1.15 * widths[3]
    unknown = msgspec.structs.replace(SEEN, calibration=measured(SEEN, held_out_figures=()))
    low, high, _ = interval(unknown, "tpot")
    assert math.log(high / low) == pytest.approx(widths[1])  # as of the least number of points there can be


@pytest.mark.parametrize("slowed", [{"cap_watts": 350.0}, {"clock_mhz": 1200.0}])
def test_what_slows_a_gpu_lowers_every_level_alike(slowed):
    assert evidence_level(SEEN, "tpot") == "seen pair"
    for metric in METRICS:
        assert evidence_level(msgspec.structs.replace(SEEN, **slowed), metric) == "family"


@pytest.mark.parametrize("slowed", [{"cap_watts": 700.0}, {"cap_watts": 900.0}, {"clock_mhz": 1980.0}])
def test_what_slows_no_gpu_lowers_no_level(slowed):
    assert levels([msgspec.structs.replace(SEEN, **slowed)]) == levels([SEEN])


def test_pools_of_their_own_are_as_sure_only_where_they_were_measured_so():
    for metric in ("ttft", "tpot"):
        assert evidence_level(SEEN, metric) == "seen pair" and evidence_level(SEEN, metric, split=True) == "seen GPU"
        (low, high, _), (wider_low, wider_high, _) = interval(SEEN, metric), interval(SEEN, metric, split=True)
        assert wider_low <= low and high <= wider_high
    measured = Replica(model="deepseek-v3", gpu="b200", tp=8, engine=EngineSettings(name="sglang"))
    assert evidence_level(measured, "ttft", split=True) == "seen pair"
    pools = (Pool(replica=SEEN, role="prefill"), Pool(replica=SEEN, role="decode"))
    result = simulate(Deployment(pools=pools), workload("chat", rate=2, requests=20))
    assert result.uncertainty is not None and result.uncertainty.levels == levels([SEEN], split=True)


def test_a_deployment_is_as_unsure_as_its_least_sure_replica():
    sure, unsure = (at_every_level("vllm")[level] for level in ("seen pair", "data sheet"))
    together = factors([sure, unsure])
    for metric in METRICS:
        ends = [interval(replica, metric)[:2] for replica in (sure, unsure)]
        assert together[metric] == (min(low for low, _ in ends), max(high for _, high in ends))


@pytest.mark.parametrize(("metric", "coverage"), [("itl", 0.9), ("tpot", 0.0), ("tpot", 0.95), ("tpot", math.nan)])
def test_what_has_no_interval_is_refused(metric, coverage):
    with pytest.raises(BadInput):
        interval(Replica(model="llama-3.1-8b", gpu="h100-sxm"), metric, coverage)


# --- results and plans say it ---------------------------------------------------------------------------------


def test_a_result_carries_the_interval_of_its_deployment_through_json():
    replica = Replica(model="llama-3.1-8b", gpu="h100-sxm")
    result = simulate(Deployment(pools=(Pool(replica=replica),)), workload("chat", rate=2, requests=20))
    error = result.uncertainty
    assert error is not None
    assert error.levels == levels([replica]) and error.level == error.levels["tpot"]
    assert {name: getattr(error, name) for name in METRICS} == factors([replica])
    low, high = error.around("tpot", 0.02)
    assert low < 0.02 < high
    assert Result.from_json(result.to_json()).uncertainty == error


def test_other_step_laws_have_no_interval():
    from headway.sim.run import compiled

    replica = Replica(model="llama-3.1-8b", gpu="h100-sxm")
    deployment = Deployment(pools=(Pool(replica=replica),))
    result = simulate(deployment, workload("chat", rate=2, requests=20), tables=(compiled(replica),))
    assert result.uncertainty is None
    assert "model error" not in shown(result_text(result))


def test_the_terminal_shows_interval_and_evidence():
    result = cases.result()
    text = shown(result_text(result))
    assert "model error" in text and result.uncertainty.level in text
    low, high = result.uncertainty.tpot
    assert f"{low - 1:+.0%} to {high - 1:+.0%}" in text
    made = cases.plan(uncertainty=result.uncertainty, ratio_error=0.07)
    assert "±7%" in shown(plan_text(made, 5)) and result.uncertainty.level in shown(plan_text(made, 5))


def entry(name, count, goodput, meets=True, ttft=0.1, tpot=0.02, joules=0.3):
    deployment = cases.deployment(count, name=name)
    asked = Asked(0.97, 0.96, 0.98, ttft, tpot, 0.5, joules, meets, carbon_g_per_million_output_tokens=joules,
                  ttft_s=ttft, tpot_s=tpot)  # fmt: skip
    return Entry(deployment, Found(Goodput(goodput, goodput, goodput * 1.03), asked, "ttft", 0.6, 0.5, 4000, 9), meets)


def test_what_the_error_does_not_tell_apart_is_tied_and_said_so():
    spread = doubt([entry("a", 2, 100.0)], "cost", 10.0).ratio
    near, far = 100.0 / (1.0 + 0.5 * spread), 100.0 / (1.0 + 3.0 * spread)
    ranked = [entry("a", 2, 100.0), entry("b", 2, near), entry("c", 2, far), entry("d", 3, 1.5 * near)]
    found = doubt(ranked, "cost", 10.0)
    assert found.ties == ["b"]
    assert "of b." in found.words and f"±{found.ratio:.0%}" in found.words
    assert doubt(ranked, "goodput", 10.0).ties == ["b", "d"]
    alone = doubt([ranked[0], ranked[2]], "cost", 10.0)
    assert alone.ties == [] and alone.words == ""


@pytest.mark.parametrize(
    ("objective", "figure"),
    [("rate", "goodput"), ("ttft", "ttft"), ("tpot", "tpot"), ("energy", "joules"), ("carbon", "joules")],
)
def test_ties_are_by_the_figure_of_the_objective_and_by_no_other(objective, figure):
    base = {"goodput": 100.0, "ttft": 0.1, "tpot": 0.02, "joules": 0.3}
    best = entry("best", 2, **base)
    reach = 1.0 + doubt([best], objective, 10.0).ratio
    others = {name: base[name] / 50.0 for name in base if name != figure}
    near, far = base[figure] / reach**0.9, base[figure] / reach**1.1
    ranked = [
        best, entry("near", 4, **base | {figure: near}), entry("far", 4, **base | {figure: far}),
        entry("unlike elsewhere", 16, **others | {figure: near}), entry("alike elsewhere", 2, **base | {figure: far}),
    ]  # fmt: skip
    assert doubt(ranked, objective, 1.0).ties == ["near", "unlike elsewhere"]


def test_a_ratio_of_latencies_is_surer_than_their_interval():
    best = entry("best", 2, 100.0)
    for objective in ("ttft", "tpot"):
        found = doubt([best], objective, 10.0)
        low, high = getattr(found.error, objective)
        assert (1 + found.ratio) ** 2 == pytest.approx(high / low)


def test_headroom_below_the_error_is_said():
    found = doubt([entry("a", 2, 100.0)], "cost", 99.0)
    low, _ = found.error.around("output_throughput", 100.0)
    assert low < 99.0 and "headroom" in found.words
    assert doubt([entry("a", 2, 100.0)], "cost", 0.99 * low).words == ""


def test_a_plan_that_meets_nothing_has_no_ties():
    found = doubt([entry("a", 2, 100.0, meets=False), entry("b", 2, 99.0, meets=False)], "cost", 200.0)
    assert found.ties == [] and found.words == ""
    assert doubt([], "cost", 1.0).error is None


# --- the planner's margin -------------------------------------------------------------------------------------


def asked(tpot_s, margin, **changes):
    slo = Slo(ttft_s=1.0, tpot_s=tpot_s)
    fields = {"model": "llama-3.1-8b", "gpu": "h100-sxm", "gpus": 1, "rate_req_s": 10.0, "requests": 300, "slo": slo}
    return Question(**{**fields, "kv": ("bf16",), "weights": ("bf16",), "margin": margin, **changes})


def test_the_margin_tightens_the_time_per_token_and_nothing_else():
    slo = Slo(ttft_s=0.5, tpot_s=0.05, itl_s=0.08, e2e_s=9.0, attainment=0.95)
    assert asked(1.0, 0.2, slo=slo).aimed_slo == msgspec.structs.replace(slo, tpot_s=0.05 * 0.8, itl_s=0.08 * 0.8)
    assert asked(1.0, 0.0, slo=slo).aimed_slo == slo


@pytest.mark.parametrize("margin", [-0.1, 1.0, math.nan])
def test_a_margin_that_is_no_share_is_refused(margin):
    with pytest.raises(BadInput, match="margin"):
        asked(0.05, margin)


def test_a_plan_judges_by_the_limit_less_its_margin_and_says_so():
    with_margin, tighter = (plan(asked(*each), workers=1) for each in ((0.05, 0.2), (0.05 * 0.8, 0.0)))
    same = ("name", "goodput_req_s", "attainment", "meets", "binding")
    assert [[getattr(c, name) for name in same] for c in with_margin.ranked] == [
        [getattr(c, name) for name in same] for c in tighter.ranked
    ]
    assert "20% of margin on TPOT" in with_margin.message and "--tpot 40ms" in with_margin.message
    assert "margin" not in tighter.message
    assert "20% of margin" in shown(plan_text(with_margin, 3)) and "margin" not in shown(plan_text(tighter, 3))


def test_what_is_too_tight_is_told_by_the_limit_that_was_asked_for():
    found = plan(asked(0.009, 0.5), workers=1)  # 9 ms there are, 4.5 ms are not: weights take 4.8
    assert not found.feasible and found.binding == "tpot"
    enough = float(re.search(r"[Aa]sk for ([\d.]+) ms", found.message)[1]) / 1000
    assert plan(asked(enough, 0.5, rate_req_s=0.05), workers=1).feasible


# --- and whether it holds -------------------------------------------------------------------------------------


def test_coverage_counts_what_lies_inside():
    def judged(measured, level, ends):  # of the time per token
        row = Row(row_id="r", source="s", engine="vllm", model_key="m", gpu_key="g", mode="agg",
                  measured={"tpot_mean": measured})  # fmt: skip
        return row, Outcome({"tpot_mean": 0.010}, gpus=1, levels={"tpot": level}, factors={"tpot": ends})

    rows = [
        judged(0.010, "seen pair", (0.9, 1.1)), judged(0.012, "seen pair", (0.9, 1.1)),
        judged(0.012, "seen GPU", (0.5, 2.0)),
    ]  # fmt: skip
    found = cover(rows, rows[1:])
    assert (found.trusted.share, found.trusted.n) == (0.5, 2)
    assert (found.overall.share, found.overall.n) == (pytest.approx(2 / 3), 3)
    assert found.metrics["tpot"].n == 3 and found.metrics["ttft"].share is None
    assert found.levels["seen pair"]["tpot"].share == 0.5
    assert found.levels["seen GPU"]["all"].width == pytest.approx(4.0)
    assert list(found.levels) == ["seen pair", "seen GPU"]
