"""Quantities: printing and reading agree, and nonsense is refused with the forms allowed."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway.errors import BadInput
from headway.units import (
    counted,
    format_bytes,
    format_count,
    format_rate,
    format_rates,
    format_seconds,
    parse_bytes,
    parse_count,
    parse_rate,
    parse_seconds,
)

PARSERS = (parse_seconds, parse_bytes, parse_rate, parse_count)
FORMATTERS = (format_seconds, format_bytes, format_rate, format_count)


@given(st.floats(1e-8, 1e7))
def test_a_printed_time_reads_back_within_its_three_digits(seconds):
    assert parse_seconds(format_seconds(seconds)) == pytest.approx(seconds, rel=0.0101)


@given(st.floats(1e-4, 1e7))
def test_a_printed_rate_reads_back_within_its_three_digits(rate):
    assert parse_rate(format_rate(rate)) == pytest.approx(rate, rel=0.0101)


@given(st.integers(0, 1 << 55))
def test_a_printed_size_stays_within_its_three_digits(size_bytes):
    number, unit = format_bytes(size_bytes).split()
    assert float(number) * parse_bytes(f"1{unit}") == pytest.approx(size_bytes, rel=0.0101)


@given(st.integers(0, 10**12))
def test_a_printed_count_reads_back_within_its_three_digits(count):
    assert parse_count(format_count(count)) == pytest.approx(count, rel=0.0101)


@given(st.integers(0, 1 << 80))
def test_whole_numbers_are_read_exactly(n):
    assert parse_bytes(n) == parse_bytes(str(n)) == parse_count(str(n)) == n
    assert parse_bytes(f"{n}GiB") == n << 30


@given(st.floats(0, 1e300))
def test_a_bare_number_is_in_the_inner_unit(x):
    assert parse_seconds(x) == parse_seconds(repr(x)) == parse_rate(x) == x


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("500ms", 0.5),
        ("1.5s", 1.5),
        ("2min", 120),
        ("3h", 10800),
        ("1d", 86400),
        (" 20 us ", 2e-5),
        ("20µs", 2e-5),
    ],
)
def test_times(text, seconds):
    assert parse_seconds(text) == seconds


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("80GiB", 80 << 30),
        ("64 MB", 64_000_000),
        ("1.5KiB", 1536),
        ("80gib", 80 << 30),
        ("3.35TB", 3_350_000_000_000),
    ],
)
def test_sizes(text, size_bytes):
    assert parse_bytes(text) == size_bytes


@pytest.mark.parametrize(
    ("text", "rate"), [("25req/s", 25), ("25", 25), ("25/s", 25), ("90req/min", 1.5), ("7200 requests/h", 2)]
)
def test_rates(text, rate):
    assert parse_rate(text) == rate


@pytest.mark.parametrize(
    ("text", "count"), [("1M", 10**6), ("32k", 32_000), ("1.5k", 1500), ("2Ki", 2048), ("1_000", 1000)]
)
def test_counts(text, count):
    assert parse_count(text) == count


@pytest.mark.parametrize("parse", PARSERS)
@pytest.mark.parametrize(
    "bad",
    [
        math.nan,
        math.inf,
        -math.inf,
        -1,
        -0.5,
        "-1",
        "nan",
        "inf",
        "",
        "abc",
        "1 2",
        "5 parsecs",
        "1,000",
        None,
        True,
        [1],
    ],
)
def test_nonsense_is_refused_with_the_text_and_the_forms(parse, bad):
    with pytest.raises(BadInput) as caught:
        parse(bad)
    assert str(bad) in str(caught.value)
    assert "write " in str(caught.value)


@pytest.mark.parametrize(
    ("parse", "bad"),
    [(parse_bytes, "1.5"), (parse_bytes, 0.5), (parse_count, "1.5"), (parse_count, "0.0001k")],
)
def test_fractions_of_a_thing_are_refused(parse, bad):
    with pytest.raises(BadInput, match="not a whole number"):
        parse(bad)


@pytest.mark.parametrize(
    ("parse", "bad"), [(parse_bytes, "80Gb"), (parse_seconds, "2m"), (parse_count, "2m")]
)
def test_ambiguous_units_are_refused(parse, bad):
    with pytest.raises(BadInput, match="not understood"):
        parse(bad)


@pytest.mark.parametrize("write", FORMATTERS)
def test_unknown_values_print_as_a_dash(write):
    assert write(None) == write(math.nan) == "-"
    assert write(math.inf) == "inf"


@pytest.mark.parametrize(
    ("printed", "expected"),
    [
        (format_seconds(0.0123), "12.3 ms"),
        (format_seconds(0.9999), "1 s"),
        (format_seconds(59.99), "1 min"),
        (format_seconds(0), "0 s"),
        (format_bytes(80 << 30), "80 GiB"),
        (format_bytes(1023), "1023 B"),
        (format_bytes(1023.9), "1 KiB"),
        (format_rate(25), "25 req/s"),
        (format_rate(0.01), "36 req/h"),
        (format_count(1_234_567), "1.23M"),
        (format_count(512), "512"),
        (counted(0, "GPU"), "0 GPUs"),
        (counted(1, "GPU"), "1 GPU"),
        (counted(2_000, "request"), "2,000 requests"),
    ],
)
def test_printed_forms(printed, expected):
    assert printed == expected


@pytest.mark.parametrize(
    ("rates", "printed"),
    [
        ([25, 0.5, 0, None], ["25 req/s", "0.5 req/s", "0 req/s", "-"]),
        ([0.5, 0.01], ["30 req/min", "0.6 req/min"]),
        ([0.01, math.inf], ["36 req/h", "inf"]),
        ([None, 0], ["-", "0 req/s"]),
        ([], []),
    ],
)
def test_rates_of_a_column_have_one_unit(rates, printed):
    assert format_rates(rates) == printed
