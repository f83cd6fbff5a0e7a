"""Arrival models: when requests come.

Every open model is a walk in *expected arrivals* followed by a change of clock. The walk adds random gaps of
mean 1; the clock turns an expected number of arrivals into a time. A new rate changes only the clock, so two
rates of one workload see the same random numbers (common random numbers), and bursts and days keep their
length in seconds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TypeVar

import msgspec
import numpy as np

from headway.errors import BadInput, UnknownName
from headway.specs import Spec
from headway.units import parse_count, parse_rate, parse_seconds
from headway.workload.batch import Floats, stream

_FORMS = (
    "poisson, constant, gamma:cv=3, diurnal:peak_to_trough=4,period=24h, "
    "onoff:rate_on=20,rate_off=2,on=5s,off=30s,cv=1 "
    "(each of these takes rate=5 too, onoff excepted), replay:FILE or closed:64[,think=1s]"
)
_PIECES = 1024  # straight pieces a diurnal period is cut into; sojourns of on and off drawn at a time


class _Steady(Spec, kw_only=True):
    """An open model whose rate does not change."""

    rate_req_s: float = 1.0

    def __post_init__(self) -> None:
        _positive(self.rate_req_s, "rate_req_s")

    def gaps(self, rng: np.random.Generator, n: int) -> Floats:
        """Return n gaps of mean 1, in expected arrivals."""
        return rng.standard_exponential(n)


class Poisson(_Steady, kw_only=True, tag_field="kind", tag="poisson"):
    """Independent users: exponential gaps."""


class Gamma(_Steady, kw_only=True, tag_field="kind", tag="gamma"):
    """Gamma gaps with the coefficient of variation `cv`: above 1 burstier than Poisson, below 1 more even."""

    cv: float

    def __post_init__(self) -> None:
        _positive(self.rate_req_s, "rate_req_s")
        _check_cv(self.cv)

    def gaps(self, rng: np.random.Generator, n: int) -> Floats:
        """Return n gaps of mean 1."""
        return _gamma_gaps(self.cv, rng, n)


class Regular(_Steady, kw_only=True, tag_field="kind", tag="constant"):
    """One request every 1/rate seconds."""

    def gaps(self, rng: np.random.Generator, n: int) -> Floats:
        """Return n gaps of 1; nothing is drawn."""
        return np.ones(n)


class OnOff(Spec, kw_only=True, tag_field="kind", tag="on_off"):
    """Bursts: the rate is one of two, which take turns for exponential times of mean `on_s` and `off_s`.

    While the rate stays, gaps are gamma with the coefficient of variation `cv`: 1 is Poisson.
    """

    rate_on_req_s: float
    rate_off_req_s: float = 0.0
    on_s: float
    off_s: float
    cv: float = 1.0

    def __post_init__(self) -> None:
        for field in ("rate_on_req_s", "on_s", "off_s"):
            _positive(getattr(self, field), field)
        if not 0 <= self.rate_off_req_s <= self.rate_on_req_s:
            raise BadInput(f"rate_off_req_s {self.rate_off_req_s}: expected 0 to rate_on_req_s")
        _check_cv(self.cv)

    @property
    def rate_req_s(self) -> float:
        """The mean rate over both states."""
        arrivals = self.rate_on_req_s * self.on_s + self.rate_off_req_s * self.off_s
        return arrivals / (self.on_s + self.off_s)

    def gaps(self, rng: np.random.Generator, n: int) -> Floats:
        """Return n gaps of mean 1, in expected arrivals."""
        return _gamma_gaps(self.cv, rng, n)

    def pieces(self, rng: np.random.Generator) -> Iterator[tuple[Floats, Floats]]:
        """Yield (seconds, expected arrivals) of pieces of constant rate, stationary from the start."""
        on_first = rng.random() < self.on_s / (self.on_s + self.off_s)
        on = (np.arange(_PIECES) % 2 == 0) == on_first
        while True:
            seconds = rng.standard_exponential(_PIECES) * np.where(on, self.on_s, self.off_s)
            yield seconds, seconds * np.where(on, self.rate_on_req_s, self.rate_off_req_s)


class Diurnal(_Steady, kw_only=True, tag_field="kind", tag="diurnal"):
    """Poisson with a sinusoidal rate: mean `rate_req_s`, the highest `peak_to_trough` times the lowest.

    It starts at the mean, rising. The sinusoid is cut into 1024 pieces of constant rate per period.
    """

    peak_to_trough: float
    period_s: float = 86400.0

    def __post_init__(self) -> None:
        _positive(self.rate_req_s, "rate_req_s")
        _positive(self.period_s, "period_s")
        if not 1 <= self.peak_to_trough < math.inf:
            raise BadInput(f"peak_to_trough {self.peak_to_trough}: expected a finite number of at least 1")

    def times(self, expected: Floats) -> Floats:
        """Return when so many arrivals are expected, in seconds."""
        swing = (self.peak_to_trough - 1) / (self.peak_to_trough + 1)
        phase = np.linspace(0, 1, _PIECES + 1)
        risen = phase + swing * (1 - np.cos(2 * np.pi * phase)) / (2 * np.pi)
        periods, part = np.divmod(expected / (self.rate_req_s * self.period_s), 1)
        return (periods + np.interp(part, risen, phase)) * self.period_s


class Replay(Spec, kw_only=True, tag_field="kind", tag="replay"):
    """The arrival times of a trace file; at another rate its clock is stretched."""

    path: str
    rate_req_s: float | None = None  # None: as recorded

    def __post_init__(self) -> None:
        if self.rate_req_s is not None:
            _positive(self.rate_req_s, "rate_req_s")


class Closed(Spec, kw_only=True, tag_field="kind", tag="closed"):
    """A closed loop of `concurrency` users: each sends its next request `think_s` after its last answer."""

    concurrency: int
    think_s: float = 0.0

    def __post_init__(self) -> None:
        if self.concurrency < 1:
            raise BadInput(f"concurrency {self.concurrency}: expected at least 1")
        if not 0 <= self.think_s < math.inf:
            raise BadInput(f"think_s {self.think_s}: expected a finite number of seconds, 0 or more")


Modelled = Poisson | Gamma | Regular | OnOff | Diurnal
Arrival = Modelled | Replay | Closed
A = TypeVar("A", bound=Arrival)


def at_rate(arrival: A, rate_req_s: float) -> A:
    """Return the same model at another mean rate.

    Raises:
        BadInput: the rate is not positive and finite, or the loop is closed and has none.
    """
    _positive(rate_req_s, "rate_req_s")
    if isinstance(arrival, Closed):
        raise BadInput(
            "a closed loop has no rate: leave the rate out, or choose an open arrival such as poisson"
        )
    if isinstance(arrival, OnOff):
        factor = rate_req_s / arrival.rate_req_s
        on, off = arrival.rate_on_req_s * factor, arrival.rate_off_req_s * factor
        return msgspec.structs.replace(arrival, rate_on_req_s=on, rate_off_req_s=off)
    return msgspec.structs.replace(arrival, rate_req_s=rate_req_s)


class Clock:
    """The arrival times of one modelled arrival process, taken in runs of any length."""

    def __init__(self, arrival: Modelled, seed: int, name: str = "arrivals") -> None:
        self._arrival = arrival
        self._rng = stream(seed, name)
        self._expected = 0.0
        self._pieces = arrival.pieces(stream(seed, f"{name} clock")) if isinstance(arrival, OnOff) else None
        self._knot_s = self._knot_expected = np.zeros(1)

    def take(self, n: int) -> Floats:
        """Return the next n arrival times in seconds, rising."""
        expected = self._arrival.gaps(self._rng, n)
        if n == 0:
            return expected
        expected[0] += self._expected
        np.cumsum(expected, out=expected)  # one by one: the same numbers however the walk is cut into runs
        self._expected = float(expected[-1])
        if isinstance(self._arrival, Diurnal):
            return self._arrival.times(expected)
        if self._pieces is not None:
            return self._through(self._pieces, expected)
        return expected / self._arrival.rate_req_s

    def _through(self, pieces: Iterator[tuple[Floats, Floats]], expected: Floats) -> Floats:
        """When the walk over pieces of constant rate has come this far; drops the pieces passed."""
        knots_s, knots_expected = [self._knot_s], [self._knot_expected]
        while knots_expected[-1][-1] <= expected[-1]:
            seconds, arrivals = next(pieces)
            knots_s.append(_walk(knots_s[-1][-1], seconds))
            knots_expected.append(_walk(knots_expected[-1][-1], arrivals))
        self._knot_s, self._knot_expected = np.concatenate(knots_s), np.concatenate(knots_expected)
        times = np.interp(expected, self._knot_expected, self._knot_s)
        passed = int(np.searchsorted(self._knot_expected, expected[-1], side="right")) - 1
        self._knot_s, self._knot_expected = self._knot_s[passed:], self._knot_expected[passed:]
        return times


def parse_arrival(text: str) -> Arrival:
    """Return the arrival model a person writes: ``poisson``, ``gamma:cv=3,rate=20``, ``closed:64``...

    Raises:
        BadInput: a field is unknown, missing or out of range.
        UnknownName: no such model.
    """
    kind, _, rest = text.strip().partition(":")
    kind = kind.lower().replace("_", "").replace("-", "")
    if kind == "replay" and rest:
        return Replay(path=rest)
    if kind not in _FIELDS:
        allowed = ["poisson", "constant", "gamma", "onoff", "diurnal", "replay", "closed"]
        raise UnknownName(f"process in the arrival {text!r}:", kind, allowed)
    model, fields = _FIELDS[kind]
    values = {}
    try:
        for part in filter(None, rest.split(",")):
            name, equals, value = part.partition("=")
            if not equals and kind == "closed":
                name, value = "concurrency", name
            if name not in fields:
                raise UnknownName("field", name, fields)
            field, parse = fields[name]
            values[field] = parse(value)
        return model(**values)
    except (TypeError, ValueError) as error:
        raise BadInput(f"arrival {text!r}: {error}; write {_FORMS}") from None


_Fields = dict[str, tuple[str, Callable[[str], float]]]
_RATE: _Fields = {"rate": ("rate_req_s", parse_rate)}
_FIELDS: dict[str, tuple[Callable[..., Arrival], _Fields]] = {
    "poisson": (Poisson, _RATE),
    "constant": (Regular, _RATE),
    "gamma": (Gamma, _RATE | {"cv": ("cv", float)}),
    "onoff": (
        OnOff,
        {
            "rate_on": ("rate_on_req_s", parse_rate),
            "rate_off": ("rate_off_req_s", parse_rate),
            "on": ("on_s", parse_seconds),
            "off": ("off_s", parse_seconds),
            "cv": ("cv", float),
        },
    ),
    "diurnal": (
        Diurnal,
        _RATE | {"peak_to_trough": ("peak_to_trough", float), "period": ("period_s", parse_seconds)},
    ),
    "closed": (Closed, {"concurrency": ("concurrency", parse_count), "think": ("think_s", parse_seconds)}),
}


def _walk(start: float, steps: Floats) -> Floats:
    return np.cumsum(np.concatenate(([start], steps)))[1:]


def _positive(value: float, field: str) -> None:
    if not 0 < value < math.inf:
        raise BadInput(f"{field} {value}: expected a positive, finite number")


def _check_cv(cv: float) -> None:
    if not 0.01 <= cv <= 100:
        raise BadInput(f"cv {cv}: expected 0.01 to 100 (1 is Poisson)")


def _gamma_gaps(cv: float, rng: np.random.Generator, n: int) -> Floats:
    return rng.standard_exponential(n) if cv == 1 else rng.standard_gamma(cv**-2, n) * cv**2
