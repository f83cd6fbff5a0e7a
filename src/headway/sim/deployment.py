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

    Raises:
        BadInput: a count below 1.
    """

    role: Literal["mixed", "prefill", "decode"] = "mixed"
    count: int = 1
    replica: Replica

    def __post_init__(self) -> None:
        """Refuse an empty pool."""
        if self.count < 1:
            raise BadInput(f"count={self.count}: a pool has at least 1 replica")

    @property
    def ranks(self) -> int:
        """Schedulers of the pool, each with its own queue and KV: data-parallel ranks of all replicas."""
        return self.count * self.replica.dp


class Policies(Spec, frozen=True, kw_only=True):
    """Policies by decision point: built-in names or `module:Class`; `params` are keyword arguments by decision."""

    route: str = "least-requests"
    order: str = "fcfs"
    admit: str = "accept-all"
    params: dict[str, dict[str, Any]] = msgspec.field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse what is not a name, as a policy's class or object."""
        for kind in ("route", "order", "admit"):
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

    `kv_link` carries KV from prefill to decode replicas, per GPU; None chooses it from the catalogue: the node's
    own link where a prefill and a decode replica fit one node together, else the network card; with several kinds of
    replicas the slowest of their links.

    Raises:
        BadInput: another combination of pools, or prefill and decode pools of different models.
    """

    name: str = ""
    pools: tuple[Pool, ...]
    policies: Policies = Policies()
    kv_link: Link | None = None
    prices: Prices = Prices()

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

    @property
    def gpus(self) -> int:
        """GPUs of all pools."""
        return sum(pool.count * pool.replica.gpus for pool in self.pools)

    def pool_names(self) -> list[str]:
        """What each pool is called: its role, or where several have it role.0, role.1, ..."""
        roles = [pool.role for pool in self.pools]
        several = [role for role in roles if roles.count(role) > 1]
        return [f"{role}.{roles[:i].count(role)}" if role in several else role for i, role in enumerate(roles)]

    def priced(self) -> Prices:
        """The prices, the dollars per GPU hour taken from the catalogue where none are given.

        With pools on different GPUs it is the mean over all GPUs; None when one of them has no price.
        """
        if self.prices.usd_per_gpu_hour is not None:
            return self.prices
        usd = 0.0
        for pool in self.pools:
            price = gpu(pool.replica.gpu).usd_per_hour
            if price is None:
                return self.prices
            usd += price * pool.count * pool.replica.gpus
        return msgspec.structs.replace(self.prices, usd_per_gpu_hour=usd / self.gpus)
