"""What is deployed: pools of replicas, the policies that feed them, the link between them, prices."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from headway.cost import Replica
from headway.errors import BadInput
from headway.hardware import Link, gpu
from headway.metrics import Prices
from headway.specs import Spec


class Pool(Spec, frozen=True, kw_only=True):
    """`count` identical replicas. A "mixed" replica serves requests whole; "prefill" and "decode" share the work.

    Where a policy scales the deployment, `count` are there at the start, and `most` (default: no more than `count`) at
    any time; one that is added takes requests after `startup_s`, in which an engine loads weights and captures graphs:
    the default is a plain assumption.

    Raises:
        BadInput: a count below 1, `most` below `count`, a negative time.
    """

    role: Literal["mixed", "prefill", "decode"] = "mixed"
    count: int = 1
    replica: Replica
    most: int | None = None
    startup_s: float = 60.0

    def __post_init__(self) -> None:
        """Refuse an empty pool, and bounds that cannot be."""
        if self.count < 1:
            raise BadInput(f"count={self.count}: a pool has at least 1 replica")
        if self.most is not None and self.most < self.count:
            raise BadInput(f"most={self.most}: expected at least count={self.count}, who are there at the start")
        if not 0 <= self.startup_s < float("inf"):
            raise BadInput(f"startup_s={self.startup_s}: expected seconds from 0 on")

    @property
    def places(self) -> int:
        """Replicas that there may be at any time."""
        return self.count if self.most is None else self.most

    @property
    def ranks(self) -> int:
        """Schedulers of the pool, each with its own queue and KV: data-parallel ranks of all replicas."""
        return self.count * self.replica.dp


class Policies(Spec, frozen=True, kw_only=True):
    """Policies by decision point: built-in names or `module:Class`; `params` are keyword arguments by decision."""

    route: str = "least-requests"
    order: str = "fcfs"
    admit: str = "accept-all"
    scale: str = "fixed"
    params: dict[str, dict[str, Any]] = msgspec.field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse what is not a name, as a policy's class or object."""
        for kind in ("route", "order", "admit", "scale"):
            came = getattr(self, kind)
            if not isinstance(came, str):
                cls = came if isinstance(came, type) else type(came)
                form = f"{cls.__module__}:{cls.__qualname__}"
                raise BadInput(
                    f"policies.{kind}: a policy is named, so that a deployment can be written down: expected text, "
                    f"as {kind}={form!r}, its arguments in params; came {came!r}"
                )


class Deployment(Spec, frozen=True, kw_only=True):
    """Pools, policies and prices: mixed pools, or prefill pools followed by decode pools.

    Requests are routed among all replicas of one role, in the order of the pools, so that pools of one role are how
    replicas differ: in GPU, layout, precision, settings. All run the same model.

    Every `scale_every_s` the policy `scale` is asked how many replicas there are to be, between 1 and a pool's `most`.

    `kv_link` carries KV from prefill to decode replicas, per GPU; None chooses it from the catalogue: the node's
    own link where a prefill and a decode replica fit one node together, else the network card; with several kinds of
    replicas the slowest of their links.

    Raises:
        BadInput: another combination of pools, or prefill and decode pools of different models; scaling with several
            pools of one role or with data-parallel ranks, and `most` without scaling.
    """

    name: str = ""
    pools: tuple[Pool, ...]
    policies: Policies = Policies()
    kv_link: Link | None = None
    prices: Prices = Prices()
    scale_every_s: float = 15.0

    def __post_init__(self) -> None:
        """Check that the pools can serve a request from its prompt to its last token."""
        roles = tuple(pool.role for pool in self.pools)
        in_order = list(roles) == sorted(roles, reverse=True)  # prefill before decode
        if set(roles) not in ({"mixed"}, {"prefill", "decode"}) or not in_order:
            raise BadInput(
                f"pools with roles {list(roles)}: a deployment has mixed pools only, or prefill pools and then decode "
                "pools, one or more of each"
            )
        models = {pool.replica.model for pool in self.pools}
        if len(models) > 1:
            raise BadInput(f"pools serve {sorted(models)}: all replicas of a deployment run the same model")
        if len({pool.replica.kv for pool in self.pools if pool.role != "mixed"}) > 1:
            raise BadInput("prefill and decode pools hold KV in different precisions: give both the same kv")

        self._check_scaling(roles)

    def _check_scaling(self, roles: tuple[str, ...]) -> None:
        if not 0 < self.scale_every_s < float("inf"):
            raise BadInput(f"scale_every_s={self.scale_every_s}: expected seconds above 0; 15 is usual")
        if self.policies.scale == "fixed":
            if any(pool.most is not None for pool in self.pools):
                raise BadInput(
                    "pools have `most`, and nothing scales them: name a policy, as policies.scale=target-load"
                )
        elif len(set(roles)) < len(roles) or any(pool.replica.dp > 1 for pool in self.pools):
            raise BadInput(
                f"policies.scale={self.policies.scale}: a deployment that scales has one pool of each role, and "
                "replicas without data-parallel ranks (dp=1)"
            )

    @property
    def gpus(self) -> int:
        """GPUs of all pools."""
        return sum(pool.count * pool.replica.gpus for pool in self.pools)

    def pool_names(self) -> list[str]:
        """What each pool is called: its role, or where several have it role.0, role.1, ..."""
        roles = [pool.role for pool in self.pools]
        several = [role for role in roles if roles.count(role) > 1]
        return [f"{role}.{roles[:i].count(role)}" if role in several else role for i, role in enumerate(roles)]

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
