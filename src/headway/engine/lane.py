"""Sequences that decode in lock-step, kept as sums, so that a step costs the same whatever the batch.

Every sequence of a lane gains one token per step. So the lane needs no list of contexts: their sum grows by n; a
sequence's last step is known when it joins (a heap keyed by step); and it needs a new KV block whenever the step
number falls into its residue class modulo the block size (`due`). Under a sliding window of w tokens the sum of
min(context, w) grows by the number of sequences still below w; when each crosses is known too.

While the batch is unchanged, the time after j steps is `anchor_s` plus a closed form in j, so that k steps taken at
once end at the same bit as k steps taken singly.
"""

from __future__ import annotations

from typing import Any

import cython
from cython.cimports.libc.math import nextafter, sqrt

from headway.engine.gaps import Gaps
from headway.engine.law import StepLaw, window_area, zeros
from headway.engine.sequence import Line, Sequence, StepHeap

FOREVER = cython.declare(cython.double, float("inf"))


class Lane:
    """One batch of decoding sequences and the step it has under way.

    `ctx` is the sum of the tokens that the next step's attention reads (each sequence's own new token included).
    `stalled`: its sequences waited while prompts were computed alone, since `last_end_s`. `polls`: the last step held
    a prompt.
    """

    def __init__(self, block_tokens: cython.longlong, window: cython.longlong, window_group: cython.longlong) -> None:
        self.n = 0
        self.n_window = 0
        self.ctx = 0
        self.ctx_window = 0
        self.step = 0
        self.block_tokens = block_tokens
        self.window = window
        self.window_group = window_group
        self.due, self.due_window = zeros(block_tokens), zeros(block_tokens)
        self.finish = StepHeap()
        self.cross = StepHeap()
        self.fresh: list[Sequence] = []
        self.chunks = Line()
        self.clear_chunks()
        self.stalled = self.polls = False
        self.busy = False
        self.end_s = 0.0
        self.last_end_s = 0.0
        self.dirty = True
        self.anchor_s = 0.0
        self.base_s = self.slope_s = self.slope_window_s = 0.0
        self.anchor_ctx = 0
        self.anchor_ctx_window = 0
        self.done = 0
        self.planned = 0

    def clear_chunks(self) -> cython.int:
        """Forget the prefill chunks of the last step; `chunks` are the sequences whose prefill ends with it."""
        self.chunk_s = 0.0
        self.chunk_tokens = 0
        self.chunk_count = 0
        self.chunk_context = 0
        self.chunk_area = 0
        self.chunk_window_area = 0
        return 0

    def add_chunk(self, law: StepLaw, prefix: cython.longlong, tokens: cython.longlong) -> cython.int:
        """Put `tokens` prompt tokens behind `prefix` into the next step."""
        area: cython.longlong = tokens * prefix + tokens * (tokens + 1) // 2
        windowed: cython.longlong = window_area(prefix, tokens, self.window) if self.window > 0 else 0
        if self.chunk_count == 0:
            self.chunk_s = law.prompt_step_s
        self.chunk_s += law.chunk_s(area, windowed)
        self.chunk_tokens += tokens
        self.chunk_count += 1
        self.chunk_area += area
        self.chunk_window_area += windowed
        return 0

    def as_row(self, alone: cython.bint, single: cython.bint, waiting: cython.longlong) -> tuple[int, ...]:
        """The step or leap that ends now: steps, decodes, what the first one reads, prompts, who waits, who stays."""
        n: cython.longlong = 0 if alone else self.n
        steps: cython.longlong = 1 if self.chunk_count > 0 or single else self.planned - self.done
        prompts = (self.chunk_tokens, self.chunk_count, self.chunk_area, self.chunk_window_area)
        return (steps, n, self.ctx, self.ctx_window, self.n_window, *prompts, waiting, self.n)

    def join(self, seq: Sequence) -> cython.int:
        """Let a sequence decode from the next step on; its KV holds `target` tokens."""
        reads: cython.longlong = seq.target + 1
        residue: cython.longlong = (self.step - seq.target) % self.block_tokens
        if residue < 0:
            residue += self.block_tokens
        seq.residue = residue
        seq.join_step = self.step
        seq.finish_step = self.step + seq.output_tokens - seq.generated
        seq.cross_step = -1
        self.n += 1
        self.ctx += reads
        self.due[residue] += 1
        self.finish.push(seq.finish_step, seq)
        if self.window > 0:
            self.ctx_window += min(reads, self.window)
            if reads < self.window:
                self.n_window += 1
                self.due_window[residue] += 1
                seq.cross_step = self.step + self.window - reads
                if seq.cross_step < seq.finish_step:
                    self.cross.push(seq.cross_step, seq)
        self.dirty = True
        return 0

    def leave(self, seq: Sequence) -> cython.int:
        """Take a sequence out of the sums (it is out of the finish heap already)."""
        steps: cython.longlong = self.step - seq.join_step
        reads: cython.longlong = seq.target + 1 + steps
        self.n -= 1
        self.ctx -= reads
        self.due[seq.residue] -= 1
        if self.window > 0:
            self.ctx_window -= min(reads, self.window)
            if seq.cross_step >= 0:
                self.n_window -= 1
                self.due_window[seq.residue] -= 1
        seq.generated += steps
        self.dirty = True
        return 0

    def withdraw(self, seq: Sequence) -> cython.int:
        """Take a sequence out before its end (preemption)."""
        self.finish.remove(seq)
        if seq.cross_step >= 0:
            self.cross.remove(seq)
        return self.leave(seq)

    def latest(self) -> Any:
        """The sequence admitted last, None when there is none."""
        best: Any = None
        seq: Sequence
        for seq in self.finish.members():
            if best is None or seq.serial > best.serial:
                best = seq
        return best

    def next_demand(self) -> cython.longlong:
        """Pages needed by the next decode step."""
        at: cython.longlong = self.step % self.block_tokens
        need: cython.longlong = self.due[at] + self.window_group * self.due_window[at]
        return need

    def demand(self, first: cython.longlong, steps: cython.longlong) -> cython.longlong:
        """Pages needed by `steps` decode steps, the first of them number `first`."""
        cycle: cython.longlong = self.n + self.window_group * self.n_window
        need: cython.longlong = (steps // self.block_tokens) * cycle
        rest: cython.longlong = steps % self.block_tokens
        at: cython.longlong = first % self.block_tokens
        for _ in range(rest):
            need += self.due[at] + self.window_group * self.due_window[at]
            at += 1
            if at == self.block_tokens:
                at = 0
        return need

    def affordable(self, steps: cython.longlong, pages: cython.longlong) -> cython.longlong:
        """How many of the `steps` that follow the one under way the free `pages` allow."""
        cycle: cython.longlong = self.n + self.window_group * self.n_window
        if cycle * (steps // self.block_tokens + 1) <= pages:
            return steps
        full: cython.longlong = min(steps, (pages // cycle) * self.block_tokens)
        need: cython.longlong = self.demand(self.step + 1, full)
        while full < steps:
            need += self.demand(self.step + 1 + full, 1)
            if need > pages:
                return full
            full += 1
        return full

    def advance(self, steps: cython.longlong) -> cython.int:
        """Let every sequence gain `steps` tokens; then those that reached the window stop widening it."""
        seq: Sequence
        self.step += steps
        self.done += steps
        self.ctx += self.n * steps
        self.ctx_window += self.n_window * steps
        while self.cross.size > 0 and self.cross.keys[0] == self.step:
            seq = self.cross.pop()
            self.n_window -= 1
            self.due_window[seq.residue] -= 1
            seq.cross_step = -1
            self.dirty = True
        return 0

    def drop_anchor(self, now: cython.double, law: StepLaw) -> cython.int:
        """Count the closed form from here: the batch changed."""
        self.anchor_s = now
        self.anchor_ctx = self.ctx
        self.anchor_ctx_window = self.ctx_window
        self.base_s = law.decode_base(self.n)
        self.slope_s = law.decode_ctx_s[self.n]
        self.slope_window_s = law.decode_window_s[self.n]
        self.done = 0
        self.dirty = False
        return 0

    def after(self, steps: cython.longlong) -> cython.double:
        """Time at the end of the `steps`-th step since the anchor; the sums inside are exact integers."""
        pairs: cython.longlong = steps * (steps - 1) // 2
        ctx: cython.longlong = steps * self.anchor_ctx + self.n * pairs
        ctx_window: cython.longlong = steps * self.anchor_ctx_window + self.n_window * pairs
        return self.anchor_s + (self.base_s * steps + self.slope_s * ctx + self.slope_window_s * ctx_window)

    def gap(self, step: cython.longlong) -> cython.double:
        """Seconds of the `step`-th step since the anchor."""
        ctx: cython.longlong = self.anchor_ctx + self.n * (step - 1)
        ctx_window: cython.longlong = self.anchor_ctx_window + self.n_window * (step - 1)
        return self.base_s + self.slope_s * ctx + self.slope_window_s * ctx_window

    def steps_by(self, now: cython.double, late: cython.bint, limit: cython.longlong) -> cython.longlong:
        """The smallest number of steps since the anchor, above `done`, that ends at `now` or later; `late`: only later.

        The root of the closed form is a guess; the exact comparison decides, so rounding cannot.
        """
        if late:
            now = nextafter(now, FOREVER)
        square: cython.double = 0.5 * (self.slope_s * self.n + self.slope_window_s * self.n_window)
        linear: cython.double = self.base_s + self.slope_s * self.anchor_ctx
        linear += self.slope_window_s * self.anchor_ctx_window - square
        span: cython.double = now - self.anchor_s
        guess: cython.double = float(self.done + 1)
        if square > 0.0:
            guess = (sqrt(linear * linear + 4.0 * square * span) - linear) / (2.0 * square)
        elif linear > 0.0:
            guess = span / linear
        steps: cython.longlong = cython.cast(cython.longlong, min(max(guess, 0.0), float(limit)))
        steps = min(max(steps, self.done + 1), limit)
        while steps > self.done + 1 and self.after(steps - 1) >= now:
            steps -= 1
        while steps < limit and self.after(steps) < now:
            steps += 1
        return steps

    def leaps(self) -> cython.bint:
        """Whether several steps are under way at once."""
        return self.chunk_count == 0 and self.planned > self.done + 1

    def cut(self, steps: cython.longlong) -> cython.double:
        """End the leap `steps` after its anchor, unless it ends before that; when it ends now."""
        self.planned = min(self.planned, steps)
        self.end_s = self.after(self.planned)
        return self.end_s

    def count_gaps(self, gaps: Gaps) -> cython.int:
        """Count the token gaps of steps done+1 .. planned, n each; a stretch of one bin is counted at once."""
        first: cython.longlong = self.done + 1
        low: cython.longlong
        high: cython.longlong
        middle: cython.longlong
        at: cython.int
        if self.end_s <= gaps.since_s:
            return 0
        while first < self.planned and self.after(first) <= gaps.since_s:
            first += 1
        steps: cython.longlong = self.planned - first + 1
        before: cython.longlong = steps * (first - 1) + steps * (steps - 1) // 2
        ctx: cython.longlong = steps * self.anchor_ctx + self.n * before
        gaps.add_steps(self.n, steps, ctx, steps * self.anchor_ctx_window + self.n_window * before)
        last: cython.int = gaps.bin(self.gap(self.planned))
        while first <= self.planned:
            at = gaps.bin(self.gap(first)) if first < self.planned else last
            low = first
            high = self.planned
            if at != last:
                while low < high:
                    middle = (low + high + 1) // 2
                    if gaps.bin(self.gap(middle)) == at:
                        low = middle
                    else:
                        high = middle - 1
                high = low
            gaps.counts[at] += (high - first + 1) * self.n
            first = high + 1
        return 0
