"""Which prompts a replica has seen: chained hashes of prompt blocks, salted by tenant: tenants share nothing."""

from __future__ import annotations

from collections import OrderedDict
from hashlib import blake2b

BLOCK_BYTES = 256  # of a prompt's text: about 64 tokens
CHAIN_BLOCKS_MAX = 2048  # half a megabyte: longer prompts are told apart by then, and hashing stays below 5 ms
TOKENS_PER_BLOCK = BLOCK_BYTES / 4


def chain_of(text: bytes, tenant: str) -> tuple[int, ...]:
    """Return a hash per full block of the prompt, each covering all before it, for this tenant alone.

    The tenant's name starts the chain. What a caller may have said about caching in the request does not enter it.
    """
    above = blake2b(tenant.encode(), digest_size=16).digest()
    chain = []
    for start in range(0, min(len(text), CHAIN_BLOCKS_MAX * BLOCK_BYTES) - BLOCK_BYTES + 1, BLOCK_BYTES):
        above = blake2b(text[start : start + BLOCK_BYTES], digest_size=16, key=above).digest()
        chain.append(int.from_bytes(above[:8], "big"))
    return tuple(chain)


def session_of(name: str, tenant: str) -> int:
    """Return a number for the session that a tenant calls so, the same for the same name; -1 for no name."""
    if not name:
        return -1
    key = blake2b(tenant.encode(), digest_size=16).digest()
    return int.from_bytes(blake2b(name.encode(), digest_size=8, key=key).digest(), "big") >> 1


class PrefixIndex:
    """Blocks that one replica's cache may still hold, least recently used first out; `blocks_max` bounds them.

    It is a guess from what was sent: the engine's own cache may have evicted sooner. Within a chain later blocks go
    first, so that what remains is a prefix.
    """

    def __init__(self, blocks_max: int) -> None:
        self.blocks_max = blocks_max
        self.blocks: OrderedDict[int, None] = OrderedDict()

    def leading(self, chain: tuple[int, ...]) -> int:
        """Count the blocks at the start of the chain that are there."""
        count = 0
        for block in chain:
            if block not in self.blocks:
                break
            count += 1
        return count

    def cached_tokens(self, chain: tuple[int, ...], prompt_tokens: int) -> int:
        """Estimate the tokens of the prompt that are there; never its last one."""
        return max(min(int(self.leading(chain) * TOKENS_PER_BLOCK), prompt_tokens - 1), 0)

    def add(self, chain: tuple[int, ...]) -> None:
        """Note that the replica has been sent this prompt."""
        for block in reversed(chain):
            self.blocks[block] = None
            self.blocks.move_to_end(block)
        while len(self.blocks) > self.blocks_max:
            self.blocks.popitem(last=False)

    def clear(self) -> None:
        """Forget everything: the engine has started anew."""
        self.blocks.clear()
