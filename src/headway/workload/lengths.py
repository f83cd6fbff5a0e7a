"""Length models: how many tokens a prompt or an answer has. All give whole numbers from 1 to 10**9."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from statistics import NormalDist

import numpy as np

from headway.errors import BadInput, UnknownName, nearest
from headway.specs import Spec
from headway.units import parse_count
from headway.workload.batch import Floats, Ints

_FORMS = (
    "512, const:512, uniform:100:200, exp:512, lognormal:mean=512,sigma=1.2[,max=8192], "
    "lognormal:median=300,sigma=1.2 or empirical:FILE[:COLUMN]"
)
TOKENS_MAX = 10**9  # of a prompt or an answer, drawn or read: far beyond any model, and safe to add up
_POINTS_MAX = 1024  # of a quantile table made from a file: 0.1 % steps, beyond the accuracy of any trace


class Constant(Spec, kw_only=True, tag_field="kind", tag="constant"):
    """Always the same length."""

    tokens: int

    def __post_init__(self) -> None:
        _require("tokens", self.tokens)

    @property
    def expected_tokens(self) -> float:
        """The mean."""
        return float(self.tokens)

    def draw(self, rng: np.random.Generator, n: int) -> Ints:
        """Return n lengths; nothing is drawn."""
        return np.full(n, self.tokens)


class Uniform(Spec, kw_only=True, tag_field="kind", tag="uniform"):
    """Every length from low to high, both included, equally likely."""

    low_tokens: int
    high_tokens: int

    def __post_init__(self) -> None:
        _require("low_tokens", self.low_tokens)
        _require("high_tokens", self.high_tokens)
        if self.high_tokens < self.low_tokens:
            raise BadInput(f"high_tokens {self.high_tokens} is below low_tokens {self.low_tokens}")

    @property
    def expected_tokens(self) -> float:
        """The mean."""
        return (self.low_tokens + self.high_tokens) / 2

    def draw(self, rng: np.random.Generator, n: int) -> Ints:
        """Return n lengths."""
        span = self.high_tokens - self.low_tokens + 1
        return self.low_tokens + (rng.random(n) * span).astype(np.int64)


class Exponential(Spec, kw_only=True, tag_field="kind", tag="exponential"):
    """An exponential variable, rounded, at least 1."""

    mean_tokens: float

    def __post_init__(self) -> None:
        _require("mean_tokens", self.mean_tokens)

    @property
    def expected_tokens(self) -> float:
        """The mean after rounding: the sum of P(length >= k), each exp(-(k - 1/2)/mean), and 1 for k = 1."""
        decay = 1 / self.mean_tokens
        return 1 + math.exp(-1.5 * decay) / -math.expm1(-decay)

    def draw(self, rng: np.random.Generator, n: int) -> Ints:
        """Return n lengths."""
        return _whole(rng.standard_exponential(n) * self.mean_tokens)


class LogNormal(Spec, kw_only=True, tag_field="kind", tag="lognormal"):
    """exp of a normal variable: `sigma` is its standard deviation. Longer ones are cut to `max_tokens`."""

    median_tokens: float
    sigma: float
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        _require("median_tokens", self.median_tokens)
        if not 0 <= self.sigma <= 10:
            raise BadInput(
                f"sigma {self.sigma}: expected 0 to 10 (a spread of logarithms; 1 is a factor of 2.7)"
            )
        if self.max_tokens is not None:
            _require("max_tokens", self.max_tokens)

    @property
    def expected_tokens(self) -> float:
        """The mean of the cut variable, before rounding (which moves it by less than half a token)."""
        mean = self.median_tokens * math.exp(self.sigma**2 / 2)
        if self.max_tokens is None:
            return mean
        if self.sigma == 0:
            return min(self.median_tokens, float(self.max_tokens))
        cut, below = math.log(self.max_tokens / self.median_tokens) / self.sigma, NormalDist().cdf
        return mean * below(cut - self.sigma) + self.max_tokens * (1 - below(cut))

    def draw(self, rng: np.random.Generator, n: int) -> Ints:
        """Return n lengths."""
        values = self.median_tokens * np.exp(self.sigma * rng.standard_normal(n))
        return _whole(values if self.max_tokens is None else np.minimum(values, self.max_tokens))


class Empirical(Spec, kw_only=True, tag_field="kind", tag="empirical"):
    """A table of quantiles, straight lines between them: `tokens[i]` is the quantile at probability `at[i]`.

    Without `at` the quantiles stand at equal steps from 0 to 1. A histogram is the same thing: bin edges as
    `tokens`, the share of samples below each as `at`.
    """

    tokens: tuple[float, ...]
    at: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        check_quantiles(self.tokens, self.at, "tokens")
        _require("tokens", self.tokens[0])
        _require("tokens", self.tokens[-1])

    @property
    def expected_tokens(self) -> float:
        """The mean before rounding (which moves it by less than half a token)."""
        return quantile_mean(self.tokens, self.at)

    def draw(self, rng: np.random.Generator, n: int) -> Ints:
        """Return n lengths."""
        return _whole(np.interp(rng.random(n), probabilities(self.tokens, self.at), self.tokens))


class Binned(Spec, kw_only=True, tag_field="kind", tag="binned"):
    """A length that depends on another number, its key: an answer's on its prompt's, say.

    Keys up to `upto[i]` draw from `tables[i]`, keys beyond the last from the last table, of which there is
    one more. All tables have their quantiles at the same probabilities `at` (equal steps from 0 to 1 when
    absent).
    """

    upto: tuple[int, ...]
    tables: tuple[tuple[float, ...], ...]
    at: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if len(self.tables) != len(self.upto) + 1 or list(self.upto) != sorted(set(self.upto)):
            raise BadInput(
                f"upto {self.upto}: expected rising limits, one fewer than the {len(self.tables)} tables"
            )
        if len({len(table) for table in self.tables}) != 1:
            raise BadInput("tables: expected the same number of quantiles in each")
        for table in self.tables:
            check_quantiles(table, self.at, "tables")
            _require("tables", table[0])
            _require("tables", table[-1])

    def expected_tokens_for(self, key: Ints) -> float:
        """Return the mean length when the keys are these."""
        means = np.array([quantile_mean(table, self.at) for table in self.tables])
        return float(means[np.searchsorted(self.upto, key)].mean())

    def draw_for(self, rng: np.random.Generator, key: Ints) -> Ints:
        """Return one length per key."""
        at, tables = probabilities(self.tables[0], self.at), np.array(self.tables)
        u = rng.random(len(key))
        left = np.searchsorted(at, u, side="right") - 1
        entry = np.searchsorted(self.upto, key) * len(at) + left
        low = tables.ravel()[entry]
        return _whole(low + (u - at[left]) * ((tables.ravel()[entry + 1] - low) / (at[left + 1] - at[left])))


Length = Constant | Uniform | Exponential | LogNormal | Empirical


def draw_lengths(model: Length | Binned, rng: np.random.Generator, key: Ints) -> Ints:
    """Return one length per key; a model that is not binned ignores the keys' values."""
    return model.draw_for(rng, key) if isinstance(model, Binned) else model.draw(rng, len(key))


def expected_tokens(model: Length | Binned, key: Ints) -> float:
    """Return the mean length; of a binned model over the given keys."""
    return model.expected_tokens_for(key) if isinstance(model, Binned) else model.expected_tokens


def probabilities(values: tuple[float, ...], at: tuple[float, ...] | None) -> Floats:
    """Return where the quantiles stand: `at`, or equal steps from 0 to 1."""
    return np.linspace(0, 1, len(values)) if at is None else np.array(at)


def quantile_mean(values: tuple[float, ...], at: tuple[float, ...] | None) -> float:
    """Return the mean of a variable given by its quantiles."""
    heights = np.array(values)
    return float(np.diff(probabilities(values, at)) @ (heights[1:] + heights[:-1]) / 2)


def check_quantiles(values: tuple[float, ...], at: tuple[float, ...] | None, field: str) -> None:
    """Refuse a table of quantiles that is none.

    Raises:
        BadInput: fewer than two values, falling or not finite ones, probabilities that do not rise from 0 to
        1.
    """
    if len(values) < 2:
        raise BadInput(f"{field}: expected at least 2 quantiles, came {len(values)}")
    if not np.isfinite(values).all() or (np.diff(values) < 0).any():
        raise BadInput(f"{field}: expected finite quantiles in rising order")
    if at is None:
        return
    if len(at) != len(values) or at[0] != 0 or at[-1] != 1 or not (np.diff(at) > 0).all():
        raise BadInput(
            f"at: expected {len(values)} probabilities rising from 0 to 1, one per quantile in {field}"
        )


def parse_length(text: str | int) -> Length:
    """Return the length model a person writes: ``512``, ``exp:512``, ``uniform:100:200``, ``lognormal:...``.

    ``empirical:FILE`` reads a file with one number a line, or a column of a CSV file
    (``empirical:FILE:COLUMN``).

    Raises:
        BadInput: the text has none of these forms, a number is not from 1 to 10**9 tokens, or the file is
            broken.
    """
    kind, _, rest = str(text).strip().partition(":")
    if not rest and (kind[:1].isdigit() or _is_number(kind)):  # also -5 and inf: wrong numbers, not names
        kind, rest = "constant", kind
    try:
        match kind.lower():
            case "constant" | "const":
                return Constant(tokens=_count(rest))
            case "exponential" | "exp":
                return Exponential(mean_tokens=_count(rest))
            case "uniform":
                low, _, high = rest.partition(":")
                return Uniform(low_tokens=_count(low), high_tokens=_count(high))
            case "lognormal":
                return _lognormal(rest)
            case "empirical":
                return _from_file(rest)
            case _:
                near = nearest(kind, ["constant", "uniform", "exponential", "lognormal", "empirical"])
                raise BadInput(f"no such form{', nearest: ' + ', '.join(near) if near else ''}")
    except BadInput as error:
        raise BadInput(f"length {text!r}: {error}; write {_FORMS}") from None


def _count(text: str) -> int:
    if not text:
        raise BadInput("a number of tokens is missing")
    count = parse_count(text)
    if count > TOKENS_MAX:
        raise BadInput(f"{text} tokens: expected at most 10**9")
    return count


def _lognormal(text: str) -> LogNormal:
    fields = dict(part.partition("=")[::2] for part in text.split(","))
    unknown = set(fields) - {"mean", "median", "sigma", "max"}
    if unknown or "sigma" not in fields or ("mean" in fields) == ("median" in fields):
        raise BadInput("expected sigma, and mean or median, and at most max")
    try:
        sigma = float(fields["sigma"])
    except ValueError:
        raise BadInput(f"sigma {fields['sigma']!r} is not a number") from None
    _check_sigma(sigma)
    largest = _count(fields["max"]) if "max" in fields else None
    if "median" in fields:
        return LogNormal(median_tokens=_count(fields["median"]), sigma=sigma, max_tokens=largest)
    if largest is not None:
        raise BadInput("mean with max is ambiguous (the cut lowers the mean): give median with max")
    return LogNormal(median_tokens=_count(fields["mean"]) * math.exp(-(sigma**2) / 2), sigma=sigma)


def _from_file(text: str) -> Empirical:
    path, column = (
        (text, "") if Path(text).exists() else text.rpartition(":")[::2] if ":" in text else (text, "")
    )
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = [row for row in csv.reader(file) if row]
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: cannot be read as text: {error}") from None
    header = rows[0] if rows and not _is_number(rows[0][0]) else []
    if column and column not in header:
        raise UnknownName(f"column of {path}", column, header)
    if not column and rows and len(rows[0]) > 1:
        raise BadInput(f"{path} has {len(rows[0])} columns: name one, as in empirical:{path}:{rows[0][0]}")
    index = header.index(column) if column else 0
    values = []
    for line, row in enumerate(rows[bool(header) :], start=1 + bool(header)):
        if len(row) <= index or not _is_number(row[index]) or not 1 <= float(row[index]) <= TOKENS_MAX:
            raise BadInput(f"{path}:{line}: came {','.join(row)!r}; expected a number from 1 to 10**9")
        values.append(float(row[index]))
    if not values:
        raise BadInput(f"{path} holds no numbers")
    table = np.quantile(values, np.linspace(0, 1, min(max(len(values), 2), _POINTS_MAX)))
    return Empirical(tokens=tuple(table.tolist()))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _whole(values: Floats) -> Ints:
    return np.clip(np.rint(values), 1, TOKENS_MAX).astype(np.int64)


def _require(field: str, came: float) -> None:
    if not 1 <= came <= TOKENS_MAX:
        raise BadInput(f"{field} {came}: expected a finite number of at least 1 token, and at most 10**9")


def _check_sigma(sigma: float) -> None:
    if not 0 <= sigma <= 10:
        raise BadInput(f"sigma {sigma}: expected 0 to 10 (a spread of logarithms; 1 is a factor of 2.7)")
