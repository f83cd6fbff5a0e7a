"""KV pages of one replica: who may have them, what is shared, what is evicted."""

from __future__ import annotations

from typing import Any

import cython

from headway.engine.law import StepLaw
from headway.engine.prefix import PrefixCache
from headway.engine.sequence import Sequence


class KvPages:
    """`total` pages, `used` of them by running sequences; the others are free or hold idle prefix units.

    Ask `price`, compare with `total - used`, then `allocate`. A unit of the prefix cache is `unit_tokens` tokens (0:
    no cache). Pages that only one sequence uses have no names: how many it has follows from its length.
    """

    def __init__(self, law: StepLaw, unit_tokens: cython.longlong) -> None:
        self.total = law.kv_blocks
        self.used = 0
        self.peak = 0
        self.block_tokens = law.block_tokens
        self.window = law.window
        self.window_group = law.window_group
        self.unit_tokens = unit_tokens
        self.unit_pages = unit_tokens // law.block_tokens
        self.cache = PrefixCache()

    def hit(self, seq: Any) -> cython.Py_ssize_t:
        """Tokens of the prompt cached here; the last token is always computed, to have something to sample from."""
        if self.unit_tokens == 0 or seq.hash_count == 0:
            return 0
        limit: cython.longlong = min(seq.hash_count, (seq.target - 1) // self.unit_tokens)
        return self.cache.match(seq.chains, seq.hash_start, limit) * self.unit_tokens

    def pages(self, tokens: cython.longlong) -> cython.longlong:
        """Pages that hold the KV of `tokens` tokens of one sequence, sharing nothing."""
        blocks: cython.longlong = (tokens + self.block_tokens - 1) // self.block_tokens
        if self.window == 0:
            return blocks
        return blocks + self.window_group * min(blocks, (self.window + self.block_tokens - 2) // self.block_tokens)

    def price(self, seq: Sequence, tokens: cython.longlong) -> cython.Py_ssize_t:
        """Free pages it takes to let the sequence hold `tokens` tokens instead of the `computed` it holds."""
        need: cython.longlong = self.pages(tokens) - self.pages(seq.computed)
        if self.unit_tokens == 0 or need <= self.total - self.used:
            return need
        covered: cython.longlong = min(tokens // self.unit_tokens, seq.hash_count)
        shared: cython.longlong = self.cache.pinned(seq.chains, seq.hash_start + seq.held, covered - seq.held)
        return need - shared * self.unit_pages

    def entry_price(self, seq: Sequence, hit: cython.longlong) -> cython.Py_ssize_t:
        """Free pages for the whole prompt of a sequence that holds none; cached units in use that it finds cost none.

        Units cached behind the first miss are not counted, so that no first part of the prompt costs more than this.
        """
        need: cython.longlong = self.pages(seq.target)
        if hit == 0 or need <= self.total - self.used:
            return need
        return need - self.cache.pinned(seq.chains, seq.hash_start, hit // self.unit_tokens) * self.unit_pages

    def allocate(self, seq: Sequence, tokens: cython.longlong) -> cython.int:
        """Take the pages that `price` named; prompt units covered now can be shared from now on."""
        need: cython.longlong = self.pages(tokens)
        if seq.computed > 0:
            need -= self.pages(seq.computed)
        if self.unit_tokens > 0:
            covered: cython.longlong = min(tokens // self.unit_tokens, seq.hash_count)
            while seq.held < covered:
                if self.cache.acquire(seq.chains.ids[seq.hash_start + seq.held]) == 2:
                    need -= self.unit_pages
                seq.held += 1
        self.take(need)
        return 0

    def take(self, pages: cython.longlong) -> cython.int:
        """Use pages, evicting idle cached units where no page is free otherwise."""
        self.used += pages
        if self.unit_tokens > 0:
            self.evict_down_to(self.used)
        if self.used > self.peak:
            self.peak = self.used
        return 0

    def free(self, seq: Sequence, tokens: cython.longlong, now: cython.double, over: cython.bint) -> cython.int:
        """Give back the pages of a sequence that holds `tokens` tokens; its full units stay cached, idle.

        `over`: the request is done with here, not preempted, and they are kept for as long as a policy said.
        """
        self.used -= self.pages(tokens)
        if self.unit_tokens == 0 or seq.hash_count == 0:
            return 0
        covered: cython.longlong = min(tokens // self.unit_tokens, seq.hash_count)
        self.used += seq.held * self.unit_pages
        while seq.held < covered:
            if self.cache.acquire(seq.chains.ids[seq.hash_start + seq.held]) != 2:
                self.used += self.unit_pages
            seq.held += 1
        keeps: cython.bint = self.cache.keeps or seq.keep_s > 0.0
        if keeps:
            self.cache.ripen(now)
            if over and seq.keep_s > 0.0:
                self.cache.keep(seq.chains, seq.hash_start, seq.held, now + seq.keep_s)
                seq.keep_s = 0.0  # a decode replica, where a request goes next, keeps nothing
        while seq.held > 0:
            seq.held -= 1
            if self.cache.release(seq.chains.ids[seq.hash_start + seq.held]):
                self.used -= self.unit_pages
                if keeps:
                    self.cache.set_aside()
        return 0

    def evict_down_to(self, used: cython.longlong) -> cython.int:
        """Evict idle units until `used` pages have room beside them."""
        while used + self.cache.idle * self.unit_pages > self.total:
            if self.cache.idle == 0:
                raise RuntimeError(f"{used} KV pages in use of {self.total}: a bug, please report it")
            self.cache.evict()
        return 0

    def forget(self) -> cython.int:
        """Start anew, with nothing cached; nobody may hold a page."""
        self.cache = PrefixCache()
        return 0

    def check_integrity(self) -> cython.bint:
        """Check the sums; raises AssertionError naming what is broken."""
        assert 0 <= self.used <= self.total, f"{self.used} of {self.total} pages used"
        assert self.used + self.cache.idle * self.unit_pages <= self.total, "more pages than there are"
        return self.cache.check_integrity()
