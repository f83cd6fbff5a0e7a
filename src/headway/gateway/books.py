"""The books: which request is where, and what that makes each replica look like.

A request that has been passed on is first *waiting* (its prompt is being computed, as far as can be predicted) and then
*running*. All that a view shows is kept as sums that change when a request comes, starts to run or goes: bringing a
replica up to the present costs the same whatever is in flight.
"""

from __future__ import annotations

import math
from collections import deque

import msgspec

from headway.cost import StepTable
from headway.gateway.events import Arrival, EndRecord, EngineSample
from headway.gateway.live import LiveReplica, LiveRequest
from headway.gateway.predict import Pace
from headway.gateway.prefix import TOKENS_PER_BLOCK, PrefixIndex

PREFIX_BLOCKS_UNKNOWN = 20_000  # of 64 tokens, where no cost model says how much KV there is
MODEL_BLOCK_TOKENS = 16
DRIFT_SAMPLES = 3  # in a row that an engine must report more than the books before it is believed
WINDOW_UNKNOWN = 64


class Backing(msgspec.Struct, frozen=True, kw_only=True):
    """One replica behind the gateway: its model, step table and price where known, and how many requests it takes.

    `role`: "prefill" replicas compute the prompts of "decode" replicas, which fetch the KV. That takes `fetch_s`: so
    many seconds, and so many more for each token; `near_fetch_s` where both stand on the same `node`, a number, or -1
    where it is not known. `keep_hints`: the engine obeys a header that says how long KV stays.
    """

    model: str = ""
    role: str = "mixed"
    fetch_s: tuple[float, float] = (0.0, 0.0)
    near_fetch_s: tuple[float, float] = (0.0, 0.0)
    node: int = -1
    table: StepTable | None = None
    usd_per_hour: float | None = None  # of all its GPUs
    window: int = WINDOW_UNKNOWN
    keep_hints: bool = False


class Entry:
    """One accepted request, from its arrival to its end."""

    __slots__ = (
        "at", "bound", "cached", "charged", "due_s", "facts", "hedge_at_s", "hedged", "hosts", "level", "limits",
        "line", "output", "paced_at", "prefill", "prefill_reason", "prefill_s", "reason", "record", "sent_s", "stage",
        "view", "waiting",
    )  # fmt: skip

    def __init__(self, facts: Arrival, view: LiveRequest, limits: tuple[float, float, float]) -> None:
        self.facts = facts
        self.view = view
        self.limits = limits  # on TTFT, TPOT and E2E: the tighter of the class's and the caller's own
        self.output = 0  # tokens expected to be generated, on the large side
        self.bound = 0  # tokens that prompt and output may have at most
        self.line = 0  # of the model that serves it, by number
        self.level = 0  # of urgency, in the queue
        self.charged = 0.0  # to its tenant's counter, when it was sent
        self.stage = "held"  # then "sent", then "ended"
        self.hosts: tuple[int, ...] = ()
        self.at = 0  # the one of them that has it
        self.prefill: int | None = None  # the replica that computes its prompt, where that is another one
        self.prefill_reason = ""
        self.hedged: bool | None = None  # whether the second host was sent it, too; None: it must not be
        self.hedge_at_s = math.inf  # not before then
        self.reason = ""  # of the choice of hosts
        self.record: EndRecord | None = None
        self.sent_s = math.nan
        self.due_s = math.nan
        self.prefill_s = 0.0
        self.cached = 0
        self.waiting = False
        self.paced_at = 0.0

    @property
    def reserved(self) -> tuple[int, int]:
        """Tokens expected, and tokens set aside."""
        return self.view.prompt_tokens + self.output, self.bound

    def kept(self, first_s: float | None, token_s: float | None, end_s: float) -> bool:
        """Whether these durations are within its limits; what is not known is."""
        most_first_s, most_token_s, most_s = self.limits
        return (first_s or 0.0) <= most_first_s and (token_s or 0.0) <= most_token_s and end_s <= most_s


class ReplicaBook:
    """One replica: its view, its pace, its requests, its health."""

    role = "mixed"

    def __init__(self, index: int, table: StepTable | None, window: int, node: int = -1) -> None:
        self.index = index
        self.node = node
        self.window = window
        self.pace = Pace(table)
        self.block_tokens = table.block_tokens if table else MODEL_BLOCK_TOKENS
        kv_blocks = table.kv_blocks if table else 0
        held = int(kv_blocks * self.block_tokens / TOKENS_PER_BLOCK)
        self.prefixes = PrefixIndex(held or PREFIX_BLOCKS_UNKNOWN)
        self.view = LiveReplica(index, kv_blocks, self.prefixes, node)
        self.entries: dict[str, Entry] = {}
        self.computing: deque[Entry] = deque()
        self.free_s = 0.0  # when the prompts sent so far are computed
        self.at_s = 0.0
        self.shown: tuple[float, int, int] | None = None  # what the view shows; None once requests have come or gone
        self.paced = 0.0  # tokens that a request would have been given, had it run from the start
        self.running = 0
        self.running_tokens = 0.0  # prompts of the running less `paced` at their start: plus running * paced is context
        self.waiting_tokens = 0
        self.foreign = 0  # requests at the engine that are not ours, as its metrics say
        self.orphans = 0  # requests that an earlier decision process sent, as Envoy counts them
        self.beside = 0  # requests that other gateways have sent, as they say
        self.others = 0  # the greater of the first two, and the third: requests here that are not in these books
        self.drift: int | None = None  # at the last reading, requests that the engine had more than the books
        self.excess: deque[int] = deque(maxlen=DRIFT_SAMPLES)
        self.failures = 0  # to answer at all, in a row
        self.healthy = True  # may be asked: it answers, and is not left out
        self.answers = True  # probes
        self.errors = 0  # answers of 5xx without a good one between, and since when
        self.errors_since_s = 0.0
        self.served_s = -math.inf  # when a good one came last
        self.out_until_s: float | None = None  # left out for errors
        self.relapses = 0

    @property
    def in_flight(self) -> int:
        """Requests at this replica by these books."""
        return len(self.entries)

    @property
    def room(self) -> bool:
        """Whether one more may be passed on."""
        return self.healthy and len(self.entries) + self.others < self.window

    @property
    def idle(self) -> bool:
        """Whether nothing is under way here."""
        return not self.entries and not self.others

    @property
    def computing_tokens(self) -> int:
        """Prompt tokens that this replica has still to compute."""
        return self.waiting_tokens

    @property
    def context(self) -> int:
        """Tokens held in KV by the running requests, as predicted."""
        return max(round(self.running_tokens + self.running * self.paced), 0)

    def adopt(self, active: int) -> None:
        """So many requests are under way here; those that are not in the books are an earlier process's."""
        self.orphans = max(active - self.in_flight, 0)
        self._count_others()

    def share(self, requests: int) -> None:
        """Other gateways have so many requests here."""
        self.beside = requests
        self._count_others()

    def _count_others(self) -> None:
        self.others = max(self.foreign, self.orphans) + self.beside

    def turn(self, answers: bool, out_until_s: float | None) -> None:
        """Note whether it answers probes, and until when it is left out for errors."""
        self.answers, self.out_until_s = answers, out_until_s
        self.healthy = answers and out_until_s is None

    def come_back(self) -> None:
        """The replica answers again, maybe as another engine: nothing is known to be cached, nor how slow it is."""
        self.turn(True, None)
        self.errors = self.relapses = 0
        self.prefixes.clear()
        self.pace.reset()
        self.shown = None

    def advance(self, now: float, held: int = 0) -> None:
        """Bring the books to the present, and the view with them; `held` requests more are shown as waiting."""
        others = self.others
        asked = now, held, others
        if asked == self.shown:
            return  # a decision asks several times
        self.shown = asked
        self.pace.relax(now)
        while self.computing and (self.computing[0].stage == "ended" or self.computing[0].due_s <= now):
            entry = self.computing.popleft()
            if entry.stage == "ended":
                continue
            self._give_tokens(entry.due_s)
            entry.waiting, entry.paced_at = False, self.paced
            self.waiting_tokens -= entry.view.prompt_tokens - entry.cached
            self.running += 1
            self.running_tokens += entry.view.prompt_tokens - self.paced
        self._give_tokens(now)
        self._show(held)

    def _show(self, held: int) -> None:
        running, context = self.running, self.context
        waiting = len(self.entries) - running + held
        blocks = -(-context // self.block_tokens)
        self.view.show(running + self.others, waiting, self.waiting_tokens, context, blocks)

    def _give_tokens(self, now: float) -> None:
        """Let the running requests be given tokens until `now`."""
        if now > self.at_s:
            if self.running:
                self.paced += (now - self.at_s) / self.pace.token_s(self.running, self.context)
            self.at_s = now

    def first_token_s(self, request: LiveRequest, now: float) -> float:
        """Predict the seconds from now to the first token, if the request were passed on now."""
        self.pace.relax(now)
        cached = int(self.view.cached_tokens(request))
        new = request.prompt_tokens - cached
        work_s, beside_s = self.pace.first_s(new, cached, self.waiting_tokens, self.running, self.context)
        return max(self.free_s - now, 0.0) + work_s + beside_s

    def idle_first_s(self, request: LiveRequest, prompt: int) -> float:
        """Predict the seconds to the first token of a request with so many tokens that is alone here.

        A ratio learned under load is not that of an idle engine, so one above 1 is left out.
        """
        cached = min(int(self.view.cached_tokens(request)), prompt - 1)
        return sum(self.pace.first_s(prompt - cached, cached, 0, 0, 0)) / max(self.pace.first.ratio, 1.0)

    def chance_first(self, predicted_s: float, limit_s: float) -> float:
        """Return the probability that a first token predicted after so long comes within the limit."""
        return self.pace.chance_first(predicted_s, limit_s)

    def learn_first(self, now: float, entry: Entry, actual_s: float) -> None:
        """Take in how long a first token did take after the request was passed on."""
        self.pace.relax(now)
        self.pace.learn_first(now, entry.due_s - entry.sent_s, actual_s)

    def token_s(self, request: LiveRequest) -> float:
        """Predict the seconds from one output token of this request to the next, beside all that is here already."""
        running = min(self.in_flight + self.others + 1, self.window)
        return self.pace.token_s(running, self.context + self.waiting_tokens + request.prompt_tokens)

    def add(self, entry: Entry, now: float) -> None:
        """Pass a request on to this replica."""
        self.advance(now)
        request = entry.view
        entry.cached = int(self.view.cached_tokens(request))
        new = request.prompt_tokens - entry.cached
        work_s, beside_s = self.pace.first_s(new, entry.cached, self.waiting_tokens, self.running, self.context)
        entry.stage, entry.sent_s, entry.waiting, entry.prefill_s = "sent", now, True, work_s
        entry.at = self.index
        self.free_s = max(self.free_s, now) + work_s
        entry.due_s = self.free_s + beside_s
        self.waiting_tokens += new
        self.entries[entry.facts.id] = entry
        self.computing.append(entry)
        self.prefixes.add(request.chain)
        self.shown = None

    def remove(self, entry: Entry, now: float) -> None:
        """A request has gone, whatever became of it."""
        self.advance(now)
        del self.entries[entry.facts.id]
        entry.stage = "ended"
        if entry.waiting:
            self.waiting_tokens -= entry.view.prompt_tokens - entry.cached
            self.free_s = max(self.free_s - entry.prefill_s, now)
        else:
            self.running -= 1
            self.running_tokens -= entry.view.prompt_tokens - entry.paced_at
        if not self.entries:
            self.running_tokens, self.paced = 0.0, 0.0  # no rounding is left over
        self.shown = None

    def hand_over(self, entry: Entry, other: ReplicaBook, now: float) -> None:
        """This replica has failed a request that another one is sent now."""
        self.remove(entry, now)
        if entry in self.computing:
            self.computing.remove(entry)
        other.add(entry, now)

    def compare(self, sample: EngineSample) -> int | None:
        """Compare with what the engine says: requests it has that no gateway told of (negative: fewer); None if unsaid.

        The least excess of the last few samples counts as foreign load: what was only in flight between two
        readings does not.
        """
        if sample.running is None:
            self.drift = None
            return None
        self.drift = drift = sample.running + (sample.waiting or 0) - self.in_flight - self.beside
        self.excess.append(max(drift, 0))
        self.foreign = min(self.excess) if len(self.excess) == DRIFT_SAMPLES else 0
        self._count_others()
        return drift

    def check(self) -> list[str]:
        """Say which of the books' laws are broken."""
        waiting = [entry for entry in self.entries.values() if entry.waiting]
        tokens = sum(entry.view.prompt_tokens - entry.cached for entry in waiting)
        faults = []
        if len(self.entries) != self.running + len(waiting):
            faults.append(
                f"replica {self.index}: {len(self.entries)} != {self.running} running + {len(waiting)} waiting"
            )
        if tokens != self.waiting_tokens:
            faults.append(f"replica {self.index}: waiting tokens {self.waiting_tokens}, of the entries {tokens}")
        if any(entry.stage != "sent" for entry in self.entries.values()):
            faults.append(f"replica {self.index}: holds a request that is not under way")
        if not self.entries and (self.running or self.waiting_tokens or self.running_tokens):
            faults.append(f"replica {self.index}: is empty and not at zero")
        return faults
