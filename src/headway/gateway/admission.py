"""Admission by prediction: what will probably miss its limits is refused at once, with the reason."""

from __future__ import annotations

import math
from typing import NamedTuple

from headway.gateway.books import Entry, ReplicaBook
from headway.gateway.events import Refused
from headway.gateway.spec import SloClass

LIMITS = ("time to first token", "time per output token", "end")


class Forecast(NamedTuple):
    """What one replica would make of a request: seconds to its first token, between tokens, to its end.

    `chances`: of meeting the limit on each.
    """

    first_s: float
    token_s: float
    end_s: float
    chances: tuple[float, float, float]


def forecast(book: ReplicaBook, entry: Entry, now: float, queue_s: float) -> Forecast:
    """Predict a request that waits `queue_s` in Headway's queue and is then passed on to this replica."""
    pace, output = book.pace, entry.view.predicted_output_tokens
    most_first_s, most_token_s, most_s = entry.limits
    first_s = book.first_token_s(entry.view, now) + queue_s
    first = book.chance_first(first_s, most_first_s)
    if not entry.facts.generates or min(most_token_s, most_s) == math.inf:  # no pace to be judged
        return Forecast(first_s, 0.0, first_s, (first, 1.0, book.chance_first(first_s, most_s)))
    token_s = book.token_s(entry.view)
    end_s = first_s + (output * token_s if output > 1 else 0.0)  # nothing for an output of which nothing is known
    end = min(book.chance_first(end_s, most_s), pace.chance_token(end_s, most_s))
    return Forecast(first_s, token_s, end_s, (first, pace.chance_token(token_s, most_token_s), end))


def unattainable(
    entry: Entry, klass: SloClass, books: list[ReplicaBook], now: float, queue_s: float, duration_s: float
) -> Refused | None:
    """Why no promise can be made to this request by the replica that serves it best; None when one can.

    What an idle replica could for certain not keep either is refused for good (422), the rest until later (429). While
    one is idle nothing is refused for what was learned alone: who is let in shows whether it still holds.

    Args:
        entry: the request.
        klass: its class.
        books: the replicas that it may go to, those that do not answer among them.
        now: the time.
        queue_s: the wait in Headway's queue, as predicted.
        duration_s: what requests take these days: load that is too high for a pace lasts about as long.
    """
    judged = klass.refuse_below > 0 and min(entry.limits) < math.inf
    deadline_s = entry.view.deadline_s - now
    known = [book for book in books if book.healthy and book.pace.known]
    if not known or (not judged and deadline_s == math.inf):
        return None
    best = min((forecast(book, entry, now, queue_s) for book in known), key=_merit)
    if not (best.end_s > deadline_s or (judged and min(best.chances) < klass.refuse_below)):
        return None
    idle = [book for book in known if book.idle]
    limits = *entry.limits[:2], min(entry.limits[2], deadline_s)
    guessed = entry.view.prompt_tokens
    if idle and all(least_s <= limit_s for least_s, limit_s in zip(idle_s(idle, entry, guessed), limits, strict=True)):
        return None
    certain = entry.facts.prompt_tokens or 1  # how many tokens a text is only the engine knows
    if best.end_s > deadline_s:
        who = f"the deadline is in {deadline_s:.3g} s"
        if (least_s := idle_s(books, entry, certain)[2]) > deadline_s:
            return _never(entry, LIMITS[2], least_s, who)
        words = f"predicted end in {best.end_s:.3g} s, {who}"
        return Refused(entry.facts.id, 429, "deadline_unattainable", words, max(best.end_s - deadline_s, 1.0))
    worst = best.chances.index(min(best.chances))
    predicted_s, limit_s = (best.first_s, best.token_s, best.end_s)[worst], entry.limits[worst]
    promised = klass.slo.limits()[worst] <= limit_s
    who = f"class {klass.name!r} promises" if promised else "the request asks for"
    if (least_s := idle_s(books, entry, certain)[worst]) > limit_s:
        return _never(entry, LIMITS[worst], least_s, f"{who} {limit_s:g} s")
    words = f"predicted {LIMITS[worst]} {predicted_s:.3g} s, {who} {limit_s:g} s"
    retry_s = duration_s if worst == 1 else predicted_s - limit_s
    return Refused(entry.facts.id, 429, "slo_unattainable", words, max(retry_s, 1.0))


def idle_s(books: list[ReplicaBook], entry: Entry, prompt: int) -> tuple[float, float, float]:
    """Predict what a request with so many tokens takes at least, alone at the best of these replicas: as `Forecast`.

    It is zero, which promises nothing, unless the cost model knows all of them.
    """
    least = [math.inf] * 3
    request = entry.view
    for book in books:
        pace = book.pace
        if pace.table is None:
            return 0.0, 0.0, 0.0
        first_s = book.idle_first_s(request, prompt)
        token_s, output = pace.token_s(1, prompt) / max(pace.token.ratio, 1.0), 0.0
        if entry.facts.generates and request.predicted_output_tokens > 1:
            output = request.predicted_output_tokens
        least = list(map(min, least, (first_s, token_s, first_s + output * token_s)))
    return least[0], least[1], least[2]


def _never(entry: Entry, limit: str, least_s: float, who: str) -> Refused:
    prompt = f"a prompt of {tokens} tokens" if (tokens := entry.facts.prompt_tokens) else "the shortest prompt"
    words = f"predicted {limit} {least_s:.3g} s for {prompt} even at an idle replica, {who}"
    advice = "to send it again later does not help: ask for less, or for a class or limit that allows it"
    return Refused(entry.facts.id, 422, "unmeetable", f"{words}: {advice}")


def _merit(one: Forecast) -> tuple[float, float]:
    return -min(one.chances), one.end_s
