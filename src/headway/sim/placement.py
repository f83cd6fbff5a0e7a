"""Which node each replica of a prefill and a decode pool stands on: KV between two on one takes the node's own link."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from headway.errors import BadInput
from headway.hardware import gpu


def nodes_of(pools: Sequence[Any]) -> list[list[int]]:
    """Return the node of each replica of these pools of one model, pool by pool: `Pool.nodes` where they say it.

    Else replicas on GPUs of one kind take as few nodes as hold them, each pool spread over these as evenly as fits, so
    that prompts and tokens are near each other. A replica that fills a node, or several, counts as one of its own.
    Where stages stand apart a number is of as many nodes as there are stages, each with one stage of every replica
    there: KV goes from stage to stage within a node.
    """
    if pools[0].nodes is not None:
        return [list(pool.nodes) for pool in pools]
    placed: list[list[int]] = [[] for _ in pools]
    first = 0
    for kind, span in dict.fromkeys((pool.replica.gpu, _span(pool)) for pool in pools):
        size = gpu(kind).gpus_per_node
        alike = [i for i, pool in enumerate(pools) if (pool.replica.gpu, _span(pool)) == (kind, span)]
        large = [i for i in alike if pools[i].replica.gpus // span >= size]
        for i in large:
            placed[i] = list(range(first, first + pools[i].places))
            first += pools[i].places
        small = {i: (pools[i].places, pools[i].replica.gpus // span) for i in alike if i not in large}
        for i, nodes in _spread(small, size).items():
            placed[i] = [first + node for node in nodes]
        first = 1 + max((node for i in small for node in placed[i]), default=first - 1)
    return placed


def _span(pool: Any) -> int:
    """Over how many nodes one number of this pool's nodes goes."""
    return pool.replica.pp if pool.replica.apart else 1


def _spread(pools: dict[int, tuple[int, int]], size: int) -> dict[int, list[int]]:
    """Nodes of `size` GPUs for pools of (replicas, GPUs of each).

    The largest replicas come first, each to the node with the fewest of its pool, of these the emptiest. Where sizes
    divide each other that always fits as few nodes as there can be.
    """
    count = -(-sum(replicas * gpus for replicas, gpus in pools.values()) // size)
    free = [size] * count
    nodes: dict[int, list[int]] = {}
    for i, (replicas, gpus) in sorted(pools.items(), key=lambda pool: -pool[1][1]):
        here = [0] * len(free)
        for _ in range(replicas):
            roomy = [node for node, left in enumerate(free) if left >= gpus]
            if not roomy:
                roomy = [len(free)]
                free.append(size)
                here.append(0)
            node = min(roomy, key=lambda node: (here[node], -free[node]))
            free[node] -= gpus
            here[node] += 1
        nodes[i] = [node for node, own in enumerate(here) for _ in range(own)]
    return nodes


def check_nodes(pools: Sequence[Any]) -> None:
    """Hold the nodes that pools of one model are said to stand on against what nodes there are.

    Raises:
        BadInput: of some pools only; a node of two kinds of GPU, or of stages and whole replicas; more GPUs than a node
            has.
    """
    if len({pool.nodes is None for pool in pools}) > 1:
        raise BadInput("pools: some say their `nodes` and some do not: give them for all pools of a model, or for none")
    if pools[0].nodes is None:
        return
    kinds: dict[int, tuple[str, int]] = {}
    used: Counter[int] = Counter()
    for pool in pools:
        kind = pool.replica.gpu, _span(pool)
        for node in pool.nodes:
            used[node] += pool.replica.gpus // kind[1]
            first = kinds.setdefault(node, kind)
            if first[0] != kind[0]:
                raise BadInput(f"pools: node {node} has {first[0]} and {kind[0]}: expected one kind")
            if first != kind:
                raise BadInput(
                    f"pools: node {node} has replicas of {first[1]} and {kind[1]} stages apart: give both pools the "
                    "same pp and apart=true, or neither"
                )
    for node, gpus in used.items():
        card = gpu(kinds[node][0])
        size, largest = card.gpus_per_node, max(p.replica.gpus // _span(p) for p in pools if node in p.nodes)
        if gpus > max(size, largest):
            own = f"; give one of {largest}, which takes several, a number of its own" if largest > size else ""
            raise BadInput(f"pools: replicas of {gpus} GPUs stand on node {node}: one of {card.key} has {size}{own}")

