"""What pods that reach each other's GPUs ask Kubernetes for, and what the forecast took their link to be."""

from __future__ import annotations

from typing import Any

from headway.export.place import host_gpus, place, spread
from headway.hardware import gpu, node
from headway.sim import Deployment

__all__ = ["RDMA", "ROLE", "host_notes", "pod_notes", "standing", "wire", "wire_notes"]

RDMA = "rdma/ib"  # as llm-d's guide to prefill and decode pods names the network cards; a device plugin's own word
ROLE = "headway/role"
HOST = "kubernetes.io/hostname"


def wire(container: dict[str, Any]) -> None:
    """Give a container that hands over KV, or is part of a replica, the network cards and the right to pin memory."""
    resources = container["resources"]
    resources["limits"] |= {RDMA: "1"}
    resources["requests"] = {**resources.get("requests", {}), RDMA: "1"}  # in both, or the device may not be there
    container["securityContext"] = {"capabilities": {"add": ["IPC_LOCK"]}}


def one_host(deployment: Deployment) -> bool:
    """Return whether all replicas of the pools lie on one host."""
    return all(each.hosts == (0,) for each in place(deployment))


def standing(deployment: Deployment, own: dict[str, str]) -> dict[str, Any]:
    """Return what the pods of a pool, which have the labels `own`, say of nodes.

    Prefill and decode pods are kept on one node where they fit it. Where each of several is to have both, pods are
    drawn to those of the other role and spread evenly, as far as the cluster has it.
    """
    roles = {"key": ROLE, "operator": "In", "values": ["prefill", "decode"]}
    term = {"labelSelector": {"matchExpressions": [roles]}, "topologyKey": HOST}
    if all(pool.role == "mixed" for pool in deployment.pools):
        return {}
    if one_host(deployment):
        return {"affinity": {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}}
    if not all(deployment.shares_nodes(name) for name in deployment.models):
        return {}
    even = {"maxSkew": 1, "topologyKey": HOST, "whenUnsatisfiable": "ScheduleAnyway"}
    drawn = [{"weight": 100, "podAffinityTerm": term}]
    return {
        "affinity": {"podAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": drawn}},
        "topologySpreadConstraints": [even | {"labelSelector": {"matchLabels": own}}],
    }


def pod_notes(deployment: Deployment, *, kept: bool) -> list[str]:
    """Return what pods do not have of the nodes that the pools name; `kept`: they have what `standing` says.

    Only pods that all fit one host are kept where they were said to be, on one node.
    """
    said = [f"pools.{number}.nodes" for number, pool in enumerate(deployment.pools) if pool.nodes is not None]
    if not said or (kept and one_host(deployment) and not any(map(deployment.wide, deployment.models))):
        return []
    engine = deployment.pools[0].replica.engine.name
    return [
        f"{', '.join(said)}: pods stand where the cluster has room, not on the nodes that were simulated, so KV may "
        f"take another way than the forecast's: export to {engine}, a script for each replica; or leave nodes out and "
        "predict again"
    ]


def host_notes(deployment: Deployment) -> list[str]:
    """Return where hosts do not follow the nodes that the pools name: hosts of a rack, which is one node."""
    notes = []
    for number, pool in enumerate(deployment.pools):
        card = gpu(pool.replica.gpu)
        if pool.nodes is not None and deployment.wide(pool.model) and host_gpus(card) != card.gpus_per_node:
            notes.append(
                f"pools.{number}.nodes: a host has {host_gpus(card)} of the {card.gpus_per_node} GPUs of a node of "
                f"{card.key}, and hosts are filled one after another: which rack each is in is left to you"
            )
    return notes


def wire_notes(deployment: Deployment) -> list[str]:
    """Return how fast the forecast moved what goes from pod to pod, and what the pods have for it."""
    if all(pool.role == "mixed" for pool in deployment.pools):
        wide = [gpu(pool.replica.gpu) for pool in deployment.pools if spread(pool.replica) > 1]
        return [
            f"a replica of several hosts: the forecast moved activations at {card.rdma_bytes_per_s / 1e9:g} GB/s a GPU "
            f"between them; the pods ask for {RDMA}: put your RDMA device plugin's name of the network cards there; "
            "without it NCCL goes by TCP, far slower"
            for card in wide[:1]
        ]
    link = deployment.link(deployment.models[0])
    slowest = min((gpu(pool.replica.gpu) for pool in deployment.pools), key=lambda card: card.rdma_bytes_per_s)
    cards = node(slowest.key, 1).scale_out
    name = link.name or "kv_link"
    notes = [
        f"KV: the forecast moved it at {link.bytes_per_s / 1e9:g} GB/s a GPU ({name}); the pods ask for {RDMA}: put "
        "your RDMA device plugin's name of the network cards there; without it NIXL goes by TCP, far slower"
    ]
    if link.bytes_per_s > cards.bytes_per_s:
        slower = f"{{name: rdma, bytes_per_s: {cards.bytes_per_s:g}, latency_s: {cards.latency_s:g}}}"
        notes.append(
            f"KV: pods do not reach each other's GPUs by {name}, and the network cards bring "
            f"{cards.bytes_per_s / 1e9:g} GB/s a GPU: headway simulate --set 'kv_link={slower}' predicts with these"
        )
    return notes
