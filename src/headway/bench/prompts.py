"""Prompts of a known number of tokens that share what the workload says they share, and nothing else.

A prompt is a run per block id of its chain, then a run of its own. A run begins with its name (the id mixed with the
run's salt, one to one, so different blocks differ from their first tokens on) and goes on with a piece of a pool of
random tokens. Everything is a slice of bytes: a prompt of 8,000 tokens takes some tenths of a millisecond.
"""

from __future__ import annotations

import random

from headway.bench.target import Target

__all__ = ["Prompts"]

# Ordinary tokens in vocabularies of 16,000 and more; all have four digits, so a run is a slice.
_IDS = range(1000, 10_000)
_ID_BYTES = 5  # four digits and a comma
_POOL = 1 << 16  # tokens or words
_LONGEST = 1 << 14  # of one slice; longer runs repeat the pool
_WORDS = (
    "time year work life hand part case week fact room area book word side kind head home game line city name team "
    "idea body back face door table plan road form view town test rate land wall tree ship song rain wind fire gold "
    "park food girl hope king moon note page race road sand seat skin star step tool unit week wood yard zone card bank"
)
WORDS = tuple(dict.fromkeys(word for word in _WORDS.split() if len(word) == 4))
_MASK = (1 << 64) - 1
_OWN = 0x9E3779B97F4A7C15  # sets a request's own run apart from the blocks


class Prompts:
    """Makes the JSON of prompts for a target; `salt` sets one run apart from all others, so caches start cold."""

    def __init__(self, target: Target, salt: int) -> None:
        self.ids = target.prompts == "ids"
        self.chars = target.chars_per_token
        self.overhead = target.overhead_tokens
        self.salt = mixed(salt)
        rng = random.Random(0)
        if self.ids:
            tokens = [f"{rng.randrange(_IDS.start, _IDS.stop)}," for _ in range(_POOL + _LONGEST)]
        else:
            tokens = [f"{rng.choice(WORDS)} " for _ in range(_POOL + _LONGEST)]
        self.pool = "".join(tokens).encode()

    def make(self, request: int, tokens: int, chain: list[int], block_tokens: int) -> bytes:
        """Return the JSON of a prompt: an array of ids, or a string.

        Args:
            request: its id, which names what it shares with nobody.
            tokens: its length, with those the engine adds.
            chain: block ids, one per full block of `block_tokens` tokens from the first on.
            block_tokens: 0 where there are no chains.
        """
        scale = _ID_BYTES if self.ids else self.chars
        length = max(round((tokens - self.overhead) * scale), _ID_BYTES if self.ids else 1)
        length -= length % _ID_BYTES if self.ids else 0
        runs = []
        if block_tokens and chain:
            block = round(block_tokens * scale)
            runs = [self.run(each, block) for each in chain[: length // block]]
            length -= block * len(runs)
        if length:
            runs.append(self.run(request ^ _OWN, length))
        text = b"".join(runs)
        return b"[" + text[:-1] + b"]" if self.ids else b'"' + text + b'"'

    def run(self, name: int, length: int) -> bytes:
        """Return `length` bytes that belong to a name."""
        key = mixed((name + self.salt) & _MASK)
        text, rest = b"", key
        base = len(_IDS) if self.ids else len(WORDS)
        while rest:
            rest, digit = divmod(rest, base)
            text += b"%d," % (_IDS.start + digit) if self.ids else WORDS[digit].encode() + b" "
        start = _ID_BYTES * (key % _POOL)
        while len(text) < length:
            text += self.pool[start : start + min(length - len(text), _ID_BYTES * _LONGEST)]
        return text[:length]


def mixed(key: int) -> int:
    """Return the 64 bits of `key` mixed one to one (the finalizer of SplitMix64, G. Steele and others, 2014)."""
    key = ((key ^ (key >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    key = ((key ^ (key >> 27)) * 0x94D049BB133111EB) & _MASK
    return key ^ (key >> 31)
