"""The replicas of one model, who waits for them, and what is known of the model's requests."""

from __future__ import annotations

from random import Random

from headway.gateway.books import Entry, ReplicaBook
from headway.gateway.events import Arrival
from headway.gateway.fence import Fence
from headway.gateway.held import HeldQueue
from headway.gateway.live import LivePool
from headway.gateway.predict import OutputLengths, TokenSizes
from headway.gateway.shadow import Shadow
from headway.state import Hold

DURATION_WEIGHT = 0.05


class Line:
    """One model: its replicas, its queue, its view; times and lengths are learned for it alone."""

    def __init__(self, model: str, books: list[ReplicaBook], held: HeldQueue, rng: Random, role: str = "mixed") -> None:
        self.model = model
        self.books = books
        self.held = held
        self.pool = LivePool(role, [], rng, model)
        self.lengths, self.sizes = OutputLengths(), TokenSizes()
        self.duration_s = 1.0

    @property
    def pools(self) -> tuple[LivePool, ...]:
        """What policies see of it, the pool that requests enter first."""
        return (self.pool,)

    @property
    def groups(self) -> list[list[ReplicaBook]]:
        """Its replicas, those that do the same together."""
        return [self.books]

    @property
    def absent(self) -> str:
        """Why none of them may be asked, where none may."""
        return "no replica that has room for it answers at the moment"

    def room(self, now: float) -> bool:
        """Whether one more request may be passed on."""
        return room_in(self.books)

    def allowed(self, facts: Arrival) -> list[ReplicaBook]:
        """Replicas that this request may go to, whether they answer or not."""
        if facts.only is None:
            return self.books
        return [book for book in self.books if book.index in facts.only]

    def answering(self, facts: Arrival) -> list[ReplicaBook]:
        """Those of them that may be asked now."""
        return [book for book in self.allowed(facts) if book.healthy]

    def ask(
        self, now: float, entry: Entry, books: list[ReplicaBook], fence: Fence, shadow: Shadow | None
    ) -> tuple[ReplicaBook, str] | Hold:
        """Ask the router for one of these replicas, and why; or it holds the request."""
        show(now, self.pool, books, len(self.held.entries))
        return asked(now, entry, books, self.pool, fence, shadow)

    def show_entry(self, now: float, books: list[ReplicaBook]) -> None:
        """Show an admission policy these replicas; each with its share of Headway's queue waiting."""
        waiting = len(self.held.entries)
        show(now, self.pool, books, waiting, waiting // max(len(books), 1))

    def show_all(self, now: float) -> None:
        """Show a scaling policy who answers; the others, which will be back or be replaced, are starting."""
        show_answering(now, self.pool, self.books, len(self.held.entries))

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


def show(now: float, pool: LivePool, books: list[ReplicaBook], held: int, each: int = 0, starting: int = 0) -> None:
    """Show a policy these replicas, numbered as they stand: `each` has so many more waiting, `held` wait for all."""
    for place, book in enumerate(books):
        book.advance(now, each)
        book.view.renumber(place)
    pool.show(now, [book.view for book in books], held, starting)


def show_answering(now: float, pool: LivePool, books: list[ReplicaBook], held: int) -> None:
    """Show those of them that answer; the others are starting."""
    answering = [book for book in books if book.healthy]
    show(now, pool, answering, held, starting=len(books) - len(answering))


def asked(
    now: float, entry: Entry, books: list[ReplicaBook], pool: LivePool, fence: Fence, shadow: Shadow | None
) -> tuple[ReplicaBook, str] | Hold:
    """Ask the router about a pool that shows these replicas, and then its shadow."""
    decision = fence.route(entry.view, pool)
    if isinstance(decision, Hold):
        return decision
    place, reason = decision
    if shadow is not None:
        shadow.route(now, entry, books, pool, books[place])
    return books[place], reason


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
