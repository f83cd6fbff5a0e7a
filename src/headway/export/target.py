"""What there is to export to, which version of it is meant, and what an export is."""

from __future__ import annotations

from headway.errors import UnknownName
from headway.export.recorded import recorded
from headway.specs import Spec

__all__ = ["Exported", "Target", "target", "targets"]


class Target(Spec, frozen=True, kw_only=True):
    """`checked` says what the export is held against before it is handed out; `source` is where that is from."""

    name: str
    version: str
    about: str
    checked: str
    source: str


class Exported(Spec, frozen=True, kw_only=True):
    """Files by name, as text; `notes`: what the target cannot express, and what is left to do by hand."""

    target: Target
    files: dict[str, str]
    notes: tuple[str, ...] = ()


COMPOSE = "compose-spec.io"
LWS = "LeaderWorkerSet v1, config/samples at 2087650 of kubernetes-sigs/lws (Apache-2.0)"
POOL = "guides/pd-disaggregation/gaie-pd/values.yaml at 126f65d of llm-d/llm-d; cmd/pd-sidecar (Apache-2.0)"
GRAPH = "dynamo/profiler/templates/dgd of ai-dynamo 1.6.1 (Apache-2.0)"


def targets() -> list[Target]:
    """Return every target, engines first."""
    router = recorded("vllm-router").version
    by_parser = "every command, by the engine's own parser, recorded"
    found = [
        Target(
            name=name,
            version=f"{title} {recorded(name).version}",
            about=about,
            checked=checked,
            source=recorded(name).source,
        )
        for name, title, about, checked in (
            (
                "vllm",
                "vLLM",
                f"vllm serve, a script per replica; vLLM Router {router} before prefill and decode",
                by_parser,
            ),
            ("sglang", "SGLang", "python -m sglang.launch_server, a script per replica", by_parser),
            (
                "trtllm",
                "TensorRT-LLM",
                "trtllm-serve with its YAML, a script per replica",
                "every command and its YAML, by options and fields read in its source",
            ),
        )
    ]
    required = "every command; fields that their kinds require"
    rest = (
        (
            "compose",
            "the Compose specification",
            "docker compose on one machine: replicas, gateway",
            "every command",
            COMPOSE,
        ),
        ("kubernetes", "Kubernetes 1.33, LWS v1", "Deployments, LeaderWorkerSets and Services", required, LWS),
        ("llm-d", "llm-d 0.5, InferencePool v1", "model servers, values of the pool and its picker", required, POOL),
        ("dynamo", "NVIDIA Dynamo 1.6.1", "a DynamoGraphDeployment of v1beta1", required, GRAPH),
        ("gateway", "Headway", "the file that headway serve reads", "the file, by headway's own reader", "headway"),
    )
    named = ("name", "version", "about", "checked", "source")
    return found + [Target(**dict(zip(named, row, strict=True))) for row in rest]


def target(name: str) -> Target:
    """Return a target by its name; raises `UnknownName` with the nearest."""
    found = {each.name: each for each in targets()}
    if name not in found:
        raise UnknownName("export", name, found)
    return found[name]
