"""What is left of a deployment when as many replicas of every pool are down as may be."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import product

import msgspec

from headway.cost import StepTable
from headway.plan.setups import goes_by_node
from headway.plan.space import resized
from headway.plan.trial import Trial
from headway.sim import Deployment
from headway.sim.run import compiled

__all__ = ["standing", "without", "worst"]

_Nodes = Counter[int]  # replicas by node


def standing(deployment: Deployment, spare: int) -> tuple[Deployment, tuple[StepTable, ...]]:
    """Return how much is left with `spare` replicas of every pool down, for estimates, and the step laws of its pools.

    Wherever it stands: no estimate goes by nodes.
    """
    left = resized(deployment, [pool.count - spare for pool in deployment.pools]) if spare else deployment
    return left, tuple(compiled(pool.replica) for pool in left.pools)


def without(deployment: Deployment, spare: int) -> tuple[Deployment, ...]:
    """Return what may be left when `spare` replicas of every pool are down, the worst among it.

    The deployment itself where none is down. Those left stand where they stood. Where all replicas of a pool are alike
    to the others, it is one: mixed ones, all on one node, or a network that hardly counts. Else where those down stood
    decides what is left, in up to two ways:

    - Where the router keeps KV on its node, prompts go to all prefill replicas alike, and nodes have as much to decode
      as they have of these. Either nodes with as many of them as can be lose all their decode replicas, so that the
      most KV has to cross the network; or one that has the most of them for what it can keep of decode replicas loses
      these, so that its own are the busiest there can be. In both, prefill replicas are down elsewhere. What is scarcer
      at the rate asked for, network or decode replicas, says which is worse: both are simulated.
    - Other routers spread KV over all pairs of replicas: the fewest pairs of neighbours are left, so that the most KV
      crosses. Decode replicas are down where most prefill replicas are, these where most decode replicas are.
    """
    if not spare:
        return (deployment,)
    left = resized(deployment, [pool.count - spare for pool in deployment.pools])
    pools = deployment.pools
    if pools[0].role == "mixed":
        return (left,)
    prefill, decode = (Counter(nodes) for nodes in deployment.nodes)
    if not deployment.wide(pools[0].model) or not goes_by_node(deployment, pools[0].model):
        down = [(Counter(deployment.nodes[0][-spare:]), Counter(deployment.nodes[1][:spare]))]
    elif deployment.policies.route == "same-node":
        down = _kept(prefill, decode, spare)
    else:
        down = [_spread(prefill, decode, spare)]
    return tuple(_stands(left, prefill - one, decode - other) for one, other in down)


def worst(trials: Sequence[Trial]) -> int:
    """Return the place of the one that misses the SLO, or is the nearest to missing it."""
    return min(range(len(trials)), key=lambda i: (trials[i].met, trials[i].score))


def _stands(left: Deployment, prefill: _Nodes, decode: _Nodes) -> Deployment:
    pools = (
        msgspec.structs.replace(pool, nodes=tuple(sorted(nodes.elements())))
        for pool, nodes in zip(left.pools, (prefill, decode), strict=True)
    )
    return msgspec.structs.replace(left, pools=tuple(pools))


def _kept(prefill: _Nodes, decode: _Nodes, spare: int) -> list[tuple[_Nodes, _Nodes]]:
    """Who is down where KV stays on its node, in both ways, or in one where the other is no worse in anything."""
    robbed = _robbed(prefill, decode, spare)
    ways = [_down(prefill, decode, spare, nodes) for nodes in dict.fromkeys((robbed, ()))]
    marks = [_marks(prefill - one, decode - other) for one, other in ways]
    if len(ways) > 1 and all(a >= b for a, b in zip(*marks, strict=True)):
        return ways[:1]
    return ways


def _robbed(prefill: _Nodes, decode: _Nodes, spare: int) -> tuple[int, ...]:
    """The nodes with the most prefill replicas of all whose decode replicas can be down together."""
    best: list[tuple[int, tuple[int, ...]]] = [(0, ())] * (spare + 1)  # by how many are down
    for node in prefill:
        for room in range(spare, decode[node] - 1, -1):
            alone, nodes = best[room - decode[node]]
            if alone + prefill[node] > best[room][0]:
                best[room] = alone + prefill[node], (*nodes, node)
    return best[spare][1]


def _down(prefill: _Nodes, decode: _Nodes, spare: int, robbed: tuple[int, ...]) -> tuple[_Nodes, _Nodes]:
    """Who is down: all decode replicas of the nodes robbed, then those whose node has the most to decode without them.

    And prefill replicas of other nodes than these, as far as there are.
    """
    more = spare - sum(decode[node] for node in robbed)
    rest = [node for node in decode if node not in robbed]
    crowded = max(rest, key=lambda node: prefill[node] / max(1, decode[node] - more))
    others = sorted((decode.keys() | prefill.keys()) - {crowded, *robbed}, reverse=True)
    first = _each(decode, robbed) + [crowded] * (decode[crowded] - 1)
    second = _each(prefill, others) + _each(prefill, [crowded, *robbed])
    return Counter(second[:spare]), Counter([*first, *_each(decode, [*others, crowded])][:spare])


def _each(replicas: _Nodes, nodes: Iterable[int]) -> list[int]:
    """The node of each replica on these nodes."""
    return [node for node in nodes for _ in range(replicas[node])]


def _marks(prefill: _Nodes, decode: _Nodes) -> tuple[float, float]:
    """The prefill replicas whose KV has to leave their node, and the most that hand theirs to one decode replica."""
    alone = sum(count for node, count in prefill.items() if not decode[node])
    return alone, max(prefill[node] / count for node, count in decode.items())


def _spread(prefill: _Nodes, decode: _Nodes, spare: int) -> tuple[_Nodes, _Nodes]:
    """Who is down where KV goes from all to all: one of each pool after another, for the fewest neighbours."""
    one, other = Counter(prefill), Counter(decode)
    for _ in range(spare):
        here, there = min(product(one, other), key=lambda pair: _more(one, other, *pair))
        one, other = one - Counter([here]), other - Counter([there])
    return prefill - one, decode - other


def _more(prefill: _Nodes, decode: _Nodes, here: int, there: int) -> int:
    """By how much there are more pairs of neighbours, with a prefill and a decode replica of these nodes down."""
    return (here == there) - decode[here] - prefill[there]
