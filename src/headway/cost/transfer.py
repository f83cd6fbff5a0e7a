"""Moving a prompt's KV from one replica to another."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from headway.cost.memory import kv_shard_bytes
from headway.cost.replica import Replica, resolve
from headway.hardware import Link, gpu, node

__all__ = ["kv_link", "kv_transfer_bytes"]


@functools.lru_cache(maxsize=1024)
def kv_transfer_bytes(replica: Replica, tokens: int) -> int:
    """Return the KV bytes of `tokens` that one GPU of the replica sends or receives, windows applied.

    All GPUs of a replica move their shards at the same time; with a pipeline this is the fullest stage's.

    Raises:
        UnknownName, BadInput: see `resolve`.
    """
    return kv_shard_bytes(replica, resolve(replica)[0], tokens)


def kv_link(replicas: Sequence[Replica], gpus: int) -> Link:
    """Return the link that a GPU of any of these replicas reaches a GPU of any other by, where they have `gpus` in all.

    The scale-up link when all are of one kind of GPU and fit into one node together, else the slowest network card of
    theirs: nothing keeps a request's decode replica on the node of its prefill replica.
    """
    cards = [gpu(replica.gpu) for replica in replicas]
    if len({card.key for card in cards}) == 1 and gpus <= cards[0].gpus_per_node:
        return node(cards[0].key, 1).scale_up
    slowest = min(cards, key=lambda card: card.rdma_bytes_per_s)
    return node(slowest.key, 1).scale_out
