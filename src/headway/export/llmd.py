"""llm-d: vLLM pods with its labels, and values for the InferencePool chart with the endpoint picker's configuration."""

from __future__ import annotations

from typing import Any

from headway.errors import BadInput
from headway.export.engine import Ask
from headway.export.kubernetes import PORT, model_servers, probes
from headway.export.manifests import check, documents
from headway.export.script import commented
from headway.sim import Deployment
from headway.specs import write_yaml

VERSION = "v0.5.0"  # of the picker and of the sidecar
CHART = "oci://registry.k8s.io/gateway-api-inference-extension/charts/inferencepool"
CHART_VERSION = "v1.3.0"  # whose values these are, as llm-d's guides install it
NAME = "headway"  # of the release, and so of its InferencePool
GATEWAY = "inference-gateway"
ROUTE_NOTE = (
    f"route: httproute.yaml leads from a Gateway {GATEWAY} to the pool; put your Gateway's name there, with Istio or "
    "GKE add --set provider.name=istio or gke to helm's line, and on GKE, which has none, leave out the timeouts"
)
LABELS = {"llm-d.ai/inference-serving": "true"}
ENGINE_PORT = 8200  # of a decode replica, behind its sidecar
PICKERS: dict[str, tuple[dict[str, float], str]] = {  # by policy: scorers and weights, and what is not the same
    "least-requests": ({"active-request-scorer": 1.0}, ""),
    "prefix-affinity": (
        {"prefix-cache-scorer": 3.0, "active-request-scorer": 2.0},
        "llm-d adds scores with weights of its own; the policy weighs tokens",
    ),
    "least-tokens": ({"active-request-scorer": 1.0}, "the picker counts requests, no tokens"),
    "power-of-two": ({"active-request-scorer": 1.0}, "the picker looks at every pod, not at two"),
    "round-robin": ({}, "the picker takes a pod at random, not in turn"),
}


def llm_d(deployment: Deployment, asks: list[Ask], head: str) -> tuple[dict[str, str], list[str]]:
    """Return the files and notes.

    Raises:
        BadInput: another engine than vLLM, whose metrics the picker reads and whose KV hand-over the sidecar speaks.
    """
    for ask in asks:
        if ask.replica.engine.name != "vllm":
            raise BadInput(
                f"{ask.where}.replica.engine.name={ask.replica.engine.name}: llm-d's picker reads vLLM's metrics, and "
                "its sidecar hands over as vLLM does; export to dynamo, or plan with engine.name=vllm"
            )
    split = asks[0].role != "mixed"
    objects, notes = model_servers(deployment, asks, LABELS)
    for body in objects:
        _mark(body)
    check(objects)
    notes += [ROUTE_NOTE, *_policy_notes(deployment)]
    route = _route()
    check([route])
    values = {
        "inferenceExtension": {
            "replicas": 1,
            "image": {
                "name": "llm-d-inference-scheduler",
                "hub": "ghcr.io/llm-d",
                "tag": VERSION,
                "pullPolicy": "Always",
            },
            "extProcPort": 9002,
            "flags": {"kv-cache-usage-percentage-metric": "vllm:kv_cache_usage_perc"},
            "pluginsConfigFile": "headway.yaml",
            "pluginsCustomConfig": {"headway.yaml": write_yaml(picker(deployment.policies.route, split))},
        },
        "inferencePool": {
            "targetPorts": [{"number": PORT}],
            "modelServerType": "vllm",
            "modelServers": {"matchLabels": LABELS},
        },
    }
    how = [
        f"helm install {NAME} {CHART} --version {CHART_VERSION} -f inferencepool.values.yaml",
        "kubectl apply -f modelservers.yaml -f httproute.yaml",
    ]
    return {
        "inferencepool.values.yaml": commented([head, *how, *notes], write_yaml(values)),
        "modelservers.yaml": documents([head], objects),
        "httproute.yaml": documents([head], [route]),
    }, notes


def _route() -> dict[str, Any]:
    """All paths of a Gateway to the pool."""
    return {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "HTTPRoute",
        "metadata": {"name": NAME},
        "spec": {
            "parentRefs": [{"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": GATEWAY}],
            "rules": [
                {
                    "matches": [{"path": {"type": "PathPrefix", "value": "/"}}],
                    "backendRefs": [{"group": "inference.networking.k8s.io", "kind": "InferencePool", "name": NAME}],
                    "timeouts": {"request": "0s"},  # none: an answer may take minutes
                }
            ],
        },
    }


def picker(route: str, split: bool) -> dict[str, Any]:
    """Return the endpoint picker's configuration for a routing policy; `split`: prefill and decode pods apart."""
    scorers, _ = PICKERS.get(route, PICKERS["least-requests"])
    choose = "max-score-picker" if scorers else "random-picker"
    refs: list[dict[str, Any]] = [{"pluginRef": name, "weight": weight} for name, weight in scorers.items()] + [
        {"pluginRef": choose}
    ]
    own: list[dict[str, Any]] = [{"type": name} for name in (*scorers, choose)]
    plugins: list[dict[str, Any]]
    if split:
        handler = {"type": "pd-profile-handler", "parameters": {"threshold": 0}}  # 0: every prompt is handed over
        plugins = [
            *({"type": name} for name in ("prefill-header-handler", "prefill-filter", "decode-filter")),
            *own,
            handler,
        ]
        profiles = [
            {"name": role, "plugins": [{"pluginRef": f"{role}-filter"}, *refs]} for role in ("prefill", "decode")
        ]
    else:
        plugins = [*own, {"type": "single-profile-handler"}]
        profiles = [{"name": "default", "plugins": refs}]
    group = "inference.networking.x-k8s.io/v1alpha1"
    return {"apiVersion": group, "kind": "EndpointPickerConfig", "plugins": plugins, "schedulingProfiles": profiles}


def _mark(body: dict[str, Any]) -> None:
    """Give pods the labels of their role, and a decode pod the sidecar that has its prompts prefilled elsewhere."""
    spec = body.get("spec", {})
    templates = [spec["template"]] if body["kind"] == "Deployment" else []
    if body["kind"] == "LeaderWorkerSet":
        templates = [spec["leaderWorkerTemplate"]["leaderTemplate"]]
    for template in templates:
        role = template["metadata"]["labels"]["headway/role"]
        if role == "mixed":
            continue
        template["metadata"]["labels"]["llm-d.ai/role"] = role
        if role == "decode":
            _behind_sidecar(template["spec"])


def _behind_sidecar(pod: dict[str, Any]) -> None:
    engine = pod["containers"][0]
    words = engine["command"]
    words[words.index("--port") + 1] = str(ENGINE_PORT)
    engine["ports"] = [{"name": "engine", "containerPort": ENGINE_PORT}]
    engine.update(probes("engine"))
    args = [f"--port={PORT}", f"--vllm-port={ENGINE_PORT}", "--connector=nixlv2", "--secure-proxy=false"]
    pod["initContainers"] = [
        {
            "name": "routing-proxy",
            "image": f"ghcr.io/llm-d/llm-d-routing-sidecar:{VERSION}",
            "args": args,
            "ports": [{"name": "http", "containerPort": PORT}],
            "restartPolicy": "Always",
            "securityContext": {"allowPrivilegeEscalation": False, "runAsNonRoot": True},
        }
    ]


def _policy_notes(deployment: Deployment) -> list[str]:
    policies, said = deployment.policies, []
    if policies.route not in PICKERS:
        said.append(f"policies.route={policies.route}: the picker has no such plugin and takes the fewest requests")
    elif PICKERS[policies.route][1]:
        said.append(f"policies.route={policies.route}: {PICKERS[policies.route][1]}")
    if policies.admit != "accept-all":
        said.append(f"policies.admit={policies.admit}: the picker admits everything; headway serve runs it")
    if policies.params:
        said.append(f"policies.params of {', '.join(policies.params)}: the picker does not take them")
    return said
