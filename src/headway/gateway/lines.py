"""The replicas of one model, who waits for them, and what is known of the model's requests."""

from __future__ import annotations

from random import Random

from headway.gateway.books import Entry, ReplicaBook
from headway.gateway.events import Arrival
from headway.gateway.held import HeldQueue
from headway.gateway.live import LivePool
from headway.gateway.predict import OutputLengths, TokenSizes

DURATION_WEIGHT = 0.05


class Line:
    """One model: its replicas, its queue, its view; times and lengths are learned for it alone."""

    def __init__(self, model: str, books: list[ReplicaBook], held: HeldQueue, rng: Random) -> None:
        self.model = model
        self.books = books
        self.held = held
        self.pool = LivePool("mixed", [], rng, model)
        self.lengths, self.sizes = OutputLengths(), TokenSizes()
        self.duration_s = 1.0

    @property
    def room(self) -> bool:
        """Whether one more request may be passed on."""
        return room_in(self.books)

    def allowed(self, facts: Arrival) -> list[ReplicaBook]:
        """Replicas that this request may go to, whether they answer or not."""
        if facts.only is None:
            return self.books
        return [book for book in self.books if book.index in facts.only]

    def show(self, now: float, books: list[ReplicaBook], held: int = 0, starting: int = 0) -> None:
        """Show a policy these replicas, numbered as they stand; each with `held` more waiting, from Headway's queue."""
        for place, book in enumerate(books):
            book.advance(now, held)
            book.view.renumber(place)
        self.pool.show(now, [book.view for book in books], len(self.held.entries), starting)

    def show_all(self, now: float) -> None:
        """Show a scaling policy who answers; the others, which will be back or be replaced, are starting."""
        answering = [book for book in self.books if book.healthy]
        self.show(now, answering, starting=len(self.books) - len(answering))

    def queue_s(self, now: float, entry: Entry) -> float:
        """Predicted wait in the queue, behind those who are as urgent or more."""
        places = sum(book.window for book in self.books if book.healthy)
        return (self.held.ahead(entry, now) + 1) * self.duration_s / max(places, 1)

    def check(self, number: int) -> list[str]:
        """Say which laws are broken: the queue's, and that who is here asked for this model, which has this number."""
        sent = [entry for book in self.books for entry in book.entries.values()]
        astray = [each.facts.id for each in (*sent, *self.held.entries.values()) if each.line != number]
        return self.held.check() + [f"{id} is at a replica of another model" for id in astray]

    def took(self, seconds: float) -> None:
        """Learn how long a request was with an engine."""
        self.duration_s += DURATION_WEIGHT * (seconds - self.duration_s)


def room_in(books: list[ReplicaBook]) -> bool:
    """Whether one of these replicas has room for one more."""
    return any(book.room for book in books)


def spare_of(books: list[ReplicaBook], chosen: ReplicaBook) -> ReplicaBook | None:
    """Return the replica that takes over should the chosen one fail: with room if there is one, and the fewest."""
    spare, fewest = None, (True, 0)
    for book in books:
        load = not book.room, len(book.entries)
        if book is not chosen and (spare is None or load < fewest):
            spare, fewest = book, load
    return spare
