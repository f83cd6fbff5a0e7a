"""Kubernetes: a Deployment for a pool, a LeaderWorkerSet where a replica spans hosts, and a Service before each."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import msgspec

from headway.cost import memory_fit
from headway.errors import BadInput
from headway.export.engine import HEALTH, Ask, Command, command
from headway.export.manifests import check, documents
from headway.export.place import spread
from headway.export.routers import ROUTER_PORT, router_image, router_notes, vllm_router
from headway.export.vendors import image, power_limits, vendor
from headway.export.wires import ROLE, pod_notes, standing, wire, wire_notes
from headway.hardware import is_file
from headway.sim import Deployment

PORT = 8000
CONFIG_FOLDER = "/etc/headway"
LEADER, WORKER = "$(LWS_LEADER_ADDRESS)", "$(LWS_WORKER_INDEX)"  # of LeaderWorkerSet, in every container
GPU_LABEL = "headway/gpu"
GIB = 1 << 30


def kubernetes(deployment: Deployment, asks: list[Ask], head: str) -> tuple[dict[str, str], list[str]]:
    """Return the file and the notes; before prefill and decode pools stands vLLM Router, which finds their pods.

    Raises:
        BadInput: prefill and decode pools of another engine than vLLM.
    """
    engine, policies = asks[0].replica.engine.name, deployment.policies
    split = asks[0].role != "mixed"
    if split and engine != "vllm":
        raise BadInput(
            f"{asks[0].where}.replica.engine.name={engine}: prefill and decode pods need a router, and the router of "
            f"{engine} is given fixed addresses, which pods do not have: export to dynamo, or to {engine} or compose "
            "for fixed hosts"
        )
    made, notes = model_servers(deployment, asks)
    if split:
        front = _router(policies.route)
        check(front)
        made += front
        notes += router_notes(engine, policies.route)
    else:
        notes += [
            f"policies.route={policies.route}, admit={policies.admit}: a Service takes any pod; llm-d and headway "
            "choose"
        ]
    return {"kubernetes.yaml": documents([head, *notes], made)}, notes


def _router(route: str) -> list[dict[str, Any]]:
    """vLLM Router as a Deployment that may see the namespace's pods, and finds those of both roles by their label."""
    own = {"app.kubernetes.io/name": "headway", "app.kubernetes.io/component": "router"}
    meta = {"name": "router", "labels": own}
    find = ["--service-discovery", "--service-discovery-namespace", "$(POD_NAMESPACE)"]
    find += ["--service-discovery-port", str(PORT)]
    for role in ("prefill", "decode"):
        find += [f"--{role}-selector", f"headway/role={role}"]
    get = {"httpGet": {"path": HEALTH, "port": "http"}}
    resources = {"cpu": "2", "memory": "2Gi"}
    container = {
        "name": "router",
        "image": router_image("vllm", ""),
        "command": list(vllm_router(route, find)),
        "env": [{"name": "POD_NAMESPACE", "valueFrom": {"fieldRef": {"fieldPath": "metadata.namespace"}}}],
        "ports": [{"name": "http", "containerPort": ROUTER_PORT}],
        "resources": {"limits": resources, "requests": dict(resources)},
        "readinessProbe": {**get, "periodSeconds": 5, "timeoutSeconds": 2, "failureThreshold": 3},
        "livenessProbe": {**get, "periodSeconds": 10, "timeoutSeconds": 5, "failureThreshold": 6},
    }
    pod = {"serviceAccountName": "router", "containers": [container]}
    rbac = "rbac.authorization.k8s.io"
    rule = {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch"]}
    return [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta},
        {"apiVersion": f"{rbac}/v1", "kind": "Role", "metadata": meta, "rules": [rule]},
        {
            "apiVersion": f"{rbac}/v1",
            "kind": "RoleBinding",
            "metadata": meta,
            "roleRef": {"apiGroup": rbac, "kind": "Role", "name": "router"},
            "subjects": [{"kind": "ServiceAccount", "name": "router"}],
        },
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": meta,
            "spec": {
                "replicas": 1,
                "selector": {"matchLabels": own},
                "template": {"metadata": {"labels": own}, "spec": pod},
            },
        },
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": meta,
            "spec": {"selector": own, "ports": [{"name": "http", "port": PORT, "targetPort": "http"}]},
        },
    ]


def model_servers(
    deployment: Deployment, asks: list[Ask], labels: dict[str, str] | None = None
) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the objects of every pool; `labels` are put on the pods that answer requests, beside their pool's."""
    made: list[dict[str, Any]] = []
    notes = [*label_notes(asks), *wire_notes(deployment), *pod_notes(deployment, kept=True)]
    for pool, ask, pool_name in zip(deployment.pools, asks, deployment.pool_names(), strict=True):
        name = pool_name.replace(".", "-")
        own = {"app.kubernetes.io/name": "headway", "app.kubernetes.io/component": name}
        objects, said = _pool(ask, name, own, labels or {}, pool.count, standing(deployment, own))
        made += objects
        power = [f"on the nodes of {name}: {line}" for line in power_limits(ask.replica, "0,1,...")]
        notes += [note for note in (*said, *power) if note not in notes]
    check(made)
    return made, notes


def label_notes(asks: list[Ask]) -> list[str]:
    """Return how the nodes of each kind of GPU are labelled, so that the pods of a pool find theirs."""
    kinds = dict.fromkeys(label(ask.replica.gpu) for ask in asks)
    return [f"label the nodes by their GPU: kubectl label node NODE {GPU_LABEL}={kind}" for kind in kinds]


def label(key: str) -> str:
    """Return a GPU's key as a label's value; of a file that describes one, the file's name."""
    return Path(key).stem if is_file(key) else key


def _pool(
    ask: Ask, name: str, own: dict[str, str], labels: dict[str, str], count: int, stand: dict[str, Any]
) -> tuple[list[dict[str, Any]], tuple[str, ...]]:
    hosts = spread(ask.replica)
    if hosts > 1 and ask.replica.engine.name == "trtllm":
        raise BadInput(
            f"{ask.where}: TensorRT-LLM starts a replica on {hosts} hosts by srun or mpirun, which no pod does: "
            "export to trtllm, or to dynamo"
        )
    first = msgspec.structs.replace(ask, port=PORT, hosts=hosts, head=LEADER if hosts > 1 else "127.0.0.1",
                                    config=f"{CONFIG_FOLDER}/engine.yaml")  # fmt: skip
    made = command(first)
    pod = _pod(first, made.words, made, name) | stand
    marked = {**own, **labels, ROLE: ask.role}
    meta = {"name": name, "labels": own}
    selector: dict[str, str] = own
    if hosts == 1:
        template = {"metadata": {"labels": marked}, "spec": pod}
        spec = {"replicas": count, "selector": {"matchLabels": own}, "template": template}
        body = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": meta, "spec": spec}
    else:
        selector = {**own, "headway/part": "leader"}
        body = _leader_worker_set(first, meta, pod, marked, count)
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": meta,
        "spec": {"selector": selector, "ports": [{"name": "http", "port": PORT, "targetPort": "http"}]},
    }
    maps = []
    if made.config:
        data = {"engine.yaml": made.config}
        maps = [
            {
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": {"name": f"{name}-engine", "labels": own},
                "data": data,
            }
        ]
    return [*maps, body, service], made.notes


def _leader_worker_set(
    first: Ask, meta: dict[str, Any], pod: dict[str, Any], marked: dict[str, str], count: int
) -> dict[str, Any]:
    made = command(msgspec.structs.replace(first, host=1))
    worker = _pod(first, ranked(made), made, meta["name"])
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):  # only the leader answers requests
        worker["containers"][0].pop(probe)
    worker["containers"][0].pop("ports")
    template = {
        "size": first.hosts,
        "restartPolicy": "RecreateGroupOnPodRestart",
        "leaderTemplate": {"metadata": {"labels": {**marked, "headway/part": "leader"}}, "spec": pod},
        "workerTemplate": {"metadata": {"labels": {**meta["labels"], "headway/part": "worker"}}, "spec": worker},
    }
    spec = {"replicas": count, "startupPolicy": "LeaderCreated", "leaderWorkerTemplate": template}
    return {"apiVersion": "leaderworkerset.x-k8s.io/v1", "kind": "LeaderWorkerSet", "metadata": meta, "spec": spec}


def ranked(made: Command) -> tuple[str, ...]:
    """Return a second host's command with its numbers taken from the worker's index, so that it is every worker's."""
    words = list(made.words)
    for flag in ("--node-rank", "--data-parallel-start-rank"):
        if flag in words:
            at = words.index(flag) + 1
            words[at] = WORKER if words[at] == "1" else f"$((LWS_WORKER_INDEX * {words[at]}))"
    if not any(word.startswith("$((") for word in words):
        return tuple(words)
    line = " ".join(word if word.startswith("$(") else shlex.quote(word) for word in words)
    return ("sh", "-c", f"exec {line}")  # a product is the shell's to compute


def _pod(ask: Ask, words: tuple[str, ...], made: Command, name: str) -> dict[str, Any]:
    replica, port = ask.replica, ask.port
    gpus = {vendor(replica, ask.where).resource: str(ask.host_gpus)}
    fit = memory_fit(replica)
    host_gib = max(
        16, -(-fit.weight_bytes * ask.host_gpus // GIB)
    )  # a host reads its share of the weights through memory
    env: list[dict[str, Any]] = [
        {"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "hf-token", "key": "token", "optional": True}}}
    ]
    for variable, value in made.env.items():
        own_ip = {"valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}
        env.append({"name": variable, **(own_ip if variable.endswith("_HOST") else {"value": value})})
    container: dict[str, Any] = {
        "name": "engine",
        "image": image(made.engine, replica.gpu),
        "command": list(words),
        "env": env,
        "ports": [{"name": "http", "containerPort": port}],
        "resources": {"limits": dict(gpus), "requests": {**gpus, "memory": f"{host_gib}Gi"}},
        "volumeMounts": [
            {"name": "shm", "mountPath": "/dev/shm"},
            {"name": "models", "mountPath": "/root/.cache/huggingface"},
        ],
        **probes("http"),
    }
    volumes: list[dict[str, Any]] = [
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "16Gi"}},
        {"name": "models", "emptyDir": {}},
    ]
    if made.config:
        container["volumeMounts"].append({"name": "config", "mountPath": CONFIG_FOLDER})
        volumes.append({"name": "config", "configMap": {"name": f"{name}-engine"}})
    if ask.role != "mixed" or ask.hosts > 1:
        wire(container)
    return {
        "nodeSelector": {GPU_LABEL: label(replica.gpu)},
        "terminationGracePeriodSeconds": 90,
        "containers": [container],
        "volumes": volumes,
    }


def probes(port: str) -> dict[str, Any]:
    """Return the probes of an engine: 40 minutes to load, then out of the Service after 15 s of silence."""
    get = {"httpGet": {"path": HEALTH, "port": port}}
    return {
        "startupProbe": {**get, "periodSeconds": 10, "timeoutSeconds": 5, "failureThreshold": 240},
        "readinessProbe": {**get, "periodSeconds": 5, "timeoutSeconds": 2, "failureThreshold": 3},
        "livenessProbe": {**get, "periodSeconds": 10, "timeoutSeconds": 5, "failureThreshold": 6},
    }
