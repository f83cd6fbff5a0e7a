"""The report of a plan: the same figures in JSON, on the page and on the terminal; nothing cut; used by keyboard."""

import io
import json
import re
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner
from rich.console import Console

from headway.cli import main
from headway.metrics import Prices, Slo
from headway.plan import Plan, Question, fleet, plan
from headway.plan.fleet_answer import Fleet
from headway.plan.sensitivity import sensitivity
from headway.plan.why import why
from headway.report import plan_charts as charts
from headway.report import plan_html, plan_text
from headway.report import words as w
from headway.report.capacity_text import _rows
from headway.report.fleet_page import fleet_page
from headway.report.plan_page import MOST_BEST, plan_page
from headway.report.plan_tables import load_tables, strip
from headway.report.sensitivity_text import variant_rows
from headway.report.text import candidate_cells
from headway.sim import Deployment
from headway.specs import from_mapping
from headway.units import format_rate, format_seconds
from headway.workload import RequestClass, WorkloadSpec, workload
from report_cases import NASTY, Seen, candidate, day, drawn
from report_cases import plan as made_plan
from tests.gateway.browser import CHROMIUM, Browser

QUESTION = Question(
    model="llama-3.1-8b", gpu={"h100-sxm": 2, "a100-80gb-sxm": 2}, workload="chat", rate_req_s=25.0, requests=300,
    slo=Slo(ttft_s=0.5, tpot_s=0.03), kv=("bf16",), tp=(1,),
    prices=Prices(carbon_g_per_kwh=50, embodied_kg_per_gpu=150, lifetime_years=4),
)  # fmt: skip
WIDER = [pytest.param(False, width, marks=pytest.mark.sweep) for width in (1400, 800)]
CUT = """[...document.querySelectorAll('#candidates td')]
    .filter(cell => cell.offsetParent && cell.scrollWidth > cell.clientWidth + 1).map(cell => cell.textContent)"""


@pytest.fixture(scope="module")
def found() -> Plan:
    return plan(QUESTION, workers=1)


@pytest.fixture(scope="module")
def impossible(found) -> Plan:
    lost = {"meets": False, "goodput_req_s": 0.0, "goodput_req_s_per_gpu": 0.0, "reason": "no rate meets the SLO"}
    ranked = [msgspec.structs.replace(each, **lost) for each in found.ranked]
    return msgspec.structs.replace(
        found, feasible=False, best=None, binding="ttft", front=[], ranked=ranked, message="No plan meets the SLO."
    )


@pytest.fixture(scope="module")
def page(found) -> str:
    return plan_html(found)


@pytest.fixture(scope="module")
def text(found) -> str:
    return told(found)


def test_what_was_tried_counts_only_runs_that_were_made(found):
    nothing = msgspec.structs.replace(found, ranked=[], best=None, feasible=False, front=[], long_runs=0, confirmed=0)
    assert "runs of" not in dict(w.question_rows(nothing))["Tried"]
    one = msgspec.structs.replace(found, requests=1, long_runs=found.evaluated)
    assert dict(w.question_rows(one))["Tried"].endswith("by runs of 1 request" + (
        f"; {found.confirmed:,} confirmed on further seeds" if found.confirmed else ""
    ))  # fmt: skip


def told(found, width=400) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(plan_text(found, None))
    return console.file.getvalue()


def plain(text: str) -> str:
    return " ".join(text.replace("\N{NO-BREAK SPACE}", " ").split())


def table_rows(page: str) -> list[tuple[list[str], str]]:
    """Cells and note of each row of the table of candidates."""
    table = page.partition("<table class=\"sortable cards-on-phones\"")[2].partition("</table>")[0]
    rows = []
    for body in table.split("<tbody")[1:]:
        first, _, note = body.partition("<tr class=why>")
        cells = re.findall(r"<td[^>]*>([^<]*)", first)
        rows.append(([plain(Seen(cell).text) for cell in cells], plain(Seen(note.partition(">")[2]).text)))
    return rows


# --- the answer first ---


def test_the_page_begins_with_the_answer_in_one_short_sentence_and_loses_no_word(found, page):
    first = plain(page.partition("<h1>")[2].partition("</h1>")[0])
    best, slo = found.best, found.question.slo
    gpus, price = "1 h100-sxm and 1 a100-80gb-sxm", w.usd(best.usd_per_hour)
    assert f"{best.name}: {gpus}, {price}" in found.message
    assert first == plain(
        f"{best.name} on {gpus}, {price} per hour: {w.pace(found)} {w.share(best.attainment)} of "
        f"requests within {w.limits(slo)} (target {w.share(slo.attainment)})."
    )
    assert len(first) < len(plain(found.message)) / 2
    details = re.findall(r"<li>((?:[^<]|</?code>)*)", page.partition("<ul class=\"details\">")[2].partition("</ul>")[0])
    told = f"{w.plan_sentence(found)} {found.message}".replace("`", "")
    assert plain(Seen(" ".join(details)).text) == plain(told)
    assert len(details) > 2 and page.index("<ul class=\"details\">") < page.index("<dl class=\"facts\">")


def test_the_first_line_says_what_it_rests_on():
    said = w.plan_headline(made_plan(), made_plan().best)
    assert said == (
        "2x tp1 bf16/bf16 b8192 on 2 h100-sxm, $7.98 per hour: at 20 req/s 97% of requests within TTFT 500 ms and TPOT "
        "50 ms (target 90%)."
    )
    asked = msgspec.structs.replace(made_plan().question, spare=2)
    spare = made_plan(question=asked, interrupted=True)
    said = w.plan_headline(spare, spare.best)
    assert said.startswith("So far: ") and ": with 2 replicas of every pool down, at 20 req/s 97% of" in said
    alone = made_plan(alone=True)
    assert "served alone its one request within TTFT 500 ms" in w.plan_headline(alone, alone.best)


def test_a_page_without_an_answer_begins_with_its_first_sentence():
    message = "No plan on 8 h100-sxm does. `x` 0.5 is. Ask for 9.5 ms or more."
    page = plan_page(made_plan(feasible=False, message=message))
    assert plain(page.sentence) == "No plan on 8 h100-sxm does."
    assert [plain(each) for each in page.details] == ["`x` 0.5 is.", "Ask for 9.5 ms or more."]


# --- the same everywhere ---


def test_rates_of_a_column_are_in_one_unit(found):
    """At about 1 req/s, where a rate by itself may be written by the minute."""
    points = [
        msgspec.structs.replace(point, rate_req_s=rate)
        for point, rate in zip(found.curves[0].points, (2.0, 1.0, 0.5, 0.25), strict=False)
    ]
    slow = msgspec.structs.replace(found, curves=[msgspec.structs.replace(found.curves[0], points=points)])
    [table] = load_tables(slow, ["ttft_s"])
    columns = {"load": [row.cells[0].text for row in table.rows], "front": w.column("rate", [1.0, 0.5])}
    base = sensitivity(found, workers=1)
    halves = [msgspec.structs.replace(each, rate_req_s=1 / (i + 1)) for i, each in enumerate(base.variants)]
    columns["holds"] = [cells[1] for cells in variant_rows(msgspec.structs.replace(base, variants=halves))]
    made = day()
    hours = [msgspec.structs.replace(each, rate_req_s=1 / (i + 1)) for i, each in enumerate(made.slots)]
    columns["day"] = [cells[1] for cells in _rows(msgspec.structs.replace(made, slots=hours))]
    for name, cells in columns.items():
        assert len(cells) > 1 and {cell.partition(" ")[2] for cell in cells} == {"req/s"}, (name, cells)


def test_every_candidate_is_on_the_page_and_the_terminal_with_the_reason_and_the_figures_of_the_json(found, page, text):
    again = Plan.from_json(found.to_json())
    rows, lines, whole = table_rows(page), {plain(line) for line in text.splitlines()}, plain(text)
    assert len(rows) == len(again.ranked)
    for place, (each, (cells, note)) in enumerate(zip(again.ranked, rows, strict=True), start=1):
        expected = [f"{place}", each.name, *candidate_cells(again, each)]
        assert cells == expected
        assert note == each.reason
        assert plain(" ".join(expected)) in lines
        assert each.reason in whole


def test_the_page_is_made_of_the_plan_alone(found, page):
    assert plan_html(Plan.from_json(found.to_json())) == page


def test_curves_stand_in_figures_on_the_page_and_the_terminal(found, page, text):
    seen, lines = Seen(page).text, plain(text)
    assert found.curves
    for curve in found.curves:
        assert f". {curve.name}" in seen
        for point in curve.points:
            row = " ".join([
                format_rate(point.rate_req_s), w.share(point.attainment),
                f"{w.share(point.attainment_low)} to {w.share(point.attainment_high)}",
                format_seconds(point.ttft_s.p50_s), format_seconds(point.ttft_s.tail_s),
            ])  # fmt: skip
            assert row in seen
            assert row in lines


def test_curves_are_drawn_with_their_interval_and_the_limits(found, page):
    specs, _ = drawn(page)
    for latency, limit_s in (("ttft_s", 0.5), ("tpot_s", 0.03)):
        band, _, dots, *rules = specs[f"load-{latency}"]["layer"]
        assert [band["mark"]["type"], dots["mark"]["type"]] == ["area", "point"]
        points = [getattr(point, latency) for curve in found.curves for point in curve.points]
        ends = [(row["low"], row["value"], row["high"]) for row in band["data"]["values"]]
        for spread, drawn_ends in zip(points, ends, strict=True):
            assert drawn_ends == pytest.approx((spread.tail_low_s, spread.tail_s, spread.tail_high_s), rel=1e-3)
        values = {rule["data"]["values"][0]["value"] for rule in rules}
        assert values == {found.rate_req_s, limit_s}
    assert "load-e2e_s" not in specs


def test_the_course_is_drawn_as_it_is_in_the_plan(found, page):
    specs, _ = drawn(page)
    for key, name in (("course-kv", "kv_mean"), ("course-busy", "busy"), ("course-requests", "running")):
        rows = specs[key]["data"]["values"]
        assert [row["value"] for row in rows] == [value for pool in found.course.pools for value in getattr(pool, name)]
    assert f"seed {found.course.seed}" in Seen(page).text


def test_a_strip_shows_the_most_of_each_stretch():
    assert strip([0.0, 0.5, 1.0]) == "▁▅█"
    assert len(strip([0.1] * 99 + [0.9])) <= 24
    assert strip([0.1] * 99 + [0.9])[-1] == "█"


def test_money_and_joules_are_the_sum_of_their_parts(found, page, text):
    usd = [float(cells[4].strip("$")) for cells in rows_of(page, "Price: ")]
    assert sum(usd[:-1] or usd) == pytest.approx(found.best.usd_per_hour, abs=0.01)
    joules = rows_of(page, "Energy per output token, carbon and cost")
    for cells, each in zip(joules, found.ranked, strict=False):
        assert cells[0] == each.name
        assert cells[4] == w.joules(each.joules_per_output_token)
        assert sum(float(cell.partition(" ")[0]) for cell in cells[1:4]) == pytest.approx(
            each.joules_per_output_token, rel=0.01
        )
        assert cells[9] == w.amount(each.embodied_g_per_million_output_tokens)
    assert "carbon intensity" in text and "50 g CO2 per kWh" in text


def rows_of(page: str, title: str) -> list[list[str]]:
    table = page.partition(f"<h3>{title}")[2].partition("</table>")[0]
    body = table.partition("<tbody>")[2]
    return [[plain(cell) for cell in re.findall(r"<td[^>]*>([^<]*)", row)] for row in body.split("<tr")[1:]]


def test_assumptions_have_their_sources_on_both(found, page, text):
    for said in ("price of h100-sxm", "RunPod", "gpu.peak_flops.bf16", "PUE", "Uptime Institute"):
        assert said in Seen(page).text
        assert said in text
    priced = msgspec.structs.replace(QUESTION, usd_per_gpu_hour={"h100-sxm": 2.0})
    assert priced.price_source("h100-sxm") == "the question"
    assert priced.price_source("a100-80gb-sxm").startswith("vendor: ")


# --- what was asked decides what is drawn ---


@pytest.mark.parametrize(
    "front",
    [
        ("cost", "energy", "goodput"),
        ("ttft", "gpus"),
        pytest.param(("rate", "carbon", "tpot"), marks=pytest.mark.sweep),
    ],
)
def test_the_front_is_drawn_and_told_in_the_objectives_asked_for(found, front):
    ranked = found.ranked
    asked = msgspec.structs.replace(found, question=msgspec.structs.replace(QUESTION, front=front))
    specs, datasets = drawn(plan_html(asked))
    note = next(section.note for section in plan_page(asked).sections if section.key == "front")
    for each in front:
        assert w.objective(each, found.question) in note
    for up in front[1:]:
        encoding = specs[f"front-{up}"]["encoding"]
        assert (encoding["x"]["field"], encoding["y"]["field"]) == (front[0], up)
    assert [row["name"] for row in datasets["candidates"]] == [each.name for each in ranked]
    assert all(set(front) <= set(row) for row in datasets["candidates"])
    for objective in set(w.OBJECTIVES) - set(front):
        assert w.OBJECTIVES[objective] not in note.partition(" at once")[0].replace(w.OBJECTIVES["goodput"], "")


def test_limits_and_targets_of_every_class_are_drawn_and_equal_ones_once(found):
    shares = {"chat": 0.6, "batch": 0.3, "job": 0.1}
    classes = tuple(RequestClass(name=name, share=share) for name, share in shares.items())
    made = msgspec.structs.replace(workload("chat").spec, classes=classes)
    slos = {"chat": Slo(ttft_s=0.3, tpot_s=0.03), "batch": Slo(ttft_s=3.0, e2e_s=30.0, attainment=0.95)}
    asked = msgspec.structs.replace(QUESTION, workload=made, slo=Slo(ttft_s=0.3), slos=slos)
    several = msgspec.structs.replace(found, question=asked)
    for spec, labels in (
        (charts.load(several, "ttft_s"), ("chat and job 300 ms", "batch 3 s")),
        (charts.load(several, "tpot_s"), ("chat 30 ms",)),
        (charts.load(several, "e2e_s"), ("batch 30 s",)),
        (charts.load_attainment(several), ("chat and job 90%", "batch 95%")),
        (charts.latencies(several), ("chat and job 300 ms", "batch 3 s", "chat 30 ms")),
    ):
        told = json.dumps(spec)
        assert all(label in told for label in labels), labels
    assert "limit 500 ms" in json.dumps(charts.load(found, "ttft_s"))
    assert "limit" not in json.dumps(charts.load(found, "e2e_s")).replace("labelLimit", "")


def test_each_option_of_the_filter_shows_something_and_leaves_something_out(found, page):
    _, datasets = drawn(page)
    rows = datasets["candidates"]
    filters = plan_page(found).filters
    assert {"state", "front", "layout", "kind", "gpus"} == {each.column for each in filters}
    for each in filters:
        (label, every), *options = each.options
        assert (label, every) == ("any", [])
        for _, values in options:
            kept = [row for row in rows if json.dumps(row[each.column]).strip('"') in values]
            assert 0 < len(kept) < len(rows)


def test_a_plan_without_an_answer_shows_what_comes_nearest(impossible):
    page = Seen(plan_html(impossible))
    seen, text = page.text, plain(told(impossible))
    assert "no deployment meets the SLO" in seen
    assert f"Deployment that comes nearest {impossible.ranked[0].name} as a file" in seen
    assert "On the front" not in seen and "What the money serves" not in seen
    assert page.count("form") == 1
    for each in impossible.ranked:
        assert each.reason in seen and each.reason in text


def test_a_plan_of_before_curves_is_told(found):
    old = msgspec.structs.replace(found, curves=[], course=None)
    seen = Seen(plan_html(old)).text
    assert "Latency against load" not in seen and "over time" not in seen
    assert found.best.reason in seen


def test_what_is_to_be_typed_is_set_as_code_on_the_page(found, page):
    assert "`" in found.message
    assert "<code>headway simulate</code>" in page and "`headway" not in page


def test_names_are_escaped_where_the_filter_and_the_curves_have_them(found):
    ranked = [msgspec.structs.replace(found.ranked[0], name=NASTY), *found.ranked[1:]]
    curves = [msgspec.structs.replace(found.curves[0], name=NASTY), *found.curves[1:]]
    nasty = msgspec.structs.replace(found, ranked=ranked, best=ranked[0], curves=curves, front=[NASTY])
    page = plan_html(nasty)
    assert Seen(page).count("script") == 1 and Seen(page).count("img") == 0
    assert NASTY in told(nasty, width=900)


def test_a_page_of_the_most_candidates_is_whole_and_small():
    reason = "meets the SLO, but takes $47.88 per hour against $31.92 per hour; serves up to 61 req/s, then TPOT breaks"
    many = [candidate(f"{n}P tp2 h100-sxm + {n}D tp4 a100-80gb-sxm fp8", reason=reason) for n in range(MOST_BEST)]
    page = plan_html(made_plan(many))
    assert len(table_rows(page)) == MOST_BEST
    assert len(page.encode()) < 2_000_000


# --- headway report ---


def run(*words):
    return CliRunner().invoke(main, [str(word) for word in words])


def test_report_makes_the_page_and_the_text_that_plan_made(found, page, tmp_path):
    file, html = tmp_path / "plan.json", tmp_path / "plan.html"
    file.write_text(found.to_json(), encoding="utf-8")
    done = run("report", file, "--text", "--html", html)
    assert done.exit_code == 0
    assert html.read_text(encoding="utf-8") == page
    assert plain(found.message) in plain(done.stdout)
    assert run("report", file, "--top", 2).stdout.count("\n") < done.stdout.count("\n")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"), ("{", "not JSON"), ("[]", "schema None"),
        ('{"schema": "headway.capacity/1"}', "schema 'headway.capacity/1'; headway.plan/1, headway.fleet/1 or headway"),
        ('{"schema": "headway.plan/1"}', "question"),
    ],
)  # fmt: skip
def test_report_says_what_is_wrong_with_a_file(content, message, tmp_path):
    file = tmp_path / "x.json"
    if content is not None:
        file.write_text(content)
    done = run("report", file)
    assert done.exit_code == 2
    assert message in done.stderr and "Traceback" not in done.stderr


# --- in a browser ---


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
@pytest.mark.parametrize(("feasible", "width"), [(True, 1400), (True, 800), (True, 390), (False, 390), *WIDER])
def test_nothing_is_wider_than_the_page_and_every_chart_is_drawn(found, impossible, tmp_path, feasible, width):
    file = tmp_path / "page.html"
    file.write_text(plan_html(found if feasible else impossible), encoding="utf-8")
    browser = opened(file, tmp_path / "profile", width)
    try:
        assert browser.value("document.documentElement.scrollWidth") <= width
        places = browser.value("document.querySelectorAll('[data-chart]').length")
        assert browser.value("document.querySelectorAll('[data-chart] svg').length") == places > 0
        assert browser.value(CUT) == []
        assert browser.complaints() == []
    finally:
        browser.close()


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_filters_and_headings_work_by_keyboard(found, page, tmp_path):
    file = tmp_path / "page.html"
    file.write_text(page, encoding="utf-8")
    browser = opened(file, tmp_path / "profile", 1400)
    shown = "[...document.querySelectorAll('#candidates tbody')].filter(b => !b.hidden).map(b => b.row.name)"
    try:
        browser.value("document.querySelector('.filter select[name=state]').focus()")
        browser.press("ArrowDown")
        assert browser.until(shown, lambda names: names == [each.name for each in found.ranked if each.meets][:25])
        browser.value("document.querySelector('.filter button').click()")
        assert browser.until("document.querySelector('.filter output').textContent", lambda told: "pass" not in told)
        for event, most in (("", 25), ("beforeprint", len(found.ranked)), ("afterprint", 25)):
            browser.value(f"dispatchEvent(new Event('{event}'))")
            assert browser.until(shown, lambda names, most=most: len(names) == min(most, len(found.ranked)))
        browser.value("document.querySelector('.count button').click()")
        assert browser.until(shown, lambda names: len(names) == len(found.ranked))
        browser.value("document.querySelectorAll('#candidates th button')[4].focus()")
        browser.do("Input.dispatchKeyEvent", type="keyDown", key="Enter", code="Enter", text="\r")
        by_ttft = [each.name for each in sorted(found.ranked, key=lambda each: each.ttft_p90_s or float("inf"))]
        assert browser.until(shown, lambda names: names == by_ttft)
    finally:
        browser.close()


def opened(file: Path, profile: Path, width: int) -> Browser:
    browser = Browser(profile, width=width)
    browser.open(file.as_uri())
    browser.until("document.readyState", lambda state: state == "complete")
    browser.until("[...document.querySelectorAll('[data-chart]')].every(each => each.querySelector('svg'))")
    return browser


# --- pools for several classes ---


@pytest.fixture(scope="module")
def pools() -> Fleet:
    office = WorkloadSpec(
        name="office",
        classes=(
            RequestClass(name="chat", workload="chat", rate_req_s=8),
            RequestClass(name="code", workload="code", rate_req_s=2, model="llama-3.2-3b"),
        ),
    )
    asked = {"workload": office, "slo": Slo(ttft_s=1), "rate_req_s": None, "gpu": "h100-sxm", "gpus": 3}
    return fleet(msgspec.structs.replace(QUESTION, **asked, layouts=("mixed",)), workers=1)


def test_the_report_of_several_pools_says_of_each_what_that_of_a_plan_says(pools):
    page, text = fleet_page(pools, whole=True), told(pools)
    assert len(pools.parts) == 2
    keys = [section.key for section in page.sections]
    figures = [figure.key for section in page.sections for figure in section.figures]
    assert len(set(keys)) == len(keys) and len(set(figures)) == len(figures)
    for tag, part in enumerate(pools.parts):
        assert {f"{each}-{tag}" for each in ("front", "load", "course", "spent", "candidates")} <= set(keys)
        assert part.plan.curves[0].name == part.plan.course.name == part.candidate.name
        for each in part.plan.ranked:
            assert each.name in text and each.reason in plain(text)
    for pool in from_mapping(Deployment, pools.deployment, "best").pool_names():
        assert f"assumptions-{pool.replace('.', '-')}" in keys


def test_each_pool_has_points_of_its_own_on_the_page(pools):
    page = fleet_page(pools)
    assert set(page.datasets) == {"candidates-0", "candidates-1"}
    for section in page.sections:
        for each in section.tables:
            assert not each.dataset or page.datasets[each.dataset]["name"] == [row.cells[1].text for row in each.rows]
        for figure in section.figures:
            named = set(re.findall(r'"name": "(candidates[-0-9]*)"', json.dumps(figure.spec())))
            assert named <= {f"candidates-{section.key[-1]}"}
    html = plan_html(pools)
    assert len(html.encode()) < 2_000_000
    assert set(drawn(html)[1]) == set(page.datasets)


def test_a_candidate_taken_that_is_not_the_best_of_its_plan_is_the_one_that_is_told(pools):
    part = pools.parts[0]
    other = next(each for each in part.plan.ranked if each.meets and each.name != part.candidate.name)
    moved = msgspec.structs.replace(part, candidate=other)
    assert moved.taken.ranked[0] == moved.taken.best == other
    assert len(moved.taken.ranked) == len(part.plan.ranked)
    text = plain(told(msgspec.structs.replace(pools, parts=[moved, *pools.parts[1:]])))
    assert f"Taken here is {other.name}" in text and f"Price: {other.name}" in text
    assert "Taken here" not in plain(told(pools))


def test_how_far_each_pool_holds_is_in_the_summary(pools):
    part = pools.parts[0]
    asked = why(msgspec.structs.replace(pools, parts=[part]), workers=1)
    assert asked.parts[0].plan.sensitivity == sensitivity(part.taken, workers=1)
    console = Console(file=io.StringIO(), width=200)
    console.print(plan_text(asked, 10))
    summary = console.file.getvalue()
    assert f"How far it holds: {part.serves}" in summary and "Attainment by class" not in summary
    assert f"How far it holds: {pools.parts[1].serves}" not in summary
