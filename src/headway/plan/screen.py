"""Which candidates need no simulation: those that a bound proves unable, and those whose estimate is far behind."""

from __future__ import annotations

import math
from typing import NamedTuple

from headway.plan.bounds import Guess, Lengths
from headway.plan.classes import Ceilings
from headway.plan.question import Question
from headway.plan.space import Option
from headway.plan.spare import standing
from headway.sim import Deployment

__all__ = ["BEHIND", "Screened", "cheapest", "price_of", "screen"]

BEHIND = 0.5  # of the rate: estimates are mostly 0.6 to 1.6 times what simulation finds, more where they ignore bursts
_MOST = 600  # candidates simulated of a large space, the first of each order
_WIDE = ("rate", "ttft", "tpot")  # objectives that want more GPUs than the rate needs


class Screened(NamedTuple):
    """Why a candidate is not simulated, the rate that it is estimated to serve, and the least proven too much."""

    reason: str
    guess: float
    most: float = math.inf


class _Estimate(NamedTuple):
    place: int
    gpus: int
    price: float
    guess: float
    calm: float


def screen(
    options: list[Option], guess: Guess, lengths: Lengths, question: Question, rate_req_s: float
) -> dict[int, Screened]:
    """Return the candidates not to be simulated while any other meets the SLO, by place.

    "rate": proven to miss the SLO at the asked rate, so it cannot win. "estimate": estimated to serve less than half of
    the rate if there were no bursts, or in a large space behind the first 600 in price for what it serves, with bursts
    and without, in goodput per GPU and, where the objective wants more GPUs than the rate needs, in goodput.
    """
    out, able, ceilings = {}, [], Ceilings(lengths, guess.slos)
    for place, option in enumerate(options):
        left, tables = standing(option.deployment, question.spare)
        price = price_of(option.deployment, question)
        one = _Estimate(place, option.deployment.gpus, price, guess(left, tables), guess.calm(left, tables))
        times = ceilings(left, tables)
        if times < 1:
            out[place] = Screened("rate", one.calm, times * rate_req_s)
        elif one.calm < BEHIND * rate_req_s:
            out[place] = Screened("estimate", one.calm)
        else:
            able.append(one)
    first = {each.place for each in (able if len(able) <= _MOST else _first(able, question, rate_req_s))}
    return out | {each.place: Screened("estimate", each.calm) for each in able if each.place not in first}


def _first(able: list[_Estimate], question: Question, rate_req_s: float) -> list[_Estimate]:
    """The first of every order that matters, `_MOST` in all or a few less."""
    orders = [
        sorted(able, key=lambda each: (each.price / min(1.0, each.guess / rate_req_s), each.place)),
        sorted(able, key=lambda each: (-each.guess / each.gpus, each.place)),
    ]
    if any(each.calm != each.guess for each in able):
        orders.append(sorted(able, key=lambda each: (each.price / min(1.0, each.calm / rate_req_s), each.place)))
    if question.objective in _WIDE or not set(_WIDE).isdisjoint(question.front):
        orders.append(sorted(able, key=lambda each: (-each.guess, each.place)))
    return [each for order in orders for each in order[: _MOST // len(orders)]]


def cheapest(options: list[Option], guess: Guess, question: Question, rate_req_s: float) -> Deployment | None:
    """Return the one of least price among those estimated to serve the rate; None where none is."""
    every = [option.deployment for option in options]
    able = [each for each in every if guess(*standing(each, question.spare)) >= rate_req_s]
    return min(able, key=lambda each: (price_of(each, question), each.gpus, each.name), default=None)


def price_of(deployment: Deployment, question: Question) -> float:
    """Return dollars per hour, or GPUs where a price is missing."""
    usd = deployment.usd_per_hour
    return float(deployment.gpus) if usd is None or question.unpriced else usd
