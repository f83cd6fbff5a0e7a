"""llm-d's sidecar before each decode replica: it has the prompt computed by the replica that the gateway names.

Its flags are those of the version that the llm-d export takes (`cmd/pd-sidecar` of llm-d/llm-d-router, Apache-2.0); the
header by which it is told is in docs/disaggregation.md there.
"""

from __future__ import annotations

from headway.errors import BadInput
from headway.export.llmd import VERSION
from headway.export.place import Placed
from headway.sim import Deployment

BEFORE = 1000  # a sidecar's port is so far above its engine's


def port_of(each: Placed, deployment: Deployment) -> int:
    """Return where the gateway asks a replica: a decode replica behind its sidecar.

    Raises:
        BadInput: pools of an engine whose replicas one sidecar's settings do not describe.
    """
    pool = deployment.pools[each.pool]
    name = pool.replica.engine.name
    if pool.role != "mixed" and name != "vllm":
        raise BadInput(
            f"pools.{each.pool}.replica.engine.name={name}: headway serve tells llm-d's sidecar who prefills, and only "
            f"vLLM tells that where its KV is: export to {name}, whose own router hands over, or plan with "
            "engine.name=vllm or layouts=[mixed]"
        )
    return each.port + BEFORE if pool.role == "decode" else each.port


def sidecar_notes(placed: list[Placed], deployment: Deployment, at: list[str]) -> list[str]:
    """Return how to start the sidecars; nothing where no pool decodes alone."""
    notes = []
    for each in placed:
        if deployment.pools[each.pool].role == "decode":
            flags = f"--port={each.port + BEFORE} --vllm-port={each.port} --connector=nixlv2 --secure-proxy=false"
            image = f"ghcr.io/llm-d/llm-d-routing-sidecar:{VERSION}"
            notes.append(f"before {each.name}, on {at[each.hosts[0]]}: {image} {flags}")
    if notes:
        notes.append("a sidecar does what its header says: let only the gateway reach its port")
    return notes
