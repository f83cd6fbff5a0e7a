"""One replica: iteration-level continuous batching over paged KV, as vLLM V1 schedules it.

Each step serves the running sequences first (one token each, then the prompt chunk under way), gives what is left
of the token budget to waiting requests, and, when KV runs out, preempts the sequence admitted last, which computes
its KV anew later. `Engine.step` is the whole life of a replica: close the step that ends now, open the next.
`engine/reference.py` is the same engine without the arithmetic that makes this one fast, and is its specification.
"""

from __future__ import annotations

from typing import Any

import cython

from headway.cost import EngineSettings
from headway.engine.gaps import Gaps
from headway.engine.kv import KvPages
from headway.engine.lane import Lane
from headway.engine.law import StepLaw, buffer
from headway.engine.queue import WaitingQueue
from headway.engine.sequence import FINISHED, Line, Sequence
from headway.engine.work import BusyTime, WorkDone
from headway.policies.base import Policy
from headway.state.views import ReplicaState, Request

NEVER = cython.declare(cython.double, float("inf"))
ENDED = cython.declare(cython.int, FINISHED)


class Engine(ReplicaState):
    """A replica in the role "mixed", "prefill" or "decode"; `next_s` is when it wants `step` to be called.

    `work` and `gaps` may be shared with other engines: they count. `out` collects sequences that ended (in a prefill
    replica, that can be handed over), `starts` those whose KV transfer may begin; the host empties both.
    A list as `trace` collects `Lane.as_row` of every step. A `group` steps together (`Lockstep`); `held`: no prompts.
    """

    def __init__(
        self,
        index: cython.Py_ssize_t,
        law: StepLaw,
        settings: EngineSettings,
        role: str,
        order: Policy | None,
        unit_tokens: cython.longlong,
        work: WorkDone,
        gaps: Gaps,
    ) -> None:
        ReplicaState.__init__(self, index, law.kv_blocks)
        self.law = law
        self.work = work
        self.role, self.slot = role, index
        self.max_tokens = settings.max_batched_tokens
        self.max_seqs = settings.max_seqs
        self.max_context = law.max_context
        self.alone = law.prefill_alone
        self.poll_steps = law.poll_steps if law.stages == 1 else 1
        self.ahead = law.ahead and law.stages == 1 and self.poll_steps == 1
        self.leaps = True
        self.trace: Any = None
        self.queue = WaitingQueue(order)
        self.inbox, self.incoming = Line(), Line()
        self.kv = KvPages(law, unit_tokens if settings.prefix_cache else 0)
        self.longest = law.longest
        self.lanes = [Lane(law.block_tokens, law.window, law.window_group) for _ in range(law.stages)]
        self.gaps = gaps
        self.partial: Any = None
        self.flight: list[Lane] = []
        self.group: Any = None
        self.held = False
        self.single = law.stages > 1
        self.stage_free_s = 0.0
        self.stage_s = buffer([0.0] * law.stages)
        self.landed: list[Sequence] = []
        self.next_s = NEVER
        self.out, self.starts = Line(), Line()
        self.busy = BusyTime()
        self.serial = self.preemptions = self.queried_tokens = self.hit_tokens = 0

    # --- what the host tells the engine -------------------------------------------------------------------------

    def fits(self, seq: Sequence) -> cython.bint:
        """Whether the sequence could ever run here, alone."""
        return seq.prompt_tokens + (1 if seq.handoff else seq.output_tokens) <= self.longest

    def enqueue(self, seq: Sequence, now: cython.double, late: cython.bint) -> cython.int:
        """A request arrives; its prompt is to be computed here."""
        self.waiting += 1
        self.waiting_tokens += seq.target
        if self.poll_steps > 1:
            self.inbox.append(seq)
            if self.inbox.size == 1:
                self.notice(now, late, self.poll_steps)
            return 0
        lane: Lane = self.lanes[0]
        looked_at: cython.bint = self.running < self.max_seqs and (self.waiting == 1 or self.queue.ordered)
        if not self.ahead or not lane.busy:
            self.queue.push(seq)
            return self.notice(now, late) if looked_at else 0
        self.inbox.append(seq)
        seq.ready_s = lane.end_s
        if lane.leaps():
            steps: cython.longlong = lane.steps_by(now, late, lane.planned)
            seq.ready_s = lane.after(steps)
            if looked_at:  # the step after this one leaves it out too; a trace has a row for each batch as composed
                self.next_s = lane.cut(steps + (self.trace is None))
        return 0

    def expect(self, seq: Sequence, now: cython.double, late: cython.bint) -> cython.int:
        """A request computed elsewhere waits for room here to fetch its KV."""
        self.incoming.append(seq)
        self.waiting += 1
        if self.running < self.max_seqs:
            self.notice(now, late)
        return 0

    def land(self, seq: Sequence, now: cython.double, late: cython.bint) -> cython.int:
        """The KV of a request has arrived."""
        self.landed.append(seq)
        self.notice(now, late)
        return 0

    def let_go(self, seq: Sequence, now: cython.double) -> cython.int:
        """The KV of a request computed here has been fetched: its pages are free."""
        self.kv.free(seq, seq.target, now, True)
        if self.waiting > 0:
            self.notice(now, False)
        return 0

    def notice(self, now: cython.double, late: cython.bint, grid: cython.longlong = 1) -> cython.int:
        """Look at the news at the next step boundary on the grid: now if idle, after `now` if `late` (`Cluster`)."""
        lane: Lane = self.lanes[0]
        if self.group is not None:
            self.group.notice(now)
        elif self.law.stages == 1:
            if not lane.busy:
                self.next_s = now
            elif lane.leaps():
                steps: cython.longlong = lane.steps_by(now, late, lane.planned)
                if grid > 1:
                    steps += (grid - (lane.step + steps - lane.done) % grid) % grid
                self.next_s = lane.cut(steps)
        elif len(self.flight) < len(self.lanes):
            self.next_s = min(self.next_s, max(now, self.stage_free_s))
        return 0

    def set_leaps(self, leaps: cython.bint) -> cython.int:
        """Take several decode steps at once (the default), or each by itself: the results are the same."""
        self.leaps = leaps
        return 0

    # --- one step -----------------------------------------------------------------------------------------------

    def step(self, now: cython.double) -> cython.int:
        """Close what ends now and open what can start."""
        lane: Lane = self.lanes[0]
        busy: cython.bint
        if self.group is not None:
            self.group.step(now)
            return 0
        if self.law.stages == 1:
            if lane.busy and lane.end_s <= now:
                self.close(lane, now)
            if self.open(lane, now) and not lane.busy:
                self.open(lane, now)  # all its own work was preempted for pages that others hold: now they are free
            busy = lane.busy
            self.next_s = lane.end_s if busy else NEVER
        else:
            while self.flight:
                lane = self.flight[0]
                if lane.end_s > now:
                    break
                self.flight.pop(0)
                self.close(lane, now)
            self.open_pipeline(now)
            busy = len(self.flight) > 0
        self.busy.note(busy, now)
        return 0

    def close(self, lane: Lane, now: cython.double) -> cython.int:
        """Apply the step, or the leap of steps, that this lane has finished."""
        seq: Sequence
        alone: cython.bint = self.alone and lane.chunk_count > 0
        lane.busy = False
        if self.trace is not None:
            self.trace.append(lane.as_row(alone, self.single, self.waiting))
        if alone:
            self.work.count(lane, 0, 1)
            lane.stalled = lane.n > 0
        else:
            self.close_decodes(lane, now)
        if not lane.stalled:
            lane.last_end_s = now
        lane.polls = lane.chunk_count > 0
        while lane.finish.size > 0 and lane.finish.keys[0] == lane.step:
            seq = lane.finish.pop()
            lane.leave(seq)
            self.end(seq, now)
        if lane.chunk_count > 0:
            while lane.chunks.size > 0:
                self.token(lane, lane.chunks.take(), now)
            lane.clear_chunks()
            lane.dirty = True
        return 0

    def close_decodes(self, lane: Lane, now: cython.double) -> cython.int:
        """Give each decoding sequence its tokens and count the gaps between them."""
        seq: Sequence
        single: cython.bint = self.single or lane.chunk_count > 0 or lane.stalled or len(lane.fresh) > 0
        steps: cython.longlong = 1 if single else lane.planned - lane.done
        if steps > 1:
            self.kv.take(lane.demand(lane.step + 1, steps - 1))
        if lane.n > 0:
            if not single:
                lane.count_gaps(self.gaps)
            elif now > self.gaps.since_s:
                self.gaps.add(now - lane.last_end_s, lane.n - len(lane.fresh))
                for seq in lane.fresh:
                    self.gaps.add(now - seq.last_s, 1)
            if lane.fresh:
                lane.fresh = []
        self.work.count(lane, lane.n, steps)
        lane.advance(steps)
        lane.stalled = False
        return 0

    def token(self, lane: Lane, seq: Sequence, now: cython.double) -> cython.int:
        """The token that ends a prefill: the first, or the next after a preemption."""
        if seq.generated == 0:
            seq.first_s = now
        elif now > self.gaps.since_s:
            self.gaps.add(now - seq.last_s, 1)
        seq.generated += 1
        seq.last_s = now
        if seq.generated == seq.output_tokens:
            self.end(seq, now)
        elif seq.handoff:
            self.running -= 1
            self.out.append(seq)
        else:
            lane.join(seq)
            if lane.stalled:
                lane.fresh.append(seq)
        return 0

    def end(self, seq: Sequence, now: cython.double) -> cython.int:
        """The last token is out; the KV of that token was never needed."""
        seq.status = ENDED
        seq.generated = seq.output_tokens
        seq.last_s = now
        seq.handoff = False
        self.running -= 1
        self.kv.free(seq, seq.prompt_tokens + seq.output_tokens - 1, now, True)
        self.out.append(seq)
        return 0

    def open(self, lane: Lane, now: cython.double) -> cython.bint:
        """Compose this lane's next step: its own sequences first, then the prompt under way, then who waits.

        Where prompts are computed alone, sequences decode only when no prompt can be. True when somebody was
        preempted; then nobody is admitted in this step.
        """
        seq: Sequence
        while self.landed:
            seq = self.landed.pop(0)
            lane.join(seq)
            lane.fresh.append(seq)
        if self.incoming.size > 0:
            self.admit_incoming(now)
        if self.inbox.size > 0 and (lane.n == 0 or lane.polls or lane.step % self.poll_steps == 0):
            idle: cython.bint = lane.n == 0 and self.partial is None
            self.queue.push_from(self.inbox, now if self.ahead and not idle else NEVER)
        preempted: cython.bint = False if self.alone else self.grow(lane, now)
        if self.partial is not None and not self.held:
            preempted = self.continue_partial(lane, now) or preempted
        if self.queue.size > 0 and not preempted and not self.held:
            self.admit_waiting(lane, now)
        if self.alone and lane.chunk_count == 0:
            preempted = self.grow(lane, now) or preempted
        if self.group is not None:
            lane.busy = lane.n > 0 or lane.chunk_count > 0
        elif lane.chunk_count > 0 or self.law.stages > 1:
            self.start(lane, 0 if self.alone and lane.chunk_count > 0 else lane.n, now)
        elif lane.n > 0:
            self.plan_leap(lane, now, preempted)
        return preempted

    def open_pipeline(self, now: cython.double) -> cython.int:
        """Let idle lanes into the first stage while it is free: those with work of their own first, longest idle.

        A lane that lost all its work to a preemption frees pages: then all are asked again.
        """
        lane: Lane
        work: cython.bint
        again: cython.bint = True
        while again:
            again = False
            idle: list[Any] = []
            for lane in self.lanes:
                if not lane.busy:
                    idle.append((lane.n == 0, lane.last_end_s, len(idle), lane))
            idle.sort()
            for _, _, _, lane in idle:
                if self.stage_free_s > now:
                    break
                again = (self.open(lane, now) and not lane.busy) or again
        self.next_s = NEVER
        if self.flight:
            lane = self.flight[0]
            self.next_s = lane.end_s
            work = self.partial is not None or self.queue.size + self.incoming.size + len(self.landed) > 0
            for lane in self.lanes:
                if not lane.busy and (lane.n > 0 or work) and self.stage_free_s > now:
                    self.next_s = min(self.next_s, self.stage_free_s)
        return 0

    def plan_leap(self, lane: Lane, now: cython.double, preempted: cython.bint) -> cython.int:
        """Plan decode steps up to the next thing that can change the batch.

        After a preemption nobody was admitted, so the queue's head is looked at again one step later; so are the news.
        """
        if lane.dirty:
            lane.drop_anchor(now, self.law)
        steps: cython.longlong = lane.finish.keys[0] - lane.step
        if lane.cross.size > 0:
            steps = min(steps, lane.cross.keys[0] - lane.step)
        if self.inbox.size > 0 and (self.poll_steps > 1 or self.running < self.max_seqs):
            steps = min(steps, self.poll_steps - lane.step % self.poll_steps)
        if not self.leaps or lane.stalled or lane.fresh or (self.queue.size > 0 and (preempted or self.queue.rekeys)):
            steps = 1
        if steps > 1:
            steps = 1 + lane.affordable(steps - 1, self.kv.total - self.kv.used)
        lane.planned = lane.done + steps
        lane.end_s = lane.after(lane.planned)
        lane.busy = True
        return 0

    def start(self, lane: Lane, n: cython.longlong, now: cython.double) -> cython.int:
        """Run one step of this lane, prefill chunks and all; n of its sequences decode: all, or none."""
        tokens: cython.longlong = n + lane.chunk_tokens
        if tokens == 0:
            return 0
        seconds: cython.double = lane.chunk_s + self.law.mixed_s(
            n, lane.ctx, lane.ctx_window, tokens, n + lane.chunk_count
        )
        if self.law.stages == 1:
            lane.end_s = now + seconds
        else:
            lane.end_s = self.through_stages(now, seconds, tokens)
            self.flight.append(lane)
        lane.busy = True
        return 0

    def through_stages(self, now: cython.double, stage_s: cython.double, tokens: cython.longlong) -> cython.double:
        """When the last stage ends: each starts when the batch has come over and the batch before it has left."""
        at: cython.double = now
        i: cython.Py_ssize_t
        for i in range(self.law.stages):
            if i > 0:
                at += self.law.p2p_s[tokens]
            at = max(at, self.stage_s[i]) + stage_s
            self.stage_s[i] = at
        self.stage_free_s = self.stage_s[0]
        return at

    # --- who runs -----------------------------------------------------------------------------------------------

    def grow(self, lane: Lane, now: cython.double) -> cython.bint:
        """Give the decoding sequences the pages of this step, preempting the latest; True when it had to."""
        preempted: cython.bint = False
        seq: Sequence
        need: cython.longlong = lane.next_demand()
        while need > self.kv.total - self.kv.used:
            preempted = True
            if self.partial is not None:
                seq = self.partial
                self.partial = None
                self.preempt(lane, seq, seq.computed, now)
            else:
                seq = lane.latest()
                if lane.step > seq.join_step:
                    seq.last_s = lane.last_end_s
                lane.withdraw(seq)
                self.preempt(lane, seq, seq.prompt_tokens + seq.generated - 1, now)
            need = lane.next_demand()
        if need > 0:
            self.kv.take(need)
        return preempted

    def preempt(self, lane: Lane, seq: Sequence, tokens: cython.longlong, now: cython.double) -> cython.int:
        """Take back all pages of a sequence; it waits at the head of the queue to compute its KV anew."""
        self.kv.free(seq, tokens, now, False)
        lane.fresh = [other for other in lane.fresh if other is not seq]
        seq.target = seq.prompt_tokens + seq.generated
        seq.computed = 0
        seq.preemptions += 1
        seq.most = max(seq.most, tokens)
        self.preemptions += 1
        self.running -= 1
        self.waiting += 1
        self.waiting_tokens += seq.target
        self.queue.push_back_in(seq)
        return 0

    def continue_partial(self, lane: Lane, now: cython.double) -> cython.bint:
        """Schedule the next chunk of the prompt under way; without pages it is preempted, and True returned."""
        seq: Sequence = self.partial
        tokens: cython.longlong = min(seq.target - seq.computed, self.max_tokens - (0 if self.alone else lane.n))
        if tokens <= 0:
            return False
        if self.kv.price(seq, seq.computed + tokens) > self.kv.total - self.kv.used:
            self.partial = None
            self.preempt(lane, seq, seq.computed, now)
            return True
        self.kv.allocate(seq, seq.computed + tokens)
        self.chunk(lane, seq, seq.computed, tokens)
        return False

    def admit_waiting(self, lane: Lane, now: cython.double) -> cython.int:
        """Admit from the queue's head while budget and places last and there are pages for its whole prompt.

        Asking for the whole, though a chunk is taken at first, keeps prompts from preempting each other half-way.
        """
        seq: Sequence
        hit: cython.longlong
        budget: cython.longlong = self.max_tokens - (0 if self.alone else lane.n) - lane.chunk_tokens
        while self.queue.size > 0 and budget > 0 and self.running < self.max_seqs:
            seq = self.queue.peek(now)
            hit = self.kv.hit(seq)
            tokens: cython.longlong = min(seq.target - hit, budget)
            if self.kv.entry_price(seq, hit) > self.kv.total - self.kv.used:
                return 0
            self.queue.drop_head()
            self.waiting -= 1
            self.waiting_tokens -= seq.target
            self.running += 1
            self.serial += 1
            seq.serial = self.serial
            if seq.preemptions == 0:
                seq.admitted_s = now
                seq.cached = hit
                if seq.hash_count > 0:
                    self.queried_tokens += seq.target
            if hit > seq.most:
                self.hit_tokens += hit - seq.most
            self.kv.allocate(seq, hit + tokens)
            self.chunk(lane, seq, hit, tokens)
            budget -= tokens
        return 0

    def admit_incoming(self, now: cython.double) -> cython.int:
        """Reserve pages for KV computed elsewhere, first come first served; preempted requests of our own go first."""
        seq: Sequence
        while self.incoming.size > 0 and self.queue.size == 0 and self.running < self.max_seqs:
            seq = self.incoming.first()
            if self.kv.pages(seq.target) > self.kv.total - self.kv.used:
                return 0
            self.incoming.take()
            self.waiting -= 1
            self.running += 1
            self.serial += 1
            seq.serial = self.serial
            self.kv.take(self.kv.pages(seq.target))
            self.starts.append(seq)
        return 0

    def chunk(self, lane: Lane, seq: Sequence, prefix: cython.longlong, tokens: cython.longlong) -> cython.int:
        """Put `tokens` prompt tokens behind `prefix` into this lane's step."""
        lane.add_chunk(self.law, prefix, tokens)
        if seq.most > prefix:
            seq.recomputed += min(seq.most, prefix + tokens) - prefix
        seq.computed = prefix + tokens
        if seq.computed == seq.target:
            lane.chunks.append(seq)
            lane.chunk_context += seq.target
            self.partial = None
        else:
            self.partial = seq
        return 0

    # --- what policies see --------------------------------------------------------------------------------------

    def cached_tokens(self, request: Request) -> cython.longlong:
        """Tokens of the prompt cached here; the last token is always computed, to have something to sample from."""
        return self.kv.hit(request)

    def refresh(self, now: cython.double, late: cython.bint = False) -> cython.int:
        """Bring the public counts up to `now`, in the midst of a leap too; `late` as in `notice`."""
        lane: Lane
        steps: cython.longlong
        self.kv_used_blocks = self.kv.used
        self.context_tokens = 0 if self.partial is None else self.partial.computed
        for lane in self.lanes:
            self.context_tokens += lane.ctx - lane.n + lane.chunk_context
            if lane.busy and self.law.stages == 1 and lane.leaps():
                steps = lane.steps_by(now, late, lane.planned) - 1 - lane.done
                self.context_tokens += steps * lane.n
                self.kv_used_blocks += lane.demand(lane.step + 1, steps)
        self.kv.evict_down_to(self.kv_used_blocks)
        return 0
