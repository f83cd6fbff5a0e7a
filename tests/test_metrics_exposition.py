"""What is written for Prometheus, read back by the parser of its own client library."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway.metrics.exposition import Buckets, family

parser = pytest.importorskip("prometheus_client.parser")
LIMITS_S = (0.01, 0.1, 1.0)
SECONDS = st.floats(min_value=0, max_value=1e6)


def read(lines):
    """The samples of the one metric that is written, as (name, labels, value)."""
    (found,) = parser.text_string_to_metric_families("\n".join(lines) + "\n")
    return found, [(sample.name, sample.labels, sample.value) for sample in found.samples]


@given(
    text=st.text(
        st.characters(exclude_categories=("Cs",), exclude_characters="\x00\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029")
    )
)
def test_any_text_in_a_label_is_read_back(text):
    _, samples = read(family("a_total", "counter", "Said.", [((("tenant", text), ("kind", "x")), 3)]))
    assert samples == [("a_total", {"tenant": text, "kind": "x"}, 3.0)]


@given(value=st.integers(0, 10**15))
def test_no_digit_of_a_count_is_lost(value):
    _, ((_, _, read_back),) = read(family("a_total", "counter", "Said.", [((), value)]))
    assert read_back == value


@given(durations=st.lists(SECONDS, max_size=50), times=st.integers(1, 5))
def test_a_histogram_holds_its_laws(durations, times):
    buckets = Buckets(LIMITS_S)
    for seconds in durations:
        buckets.add(seconds, times)
    found, samples = read(family("d_seconds", "histogram", "Said.", [((("c", "x"),), buckets)]))
    assert found.type == "histogram"
    counts = {float(labels["le"]): value for name, labels, value in samples if name == "d_seconds_bucket"}
    assert list(counts) == [*LIMITS_S, math.inf]
    for limit, count in counts.items():
        assert count == times * sum(seconds <= limit for seconds in durations)
    totals = {name: value for name, labels, value in samples if "le" not in labels}
    assert totals["d_seconds_count"] == counts[math.inf]
    assert totals["d_seconds_sum"] == pytest.approx(times * math.fsum(durations))


def test_what_is_no_number_is_written_as_prometheus_writes_it():
    lines = family("g", "gauge", "Said.", [((("n", str(x)),), x) for x in (math.inf, -math.inf, math.nan)])
    assert [line.rpartition(" ")[2] for line in lines[2:]] == ["+Inf", "-Inf", "NaN"]
