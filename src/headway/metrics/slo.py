"""What a user asks for and pays: latency limits with the share that must meet them, prices, carbon."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeAlias

from headway.errors import BadInput
from headway.specs import Spec, check_argument, check_types
from headway.units import parse_seconds

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Prices", "Slo", "Slos", "check_slos"]

_HOURS_PER_YEAR = 8766.0


class Slo(Spec, frozen=True, kw_only=True):
    """Limits a request must meet, and the share of arrived requests that must meet all of them.

    `ttft_s`, `tpot_s` and `e2e_s` are judged per request; a value equal to the limit meets it, None is no
    limit. `itl_s` is judged per run: the 99th percentile of the gaps between consecutive output tokens must
    not exceed it.
    """

    ttft_s: float | None = None
    tpot_s: float | None = None
    itl_s: float | None = None
    e2e_s: float | None = None
    attainment: float = 0.90

    def __post_init__(self) -> None:
        """Raise `BadInput` for a limit that is not a finite time above zero or a share outside (0, 1]."""
        check_types(self, "slo")
        for name in ("ttft_s", "tpot_s", "itl_s", "e2e_s"):
            limit = getattr(self, name)
            if limit is not None and not 0 < limit < math.inf:
                raise BadInput(f"{name} {limit:g} is no limit: give a time above zero or leave it out")
        if not 0 < self.attainment <= 1:
            raise BadInput(f"attainment {self.attainment:g}: give a share above 0 and at most 1, as in 0.9")

    @classmethod
    def parse(
        cls,
        *,
        ttft: str | float | None = None,
        tpot: str | float | None = None,
        itl: str | float | None = None,
        e2e: str | float | None = None,
        attainment: str | float = 0.90,
    ) -> Slo:
        """Return an `Slo` from what a person writes: ``ttft="500ms", tpot="50ms", attainment="99%"``.

        Raises:
            BadInput: naming the limit, what came and the forms it takes.
        """
        return cls(
            ttft_s=_limit("TTFT", ttft),
            tpot_s=_limit("TPOT", tpot),
            itl_s=_limit("ITL", itl),
            e2e_s=_limit("E2E", e2e),
            attainment=_share(attainment),
        )

    def limits(self) -> tuple[float, float, float]:
        """Return the per-request limits on (TTFT, TPOT, E2E) in seconds; infinity where there is none."""
        return (_or_inf(self.ttft_s), _or_inf(self.tpot_s), _or_inf(self.e2e_s))

    def met(
        self, ttft_s: NDArray[np.float64], tpot_s: NDArray[np.float64], e2e_s: NDArray[np.float64]
    ) -> NDArray[np.bool_]:
        """Return which finished requests meet every per-request limit; arrays of one length.

        NaN meets a limit: the TPOT of a one-token output is undefined and counts as met.
        """
        import numpy as np

        passed = np.ones(len(ttft_s), dtype=np.bool_)
        for values, limit in zip((ttft_s, tpot_s, e2e_s), self.limits(), strict=True):
            if limit < math.inf:
                passed &= ~(values > limit)
        return passed


class Prices(Spec, frozen=True, kw_only=True):
    """What GPUs and their electricity cost: the one home of the default carbon intensity and PUE.

    usd_per_gpu_hour: mean over the deployment's GPUs; None when unknown, and then so is the cost.
    carbon_g_per_kwh: grams of CO2 per kWh of electricity. Default: 445, the world's mean of 2024
        (International Energy Agency, *Electricity 2025*, chapter Emissions).
    pue: power usage effectiveness, site energy over computing energy. Default: 1.56, the mean of the
        respondents' largest data centres (Uptime Institute, *Global Data Center Survey 2024*).
    embodied_kg_per_gpu, lifetime_years: CO2 of making a GPU, with its share of the server if wanted, and the years it
        will serve; None leaves making out. Given both, every GPU hour bears its share of the years (the method of the
        Software Carbon Intensity specification, ISO/IEC 21031:2024).
    """

    usd_per_gpu_hour: float | None = None
    carbon_g_per_kwh: float = 445.0
    pue: float = 1.56
    embodied_kg_per_gpu: float | None = None
    lifetime_years: float | None = None

    def __post_init__(self) -> None:
        """Raise `BadInput` for a number out of its range, or one of the two on making a GPU without the other."""
        check_types(self, "prices")
        limits = {"usd_per_gpu_hour": 0.0, "carbon_g_per_kwh": 0.0, "pue": 1.0, "embodied_kg_per_gpu": 0.0}
        for name, least in limits.items():
            value = getattr(self, name)
            if value is not None and not least <= value < math.inf:
                raise BadInput(f"{name} {value:g}: give a finite number of at least {least:g}")
        if self.lifetime_years is not None and not 0.0 < self.lifetime_years < math.inf:
            raise BadInput(f"lifetime_years {self.lifetime_years:g}: give a finite number above 0")
        if (self.embodied_kg_per_gpu is None) != (self.lifetime_years is None):
            raise BadInput("embodied_kg_per_gpu and lifetime_years: give both, or neither")

    @property
    def embodied_g_per_gpu_hour(self) -> float | None:
        """Grams of CO2 of making a GPU that one hour of its life bears."""
        if self.embodied_kg_per_gpu is None or self.lifetime_years is None:
            return None
        return self.embodied_kg_per_gpu * 1000 / (self.lifetime_years * _HOURS_PER_YEAR)


Slos: TypeAlias = Slo | Mapping[int, Slo]  # one for all requests, or one per SLO class


def check_slos(name: str, slo: object) -> None:
    """Refuse an argument that is no `Slos`.

    Raises:
        BadInput: with its name, what came, what is expected.
    """
    by_class = slo if isinstance(slo, Mapping) and slo else {0: slo}
    for number, each in by_class.items():
        check_argument(f"class number of {name}", number, int, "{0: Slo(...), 1: Slo(...)}")
        which = f"{name}[{number}]" if by_class is slo else name
        check_argument(which, each, Slo, 'Slo.parse(ttft="500ms", tpot="50ms"), or {0: Slo(...)} by class')


def _limit(name: str, came: str | float | None) -> float | None:
    if came is None:
        return None
    try:
        return parse_seconds(came)
    except BadInput as error:
        raise BadInput(f"{name} limit: {error}") from None


def _share(came: str | float) -> float:
    text = str(came).strip()
    try:
        return float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        raise BadInput(f"attainment {came!r} is not understood: write 0.9 or 90%") from None


def _or_inf(limit: float | None) -> float:
    return math.inf if limit is None else limit
