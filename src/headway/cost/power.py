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
from headway.hardware import Gpu, silicon
from headway.specs import Spec

__all__ = [
    "PowerLaw", "Spent", "media_kinds", "power_law", "resident_watts", "serving", "spend", "waiting_watts",
]

_EXPONENT: Final = 3.0  # of the clock, for power above waiting: see `spend`
_CLOCK_LEAST: Final = 0.1  # of the boost clock: no GPU can be locked lower, gigahertz given as megahertz are


class PowerLaw(Law, kw_only=True):
    """Power of one GPU in shares of TDP less the idle card's: of what `spend` adds up.

    `waiting`: an engine loaded and no step in flight. `resident`: a step in flight, whatever it does. `memory`: at the
    data sheet's bandwidth. `compute`: at the data sheet's peak, by the root of the share of it. `experts`: a step in
    flight of a model of experts, whose kernels compute more than is counted: tiles are filled up for every expert.
    `error` is the median relative error of watts on models that took no part in the fit.
    """

    waiting: float
    resident: float
    memory: float
    compute: float
    experts: float


class Spent(NamedTuple):
    """Seconds of an operator under a power limit, and joules above what its GPUs draw while they wait."""

    seconds: Floats
    joules: Floats


class _File(Spec):
    default: PowerLaw
    families: dict[str, PowerLaw]
    media: dict[str, float]  # what the GPU does not draw while the host prepares what prompts hold beside text
    like: dict[str, str]  # beginnings of GPU keys: the measured family of the same architecture


@functools.cache
def _file() -> _File:
    return packaged(_File, "power.yaml")


@functools.cache
def power_law(key: str) -> PowerLaw:
    """Return the law of a GPU: its family's, else that of its architecture, else one pooled over all measured.

    `Law.evidence` says which of the three: "own", "sibling" or "pooled".
    """
    file, key = _file(), silicon(key)
    own = family_of(key, file.families)
    if own is not None:
        return file.families[own]
    like = alike(key, file.like)
    if like is None:
        return file.default
    return msgspec.structs.replace(file.families[like], evidence="sibling", kind="modelled")


def media_kinds() -> list[str]:
    """Return what prompts can hold, "text" first."""
    return ["text", *_file().media]


def serving(law: PowerLaw, experts: bool, media: str) -> PowerLaw:
    """Return the law of a GPU that serves a model, of experts or not, to prompts of a kind (`media_kinds`).

    With pictures its GPUs wait for the host in every step, to an extent that no time here tells: the same share of what
    they would draw above idle is missing in all rows of ML.ENERGY with images, and twice that with videos.
    """
    drawn = 1.0 - _file().media.get(media, 0.0)
    return msgspec.structs.replace(
        law,
        resident=drawn * (law.resident + (law.experts if experts else 0.0)),
        memory=drawn * law.memory,
        compute=drawn * law.compute,
        experts=0.0,
    )


def waiting_watts(
    law: PowerLaw, card: Gpu, cap_watts: float | None = None, clock_mhz: float | None = None
) -> float:
    """Return what a GPU with an engine loaded draws between steps.

    Raises:
        BadInput: a power limit that this alone exceeds, a clock the GPU does not have.
    """
    _slower(card, clock_mhz)  # refuses; waiting costs the same at any clock
    watts = card.idle_watts + law.waiting * (card.tdp_watts - card.idle_watts)
    if cap_watts is not None and cap_watts <= watts:
        raise BadInput(
            f"cap_watts={cap_watts:g}: a {card.key} with an engine loaded draws {watts:.0f} W before it does anything; "
            f"give more than that, up to its {card.tdp_watts:.0f} W"
        )
    return watts


def resident_watts(
    law: PowerLaw, card: Gpu, cap_watts: float | None = None, clock_mhz: float | None = None
) -> float:
    """Return what a GPU draws, above what it draws while it waits, in a step of which no operator runs."""
    waiting = waiting_watts(law, card, cap_watts, clock_mhz)
    slower: float = _slower(card, clock_mhz) ** -_EXPONENT
    above = (law.resident - law.waiting) * (card.tdp_watts - card.idle_watts) * slower
    return above if cap_watts is None else min(above, cap_watts - waiting)


def _slower(card: Gpu, clock_mhz: float | None) -> float:
    """How many times its clock the GPU's boost clock is."""
    if clock_mhz is None:
        return 1.0
    if card.boost_mhz is None:
        raise BadInput(
            f"clock_mhz={clock_mhz:g}: the boost clock of a {card.key} is not in the catalogue; leave clock_mhz out, a "
            f"power limit (cap_watts) can be given instead"
        )
    if not card.boost_mhz * _CLOCK_LEAST <= clock_mhz <= card.boost_mhz:
        raise BadInput(
            f"clock_mhz={clock_mhz:g}: a {card.key} can be locked up to its boost clock of {card.boost_mhz:g} MHz, and "
            f"to no less than {card.boost_mhz * _CLOCK_LEAST:.0f} MHz here"
        )
    return card.boost_mhz / clock_mhz


def spend(
    law: PowerLaw, card: Gpu, cost: Cost, gpus: int, cap_watts: float | None = None, clock_mhz: float | None = None
) -> Spent:
    """Return the time and energy of an operator on `gpus` GPUs, each as busy as `cost` says.

    `law` is one of `serving`. Watts are ``idle + (TDP - idle) (resident + memory B + compute sqrt(F))``, at most TDP; B
    and F are the shares of the data sheet's bandwidth and FLOP/s in use. A limit lowers the clock until watts keep it.
    Power above that of a waiting GPU goes with the cube of the clock (frequency times voltage squared, and voltage
    follows frequency: T. Mudge, "Power: a first-class architectural design constraint", IEEE Computer 34(4), 2001), as
    what a loaded GPU draws waiting is memory's and leaks; time goes with its inverse as far as FLOPs set it, the
    elasticity ``F^2 / (F^2 + B^2)`` of a roofline with a round corner. Splitwise (P. Patel et al., ISCA 2024) takes
    1.30 times for prompts and 1.00 for decoding on H100 at half of TDP; this gives 1.30 for 4,096 tokens and 1.00. A
    locked clock does the same to every operator; of both the lower clock holds.

    Raises:
        BadInput: a clock above the GPU's boost clock, or of a GPU whose boost clock is not known.
    """
    span = card.tdp_watts - card.idle_watts
    share_s = law.resident * cost.seconds + law.memory * cost.byte_s
    share_s = np.minimum(share_s + law.compute * np.sqrt(cost.flop_s * cost.seconds), cost.seconds)
    locked, cap = _slower(card, clock_mhz), min(card.tdp_watts if cap_watts is None else cap_watts, card.tdp_watts)
    if cap == card.tdp_watts and locked == 1.0:
        return Spent(cost.seconds, (share_s - law.waiting * cost.seconds) * (span * gpus))
    above_s, above = share_s - law.waiting * cost.seconds, (cap - card.idle_watts) / span - law.waiting
    over = np.maximum(_ratio(above_s, above * cost.seconds, 1.0), 1.0)
    slower = np.maximum(over ** (1.0 / _EXPONENT), locked)
    by_flops = _ratio(cost.flop_s**2, cost.flop_s**2 + cost.byte_s**2, 0.0)
    longer = 1.0 + by_flops * (slower - 1.0)
    seconds = cost.seconds * longer
    locked_s = above_s if locked == 1.0 else above_s * locked**-_EXPONENT * longer
    return Spent(seconds, np.minimum(locked_s, above * seconds) * (span * gpus))


def _ratio(above: Floats, below: Floats, otherwise: float) -> Floats:
    above, below = np.asarray(above), np.asarray(below)
    return np.asarray(np.divide(above, below, out=np.full(below.shape, otherwise), where=below > 0.0))
