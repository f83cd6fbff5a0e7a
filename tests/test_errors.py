"""Errors say what came, what is allowed and what to try."""

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway.errors import BadInput, DoesNotFit, HeadwayError, MissingExtra, UnknownName, nearest

GPUS = ["h100-sxm", "h100-pcie", "a100-80gb-sxm", "a100-80gb-pcie", "gh200", "l4", "l40s"]
names = st.text("abcdefgh0123456789-.", min_size=1, max_size=12)


@given(st.lists(names, min_size=1, unique=True), st.data())
def test_an_allowed_name_is_nearest_to_itself_whatever_its_case(allowed, data):
    name = data.draw(st.sampled_from([n for n in allowed if n.strip("-.")] or ["a"]))
    allowed = [*allowed, name]
    first = nearest(name.upper(), allowed)[0]
    assert first.replace("-", "").replace(".", "") == name.replace("-", "").replace(".", "")


@given(names, st.lists(names), st.integers(1, 5))
def test_nearest_are_some_of_the_allowed_without_repeats(came, allowed, n):
    near = nearest(came, allowed, n)
    assert len(near) <= n
    assert set(near) <= set(allowed)
    assert len(set(near)) == len(near)


@pytest.mark.parametrize(
    ("came", "expected"),
    [
        ("h100", ["h100-sxm", "h100-pcie"]),
        ("H100 SXM", ["h100-sxm"]),
        ("h10O-sxm", ["h100-sxm"]),
        ("A100", ["a100-80gb-sxm", "a100-80gb-pcie"]),
        ("tpu", []),
        ("", []),
    ],
)
def test_nearest_finds_what_was_meant(came, expected):
    found = nearest(came, GPUS)
    assert found[: len(expected)] == expected
    assert found or not expected


def test_unknown_name_of_a_catalogue_says_where_the_catalogue_is():
    assert str(UnknownName("GPU", "h100", GPUS)) == (
        "unknown GPU 'h100': nearest: h100-sxm, h100-pcie; `headway list gpus` shows all"
    )
    assert str(UnknownName("GPU", "tpu", GPUS)) == "unknown GPU 'tpu': `headway list gpus` shows all"
    assert "`headway list policies`" in str(UnknownName("route policy", "rnd", ["round-robin"]))


def test_unknown_name_outside_a_catalogue_lists_what_is_allowed():
    assert (
        str(UnknownName("field", "tpp", ["tp", "pp"]))
        == "unknown field 'tpp': nearest: pp, tp; allowed: pp, tp"
    )
    many = [f"name{i:02}" for i in range(40)]
    assert str(UnknownName("field", "qqq", many)).endswith("name11, ...")
    assert "allowed: none" in str(UnknownName("field", "x", []))


def test_exit_codes_tell_bad_input_from_no_answer():
    too_big = DoesNotFit("70 GiB needed, 8 GiB had", needed_bytes=70 << 30, available_bytes=8 << 30)
    assert (too_big.exit_code, too_big.needed_bytes, too_big.available_bytes) == (1, 70 << 30, 8 << 30)
    extra = MissingExtra("writing Parquet needs pyarrow", "parquet")
    assert str(extra) == "writing Parquet needs pyarrow: pip install 'headway[parquet]'"
    for error in (extra, UnknownName("GPU", "x", []), BadInput("no")):
        assert error.exit_code == 2
        assert isinstance(error, HeadwayError)
        assert isinstance(error, ValueError)


@pytest.mark.parametrize(
    "error",
    [
        BadInput("rate 0"),
        UnknownName("GPU", "h100", GPUS),
        MissingExtra("writing Parquet needs pyarrow", "parquet"),
        DoesNotFit("70 GiB needed", needed_bytes=70, available_bytes=8),
    ],
)
def test_errors_cross_a_process_boundary_unchanged(error):
    back = pickle.loads(pickle.dumps(error))
    assert (type(back), str(back), vars(back)) == (type(error), str(error), vars(error))
