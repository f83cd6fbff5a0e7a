"""Objects of Kubernetes as text, held against the fields that their kinds require."""

from __future__ import annotations

import re
from typing import Any

from headway.errors import BadInput
from headway.export.script import commented
from headway.specs import write_yaml

__all__ = ["check", "documents"]

# By kind: its group and version, and the paths that must be there ([] is any entry). From the API reference of
# Kubernetes 1.33, the resource definitions of LeaderWorkerSet v1 and of the Gateway API's HTTPRoute v1, and ai-dynamo's
# own templates.
POD = ("spec.containers[].name", "spec.containers[].image", "spec.containers[].resources.limits")
KINDS: dict[str, tuple[str, tuple[str, ...]]] = {
    "Deployment": (
        "apps/v1",
        ("spec.selector.matchLabels", "spec.template.metadata.labels", *(f"spec.template.{p}" for p in POD)),
    ),
    "Service": ("v1", ("spec.selector", "spec.ports[].port")),
    "ConfigMap": ("v1", ("data",)),
    "ServiceAccount": ("v1", ()),
    "Role": (
        "rbac.authorization.k8s.io/v1",
        ("rules[].apiGroups", "rules[].resources", "rules[].verbs"),
    ),
    "RoleBinding": (
        "rbac.authorization.k8s.io/v1",
        ("roleRef.apiGroup", "roleRef.kind", "roleRef.name", "subjects[].kind", "subjects[].name"),
    ),
    "LeaderWorkerSet": (
        "leaderworkerset.x-k8s.io/v1",
        ("spec.replicas", "spec.leaderWorkerTemplate.size",
         *(f"spec.leaderWorkerTemplate.{part}.{p}" for part in ("leaderTemplate", "workerTemplate") for p in POD)),
    ),
    "HTTPRoute": (
        "gateway.networking.k8s.io/v1", ("spec.parentRefs[].name", "spec.rules[].backendRefs[].name"),
    ),
    "DynamoGraphDeployment": (
        "nvidia.com/v1beta1",
        ("spec.components[].name", "spec.components[].type", "spec.components[].replicas",
         "spec.components[].podTemplate.spec.containers[].image"),
    ),
}  # fmt: skip
_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_LABEL = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")


def check(objects: list[dict[str, Any]]) -> None:
    """Refuse what the API server would: kinds, required fields, names, labels, a selector that its pods do not meet.

    Raises:
        BadInput: naming the object and the field.
    """
    for body in objects:
        kind, name = str(body.get("kind")), str(body.get("metadata", {}).get("name"))
        where = f"{kind} {name}"
        if kind not in KINDS or body.get("apiVersion") != KINDS[kind][0]:
            raise BadInput(f"{where}: apiVersion {body.get('apiVersion')!r} has no such kind")
        if not _NAME.fullmatch(name):
            raise BadInput(f"{where}: a name has up to 63 small letters, digits and hyphens")
        for path in KINDS[kind][1]:
            if not all(value not in (None, "", {}, []) for value in _at(body, path.replace("[]", ".[]").split("."))):
                raise BadInput(f"{where}: {path} is missing")
        for labels in (
            body["metadata"].get("labels", {}),
            body["spec"].get("selector", {}) if kind == "Service" else {},
        ):
            for value in labels.values():
                if not _LABEL.fullmatch(value):
                    raise BadInput(
                        f"{where}: {value!r} is no label: up to 63 letters, digits, hyphens, dots and underscores"
                    )
        if kind == "Deployment":
            wanted, has = body["spec"]["selector"]["matchLabels"], body["spec"]["template"]["metadata"]["labels"]
            if not wanted.items() <= has.items():
                raise BadInput(f"{where}: its pods have {has}, and it selects {wanted}")


def _at(node: Any, steps: list[str]) -> list[Any]:
    """The values at a path, a None for each that is missing."""
    if not steps:
        return [node]
    if steps[0] == "[]":
        return [value for each in node for value in _at(each, steps[1:])] if isinstance(node, list) and node else [None]
    return _at(node.get(steps[0]), steps[1:]) if isinstance(node, dict) else [None]


def documents(said: list[str], objects: list[dict[str, Any]]) -> str:
    """Return objects as one YAML file of several documents, below comments."""
    return commented(said, "---\n".join(write_yaml(body) for body in objects))
