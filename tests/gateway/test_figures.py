"""What the gateway counts: names that are documented, labels that are bounded, sums that agree."""

from __future__ import annotations

from pathlib import Path

import pytest

from headway.gateway.events import Outcome
from headway.gateway.figures import HELP, TOLD_APART, Figures

parser = pytest.importorskip("prometheus_client.parser")
GATEWAY_PAGE = Path(__file__).parents[2] / "docs" / "gateway.md"


def outcome(i: int = 0, **more: object) -> Outcome:
    known = {"id": f"r{i}", "tenant": f"t{i}", "slo_class": "chat", "status": 200, "arrived_s": 1.0, "sent_s": 1.5}
    return Outcome(**(known | more))


def read(figures: Figures, gauges=()):
    families = list(parser.text_string_to_metric_families(figures.text(gauges)))
    return {(s.name, frozenset(s.labels.items())): s.value for each in families for s in each.samples}


def test_labels_that_others_choose_are_bounded_and_nothing_is_lost():
    figures = Figures()
    for i in range(500):
        figures.over(outcome(i, attained=True, ttft_s=0.3, tpot_s=0.02, e2e_s=2.0, output_tokens=7))
        figures.count("headway_decisions_total", outcome="routed", reason=f"because {i}")
    samples = read(figures)
    tenants = {dict(labels).get("tenant") for _, labels in samples} - {None}
    reasons = {dict(labels).get("reason") for _, labels in samples} - {None}
    assert len(tenants) == TOLD_APART["tenant"] + 1 and len(reasons) == TOLD_APART["reason"] + 1
    for name in ("ended_total", "attained_total", "decisions_total", "e2e_seconds_count", "queue_seconds_count"):
        assert sum(value for (key, _), value in samples.items() if key == f"headway_{name}") == 500
    assert figures.total("headway_tokens_total", kind="output") == 3500
    assert samples["headway_queue_seconds_sum", frozenset({("slo_class", "chat"), ("tenant", "other")})] == 200.0


def test_attainment_counts_the_refused_and_the_failed():
    figures = Figures()
    figures.over(outcome(attained=True, e2e_s=1.0))
    figures.over(outcome(status=503))
    figures.over(outcome(status=429, code="queue_full", sent_s=None))
    figures.over(outcome(status=429, code="queue_full", sent_s=None))
    samples = read(figures)
    assert samples["headway_attainment", frozenset({("slo_class", "chat"), ("tenant", "t0")})] == 0.25
    assert samples["headway_queue_seconds_count", frozenset({("slo_class", "chat"), ("tenant", "t0")})] == 2


def test_every_name_is_documented_and_none_else():
    page = GATEWAY_PAGE.read_text(encoding="utf-8")
    assert not [name for name in HELP if f"`{name}`" not in page]
    figures = Figures()
    for name, (kind, _) in HELP.items():
        figures.spread(name, 0.1) if kind == "histogram" else figures.count(name)
    written = {line.split()[2] for line in figures.text(()).splitlines() if line.startswith("# TYPE")}
    assert written == set(HELP)
    assert all(name.endswith("_total") == (kind == "counter") for name, (kind, _) in HELP.items())
