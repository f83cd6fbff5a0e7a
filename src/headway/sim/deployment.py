"""What is deployed: pools of replicas, the policies that feed them, the link between them, prices."""

from __future__ import annotations

from collections import Counter
from functools import cached_property
from typing import Any, Literal

import msgspec

from headway.cost import Replica, kv_links
from headway.cost.published import with_published
from headway.errors import BadInput, UnknownName
from headway.hardware import Link, gpu
from headway.hardware.files import gpu_name
from headway.metrics import Prices
from headway.sim.placement import check_nodes, nodes_of
from headway.specs import Spec, check_types


class Pool(Spec, frozen=True, kw_only=True):
    """`count` identical replicas. A "mixed" replica serves requests whole; "prefill" and "decode" share the work.

    `serves`: the name that requests ask for its model by; the model's own where none is given. `keep_hints`: its
    engines obey the header by which the gateway passes on what the policy `retain` decides; simulated ones always do.

    `nodes`: which node each replica of a prefill or decode pool stands on, as numbers that mean the same for all pools
    of the model; None: `placement.nodes_of` says it.

    Where a policy scales the deployment, `count` are there at the start, and `most` (default: no more than `count`) at
    any time; one that is added takes requests after `startup_s`, in which an engine loads weights and captures graphs:
    the default is a plain assumption.

    Raises:
        BadInput: a value of another type, a count below 1, `most` below `count`, a negative time.
    """

    role: Literal["mixed", "prefill", "decode"] = "mixed"
    count: int = 1
    replica: Replica
    most: int | None = None
    startup_s: float = 60.0
    serves: str = ""
    keep_hints: bool = False
    nodes: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        """Refuse an empty pool, and bounds that cannot be."""
        check_types(self, "pool")
        if self.count < 1:
            raise BadInput(f"count={self.count}: a pool has at least 1 replica")
        if self.most is not None and self.most < self.count:
            raise BadInput(f"most={self.most}: expected at least count={self.count}, who are there at the start")
        if not 0 <= self.startup_s < float("inf"):
            raise BadInput(f"startup_s={self.startup_s}: expected seconds from 0 on")
        if self.nodes is not None and (self.role == "mixed" or len(self.nodes) != self.places or min(self.nodes) < 0):
            raise BadInput(
                f"nodes={list(self.nodes)} of a {self.role} pool: expected a number from 0 on for each of its "
                f"{self.places} replicas, and of prefill and decode pools alone"
            )

    @property
    def model(self) -> str:
        """The name that requests ask for its model by."""
        return self.serves or self.replica.model

    @property
    def places(self) -> int:
        """Replicas that there may be at any time."""
        return self.count if self.most is None else self.most

    @property
    def ranks(self) -> int:
        """Schedulers of the pool, each with its own queue and KV: data-parallel ranks of all replicas."""
        return self.count * self.replica.dp


class Policies(Spec, frozen=True, kw_only=True):
    """Policies by decision point: built-in names or `module:Class`; `params` are keyword arguments by decision.

    Raises:
        BadInput: something other than a name, as a policy's class or object, or than keyword arguments by decision.
    """

    route: str = "least-requests"
    order: str = "fcfs"
    admit: str = "accept-all"
    choose_model: str = "first"
    retain: str = "lru"
    scale: str = "fixed"
    params: dict[str, dict[str, Any]] = msgspec.field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse what is not a name, as a policy's class or object."""
        for kind in ("route", "order", "admit", "choose_model", "retain", "scale"):
            came = getattr(self, kind)
            if not isinstance(came, str):
                cls = came if isinstance(came, type) else type(came)
                form = f"{cls.__module__}:{cls.__qualname__}"
                raise BadInput(
                    f"policies.{kind}: a policy is named, so that a deployment can be written down: expected text, "
                    f"as {kind}={form!r}, its arguments in params; came {came!r}"
                )
        check_types(self, "policies")


ANY = "auto"  # asks for whichever model the policy chooses, unless the file gives the name another meaning


class Deployment(Spec, frozen=True, kw_only=True, dict=True):
    """Pools, policies and prices: of each model mixed pools, or prefill pools followed by decode pools.

    Requests are routed among all replicas of one model and role, in the order of the pools, so that such pools are how
    replicas differ: in GPU, layout, precision, settings.

    Pools may serve several models, those of one model next to each other. A request asks for one by its name, or by one
    that may mean several: `aliases` says which, and "auto" means any. Then the policy `choose_model` is asked.

    Every `scale_every_s` the policy `scale` is asked how many replicas there are to be, between 1 and a pool's `most`.

    `kv_link` carries KV from prefill to decode replicas, per GPU, wherever they stand; None chooses from the catalogue:
    between two on one node that node's own link, else the slowest of their network cards.

    Raises:
        BadInput: a value of another type; another combination of pools; an alias of nothing, or by the name of a model;
            scaling with several pools of one model and role or with data-parallel ranks, and `most` without scaling;
            nodes that cannot be.
    """

    name: str = ""
    pools: tuple[Pool, ...]
    policies: Policies = Policies()
    kv_link: Link | None = None
    prices: Prices = Prices()
    scale_every_s: float = 15.0
    aliases: dict[str, tuple[str, ...]] = msgspec.field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check that the pools can serve a request from its prompt to its last token."""
        check_types(self, "deployment")
        for name in self.models or ("",):
            pools = [pool for pool in self.pools if pool.model == name]
            of_it = f" of {name}" if len(self.models) > 1 else ""
            roles = [pool.role for pool in pools]
            in_order = roles == sorted(roles, reverse=True)  # prefill before decode
            if set(roles) not in ({"mixed"}, {"prefill", "decode"}) or not in_order:
                raise BadInput(
                    f"pools{of_it} with roles {roles}: a deployment has mixed pools only, or prefill pools and then "
                    "decode pools, one or more of each"
                )
            if len(models := {pool.replica.model for pool in pools}) > 1:
                raise BadInput(f"pools that serve {name} run {sorted(models)}: expected one model for each name")
            if len({pool.replica.kv for pool in pools if pool.role != "mixed"}) > 1:
                raise BadInput(
                    f"prefill and decode pools{of_it} hold KV in different precisions: give both the same kv"
                )
            check_nodes(pools)
        names = [pool.model for pool in self.pools]
        if names != sorted(names, key=self.models.index):
            raise BadInput(f"pools serve {', '.join(names)}: put those of one model next to each other")
        self._check_aliases()
        self._check_scaling()

    def _check_aliases(self) -> None:
        for alias, meant in self.aliases.items():
            if alias in self.models or not meant or len(set(meant)) < len(meant):
                raise BadInput(
                    f"aliases.{alias}: {list(meant)}: expected a name that no pool serves, and the models that it may "
                    f"mean, each once: {', '.join(self.models)}"
                )
            for name in meant:
                if name not in self.models:
                    raise UnknownName(f"model in aliases.{alias}", name, self.models)

    def _check_scaling(self) -> None:
        groups = [(pool.model, pool.role) for pool in self.pools]
        if not 0 < self.scale_every_s < float("inf"):
            raise BadInput(f"scale_every_s={self.scale_every_s}: expected seconds above 0; 15 is usual")
        if self.policies.scale == "fixed":
            if any(pool.most is not None for pool in self.pools):
                raise BadInput(
                    "pools have `most`, and nothing scales them: name a policy, as policies.scale=target-load"
                )
        elif len(set(groups)) < len(groups) or any(pool.replica.dp > 1 for pool in self.pools):
            raise BadInput(
                f"policies.scale={self.policies.scale}: a deployment that scales has one pool of each model and role, "
                "and replicas without data-parallel ranks (dp=1)"
            )

    @property
    def split(self) -> bool:
        """Whether prefill and decode are in pools of their own, of any model."""
        return any(pool.role != "mixed" for pool in self.pools)

    @cached_property
    def gpus(self) -> int:
        """GPUs of all pools."""
        return sum(pool.count * pool.replica.gpus for pool in self.pools)

    @property
    def gpus_by_kind(self) -> Counter[str]:
        """GPUs of all pools, by the catalogue's name or the file of each kind, in the order of the pools."""
        counts: Counter[str] = Counter()
        for pool in self.pools:
            counts[pool.replica.gpu] += pool.count * pool.replica.gpus
        return counts

    @property
    def gpu_words(self) -> str:
        """How many GPUs of each kind, as people read it: ``4 h100-sxm and 2 l40s``."""
        return " and ".join(f"{count} {gpu_name(kind)}" for kind, count in self.gpus_by_kind.items())

    @property
    def models(self) -> tuple[str, ...]:
        """The names of the models, in the order of the pools."""
        return tuple(dict.fromkeys(pool.model for pool in self.pools))

    def as_published(self) -> Deployment:
        """Return the deployment, mixed replicas calibrated by what was published of them (`headway.cost.published`).

        Pools of their own for prefill and decode stay: what was measured of mixed ones makes them no surer.
        """
        pools = tuple(
            msgspec.structs.replace(pool, replica=with_published(pool.replica)) if pool.role == "mixed" else pool
            for pool in self.pools
        )
        return msgspec.structs.replace(self, pools=pools)

    def may_serve(self, asked: str) -> tuple[str, ...]:
        """Return the models that may serve a request which asks for this name; "" asks for none.

        Raises:
            UnknownName: neither a model nor an alias.
        """
        if asked in self.models:
            return (asked,)
        if asked in self.aliases:
            return self.aliases[asked]
        if asked in ("", ANY):
            return self.models
        names = [*self.models, *self.aliases, *([ANY] if len(self.models) > 1 else [])]
        raise UnknownName("model of the deployment", asked, names)

    def pool_names(self) -> list[str]:
        """What each pool is called: its role, or where several have it role.0, role.1, ...; after its model's name."""
        several = len(self.models) > 1
        roles = [f"{pool.model}.{pool.role}" if several else pool.role for pool in self.pools]
        return [f"{role}.{roles[:i].count(role)}" if roles.count(role) > 1 else role for i, role in enumerate(roles)]

    @cached_property  # each of a search's many short runs asks
    def nodes(self) -> list[list[int]]:
        """The node of each replica, pool by pool: numbers that pools of one model share; -1 of mixed ones."""
        models = [[pool for pool in self.pools if pool.model == name] for name in self.models]
        return [
            stand
            for pools in models
            for stand in ([[-1] * pool.places for pool in pools] if pools[0].role == "mixed" else nodes_of(pools))
        ]

    def links(self, name: str) -> tuple[Link, Link]:
        """What carries KV between a model's prefill and decode replicas, per GPU: between nodes, and within one."""
        if self.kv_link is not None:
            return self.kv_link, self.kv_link
        return kv_links([pool.replica.gpu for pool in self.pools if pool.model == name])

    def wide(self, name: str) -> bool:
        """Whether a model's prefill and decode replicas take several nodes."""
        return self.nodes_taken(name) > 1

    def nodes_taken(self, name: str) -> int:
        """How many nodes a model's prefill and decode replicas take, as numbered by `nodes`."""
        return len(set().union(*self._nodes_by_role(name).values()))

    def shares_nodes(self, name: str) -> bool:
        """Whether a model takes several nodes, and each of them has prefill replicas and decode replicas."""
        roles = self._nodes_by_role(name)
        return self.wide(name) and roles["prefill"] == roles["decode"]

    def spreads_decode(self, name: str) -> bool:
        """Whether a model's decode replicas stand on several nodes."""
        return len(self._nodes_by_role(name)["decode"]) > 1

    def has_neighbours(self, name: str) -> bool:
        """Whether a node has prefill replicas and decode replicas of a model."""
        roles = self._nodes_by_role(name)
        return not roles["prefill"].isdisjoint(roles["decode"])

    def _nodes_by_role(self, name: str) -> dict[str, set[int]]:
        roles: dict[str, set[int]] = {"mixed": set(), "prefill": set(), "decode": set()}
        for pool, nodes in zip(self.pools, self.nodes, strict=True):
            if pool.model == name:
                roles[pool.role].update(nodes)
        return roles

    def link(self, name: str) -> Link:
        """What carries KV at worst between two replicas of a model: the link between nodes where they take several."""
        far, near = self.links(name)
        return far if self.wide(name) else near

    @cached_property  # rankings ask again and again
    def usd_per_hour(self) -> float | None:
        """Dollars per hour for all GPUs; None where one of them has no price."""
        each = self.priced().usd_per_gpu_hour
        return None if each is None else each * self.gpus

    def priced(self, gpu_seconds: list[float] | None = None) -> Prices:
        """The prices, the dollars per GPU hour taken from the catalogue where none are given.

        With pools on different GPUs it is the mean over all GPUs, weighted by their seconds in each pool where these
        are given; None when one of them has no price.
        """
        weights = gpu_seconds or [float(pool.count * pool.replica.gpus) for pool in self.pools]
        if self.prices.usd_per_gpu_hour is not None:
            return self.prices
        usd = 0.0
        for pool, weight in zip(self.pools, weights, strict=True):
            price = gpu(pool.replica.gpu).usd_per_hour
            if price is None:
                return self.prices
            usd += price * weight
        return msgspec.structs.replace(self.prices, usd_per_gpu_hour=usd / sum(weights))
