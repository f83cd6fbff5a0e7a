"""Moving a prompt's KV from one replica to another."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from headway.cost.memory import kv_shard_bytes
from headway.cost.replica import Replica, resolve
from headway.hardware import Link, gpu, node

__all__ = ["kv_links", "kv_transfer_bytes"]


@functools.lru_cache(maxsize=1024)
def kv_transfer_bytes(replica: Replica, tokens: int) -> int:
    """Return the KV bytes of `tokens` that one GPU of the replica sends or receives, windows applied.

    All GPUs of a replica move their shards at the same time; with a pipeline this is the fullest stage's.

    Raises:
        UnknownName, BadInput: see `resolve`.
    """
    return kv_shard_bytes(replica, resolve(replica)[0], tokens)


def kv_links(kinds: Sequence[str]) -> tuple[Link, Link]:
    """Return the links between any two of these kinds of GPU: between nodes, and within one, of which one kind is.

    Between nodes the slowest network card of theirs counts.
    """
    cards = [gpu(kind) for kind in kinds]
    slowest = min(cards, key=lambda card: card.rdma_bytes_per_s)
    return node(slowest.key, 1).scale_out, node(cards[0].key, 1).scale_up
