"""The file that `headway serve` reads: the deployment, and a section `gateway:` with an address for each replica."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import msgspec

from headway.errors import BadInput
from headway.gateway import GatewaySpec, SloClass
from headway.hardware import is_file
from headway.metrics import Slo
from headway.sim import Deployment
from headway.specs import from_mapping, to_mapping


def gateway_file(
    deployment: Deployment, upstreams: list[str], slo: Slo | Sequence[SloClass] | None, listen: str = ""
) -> dict[str, Any]:
    """Return the file as builtins; `slo` is the promise of the first class, or there are the classes."""
    section: dict[str, Any] = {"listen": listen} if listen else {}
    section |= {"upstreams": upstreams}
    section |= {"models": list(deployment.models)} if len(deployment.models) == 1 else {}  # else the pools say them
    if slo is not None:
        classes = [SloClass(slo=slo)] if isinstance(slo, Slo) else slo
        section["classes"] = [to_mapping(each) for each in classes]
    from_mapping(GatewaySpec, section, "gateway")
    return to_mapping(_by_replica(deployment)) | {"gateway": section}


def carried(file: dict[str, Any], taken: Sequence[str]) -> dict[str, str]:
    """Name the files that describe the GPUs of a gateway's file from its own folder, and return their text by name.

    `taken` are names that other files have there.

    Raises:
        BadInput: one of them cannot be read.
    """
    names: dict[str, str] = {}
    for pool in file["pools"]:
        path = pool["replica"]["gpu"]
        if not is_file(path):
            continue
        if path not in names:
            name = Path(path).name
            while name in {*taken, *names.values()}:
                name = f"gpu-{name}"
            names[path] = name
        pool["replica"]["gpu"] = names[path]
    return {name: _text(path) for path, name in names.items()}


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: cannot be read as text: {error}") from None


def _by_replica(deployment: Deployment) -> Deployment:
    """The deployment with one weight per replica: the simulator's router sees each rank, a gateway's one address."""
    route = deployment.policies.params.get("route", {})
    weights = route.get("weights", {})
    if not weights or all(pool.replica.dp == 1 for pool in deployment.pools):
        return deployment
    summed = {}
    for whose, each in weights.items():
        ranks = [
            pool.replica.dp for pool in deployment.pools if whose in (pool.role, pool.model) for _ in range(pool.count)
        ]
        ends = list(accumulate(ranks))
        summed[whose] = [sum(each[first:end]) for first, end in pairwise([0, *ends]) if first < len(each)]
    params = {**deployment.policies.params, "route": {**route, "weights": summed}}
    policies = msgspec.structs.replace(deployment.policies, params=params)
    return msgspec.structs.replace(deployment, policies=policies)
