"""Deployments to export, and the commands found again in what was written."""

import shlex
from typing import Any

import msgspec
import pytest
import yaml
from hypothesis import strategies as st

from headway.cost import EngineSettings, Replica
from headway.cost.handover import Side, withheld
from headway.cost.speculation import Speculation
from headway.errors import HeadwayError
from headway.export import Command, export
from headway.hardware import gpu
from headway.model import model
from headway.sim import Deployment, Policies, Pool

REPOSITORIES = {"llama-3.1-70b": "meta-llama/Llama-3.1-70B", "llama-3.2-1b": "meta-llama/Llama-3.2-1B"}


@st.composite
def engines(draw, name=None):
    seqs = draw(st.sampled_from([1, 32, 256]))
    speculation = st.builds(
        Speculation,
        tokens=st.integers(1, 4),
        acceptance=st.just(0.7),
        draft=st.sampled_from(["mtp", "ngram", "llama-3.2-1b"]),
    )
    return EngineSettings(
        name=name or draw(st.sampled_from(["vllm", "sglang", "trtllm"])),
        version=draw(st.sampled_from(["", "0.5"])),
        max_batched_tokens=draw(st.sampled_from([2048, 8192])),
        max_seqs=seqs,
        block_tokens=draw(st.sampled_from([16, 64])),
        prefix_cache=draw(st.booleans()),
        memory_utilization=draw(st.sampled_from([0.85, 0.9, 0.95])),
        poll_steps=draw(st.sampled_from([1, 4])),
        ahead=draw(st.sampled_from([None, True, False])),
        align_steps=draw(st.sampled_from([0, 10])),
        speculation=draw(st.none() | speculation),
    )


@st.composite
def replicas(draw, engine=None):
    key, card = draw(
        st.sampled_from([("llama-3.1-70b", "h100-sxm"), ("llama-3.1-70b", "h200"), ("deepseek-v3", "h200")])
    )
    spec = model(key)
    dp = draw(st.sampled_from([1, 2, 8, 16])) if spec.experts else 1
    tp = draw(st.sampled_from([4, 8] if dp == 1 else [1] if dp == 16 else [1, 1, 2]))  # 32 parts: no whole blocks
    pp = draw(st.sampled_from([1, 2]))
    engine = engine or draw(engines())
    if pp > 1 or dp > 1:  # no speculation is modelled there
        engine = msgspec.structs.replace(engine, speculation=None)
    return Replica(
        model=key,
        gpu=card,
        tp=tp,
        pp=pp,
        dp=dp,
        ep=draw(st.sampled_from([1, tp * dp, tp * dp, tp])) if spec.experts else 1,
        weights=draw(st.sampled_from([spec.native_dtype, "fp8"])),
        kv=draw(st.sampled_from(["bf16", "fp8"])) if "fp8" in gpu(card).peak_flops else "bf16",
        cap_watts=draw(st.sampled_from([None, 500.0])),
        clock_mhz=draw(st.sampled_from([None, 1200.0])),
        engine=engine,
    )


@st.composite
def deployments(draw):
    """Deployments of one engine, whether or not their model fits."""
    first = draw(replicas())
    count = st.integers(1, 3)
    policies = Policies(
        route=draw(st.sampled_from(["round-robin", "least-tokens", "prefix-affinity"])),
        order=draw(st.sampled_from(["fcfs", "priority", "sjf"])),
        admit=draw(st.sampled_from(["accept-all", "queue-limit"])),
    )
    if draw(st.booleans()):
        return Deployment(pools=(Pool(count=draw(count), replica=first),), policies=policies)
    side = Side(gpu(first.gpu), first.tp, first.pp, first.engine.block_tokens)
    if withheld(first.engine.name, model(first.model), side, side):
        first = msgspec.structs.replace(first, pp=1)
    pools = [Pool(role=role, count=draw(count), replica=first) for role in ("prefill", "decode")]
    return Deployment(pools=tuple(pools), policies=policies)


def fits(deployment: Deployment) -> bool:
    """Whether the layout exists and the model fits its memory."""
    from headway.cost import memory_fit

    try:
        for pool in deployment.pools:
            memory_fit(pool.replica)
    except HeadwayError:
        return False
    return True


def commands(files: dict[str, str], engine: str) -> dict[str, Command]:
    """The engine's commands in an export, by the name of the script, service or object that runs them."""
    found: dict[str, Command] = {}
    for name, text in files.items():
        if name.endswith(".sh") and not name.startswith("router"):
            words = shlex.split(text[text.index("exec ") + len("exec ") :].replace("\\\n", " "))
            config = next((files[word.removeprefix("./")] for word in words if word.startswith("./")), "")
            found[name.removesuffix(".sh")] = Command(engine=engine, words=tuple(words), config=config)
    if "compose.yaml" in files:
        for name, service in yaml.safe_load(files["compose.yaml"])["services"].items():
            if name not in ("gateway", "router"):
                config = files.get(f"{name}.yaml", "")
                found[name] = Command(engine=engine, words=tuple(service["command"]), config=config)
    for name in ("kubernetes.yaml", "modelservers.yaml"):
        objects = list(yaml.safe_load_all(files.get(name, "")))
        configs = {
            body["metadata"]["name"]: body["data"]["engine.yaml"]
            for body in objects
            if body and body["kind"] == "ConfigMap"
        }
        for where, pod in pods(objects):
            words = pod["containers"][0]["command"]
            if words[0] != "sh" and where != "router" and not where.endswith("worker"):
                config = configs.get(f"{where}-engine", "")
                found[where] = Command(engine=engine, words=tuple(words), config=config)
    if "dynamo.yaml" in files:
        objects = list(yaml.safe_load_all(files["dynamo.yaml"]))
        configs = {
            body["metadata"]["name"]: body["data"]["engine.yaml"] for body in objects if body["kind"] == "ConfigMap"
        }
        for where, pod in pods(objects):
            if where != "Frontend":
                words = of_worker(engine, pod["containers"][0]["args"])
                found[where] = Command(engine=engine, words=tuple(words), config=configs.get(f"{where}-engine", ""))
    return found


def of_worker(engine: str, args: list[str]) -> list[str]:
    """The engine's own command for the arguments of Dynamo's worker."""
    if engine == "sglang":
        return ["python3", "-m", "sglang.launch_server", *args]
    if "--disaggregation-mode" in args:
        at = args.index("--disaggregation-mode")
        args = args[:at] + args[at + 2 :]
    return ["vllm", "serve", args[1], *args[2:]] if engine == "vllm" else ["trtllm-serve", args[1]]


def pods(objects: list[Any]) -> list[tuple[str, dict[str, Any]]]:
    """The pods that objects of Kubernetes make, by the object's name; a worker's ends with worker."""
    found = []
    for body in filter(None, objects):
        name, spec = body["metadata"]["name"], body.get("spec", {})
        if body["kind"] == "Deployment":
            found.append((name, spec["template"]["spec"]))
        if body["kind"] == "LeaderWorkerSet":
            template = spec["leaderWorkerTemplate"]
            found += [
                (name, template["leaderTemplate"]["spec"]),
                (f"{name}-worker", template["workerTemplate"]["spec"]),
            ]
        if body["kind"] == "DynamoGraphDeployment":
            found += [(each["name"], each["podTemplate"]["spec"]) for each in spec["components"]]
    return found


def refused(error: type[HeadwayError], deployment: Deployment, to: str, parts: list[str]) -> None:
    """Hold an export to its refusal, which has these parts."""
    with pytest.raises(error) as came:
        export(deployment, to)
    for part in parts:
        assert part in str(came.value)
