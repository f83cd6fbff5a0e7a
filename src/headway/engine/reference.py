"""The dumbest correct engine: one step at a time, every sequence and every page touched.

It is the specification of `core.Engine` for one mixed replica: on any workload the two must agree to the bit on
every time, count and hit. Nothing here is clever: pages have numbers, sums are taken anew, queues are sorted lists.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

import numpy as np

from headway.cost import EngineSettings, StepTable
from headway.engine.law import window_area
from headway.policies import Policy
from headway.state import QueueView


@dataclass(eq=False)
class Unit:
    """A cached prompt unit: its pages, how many sequences use it, and when it was used last, or is kept until."""

    pages: list[int]
    users: int = 0
    used_s: float = 0.0


@dataclass(eq=False)
class Row:
    """One request and all that happens to it; `tokens` of its KV are held, `target` must be before it decodes."""

    arrival_s: float
    prompt: int
    output: int
    hashes: tuple[int, ...] = ()
    priority: int = 0
    deadline_s: float = float("inf")
    keep_s: float = 0.0
    ready_s: float = float("-inf")
    admitted_s: float = float("nan")
    first_s: float = float("nan")
    last_s: float = float("nan")
    status: str = "unfinished"
    cached: int = 0
    preemptions: int = 0
    recomputed: int = 0
    most: int = 0
    generated: int = 0
    target: int = 0
    tokens: int = 0
    serial: int = 0
    place: int = 0
    units: list[int] = field(default_factory=list)
    own: list[int] = field(default_factory=list)


@dataclass(eq=False)
class Batch:
    """A lane: the sequences that decode together, and the prompts whose prefill its step completes."""

    decoding: list[Row] = field(default_factory=list)
    completing: list[Row] = field(default_factory=list)
    chunks: list[tuple[int, int]] = field(default_factory=list)
    end_s: float = 0.0
    last_end_s: float = 0.0
    busy: bool = False
    step: int = 0
    stalled: bool = False
    polls: bool = False


class ReferenceEngine:
    """Serves rows in order of arrival; `run` returns them with their times."""

    def __init__(self, table: StepTable, settings: EngineSettings, unit_tokens: int, order: Policy | None) -> None:
        self.table, self.settings, self.order = table, settings, order
        self.unit = unit_tokens if settings.prefix_cache else 0
        self.unit_pages = self.unit // table.block_tokens
        self.window = table.window
        self.free_pages = list(range(table.kv_blocks))
        self.cached: dict[int, Unit] = {}
        self.idle: OrderedDict[int, Unit] = OrderedDict()
        self.lanes = [Batch() for _ in range(table.stages)]
        self.stage_free_s = [0.0] * table.stages
        self.waiting: list[Row] = []
        self.inbox: list[Row] = []
        self.poll_steps = table.poll_steps if table.stages == 1 else 1
        self.ahead = table.ahead and table.stages == 1 and self.poll_steps == 1
        self.partial: Row | None = None
        self.serial = self.place = 0
        self.anchor: tuple[frozenset[int], float, int, int, int] | None = None
        self.gaps: list[float] = []
        self.peak = self.steps = self.hit_tokens = 0

    def run(self, rows: list[Row]) -> list[Row]:
        """Serve all rows to their end."""
        coming = list(rows)
        while coming or any(lane.busy for lane in self.lanes) or self.waiting or self.inbox:
            ends = [lane.end_s for lane in self.lanes if lane.busy]
            times = ends + [row.arrival_s for row in coming[:1]]
            if self.table.stages > 1 and not all(lane.busy for lane in self.lanes) and ends:
                times += [t for t in self.stage_free_s[:1] if t > self.now]
            self.now = min(times)
            while coming and coming[0].arrival_s == self.now:
                self.arrive(coming.pop(0))
            for lane in sorted((lane for lane in self.lanes if lane.busy), key=lambda lane: lane.end_s):
                if lane.end_s == self.now:
                    self.close(lane)
            while self.open_lanes():
                pass
        return rows

    now: float = -1.0

    def open_lanes(self) -> bool:
        """Start what can start, own work first, longest idle; True when pages came free on the way."""
        again = False
        idle = [lane for lane in self.lanes if not lane.busy]
        for lane in sorted(idle, key=lambda lane: (not lane.decoding, lane.last_end_s, self.lanes.index(lane))):
            if self.table.stages == 1 or self.stage_free_s[0] <= self.now:
                again = (self.open(lane) and not lane.busy) or again
        return again

    def arrive(self, row: Row) -> None:
        """A request joins the waiting line, unless it could never run."""
        tokens = row.prompt + row.output
        if self.pages(tokens) > self.table.kv_blocks or tokens > self.table.max_context:
            row.status = "failed"
            return
        row.target = row.prompt
        self.place += 1
        row.place = self.place
        under_way = self.ahead and self.lanes[0].busy
        if under_way:
            row.ready_s = self.lanes[0].end_s
        (self.inbox if self.poll_steps > 1 or under_way else self.waiting).append(row)

    # --- a step -------------------------------------------------------------------------------------------------

    def close(self, lane: Batch) -> None:
        """Everybody in the step gets a token; who has all of them leaves."""
        alone = self.table.prefill_alone and bool(lane.chunks)
        stalled = lane.stalled
        lane.busy = False
        self.steps += 1
        lane.step += not alone
        lane.stalled = alone and bool(lane.decoding)
        for row in sorted(() if alone else lane.decoding, key=lambda row: row.serial):
            row.tokens += 1
            self.token(row, None if stalled else lane)
            if row.generated == row.output:
                lane.decoding.remove(row)
                self.finish(row)
        for row in lane.completing:
            self.token(row, None)
            if row.generated == row.output:
                self.finish(row)
            else:
                lane.decoding.append(row)
        lane.polls = bool(lane.chunks)
        lane.completing, lane.chunks = [], []
        if not lane.stalled:
            lane.last_end_s = self.now

    def token(self, row: Row, lane: Batch | None) -> None:
        """Note one token of a row; in a step of decodes only, the gap is the step's own duration."""
        if row.generated == 0:
            row.first_s = self.now
        elif lane is not None and not lane.chunks and self.table.stages == self.table.ranks == 1:
            self.gaps.append(self.step_s)
        else:
            self.gaps.append(self.now - row.last_s)
        row.generated += 1
        row.last_s = self.now

    def finish(self, row: Row) -> None:
        """A request is complete: the KV of its last token was never needed."""
        row.status = "finished"
        self.release(row, row.prompt + row.output - 1, row.keep_s)

    def open(self, lane: Batch) -> bool:
        """Compose the next step of a lane and work out when it ends; True when somebody was preempted."""
        alone = self.table.prefill_alone
        if not lane.decoding or lane.polls or lane.step % self.poll_steps == 0:
            busy = bool(lane.decoding) or self.partial is not None
            late = [row for row in self.inbox if self.ahead and busy and row.ready_s >= self.now]
            self.waiting += self.inbox[: len(self.inbox) - len(late)]
            self.inbox = late
        preempted = False if alone else self.grow(lane)
        budget = self.settings.max_batched_tokens - (0 if alone else len(lane.decoding))
        if self.partial is not None and budget > 0 and not self.holds:
            row = self.partial
            tokens = min(row.target - row.tokens, budget)
            if self.price(row, row.tokens + tokens) > self.available():
                self.partial = None
                self.preempt(row)
                preempted = True
            else:
                budget -= self.chunk(lane, row, row.tokens, tokens)
        running = sum(len(each.decoding) + len(each.completing) for each in self.lanes) + (self.partial is not None)
        while not (preempted or self.holds) and self.waiting and budget > 0 and running < self.settings.max_seqs:
            row = self.head()
            hit = self.hit(row)
            tokens = min(row.target - hit, budget)
            if self.entry_price(row, hit) > self.available():
                break
            self.admit(row, hit)
            budget -= self.chunk(lane, row, hit, tokens)
            running += 1
        if alone and not lane.chunks:
            preempted = self.grow(lane) or preempted
        if lane.decoding or lane.chunks:
            lane.busy = True
            self.time(lane)
        return preempted

    def time(self, lane: Batch) -> None:
        """When this lane's step ends."""
        decoding = [] if self.table.prefill_alone and lane.chunks else lane.decoding
        n = len(decoding)
        reads = [row.tokens + 1 for row in decoding]
        ctx, ctx_window = sum(reads), sum(min(r, self.window) for r in reads)
        if lane.chunks or self.table.stages > 1:
            self.anchor = None
            seconds = self.seconds(n, ctx, ctx_window, lane.chunks)
            at = self.now
            for stage in range(self.table.stages):
                if stage > 0:
                    at += float(self.table.p2p_s[n + sum(tokens for _, tokens in lane.chunks)])
                at = max(at, self.stage_free_s[stage]) + seconds if self.table.stages > 1 else at + seconds
                self.stage_free_s[stage] = at
            lane.end_s = at
            return
        batch = frozenset(id(row) for row in lane.decoding) | {-1 - sum(r >= self.window for r in reads)}
        if self.anchor is None or self.anchor[0] != batch:
            self.anchor = (batch, self.now, 0, 0, 0)
        _, anchor_s, steps, total, total_window = self.anchor
        steps, total, total_window = steps + 1, total + ctx, total_window + ctx_window
        self.anchor = (batch, anchor_s, steps, total, total_window)
        t = self.table
        base_s, ctx_s, window_s = (
            float(t.linear_s[n] + t.seq_s[n] + t.decode_s[n]),
            t.decode_ctx_s[n],
            t.decode_window_s[n],
        )
        self.step_s = base_s + float(ctx_s) * ctx + float(window_s) * ctx_window
        lane.end_s = anchor_s + (base_s * steps + float(ctx_s) * total + float(window_s) * total_window)

    step_s: float = 0.0
    holds = False  # its prompts back, for other ranks

    def seconds(self, n: int, ctx: int, ctx_window: int, chunks: list[tuple[int, int]]) -> float:
        """Seconds of a mixed step, the chunks first: the order of the sum is part of the specification."""
        t = self.table
        chunk_s = t.prompt_step_s if chunks else 0.0
        for prefix, tokens in chunks:
            area = tokens * prefix + tokens * (tokens + 1) // 2
            attention_s = t.prefill_base_s + t.prefill_area_s * area
            if self.window:
                attention_s += t.prefill_window_area_s * window_area(prefix, tokens, self.window)
            chunk_s += attention_s
        tokens_s = float(t.linear_s[n + sum(tokens for _, tokens in chunks)] + t.seq_s[n + len(chunks)])
        if n:
            decode_s = float(t.decode_s[n]) + float(t.decode_ctx_s[n]) * ctx
            tokens_s += decode_s + float(t.decode_window_s[n]) * ctx_window
        return chunk_s + tokens_s

    # --- who runs -----------------------------------------------------------------------------------------------

    def grow(self, lane: Batch) -> bool:
        """A page for every sequence that starts a block; the latest admitted goes when there are not enough."""
        preempted = False
        while sum(self.pages(r.tokens + 1) - self.held(r) for r in lane.decoding) > self.available():
            preempted = True
            row = self.partial or max(lane.decoding, key=lambda row: row.serial)
            if row is self.partial:
                self.partial = None
            else:
                lane.decoding.remove(row)
            self.preempt(row)
        for row in lane.decoding:
            self.take(row, self.pages(row.tokens + 1) - self.held(row))
        return preempted

    def preempt(self, row: Row) -> None:
        """A row loses its KV and waits, before all others, to compute it anew."""
        self.release(row, row.tokens)
        row.target = row.prompt + row.generated
        row.most = max(row.most, row.tokens)
        row.tokens = 0
        row.preemptions += 1
        row.place = -row.serial
        self.waiting.insert(0, row)

    def head(self) -> Row:
        """The next row to serve."""
        if self.order is None:
            return self.waiting[0]
        views = [ViewOf(row) for row in self.waiting]
        keys = np.asarray(self.order.order(QueueView(self.now, views)), dtype=np.float64)
        return min(zip(keys.tolist(), self.waiting, strict=True), key=lambda pair: (pair[0], pair[1].place))[1]

    def admit(self, row: Row, hit: int) -> None:
        """A row starts running."""
        self.waiting.remove(row)
        self.serial += 1
        row.serial = self.serial
        if row.preemptions == 0:
            row.admitted_s, row.cached = self.now, hit
        self.hit_tokens += max(0, hit - row.most)

    def chunk(self, lane: Batch, row: Row, prefix: int, tokens: int) -> int:
        """Schedule prompt tokens; returns how many."""
        self.hold(row, prefix + tokens)
        lane.chunks.append((prefix, tokens))
        row.recomputed += max(0, min(row.most, prefix + tokens) - prefix)
        row.tokens = prefix + tokens
        self.partial = None if row.tokens == row.target else row
        if self.partial is None:
            lane.completing.append(row)
        return tokens

    # --- KV pages -----------------------------------------------------------------------------------------------

    def pages(self, tokens: int) -> int:
        """Pages of `tokens` tokens, sharing nothing."""
        blocks = -(-tokens // self.table.block_tokens)
        starts_inside = sum(block * self.table.block_tokens + 1 < self.window for block in range(blocks))
        return blocks + self.table.window_group * starts_inside

    def held(self, row: Row) -> int:
        """Pages a row holds, shared ones included."""
        return len(row.own) + len(row.units) * self.unit_pages

    def available(self) -> int:
        """Pages nobody uses now: free ones and those of idle cached units."""
        return len(self.free_pages) + sum(len(unit.pages) for unit in self.idle.values())

    def hit(self, row: Row) -> int:
        """Tokens of the row's leading units that are cached."""
        if not self.unit:
            return 0
        limit = min(len(row.hashes), (row.target - 1) // self.unit)
        for i in range(limit):
            if row.hashes[i] not in self.cached:
                return i * self.unit
        return limit * self.unit

    def price(self, row: Row, tokens: int) -> int:
        """Available pages it takes to hold `tokens` tokens."""
        covered = min(tokens // self.unit, len(row.hashes)) if self.unit else 0
        shared = sum(1 for h in row.hashes[len(row.units) : covered] if h in self.cached and self.cached[h].users)
        return self.pages(tokens) - self.held(row) - shared * self.unit_pages

    def entry_price(self, row: Row, hit: int) -> int:
        """Available pages it takes to hold a waiting row's whole prompt, of which `hit` tokens are cached."""
        shared = sum(1 for h in row.hashes[: hit // self.unit] if self.cached[h].users) if hit else 0
        return self.pages(row.target) - shared * self.unit_pages

    def hold(self, row: Row, tokens: int) -> None:
        """Hold `tokens` tokens: units for what is covered, own pages for the rest."""
        covered = min(tokens // self.unit, len(row.hashes)) if self.unit else 0
        self.free_pages += row.own
        row.own = []
        for name in row.hashes[len(row.units) : covered]:
            self.use(name)
            row.units.append(name)
        for name in row.units:
            if not self.cached[name].pages:
                self.cached[name].pages = [self.page() for _ in range(self.unit_pages)]
        self.take(row, self.pages(tokens) - len(row.units) * self.unit_pages)

    def use(self, name: int) -> None:
        """Count one more user of a unit."""
        self.cached.setdefault(name, Unit([])).users += 1
        self.idle.pop(name, None)

    def take(self, row: Row, pages: int) -> None:
        """Give a row pages of its own."""
        row.own += [self.page() for _ in range(pages)]
        used = {page for page in range(self.table.kv_blocks)} - set(self.free_pages)
        idle = sum(len(unit.pages) for unit in self.idle.values())
        self.peak = max(self.peak, len(used) - idle)

    def page(self) -> int:
        """A free page, by forgetting the idle unit used least recently if there is none."""
        if not self.free_pages:
            name = min(self.idle, key=lambda name: self.idle[name].used_s)
            self.free_pages += self.idle.pop(name).pages
            del self.cached[name]
        return self.free_pages.pop()

    def release(self, row: Row, tokens: int, keep_s: float = 0.0) -> None:
        """Give all pages back; full units stay cached, the tail of the chain to be forgotten first."""
        covered = min(tokens // self.unit, len(row.hashes)) if self.unit else 0
        for name in row.hashes[len(row.units) : covered]:
            if name not in self.cached:
                self.cached[name] = Unit([row.own.pop() for _ in range(self.unit_pages)])
            self.use(name)
            row.units.append(name)
        self.free_pages += row.own
        for name in reversed(row.units):
            unit = self.cached[name]
            unit.users -= 1
            unit.used_s = max(unit.used_s, self.now + keep_s)
            if unit.users == 0:
                self.idle[name] = unit
        row.own, row.units = [], []


class ReferenceRank(ReferenceEngine):
    """One data-parallel rank: it says how long its own part of a step takes, and `ReferenceRanks` when that ends."""

    own_s = 0.0

    def time(self, lane: Batch) -> None:
        """Seconds of this rank's own part."""
        alone = self.table.prefill_alone and bool(lane.chunks)
        reads = [] if alone else [row.tokens + 1 for row in lane.decoding]
        window = sum(min(r, self.window) for r in reads)
        self.own_s = self.seconds(len(reads), sum(reads), window, lane.chunks)
        self.step_tokens = len(reads) + sum(tokens for _, tokens in lane.chunks)

    step_tokens: int = 0

    def ready(self) -> bool:
        """Whether a prompt could be computed now."""
        if self.partial is not None or not self.waiting:
            return self.partial is not None
        row = self.head()
        pages = self.entry_price(row, self.hit(row))
        return len(self.lanes[0].decoding) < self.settings.max_seqs and pages <= self.available()


class ReferenceRanks:
    """Ranks that step together: each step is as long as the slowest rank's part and the part they share."""

    def __init__(self, table: StepTable, settings: EngineSettings, unit_tokens: int, order: Policy | None) -> None:
        self.ranks = [ReferenceRank(table, settings, unit_tokens, order) for _ in range(table.ranks)]
        self.shared_s = table.shared_s
        self.align_steps, self.gather_steps = table.align_steps, table.gather_steps
        self.unready_steps = self.ready_steps = 0

    def holds(self) -> bool:
        """Whether prompts wait in the step to come: for a prompt in every rank, then for more of them."""
        ready = {rank for rank in self.ranks if rank.ready()}
        decoding = {rank for rank in self.ranks if rank.lanes[0].decoding}
        if not (ready or decoding) or not self.align_steps:
            return False
        everywhere, patient = len(ready) == len(self.ranks), ready <= decoding
        self.unready_steps = 0 if everywhere else self.unready_steps + 1
        if not patient or self.unready_steps == self.align_steps:
            self.unready_steps = 0
            return False
        if everywhere:
            self.ready_steps = (self.ready_steps + 1) % (self.gather_steps + 1)
            return self.ready_steps > 0
        return True

    def run(self, rows: list[Row]) -> list[Row]:
        """Serve all rows to their end, each rank every so manieth of them."""
        assert self.shared_s is not None
        coming, end_s = list(enumerate(rows)), float("inf")
        while coming or end_s < float("inf"):
            now = min(end_s, coming[0][1].arrival_s if coming else end_s)
            while coming and coming[0][1].arrival_s == now:
                i, row = coming.pop(0)
                self.ranks[i % len(self.ranks)].arrive(row)
            if now < end_s < float("inf"):
                continue
            lanes = [(rank, rank.lanes[0]) for rank in self.ranks]
            for rank, lane in lanes:
                rank.now = now
                if lane.busy:
                    rank.close(lane)
            holds = self.holds()
            for rank, lane in lanes:
                rank.holds = holds
                if rank.open(lane) and not lane.busy:
                    rank.holds = False
                    rank.open(lane)
            busy = [rank for rank, lane in lanes if lane.busy]
            tokens = sum(rank.step_tokens for rank in busy)
            longest_s = max((rank.own_s for rank in busy), default=0.0)
            end_s = now + (longest_s + float(self.shared_s[tokens])) if busy else float("inf")
            for rank in busy:
                rank.lanes[0].end_s = end_s
        return rows


class ViewOf:
    """A row as an order policy sees it."""

    def __init__(self, row: Row) -> None:
        self.arrival_s, self.prompt_tokens = row.arrival_s, row.prompt
        self.predicted_output_tokens = float(row.output)
        self.priority, self.deadline_s = row.priority, row.deadline_s
