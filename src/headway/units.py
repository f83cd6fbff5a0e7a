"""Parsing and printing of quantities: ``500ms``, ``80GiB``, ``25req/s``, ``32k``.

Inside Headway a time is float seconds, a size int bytes, a rate float requests per second and a count an int.
Every parser takes the text a person writes or the bare number, refuses NaN, infinities and negatives, and
raises `BadInput` naming the text and the forms it takes.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterable, Mapping
from fractions import Fraction

from headway.errors import BadInput

__all__ = [
    "counted",
    "format_bytes",
    "format_count",
    "format_rate",
    "format_rates",
    "format_seconds",
    "parse_bytes",
    "parse_count",
    "parse_rate",
    "parse_seconds",
    "parse_watts",
]

_NUMBER = re.compile(r"\s*([+-]?(?:\d[\d_]*\.?\d*|\.\d+)(?:[eE][+-]?\d{1,3})?)\s*(.*?)\s*")

_LENGTH_MAX = 64  # of a text: callers of a gateway write some, and numbers are computed exactly

_MINUTE_S, _HOUR_S, _DAY_S = 60, 3600, 86400
_SECONDS = {
    "": Fraction(1),
    "ns": Fraction(1, 10**9),
    "us": Fraction(1, 10**6),
    "µs": Fraction(1, 10**6),
    "ms": Fraction(1, 1000),
    "s": Fraction(1),
    "sec": Fraction(1),
    "min": Fraction(_MINUTE_S),
    "h": Fraction(_HOUR_S),
    "d": Fraction(_DAY_S),
}
_BYTES = {"": Fraction(1), "B": Fraction(1), "kB": Fraction(1000)}
for _power, _letter in enumerate("KMGTP", start=1):
    _BYTES |= dict.fromkeys((f"{_letter}B", f"{_letter}B".lower()), Fraction(1000**_power))
    _BYTES |= dict.fromkeys((f"{_letter}iB", f"{_letter}iB".lower()), Fraction(1024**_power))
_COUNT = {"": Fraction(1)}
for _power, _letter in enumerate("KMG", start=1):
    _COUNT |= {_letter: Fraction(1000**_power), f"{_letter}i": Fraction(1024**_power)}
_COUNT["k"] = _COUNT["K"]
_PER = {"s": 1, "sec": 1, "min": _MINUTE_S, "h": _HOUR_S, "d": _DAY_S}
_RATES = ((1 / _HOUR_S, "req/h"), (1 / _MINUTE_S, "req/min"), (1.0, "req/s"))
_RATE = {"": Fraction(1)} | {
    f"{what}/{unit}": Fraction(1, seconds)
    for what in ("req", "requests", "request", "")
    for unit, seconds in _PER.items()
}

_WATTS = {"": Fraction(1), "W": Fraction(1), "kW": Fraction(1000), "MW": Fraction(10**6)}

_SECONDS_FORMS = "500ms, 1.5s, 2min, 3h or a number of seconds"
_BYTES_FORMS = "80GiB, 64MB, 512KiB or a whole number of bytes"
_RATE_FORMS = "25req/s, 90req/min, 1000req/h or a number of requests per second"
_WATTS_FORMS = "700W, 20kW, 1.5MW or a number of watts"
_COUNT_FORMS = "1M, 32k, 4096 (k = 1000, Ki = 1024)"


def parse_seconds(text: str | float) -> float:
    """Return seconds from ``500ms``, ``1.5s``, ``2min``, ``3h``, ``1d`` or a bare number of seconds."""
    return float(_parse(text, _SECONDS, "time", _SECONDS_FORMS))


def parse_bytes(text: str | float) -> int:
    """Return bytes from ``80GiB`` (1024-based), ``64 MB`` (1000-based) or a bare whole number of bytes."""
    return _whole(_parse(text, _BYTES, "size", _BYTES_FORMS), text, "size", _BYTES_FORMS)


def parse_rate(text: str | float) -> float:
    """Return requests per second from ``25req/s``, ``25/s``, ``90req/min``, ``25`` or a number."""
    return float(_parse(text, _RATE, "rate", _RATE_FORMS))


def parse_watts(text: str | float) -> float:
    """Return watts from ``700W``, ``20kW``, ``1.5MW`` or a bare number of watts."""
    return float(_parse(text, _WATTS, "power", _WATTS_FORMS))


def parse_count(text: str | float) -> int:
    """Return a whole number from ``1M``, ``32k`` (thousands), ``32Ki`` (1024s), ``1_000`` or an integer."""
    return _whole(_parse(text, _COUNT, "count", _COUNT_FORMS), text, "count", _COUNT_FORMS)


def format_seconds(seconds: float | None) -> str:
    """Return three significant digits in the fitting unit: ``12.3 ms``; ``-`` when unknown (None or NaN)."""
    below = ((1e-9, "ns"), (1e-6, "us"), (1e-3, "ms"), (1.0, "s"))
    return _format(seconds, (*below, (_MINUTE_S, "min"), (_HOUR_S, "h"), (_DAY_S, "d")), " ", "s")


def format_bytes(size_bytes: float | None) -> str:
    """Return three significant digits in 1024-based units: ``80 GiB``; ``-`` when unknown (None or NaN)."""
    steps = ((1.0, "B"), *((1024.0**i, f"{letter}iB") for i, letter in enumerate("KMGTP", start=1)))
    return _format(size_bytes, steps, " ", "B")


def format_rate(rate_req_s: float | None) -> str:
    """Return three significant digits per second: ``25 req/s``; ``-`` when unknown (None or NaN)."""
    return _format(rate_req_s, _RATES, " ", "req/s")


def format_rates(rates_req_s: Iterable[float | None]) -> list[str]:
    """Return rates of one column in one unit, that of the largest: ``0.5 req/s`` and ``25 req/s``."""
    rates = list(rates_req_s)
    unit = format_rate(max((rate for rate in rates if rate and math.isfinite(rate)), default=0.0)).rpartition(" ")[2]
    return [_format(rate, tuple(step for step in _RATES if step[1] == unit), " ", unit) for rate in rates]


def format_count(count: float | None) -> str:
    """Return three significant digits with k, M, G: ``1.2M``, ``512``; ``-`` when unknown (None or NaN)."""
    return _format(count, ((1.0, ""), (1e3, "k"), (1e6, "M"), (1e9, "G")), "", "")


def counted(count: int, noun: str) -> str:
    """Return a whole number of a noun whose plural ends in s: ``1 replica``, ``2,000 replicas``."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _parse(text: str | float, units: Mapping[str, Fraction], what: str, forms: str) -> Fraction:
    if isinstance(text, (int, float)) and not isinstance(text, bool):
        if not math.isfinite(text):
            raise BadInput(f"{what} {text}: a finite number is needed; write {forms}")
        value = Fraction(text)
    else:
        match = _NUMBER.fullmatch(text) if isinstance(text, str) and len(text) <= _LENGTH_MAX else None
        if match is None or match[2] not in units:
            raise BadInput(f"{what} {str(text)[:_LENGTH_MAX]!r} is not understood: write {forms}")
        value = Fraction(match[1].replace("_", "")) * units[match[2]]
    if value < 0:
        raise BadInput(f"{what} {text!r} is negative: write {forms}")
    if value > sys.float_info.max:
        raise BadInput(f"{what} {text!r} is too large: write {forms}")
    return value


def _whole(value: Fraction, text: str | float, what: str, forms: str) -> int:
    if value.denominator != 1:
        raise BadInput(f"{what} {text!r} is not a whole number: write {forms}")
    return int(value)


def _format(value: float | None, steps: tuple[tuple[float, str], ...], gap: str, zero: str) -> str:
    """`value` in the largest of the rising `steps` in which it does not print below 1."""
    if value is None or math.isnan(value):
        return "-"
    if math.isinf(value):
        return "-inf" if value < 0 else "inf"
    if value == 0:
        return f"0{gap}{zero}"
    for scale, unit in reversed(steps):
        scaled = value / scale
        digits = f"{scaled:.0f}" if abs(scaled) >= 1000 else f"{scaled:.3g}"
        text = f"{digits}{gap}{unit}"
        if abs(float(digits)) >= 1:
            break
    return text
