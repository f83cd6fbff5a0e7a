"""Power of a GPU by what its kernels do, and what a power limit takes from it; fitted or estimated, never measured."""

from __future__ import annotations

import functools
from typing import Final, NamedTuple

import msgspec
import numpy as np

from headway.cost.datafile import alike, family_of, packaged
from headway.cost.operators import Law
from headway.cost.physics import Cost, Floats
from headway.errors import BadInput
from headway.hardware import Gpu
from headway.specs import Spec

__all__ = ["PowerLaw", "Spent", "power_law", "resident_watts", "spend", "waiting_watts"]

_CAP_EXPONENT: Final = 3.0  # see `spend`


class PowerLaw(Law, kw_only=True):
    """Power of one GPU in shares of TDP less the idle card's: of what `spend` adds up.

    `waiting`: an engine loaded and no step in flight. `resident`: a step in flight, whatever it does. `memory`: at the
    data sheet's bandwidth. `compute`: at the data sheet's peak, by the root of the share of it. `error` is the median
    relative error of watts on models that took no part in the fit.
    """

    waiting: float
    resident: float
    memory: float
    compute: float


class Spent(NamedTuple):
    """Seconds of an operator under a power limit, and joules above what its GPUs draw while they wait."""

    seconds: Floats
    joules: Floats


class _File(Spec):
    default: PowerLaw
    families: dict[str, PowerLaw]
    like: dict[str, str]  # beginnings of GPU keys: the measured family of the same architecture


@functools.cache
def _file() -> _File:
    return packaged(_File, "power.yaml")


@functools.cache
def power_law(key: str) -> PowerLaw:
    """Return the law of a GPU: its family's, else that of its architecture, else one pooled over all measured.

    `Law.evidence` says which of the three: "own", "sibling" or "pooled".
    """
    file = _file()
    own = family_of(key, file.families)
    if own is not None:
        return file.families[own]
    like = alike(key, file.like)
    if like is None:
        return file.default
    return msgspec.structs.replace(file.families[like], evidence="sibling", kind="modelled")


def waiting_watts(law: PowerLaw, card: Gpu, cap_watts: float | None = None) -> float:
    """Return what a GPU with an engine loaded draws between steps.

    Raises:
        BadInput: a power limit that this alone exceeds.
    """
    watts = card.idle_watts + law.waiting * (card.tdp_watts - card.idle_watts)
    if cap_watts is not None and cap_watts <= watts:
        raise BadInput(
            f"cap_watts={cap_watts:g}: a {card.key} with an engine loaded draws {watts:.0f} W before it does anything; "
            f"give more than that, up to its {card.tdp_watts:.0f} W"
        )
    return watts


def resident_watts(law: PowerLaw, card: Gpu, cap_watts: float | None = None) -> float:
    """Return what a GPU draws, above what it draws while it waits, in a step of which no operator runs."""
    watts = card.idle_watts + law.resident * (card.tdp_watts - card.idle_watts)
    most = watts if cap_watts is None else min(watts, cap_watts)
    return most - waiting_watts(law, card, cap_watts)


def spend(law: PowerLaw, card: Gpu, cost: Cost, gpus: int, cap_watts: float | None = None) -> Spent:
    """Return the time and energy of an operator on `gpus` GPUs, each as busy as `cost` says.

    Watts are ``idle + (TDP - idle) (resident + memory B + compute sqrt(F))``, at most TDP; B and F are the shares of
    the data sheet's bandwidth and FLOP/s in use. A limit lowers the clock until watts keep it. Power above idle goes
    with the cube of the clock (frequency times voltage squared, and voltage follows frequency: T. Mudge, "Power: a
    first-class architectural design constraint", IEEE Computer 34(4), 2001); time goes with its inverse as far as
    FLOPs set it, the elasticity ``F^2 / (F^2 + B^2)`` of a roofline with a round corner. Splitwise (P. Patel et al.,
    ISCA 2024) takes 1.30 times for prompts and 1.00 for decoding on H100 at half of TDP; this gives 1.27 for 4,096
    tokens and 1.00.
    """
    span = card.tdp_watts - card.idle_watts
    share_s = law.resident * cost.seconds + law.memory * cost.byte_s
    share_s = np.minimum(share_s + law.compute * np.sqrt(cost.flop_s * cost.seconds), cost.seconds)
    seconds = cost.seconds
    if cap_watts is not None and cap_watts < card.tdp_watts:
        limit = (cap_watts - card.idle_watts) / span
        over = np.maximum(_ratio(share_s, limit * seconds, 1.0), 1.0)
        by_flops = _ratio(cost.flop_s**2, cost.flop_s**2 + cost.byte_s**2, 0.0)
        seconds = seconds * (1.0 + by_flops * (over ** (1.0 / _CAP_EXPONENT) - 1.0))
        share_s = np.minimum(share_s, limit * seconds)
    return Spent(seconds, (share_s - law.waiting * seconds) * (span * gpus))


def _ratio(above: Floats, below: Floats, otherwise: float) -> Floats:
    above, below = np.asarray(above), np.asarray(below)
    return np.asarray(np.divide(above, below, out=np.full(below.shape, otherwise), where=below > 0.0))
