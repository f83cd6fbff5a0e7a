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


class Policies(Spec, frozen=True, kw_only=True):
    """Policies by decision point: built-in names or `module:Class`; `params` are keyword arguments by decision."""

    route: str = "least-requests"
    order: str = "fcfs"
    admit: str = "accept-all"
    params: dict[str, dict[str, Any]] = msgspec.field(default_factory=dict)


class Deployment(Spec, frozen=True, kw_only=True):
    """Pools, policies and prices: one mixed pool, or a prefill pool followed by a decode pool.

    `kv_link` carries KV from prefill to decode replicas, per GPU; None chooses it from the catalogue: the node's
    own link where a prefill and a decode replica fit one node together, else the network card.

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
        if roles not in (("mixed",), ("prefill", "decode")):
            raise BadInput(
                f"pools with roles {list(roles)}: a deployment has one mixed pool, or a prefill and a decode pool"
            )
        models = {pool.replica.model for pool in self.pools}
        if len(models) > 1:
            raise BadInput(f"pools serve {sorted(models)}: prefill and decode replicas run the same model")
        if len({pool.replica.kv for pool in self.pools}) > 1:
            raise BadInput("prefill and decode pools hold KV in different precisions: give both the same kv")

    @property
    def gpus(self) -> int:
        """GPUs of all pools."""
        return sum(pool.count * pool.replica.gpus for pool in self.pools)

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
        return Prices(
            usd_per_gpu_hour=usd / self.gpus,
            carbon_g_per_kwh=self.prices.carbon_g_per_kwh,
            pue=self.prices.pue,
        )
