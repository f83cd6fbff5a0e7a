"""Reports: the sentence, the terminal tables, and pages that are whole in themselves and escape what users named."""

import builtins
import io
import itertools
import math
import re

import msgspec
import pytest
from rich.console import Console

from headway.errors import MissingExtra
from headway.metrics import Result, Slo
from headway.report import (
    capacity_html,
    charts,
    check_html,
    plan_charts,
    plan_html,
    plan_text,
    result_html,
    result_text,
    words,
)  # fmt: skip
from headway.report.plan_page import selected
from headway.specs import to_mapping
from report_cases import NASTY, SLO, Seen, candidate, day, deployment, drawn, plan, result


def printed(renderable, width=120):
    console = Console(file=io.StringIO(), width=width)
    console.print(renderable)
    return console.file.getvalue()


# --- figures in words ---


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0, "0%"), (1, "100%"), (0.9, "90%"), (0.934, "93.4%"), (0.99999, ">99.9%"), (1e-6, "<0.1%"), (None, "-"),
        (math.nan, "-"),
    ],
)  # fmt: skip
def test_a_share_that_is_not_all_or_none_does_not_read_so(value, expected):
    assert words.share(value) == expected


@pytest.mark.parametrize(
    ("value", "expected"), [(None, "-"), (0.4567, "$0.457"), (1.5, "$1.50"), (31.92, "$31.92"), (12345.6, "$12,346")]
)
def test_dollars(value, expected):
    assert words.usd(value) == expected


@pytest.mark.parametrize(
    ("value", "unit", "expected"),
    [
        (989.5e12, "FLOP/s", "990 TFLOP/s"), (3.35e12, "byte/s", "3,350 GB/s"), (80 * 2**30, "byte", "80 GiB"),
        (4.2e-6, "s", "4.2 us"), (0.809, "share of peak", "80.9% of peak"), (700.0, "W", "700 W"),
        (2.82, "exponent", "2.82"),
    ],
)  # fmt: skip
def test_assumptions_read_in_units_of_their_size(value, unit, expected):
    assert words.quantity(value, unit) == expected


def test_the_sentence_says_what_was_met_and_missed():
    assert words.result_sentence(result(slo=None)).startswith("80 of 80 requests finished; nine in ten")
    assert words.result_sentence(result()).endswith("within TTFT 500 ms and TPOT 50 ms: the target of 90% is met.")
    assert words.result_sentence(result(slo=Slo(ttft_s=1e-4))).endswith("TTFT 100 us: the target of 90% is missed.")
    assert "gaps between tokens are longer" in words.result_sentence(result(slo=Slo(itl_s=1e-4)))


def failed(**reasons):
    run = result(slo=None)
    count = sum(reasons.values())
    ended = msgspec.structs.replace(run.requests, arrived=count, finished=0, failed=count)
    nothing = msgspec.structs.replace(run.ttft_s, count=0, mean=None, p50=None, p90=None, p95=None, p99=None)
    return msgspec.structs.replace(
        run, requests=ended, ttft_s=nothing, tpot_s=nothing, e2e_s=nothing, itl_s=nothing,
        provenance=run.provenance | {"failed": {name.replace("_", " "): n for name, n in reasons.items()}},
    )  # fmt: skip


def test_the_sentence_holds_no_dash_where_nothing_finished():
    run = failed(longer_than_the_context=100)
    assert words.result_sentence(run) == "0 of 100 requests finished; 100 failed: longer than the context."
    unsaid = msgspec.structs.replace(run, provenance={})
    assert words.result_sentence(unsaid) == "0 of 100 requests finished; 100 failed."
    one_token = result(slo=None, tpot_s=run.tpot_s)
    assert re.search(r"first token within [\d.]+ ms\.$", words.result_sentence(one_token))


def test_failed_requests_have_their_reason_on_the_terminal_and_the_page():
    run = failed(longer_than_the_context=3, more_KV_than_a_replica_holds=1)
    expected = "4 failed: longer than the context (3), more KV than a replica holds (1)"
    assert expected in printed(result_text(run))
    page = Seen(result_html(run))
    assert expected in page.text
    assert "Assumptions: failed" not in page.text
    assert "failed" not in printed(result_text(result()))


def test_sentence_and_table_name_one_share():
    run = result(slo=Slo(ttft_s=10.0))
    text = printed(result_text(run))
    assert text.startswith("100% of requests")
    assert re.search(r"Attainment +100% \(95% interval [\d.]+% to 100%\)", text)


def test_the_sentence_of_a_plan_says_what_to_run():
    assert words.plan_sentence(plan()) == (
        "Run llama-3.1-8b with bf16 weights and bf16 KV as 2 replicas each on 1 h100-sxm (tp 1): "
        "2 GPUs for $7.98 per hour."
    )
    split = candidate(gpus=3, deployment=to_mapping(deployment(role="split")), usd_per_hour=None)
    assert words.plan_sentence(plan([split])) == (
        "Run llama-3.1-8b with bf16 weights and bf16 KV as 1 prefill replica on 1 h100-sxm (tp 1) and "
        "2 decode replicas each on 1 h100-sxm (tp 1): 3 GPUs."
    )
    assert words.plan_sentence(plan(feasible=False)) == "Nothing meets the TTFT limit."


# --- terminal ---


def test_a_result_is_told_with_its_figures():
    run = result()
    text = printed(result_text(run))
    energy = f"Energy, {run.energy.kind}"
    for part in ("80 arrived, 80 finished", "95% interval", energy, "$7.98 per hour", "2 replicas"):
        assert part in text
    assert words.joules(run.energy.joules_per_output_token) in text


def test_unknown_figures_are_dashes_not_none():
    run = Result.from_json(result(slo=None).to_json().replace("7.98", "null"))
    text = printed(result_text(run)) + printed(plan_text(plan([candidate(usd_per_hour=None, attainment=None)]), 5))
    assert "None" not in text
    assert "nan" not in text


def test_a_stopped_run_says_so_first():
    run = result(provenance={"stopped": "interrupted after 3 finished requests"})
    assert printed(result_text(run)).startswith("Stopped early (interrupted after 3 finished requests)")


def test_names_are_literal_on_the_terminal():
    assert NASTY[-30:] in " ".join(printed(result_text(result(name=NASTY)), width=400).split())
    text = printed(plan_text(plan([candidate(NASTY, reason=NASTY)]), 5), width=600)
    assert text.count(NASTY) == 3  # the front, the table and why


def test_a_plan_is_told_with_the_answer_first_and_why_the_others_lost():
    found = plan()
    text = printed(plan_text(found, 3), width=140)
    assert text.startswith(f"{words.plan_sentence(found)}\n{found.message}\n")
    for part in ("7 too large for memory", "2 meet the SLO at 20 req/s, 2 miss it", "TTFT in 2", "and 1 more"):
        assert part in " ".join(text.split())
    for shown in found.ranked[:3]:
        assert shown.name in text
        assert shown.reason in text
    assert found.ranked[3].name not in text


def test_a_goodput_that_requests_are_too_few_to_tell_is_no_number():
    few = plan([candidate(goodput_req_s=136_424.0, goodput_high_req_s=None, goodput_req_s_per_gpu=68_212.0)])
    for said in (printed(plan_text(few, 3), 200), Seen(plan_html(few)).text):
        assert " open " in said and "136,424" not in said and "68,212" not in said
    assert " open " not in printed(plan_text(plan(), 3), 200)


def test_neighbours_that_lost_for_the_same_reason_are_told_together():
    ranked = [candidate(name, reason=why) for name, why in (("a", "won"), ("b", "dear"), ("c", "dear"), ("d", "slow"))]
    lines = printed(plan_text(plan(ranked), 4)).partition("Why\n")[2].splitlines()
    assert [line.split() for line in lines] == [["1", "won"], ["2-3", "dear"], ["4", "slow"]]


def test_a_plan_without_an_answer_is_told():
    text = printed(plan_text(plan([], feasible=False), 10))
    assert text.startswith("Nothing meets the TTFT limit.")


# --- pages ---

UNTRIED = candidate(
    meets=False, goodput_req_s=0.0, goodput_req_s_per_gpu=0.0, attainment=None, ttft_p90_s=None, tpot_p90_s=None,
    usd_per_million_output_tokens=None, joules_per_output_token=None,
)  # fmt: skip
PAGES = {
    "result": lambda: result_html(result()),
    "result without records": lambda: result_html(result(records=False)),
    "result without slo": lambda: result_html(result(slo=None)),
    "plan": lambda: plan_html(plan()),
    "plan without answer": lambda: plan_html(plan(feasible=False)),
    "plan without candidates": lambda: plan_html(plan([], feasible=False)),
    "plan of bounds": lambda: plan_html(plan([UNTRIED], feasible=False)),
    "capacity": lambda: capacity_html(day()),
    "capacity that is too little": lambda: capacity_html(day(slo=Slo(ttft_s=1e-4))),
    "plan without prices": lambda: plan_html(plan([candidate(usd_per_hour=None)])),
}


@pytest.fixture(scope="module", params=PAGES)
def page(request):
    return PAGES[request.param]()


def test_a_page_fetches_nothing(page):
    seen = Seen(page)
    for tag, attributes in seen.tags:
        assert not {"src", "srcset", "action", "data"} & set(attributes), (tag, attributes)
        assert attributes.get("href", "#").startswith("#"), (tag, attributes)
    assert not re.search(r"@import|url\(", page.partition("<script")[0])
    (policy,) = [attributes["content"] for _, attributes in seen.tags if "http-equiv" in attributes]
    assert policy.startswith("default-src 'none'")
    assert "http" not in policy


def test_a_page_is_small_and_for_every_width(page):
    assert len(page.encode()) < 2_000_000
    assert ("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}) in Seen(page).tags


def test_the_foot_of_a_page_leads_to_assumptions_where_there_are_any(page):
    text = Seen(page).text
    assert ("see the assumptions" in text) == ("Assumptions" in text)


def test_every_chart_of_a_page_is_drawn(page):
    import vl_convert

    specs, datasets = drawn(page)
    places = [attributes["data-chart"] for _, attributes in Seen(page).tags if "data-chart" in attributes]
    assert sorted(places) == sorted(specs)
    for spec in specs.values():
        svg = vl_convert.vegalite_to_svg(spec | {"datasets": datasets, "width": 300})
        assert "<svg" in svg
        assert "NaN" not in svg


def test_a_result_page_says_it_all():
    run = result()
    text = Seen(result_html(run)).text
    assert text.partition("Latency")[0].count(words.result_sentence(run)) == 1
    for part in ("SLO met", "Energy and cost", "Assumptions", "gpu.peak_flops.bf16", "vendor", "model: llama-3.1-8b"):
        assert part in text


def test_a_plan_page_says_it_all():
    found = plan()
    text = Seen(plan_html(found)).text
    for part in (words.plan_sentence(found), found.message, "The front", "Candidates", "Assumptions", "name: 2x tp1"):
        assert part in text
    for each in found.ranked:
        assert each.reason in text


def test_a_split_plan_shows_the_assumptions_of_both_pools():
    text = Seen(plan_html(plan([candidate(deployment=to_mapping(deployment(role="split")))]))).text
    assert "Assumptions: prefill replicas" in text
    assert "Assumptions: decode replicas" in text


def test_names_of_users_are_escaped_everywhere():
    plain, nasty = Seen(result_html(result(name="plain"))), result_html(result(name=NASTY))
    assert Seen(nasty).count("script") == plain.count("script") == 1
    assert Seen(nasty).count("img") == 0
    assert NASTY in Seen(nasty).text
    page = plan_html(plan([candidate(NASTY, reason=NASTY, deployment={"name": NASTY, **candidate().deployment})]))
    assert Seen(page).count("script") == 1
    assert Seen(page).count("img") == 0
    assert NASTY in Seen(page).text


def test_a_plan_of_thousands_stays_small_and_shows_the_best_and_the_front():
    reason = "meets the SLO, but takes $47.88 per hour against $31.92 per hour; serves up to 61 req/s, then TPOT breaks"
    many = [candidate(f"{n}P tp2 + {n}D tp4 fp8/bf16 b{n}", 16, n < 900, reason=reason) for n in range(1, 4000)]
    found = plan(many, front=[many[0].name, many[3000].name])
    page = plan_html(found)
    assert len(page.encode()) < 2_000_000
    assert many[3000].name in Seen(page).text
    shown = selected(found, 250, 100)
    assert shown[:250] == many[:250]
    assert len(shown) <= 351
    assert len({each.name for each in shown}) == len(shown)


def test_a_page_without_its_libraries_names_the_extra(monkeypatch):
    real = builtins.__import__

    def lacking(name, *rest):
        if name == "altair":
            raise ImportError("no altair", name="altair")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", lacking)
    with pytest.raises(MissingExtra, match=r"needs altair: pip install 'headway\[report\]'"):
        check_html()


# --- charts ---


def test_a_distribution_ends_at_all_requests_and_never_falls():
    import numpy as np

    times = np.random.default_rng(1).exponential(0.2, 5000)
    points = charts.distribution("TTFT", times, 0.5)["layer"][0]["data"]["values"]
    assert len(points) <= charts.CURVE_POINTS
    assert points[-1]["share"] == 1.0
    assert points[-1]["seconds"] == times.max()
    for before, after in itertools.pairwise(points):
        assert before["seconds"] <= after["seconds"]
        assert before["share"] < after["share"]
    for point in points:
        assert point["share"] == pytest.approx((times <= point["seconds"]).mean())


def test_a_limit_is_drawn_where_it_is():
    spec = charts.distribution("TTFT", result().records.ttft_s, SLO.ttft_s)
    rules = [layer for layer in spec["layer"] if layer["mark"]["type"] == "rule"]
    assert [rule["data"]["values"][0]["seconds"] for rule in rules] == [0.5]


def test_each_candidate_is_drawn_in_its_state():
    ranked = [candidate("a"), candidate("b"), candidate("c"), candidate("d", meets=False)]
    columns = plan_charts.candidate_columns(plan(ranked, front=["a", "b"]), ranked)
    assert dict(zip(columns["name"], columns["state"], strict=True)) == {
        "a": "best", "b": "on the front", "c": "meets the SLO", "d": "misses the SLO",
    }  # fmt: skip
    assert {len(column) for column in columns.values()} == {4}
