"""Which replica runs on which GPUs of which host, at which address."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from headway.cost import Replica, memory_fit
from headway.cost.memory import check_context, named_context, sequence_tokens
from headway.cost.replica import resolve
from headway.errors import BadInput
from headway.export.engine import Ask, repository
from headway.hardware import Gpu, gpu
from headway.model import model
from headway.sim import Deployment
from headway.specs import Spec

__all__ = ["Placed", "asked", "host_gpus", "place", "spread"]

PORT = 8000  # of the first replica on a host
_SURE, _CONTEXT_STEP = 0.9, 1024  # of the KV that the memory model has; tokens
RACK = 8  # a larger domain of fast links is a rack of hosts with four GPUs each, as GB200 NVL72 (18 trays of 4)


class Placed(Spec, frozen=True, kw_only=True):
    """One replica: `hosts` are its hosts' numbers, the first answers requests; `gpus` its devices on each."""

    pool: int
    pool_name: str
    index: int
    hosts: tuple[int, ...]
    gpus: tuple[int, ...]
    port: int

    @property
    def name(self) -> str:
        """Unique in the deployment, as mixed-0; fit for a DNS label."""
        return f"{self.pool_name}-{self.index}"


def host_gpus(card: Gpu) -> int:
    """GPUs of one host."""
    return card.gpus_per_node if card.gpus_per_node <= RACK else 4


def spread(replica: Replica) -> int:
    """Return how many hosts a replica takes: the fewest with equal shares of whole tensor-parallel groups.

    Of stages that stand apart each has one of its own.

    Raises:
        BadInput: no such division.
    """
    most = host_gpus(gpu(replica.gpu))
    if replica.apart and replica.gpus // replica.pp <= most:
        return replica.pp
    for share in range(min(most, replica.gpus), 0, -1):
        if replica.gpus % share == 0 and (share % replica.tp == 0 or replica.tp % share == 0):
            return replica.gpus // share
    raise BadInput(f"{replica.gpus} GPUs do not divide among hosts of {most}")  # a share of 1 always does


def place(deployment: Deployment) -> list[Placed]:
    """Return every replica's place, in the order of the pools: hosts, each of one kind of GPU, are filled in turn.

    Prefill and decode replicas of a model that takes several nodes are on the nodes that the deployment says.
    """
    placed: list[Placed] = []
    open_host: dict[tuple[str, str], tuple[int, int, int]] = {}  # by GPU and node: host, GPUs taken, replicas on it
    hosts = 0
    named = zip(deployment.pools, deployment.pool_names(), deployment.nodes, strict=True)
    for number, (pool, name, nodes) in enumerate(named):
        replica, card = pool.replica, gpu(pool.replica.gpu)
        most, parts = host_gpus(card), spread(replica)
        known = deployment.wide(pool.model) and most == card.gpus_per_node
        apart = f"{parts} stages apart " if replica.apart else ""
        for index in range(pool.count):
            where = replica.gpu, apart + (f"{pool.model} {nodes[index]}" if known else "")
            host, taken, port = open_host.get(where, (0, most, 0))
            if (parts > 1 and not apart) or taken + replica.gpus // parts > most:
                host, taken, port, hosts = hosts, 0, 0, hosts + parts
            own = tuple(range(taken, taken + replica.gpus // parts))
            placed.append(
                Placed(
                    pool=number,
                    pool_name=name.replace(".", "-"),
                    index=index,
                    hosts=tuple(range(host, host + parts)),
                    gpus=own,
                    port=PORT + port,
                )
            )
            if parts == 1 or apart:
                open_host[where] = (host, taken + replica.gpus // parts, port + 1)
    return placed


def addresses(placed: list[Placed], hosts: Sequence[str]) -> list[str]:
    """Return an address for each host; the user's, or names to replace.

    Raises:
        BadInput: another number of hosts than the deployment takes.
    """
    count = 1 + max(host for each in placed for host in each.hosts)
    if hosts and len(hosts) != count:
        raise BadInput(f"{len(hosts)} addresses of hosts for a deployment on {count}: give one for each, or none")
    if hosts:
        return list(hosts)
    return ["127.0.0.1"] if count == 1 else [f"host-{number}" for number in range(count)]


def asked(deployment: Deployment, model_path: str) -> list[Ask]:
    """Return what to ask an engine's exporter for, a pool each, its place left open.

    Raises:
        UnknownName, BadInput: a model, GPU or layout that is not known, or no path of a model without repository.
        DoesNotFit: a model that its GPUs cannot hold.
    """
    asks = []
    for number, pool in enumerate(deployment.pools):
        where = f"pools.{number}"
        try:
            resolve(pool.replica)
            check_context(pool.replica)
        except BadInput as error:
            raise BadInput(f"{where}.replica: {error}") from None
        path = model_path or repository(model(pool.replica.model))
        if not path:
            raise BadInput(
                f"{where}.replica.model={pool.replica.model}: no Hugging Face repository is known for it: give "
                "--model-path, a repository or a folder on the hosts"
            )
        asks.append(
            Ask(
                where=where,
                replica=pool.replica,
                role=pool.role,
                model_path=path,
                given=bool(model_path),
                name=pool.model,
                order=deployment.policies.order,
            )
        )
    return [_with_peers(ask, asks) for ask in asks]


def _with_peers(ask: Ask, asks: list[Ask]) -> Ask:
    """With what the pools that it hands KV over with, itself among them, ask of it."""
    sharing = [ask] if ask.role == "mixed" else [each for each in asks if each.name == ask.name]
    without_bf16 = next((each.replica.gpu for each in sharing if not gpu(each.replica.gpu).has_bf16), "")
    gpus = frozenset(each.replica.gpu for each in sharing)
    context = named_context(ask.replica) or _room(sharing)
    return msgspec.structs.replace(ask, without_bf16=without_bf16, gpus=gpus, context=context)


def _room(sharing: list[Ask]) -> int | None:
    """The tokens of a request that KV has room for in all pools, where they are fewer than the model's context.

    vLLM does not start where one request of its longest does not fit (v1/core/kv_cache_planning.py of 0.33), and
    measures the room itself: so less than the memory model's. Of windows it counts the tokens of two steps besides
    (`SlidingWindowSpec.max_admission_blocks_per_request`).
    """
    replicas, spec = [each.replica for each in sharing], model(sharing[0].replica.model)
    steps = 2 if spec.window and not spec.state_layers else 0
    most = min(
        sequence_tokens(memory_fit(each), each.engine.block_tokens, steps * each.engine.max_batched_tokens)
        for each in replicas
    )
    room = int(_SURE * most) // _CONTEXT_STEP * _CONTEXT_STEP or int(_SURE * most)
    return None if room >= spec.max_context else room
