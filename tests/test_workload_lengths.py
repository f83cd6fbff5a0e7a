"""Laws of the length models."""

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headway.errors import BadInput
from headway.workload import parse_length
from headway.workload.lengths import (
    Binned,
    Constant,
    Empirical,
    Exponential,
    Length,
    LogNormal,
    Uniform,
    draw_lengths,
    expected_tokens,
)

tables = st.lists(st.floats(1, 1e5), min_size=2, max_size=20).map(sorted).map(tuple)
models = st.one_of(
    st.builds(Constant, tokens=st.integers(1, 10**6)),
    st.tuples(st.integers(1, 1000), st.integers(0, 1000)).map(
        lambda t: Uniform(low_tokens=t[0], high_tokens=t[0] + t[1])
    ),
    st.builds(Exponential, mean_tokens=st.floats(1, 1e5)),
    st.builds(
        LogNormal,
        median_tokens=st.floats(20, 1e4),
        sigma=st.floats(0, 1.5),
        max_tokens=st.none() | st.integers(100, 10**5),
    ),
    st.builds(Empirical, tokens=tables),
)
seeds = st.integers(0, 2**32)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@given(models, seeds)
def test_lengths_are_whole_and_at_least_one(model: Length, seed: int) -> None:
    lengths = model.draw(rng(seed), 1000)
    assert lengths.dtype == np.int64
    assert lengths.min() >= 1


@given(models, seeds)
def test_the_mean_is_the_expected_one(model: Length, seed: int) -> None:
    lengths = model.draw(rng(seed), 20_000)
    error = 6 * lengths.std() / math.sqrt(len(lengths)) + 0.5 * (not isinstance(model, Uniform | Exponential))
    heavy = isinstance(model, LogNormal) and model.max_tokens is None and model.sigma > 1
    assert lengths.mean() == pytest.approx(model.expected_tokens, abs=error * (2 if heavy else 1) + 1e-9)


@given(models, seeds, st.lists(st.integers(0, 100), min_size=1, max_size=5))
def test_cutting_into_runs_changes_nothing(model: Length, seed: int, runs: list[int]) -> None:
    one, many = rng(seed), rng(seed)
    cut = np.concatenate([model.draw(many, n) for n in runs])
    assert (cut == model.draw(one, sum(runs))).all()


@given(tables)
def test_an_empirical_table_gives_its_quantiles_back(table: tuple[float, ...]) -> None:
    lengths = Empirical(tokens=table).draw(rng(1), 20_000)
    assert lengths.min() >= np.rint(table[0])
    assert lengths.max() <= np.rint(table[-1])
    below = [(lengths <= np.rint(value) + 0.5).mean() for value in table]
    # a value that stands several times in the table covers a range of probabilities: at least its own
    assert all(share >= p - 0.02 for share, p in zip(below, np.linspace(0, 1, len(table)), strict=True))


def test_a_histogram_is_an_empirical_table() -> None:
    """A quarter of the lengths from 1 to 101, three quarters from 101 to 1001."""
    model = Empirical(tokens=(1, 101, 1001), at=(0, 0.25, 1))
    lengths = model.draw(rng(), 50_000)
    assert (lengths <= 101).mean() == pytest.approx(0.25, abs=0.01)
    assert model.expected_tokens == 0.25 * 51 + 0.75 * 551


def test_uniform_reaches_both_ends_alike() -> None:
    counts = np.bincount(Uniform(low_tokens=3, high_tokens=6).draw(rng(), 40_000))
    assert counts[:3].sum() == 0
    assert counts[3:] == pytest.approx(10_000, rel=0.05)


def test_a_lognormal_is_cut_at_its_maximum() -> None:
    lengths = LogNormal(median_tokens=500, sigma=2.0, max_tokens=4096).draw(rng(), 10_000)
    assert lengths.max() == 4096
    assert np.median(lengths) == pytest.approx(500, rel=0.1)


@settings(max_examples=30)
@given(st.lists(st.integers(1, 1000), min_size=1, max_size=200), seeds)
def test_a_binned_length_comes_from_its_key_s_table(keys: list[int], seed: int) -> None:
    model = Binned(upto=(10, 500), tables=((1, 9), (100, 200), (1000, 1000)))
    key = np.array(keys)
    lengths = draw_lengths(model, rng(seed), key)
    low, high = np.array([1, 100, 1000]), np.array([9, 200, 1000])
    table = np.searchsorted([10.5, 500.5], key)
    assert ((low[table] <= lengths) & (lengths <= high[table])).all()
    assert expected_tokens(model, key) == pytest.approx(np.array([5, 150, 1000])[table].mean())


def test_a_binned_table_follows_its_probabilities() -> None:
    model = Binned(upto=(), tables=((1, 101, 1001),), at=(0, 0.25, 1))
    lengths = draw_lengths(model, rng(), np.zeros(50_000, np.int64))
    assert (lengths <= 101).mean() == pytest.approx(0.25, abs=0.01)


@pytest.mark.parametrize(
    ("text", "model"),
    [
        ("512", Constant(tokens=512)),
        ("2k", Constant(tokens=2000)),
        ("const:512", Constant(tokens=512)),
        ("exp:512", Exponential(mean_tokens=512)),
        ("uniform:100:200", Uniform(low_tokens=100, high_tokens=200)),
        ("lognormal:median=300,sigma=1.2", LogNormal(median_tokens=300, sigma=1.2)),
        ("lognormal:median=300,sigma=1.2,max=4k", LogNormal(median_tokens=300, sigma=1.2, max_tokens=4000)),
    ],
)
def test_lengths_people_write(text: str, model: Length) -> None:
    assert parse_length(text) == model


def test_a_lognormal_may_be_given_by_its_mean() -> None:
    assert parse_length("lognormal:mean=512,sigma=1.2").expected_tokens == pytest.approx(512)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("0", "tokens 0"),
        ("-5", "negative"),
        ("inf", "'inf'"),
        ("nan", "write 512, const:512"),
        ("five", "no such form; write 512, const:512"),
        ("exp:1e12", "at most 10**9"),
        ("uniform:1:2G", "at most 10**9"),
        ("2G", "at most 10**9"),
        ("lognormal:median=5,sigma=1,max=2G", "at most 10**9"),
        ("exp:0", "mean_tokens 0"),
        ("exp:-5", "negative"),
        ("exp:nan", "nan"),
        ("exp", "missing"),
        ("expo:5", "nearest: exponential"),
        ("uniform:200:100", "below low_tokens"),
        ("uniform:5", "missing"),
        ("lognormal:mean=512", "sigma"),
        ("lognormal:mean=512,sigma=nan", "sigma nan"),
        ("lognormal:mean=512,sigma=-1", "sigma -1"),
        ("lognormal:mean=512,median=5,sigma=1", "mean or median"),
        ("lognormal:mean=512,sigma=1,max=600", "median with max"),
        ("lognormal:mean=512,sigma=1,mode=3", "at most max"),
        ("empirical:/no/such/file", "/no/such/file"),
    ],
)
def test_wrong_lengths_are_named(text: str, said: str) -> None:
    with pytest.raises(BadInput) as caught:
        parse_length(text)
    assert said in str(caught.value)


def test_no_mention_of_catalogues_where_a_length_is_wrong() -> None:
    with pytest.raises(BadInput) as caught:
        parse_length("expo:5")
    assert "headway list" not in str(caught.value) and "lognormal:median" in str(caught.value)


def test_lengths_in_specs_are_capped_too() -> None:
    for make in (
        lambda: Constant(tokens=10**9 + 1),
        lambda: Uniform(low_tokens=1, high_tokens=10**9 + 1),
        lambda: Exponential(mean_tokens=1e12),
        lambda: LogNormal(median_tokens=1e12, sigma=1.0),
        lambda: Empirical(tokens=(1.0, 1e12)),
    ):
        with pytest.raises(BadInput, match=r"at most 10\*\*9"):
            make()
    assert Constant(tokens=10**9).tokens == 10**9


def test_no_length_overflows() -> None:
    assert LogNormal(median_tokens=1e6, sigma=10.0).draw(rng(), 1000).max() == 10**9


@pytest.mark.parametrize("tokens", [(1.0,), (3.0, 2.0), (0.0, 5.0), (1.0, math.nan), (1.0, math.inf)])
def test_tables_that_are_none_are_refused(tokens: tuple[float, ...]) -> None:
    with pytest.raises(BadInput):
        Empirical(tokens=tokens)


@pytest.mark.parametrize("at", [(0.0, 1.0), (0.0, 0.0, 1.0), (0.1, 0.5, 1.0), (0.0, 0.5, 0.9)])
def test_probabilities_that_are_none_are_refused(at: tuple[float, ...]) -> None:
    with pytest.raises(BadInput, match="at:"):
        Empirical(tokens=(1.0, 2.0, 3.0), at=at)


def test_an_empirical_length_is_read_from_a_file(tmp_path: Path) -> None:
    plain = tmp_path / "plain.txt"
    plain.write_text("3\n1\n2\n")
    assert parse_length(f"empirical:{plain}") == Empirical(tokens=(1.0, 2.0, 3.0))
    table = tmp_path / "table.csv"
    table.write_text("a,tokens\nx,10\ny,30\n")
    assert parse_length(f"empirical:{table}:tokens") == Empirical(tokens=(10.0, 30.0))
    with pytest.raises(BadInput, match="nearest: tokens"):
        parse_length(f"empirical:{table}:token")
    with pytest.raises(BadInput, match="2 columns"):
        parse_length(f"empirical:{table}")


@pytest.mark.parametrize(
    ("content", "said"), [("", "no numbers"), ("5\n0\n", ":2: came '0'"), ("5\nx\n", ":2: came 'x'")]
)
def test_a_broken_file_of_lengths_is_named(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "lengths.txt"
    path.write_text(content)
    with pytest.raises(BadInput) as caught:
        parse_length(f"empirical:{path}")
    assert said in str(caught.value)
