"""Prefill and decode pools: one decision names two replicas, and both have the request in their books.

The request is passed on to its decode replica, which a header tells the prefill replica whose KV it is to fetch. Nobody
tells when a prompt is computed. So by the books a request leaves its prefill replica when its prompt is predicted to be
computed there, or with its end; it is at its decode replica from the decision on, as what is sent there cannot go
elsewhere any more.
"""

from __future__ import annotations

from bisect import insort
from random import Random

from headway.gateway.books import Backing, Entry, ReplicaBook
from headway.gateway.events import Arrival
from headway.gateway.fence import Fence
from headway.gateway.held import HeldQueue
from headway.gateway.lines import Line, asked, room_in, show, show_answering
from headway.gateway.live import LivePool, LiveRequest
from headway.gateway.shadow import Shadow
from headway.state import Hold


class PrefillBook(ReplicaBook):
    """A replica that computes prompts for others."""

    role = "prefill"

    def advance(self, now: float, held: int = 0) -> None:
        """Bring the books to the present: whose prompt is computed has left."""
        while self.computing and self.computing[0].due_s <= now:
            leg = self.computing.popleft()
            if leg.stage != "ended":
                leg.stage = "ended"
                self.waiting_tokens -= leg.view.prompt_tokens - leg.cached
                del self.entries[leg.facts.id]
                self.shown = None
        super().advance(now, held)


class DecodeBook(ReplicaBook):
    """A replica that is given its requests with their prompts computed, by one of `prefills` (by index).

    To a policy who is bound for it counts as running here, with the prompt as context: the place is taken.
    """

    role = "decode"

    def __init__(self, index: int, backing: Backing, window: int, prefills: dict[int, PrefillBook]) -> None:
        super().__init__(index, backing.table, window, backing.node)
        self.prefills = prefills
        self.fetch_s, self.near_fetch_s = backing.fetch_s, backing.near_fetch_s

    @property
    def idle(self) -> bool:
        """Whether nothing is under way here and at a prefill replica."""
        return super().idle and any(book.healthy and book.idle for book in self.prefills.values())

    @property
    def computing_tokens(self) -> int:
        """No prompt is computed here."""
        return 0

    def fetched_s(self, entry: Entry) -> float:
        """Predict the seconds it takes to fetch the KV of a prompt, over an idle link."""
        near = self.node >= 0 and self._prefill(entry).node == self.node
        latency_s, token_s = self.near_fetch_s if near else self.fetch_s
        return latency_s + token_s * entry.view.prompt_tokens

    def first_token_s(self, request: LiveRequest, now: float) -> float:
        """Predict the seconds to the first token, which comes with the prompt's end at the best prefill replica."""
        books = [book for book in self.prefills.values() if book.healthy] or list(self.prefills.values())
        return min(book.first_token_s(request, now) for book in books)

    def idle_first_s(self, request: LiveRequest, prompt: int) -> float:
        """Predict the same where the best prefill replica has nothing else to do."""
        return min(book.idle_first_s(request, prompt) for book in self.prefills.values())

    def chance_first(self, predicted_s: float, limit_s: float) -> float:
        """Return the probability that a first token comes in time, by the prefill replica that is predicted best."""
        return max(book.chance_first(predicted_s, limit_s) for book in self.prefills.values())

    def learn_first(self, now: float, entry: Entry, actual_s: float) -> None:
        """Take in how long a first token took: it says how fast the prefill replica is."""
        predicted_s = entry.due_s - self.fetched_s(entry) - entry.sent_s
        pace = self._prefill(entry).pace
        pace.relax(now)
        pace.learn_first(now, predicted_s, actual_s)

    def add(self, entry: Entry, now: float) -> None:
        """Bind a request for this replica; its prompt is computed by the one that it names, from now on."""
        self.advance(now)
        leg = Entry(entry.facts, entry.view, entry.limits)
        self._prefill(entry).add(leg, now)
        entry.stage, entry.sent_s, entry.waiting, entry.at = "sent", now, True, self.index
        entry.cached, entry.prefill_s = 0, 0.0  # no time of this replica's is spent on the prompt
        entry.due_s = leg.due_s + self.fetched_s(entry)
        self.waiting_tokens += entry.view.prompt_tokens
        self.entries[entry.facts.id] = entry
        insort(self.computing, entry, key=_due)
        self.prefixes.add(entry.view.chain)
        self.shown = None

    def remove(self, entry: Entry, now: float) -> None:
        """A request has gone, from its prefill replica too if it was there still."""
        prefill = self._prefill(entry)
        prefill.advance(now)
        leg = prefill.entries.get(entry.facts.id)
        if leg is not None:
            prefill.remove(leg, now)
        super().remove(entry, now)

    def _prefill(self, entry: Entry) -> PrefillBook:
        assert entry.prefill is not None
        return self.prefills[entry.prefill]

    def _show(self, held: int) -> None:
        context = self.context + self.waiting_tokens
        self.view.show(len(self.entries) + self.others, held, 0, context, -(-context // self.block_tokens))


class SplitLine(Line):
    """One model in a prefill and a decode pool; `books` are the decode replicas', to which requests are passed on.

    Policies are asked as in the simulator, about the prefill pool first, by the same views. What differs is when: the
    simulator asks about the decode pool when the prompt is computed, here both are asked when the request comes.
    """

    def __init__(
        self,
        model: str,
        books: list[ReplicaBook],
        prefills: list[ReplicaBook],
        held: HeldQueue,
        rngs: tuple[Random, Random],
    ) -> None:
        super().__init__(model, books, held, rngs[1], "decode")
        self.prefills = prefills
        self.entrance = LivePool("prefill", [], rngs[0], model)

    @property
    def pools(self) -> tuple[LivePool, ...]:
        """What policies see of it, the pool that requests enter first."""
        return (self.entrance, self.pool)

    @property
    def groups(self) -> list[list[ReplicaBook]]:
        """Its replicas, those that do the same together."""
        return [self.prefills, self.books]

    @property
    def absent(self) -> str:
        """Why none of them may be asked, where none may."""
        if any(book.healthy for book in self.prefills):
            return super().absent
        return "no prefill replica answers at the moment"

    def room(self, now: float) -> bool:
        """Whether one more request may be passed on."""
        for book in self.prefills:
            book.advance(now)
        return room_in(self.prefills) and room_in(self.books)

    def answering(self, facts: Arrival) -> list[ReplicaBook]:
        """The decode replicas that may be asked now: none where no prefill replica may."""
        return super().answering(facts) if self._prefilling(facts) else []

    def ask(
        self, now: float, entry: Entry, books: list[ReplicaBook], fence: Fence, shadow: Shadow | None
    ) -> tuple[ReplicaBook, str] | Hold:
        """Ask the router for a prefill replica, and then for one of these decode replicas.

        Where the second answer is to hold the request, the first stands when it is asked again, as in the simulator,
        while that replica has room.
        """
        prefills = self._prefilling(entry.facts)
        free = [book for book in prefills if book.room] or prefills
        if entry.prefill not in [book.index for book in free]:
            show(now, self.entrance, free, len(self.held.entries))
            entry.view.stand(-1)
            first = asked(now, entry, free, self.entrance, fence, shadow)
            if isinstance(first, Hold):
                return first
            entry.prefill, entry.prefill_reason = first[0].index, first[1]
            entry.view.stand(first[0].node)
        show(now, self.pool, books, 0)
        second = asked(now, entry, books, self.pool, fence, shadow)
        if isinstance(second, Hold):
            return second
        return second[0], f"prefill: {entry.prefill_reason}; decode: {second[1]}"

    def show_entry(self, now: float, books: list[ReplicaBook]) -> None:
        """Show an admission policy both pools; who waits in Headway's queue waits for a prefill replica."""
        waiting = len(self.held.entries)
        answering = [book for book in self.prefills if book.healthy]
        show(now, self.entrance, answering, waiting, waiting // max(len(answering), 1))
        show(now, self.pool, books, 0)

    def show_all(self, now: float) -> None:
        """Show a scaling policy who answers; the others, which will be back or be replaced, are starting."""
        show_answering(now, self.entrance, self.prefills, len(self.held.entries))
        show_answering(now, self.pool, self.books, 0)

    def check(self, number: int) -> list[str]:
        """Say which laws are broken: those of any model, and that prompts are computed for who is here alone."""
        faults = super().check(number)
        named = {id: entry.prefill for book in self.books for id, entry in book.entries.items()}
        for book in self.prefills:
            faults += [
                f"{id} is at prefill replica {book.index} alone" for id in book.entries if named.get(id) != book.index
            ]
        return faults

    def _prefilling(self, facts: Arrival) -> list[ReplicaBook]:
        """Prefill replicas that may compute this prompt now: of those that a subset names, of all where it names none.

        To a gateway that gives a subset prefill replicas need not be endpoints: it sends them nothing.
        """
        subset = set(facts.only or ()) & {book.index for book in self.prefills}
        return [book for book in self.prefills if book.healthy and (not subset or book.index in subset)]


def books_of(backings: list[Backing], in_flight: int | None) -> list[ReplicaBook]:
    """Return a book for each replica; `in_flight` bounds the requests at one, in place of its own bound."""
    made: dict[int, ReplicaBook] = {}
    prefills: dict[str, dict[int, PrefillBook]] = {backing.model: {} for backing in backings}
    for i, backing in enumerate(backings):
        if backing.role == "prefill":
            made[i] = prefills[backing.model][i] = PrefillBook(
                i, backing.table, in_flight or backing.window, backing.node
            )
    for i, backing in enumerate(backings):
        window = in_flight or backing.window
        if backing.role == "decode":
            made[i] = DecodeBook(i, backing, window, prefills[backing.model])
        elif backing.role == "mixed":
            made[i] = ReplicaBook(i, backing.table, window)
    return [made[i] for i in range(len(backings))]


def lines_of(books: list[ReplicaBook], models: list[str], queues: dict[str, HeldQueue], seed: int) -> list[Line]:
    """Return a line for each model of `queues`, the random streams of its pools numbered as in the simulator."""
    lines: list[Line] = []
    pools = 0
    for model, held in queues.items():
        own = [book for book, name in zip(books, models, strict=True) if name == model]
        prefills, others = _parted(own)
        rngs = [Random(f"{seed}/route/{pools + i}") for i in range(2)]
        pools += 2 if prefills else 1
        if prefills:
            lines.append(SplitLine(model, others, prefills, held, (rngs[0], rngs[1])))
        else:
            lines.append(Line(model, others, held, rngs[0]))
    return lines


def _parted(books: list[ReplicaBook]) -> tuple[list[ReplicaBook], list[ReplicaBook]]:
    prefills = [book for book in books if book.role == "prefill"]
    return prefills, [book for book in books if book.role != "prefill"]


def _due(entry: Entry) -> float:
    return entry.due_s
