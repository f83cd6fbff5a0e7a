"""The part of a deployment that serves one model, for targets that have one route."""

from __future__ import annotations

from typing import Any

import msgspec

from headway.errors import UnknownName
from headway.sim import Deployment, Policies

__all__ = ["of_model"]


def of_model(deployment: Deployment, name: str) -> Deployment:
    """Return the pools that serve a model, by the name that requests ask for, with what policies and aliases say of it.

    Raises:
        UnknownName: no pool serves it.
    """
    if name not in deployment.models:
        raise UnknownName("model of the deployment", name, deployment.models)
    if len(deployment.models) == 1:
        return deployment
    params: dict[str, dict[str, Any]] = {**deployment.policies.params}
    params.pop("choose_model", None)
    if "weights" in params.get("route", {}):
        others = set(deployment.models) - {name}
        weights = {whose: each for whose, each in params["route"]["weights"].items() if whose not in others}
        params["route"] = {**params["route"], "weights": weights}
    policies = msgspec.structs.replace(deployment.policies, choose_model=Policies().choose_model, params=params)
    aliases = {alias: (name,) for alias, meant in deployment.aliases.items() if name in meant}
    pools = tuple(pool for pool in deployment.pools if pool.model == name)
    return msgspec.structs.replace(deployment, pools=pools, policies=policies, aliases=aliases)
