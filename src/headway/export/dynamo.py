"""NVIDIA Dynamo: a DynamoGraphDeployment with a frontend and a component for each pool."""

from __future__ import annotations

from typing import Any

import msgspec

from headway.export.engine import Ask, command
from headway.export.kubernetes import CONFIG_FOLDER, GPU_LABEL, label, label_notes
from headway.export.manifests import check, documents
from headway.export.place import spread
from headway.export.vendors import image, power_limits
from headway.export.wires import pod_notes, wire, wire_notes
from headway.sim import Deployment

VERSION = "1.6.1"
ENGINES = {"vllm": "0.31.0", "sglang": "0.5.21", "trtllm": "1.3.0rc29"}  # that this Dynamo's package requires
RUNTIMES = {"vllm": "vllm-runtime", "sglang": "sglang-runtime", "trtllm": "tensorrtllm-runtime"}
ROUTES = {
    "round-robin": "round-robin",
    "least-requests": "least-loaded",
    "power-of-two": "power-of-two",
    "prefix-affinity": "kv",
}
SERVER_FLAGS = {"--host": 2, "--port": 2, "--enable-metrics": 1}  # of an engine's own server, with how many words


def dynamo(deployment: Deployment, asks: list[Ask], head: str) -> tuple[dict[str, str], list[str]]:
    """Return the file and notes; raises BadInput where an engine cannot be given a setting."""
    engine = asks[0].replica.engine.name
    runtime = f"nvcr.io/nvidia/ai-dynamo/{RUNTIMES[engine]}:{VERSION}"
    route = deployment.policies.route
    mode = ROUTES.get(route, "kv")
    notes = [
        f"Dynamo {VERSION} brings {engine} {ENGINES[engine]}; the flags were checked against those of "
        f"{image(engine, asks[0].replica.gpu)}"
    ]
    if route not in ROUTES:
        notes.append(f"policies.route={route}: Dynamo has no such mode and goes by its index of prefixes (kv)")
    if deployment.policies.admit != "accept-all":
        notes.append(
            f"policies.admit={deployment.policies.admit}: Dynamo's frontend admits everything; headway serve runs it"
        )
    front = _container(["python3", "-m", "dynamo.frontend"], ["--router-mode", mode], runtime)
    components: list[dict[str, Any]] = [_component("Frontend", "frontend", 1, {"containers": [front]})]
    maps: list[dict[str, Any]] = []
    for pool, ask, pool_name in zip(deployment.pools, asks, deployment.pool_names(), strict=True):
        name = pool_name.replace(".", "-")
        made, config, said = _worker(ask, name, pool.count, runtime)
        components.append(made)
        maps += config
        notes += [note for note in said if note not in notes]
    notes += [*label_notes(asks), *wire_notes(deployment), *pod_notes(deployment, kept=False)]
    graph = {
        "apiVersion": "nvidia.com/v1beta1",
        "kind": "DynamoGraphDeployment",
        "metadata": {"name": "headway"},
        "spec": {"backendFramework": engine, "components": components},
    }
    check([*maps, graph])
    return {"dynamo.yaml": documents([head, *notes], [*maps, graph])}, notes


def _worker(ask: Ask, name: str, count: int, runtime: str) -> tuple[dict[str, Any], list[dict[str, Any]], list[str]]:
    """A pool's component, the ConfigMap of its engine's file, and notes; the operator adds what several hosts need."""
    hosts, engine = spread(ask.replica), ask.replica.engine.name
    made = command(msgspec.structs.replace(ask, config=f"{CONFIG_FOLDER}/engine.yaml"))
    maps: list[dict[str, Any]] = []
    pod: dict[str, Any] = {"nodeSelector": {GPU_LABEL: label(ask.replica.gpu)}}
    args = worker_args(engine, made.words, ask.name)
    if ask.role != "mixed" and "--disaggregation-mode" not in args:
        args += ["--disaggregation-mode", ask.role]
    container = _container(["python3", "-m", f"dynamo.{engine}"], args, runtime)
    container["resources"] = {"limits": {"nvidia.com/gpu": str(ask.replica.gpus // hosts)}}
    env = [{"name": key, "value": value} for key, value in made.env.items() if not key.startswith("VLLM_NIXL_")]
    if env:  # where its workers meet for NIXL Dynamo says itself
        container["env"] = env
    if ask.role != "mixed" or hosts > 1:
        wire(container)
    if made.config:
        data = {"engine.yaml": made.config}
        maps = [{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": f"{name}-engine"}, "data": data}]
        container["volumeMounts"] = [{"name": "config", "mountPath": CONFIG_FOLDER}]
        pod["volumes"] = [{"name": "config", "configMap": {"name": f"{name}-engine"}}]
    pod["containers"] = [container]
    component = _component(name, "worker" if ask.role == "mixed" else ask.role, count, pod)
    if hosts > 1:
        component["multinode"] = {"nodeCount": hosts}
    power = [f"on the nodes of {name}: {line}" for line in power_limits(ask.replica, "0,1,...")]
    said = [note for note in made.notes if not note.startswith("served name")]  # a worker here is told the name
    return component, maps, [*said, *power]


def worker_args(engine: str, words: tuple[str, ...], name: str) -> list[str]:
    """Return an engine's flags as Dynamo's worker takes them: without those of the engine's own server."""
    if engine == "trtllm":
        config = words[words.index("--config") + 1]
        model = words[words.index("trtllm-serve") + 1]
        return ["--model", model, "--served-model-name", name, "--extra-engine-args", config]
    left = ["--model", words[2]] if engine == "vllm" else []
    rest, at = words[3:], 0
    while at < len(rest):
        if rest[at] in SERVER_FLAGS:
            at += SERVER_FLAGS[rest[at]]
        elif rest[at] == "--attn-dp-size":  # sglang 0.5.21 has the older spelling alone
            left += ["--dp-size", rest[at + 1], "--enable-dp-attention"]
            at += 2
        else:
            left.append(rest[at])
            at += 1
    return left


def _container(program: list[str], args: list[str], runtime: str) -> dict[str, Any]:
    secret = {"secretRef": {"name": "hf-token-secret"}}
    limits = {"resources": {"limits": {"cpu": "8"}}}
    return {"name": "main", "image": runtime, "command": program, "args": args, "envFrom": [secret], **limits}


def _component(name: str, kind: str, replicas: int, pod: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "type": kind, "replicas": replicas, "podTemplate": {"spec": pod}}
