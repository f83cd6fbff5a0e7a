"""Finds policies by name, or a user's own by `module:Class`."""

from __future__ import annotations

import importlib
from typing import Any

from headway.errors import BadInput, UnknownName
from headway.policies import admission, choosing, ordering, retaining, routing, scaling
from headway.policies.base import Policy

POLICIES: dict[str, dict[str, type[Policy]]] = {
    "route": {
        "round-robin": routing.RoundRobin,
        "least-requests": routing.LeastRequests,
        "weighted-requests": routing.WeightedRequests,
        "least-tokens": routing.LeastTokens,
        "power-of-two": routing.PowerOfTwo,
        "prefix-affinity": routing.PrefixAffinity,
        "late-binding": routing.LateBinding,
        "same-node": routing.SameNode,
    },
    "order": {
        "fcfs": ordering.Fcfs,
        "priority": ordering.Priority,
        "sjf": ordering.ShortestJobFirst,
        "edf": ordering.EarliestDeadlineFirst,
    },
    "admit": {
        "accept-all": admission.AcceptAll,
        "queue-limit": admission.QueueLimit,
        "off-peak": admission.OffPeak,
    },
    "choose_model": {
        "first": choosing.First,
        "threshold": choosing.Threshold,
        "by-class": choosing.ByClass,
        "in-time": choosing.InTime,
    },
    "retain": {"lru": retaining.Lru, "keep-sessions": retaining.KeepSessions},
    "scale": {"fixed": scaling.Fixed, "target-load": scaling.TargetLoad},
}


def policy_names(kind: str) -> list[str]:
    """Names of the built-in policies for a decision point.

    Raises `UnknownName` with those there are: "route", "order", "admit", "choose_model", "retain" and "scale".
    """
    if kind not in POLICIES:
        raise UnknownName("decision point", kind, list(POLICIES))
    return list(POLICIES[kind])


def policy(kind: str, name: str, params: dict[str, Any] | None = None) -> Policy:
    """Build the policy `name` for the decision point `kind`.

    `name` is a built-in name or `module:Class`, looked up on the import path. Raises
    `UnknownName` with the nearest names, and `BadInput` when the class cannot be found, built, or does not override
    the method that this decision point calls.
    """
    if ":" in name:
        cls = _user_class(name)
    elif name in (known := POLICIES.get(kind, {})):
        cls = known[name]
    else:
        raise UnknownName(f"{kind} policy", name, policy_names(kind))
    try:
        built = cls(**(params or {}))
    except TypeError as error:
        raise BadInput(f"{kind} policy {name!r} cannot be built with {params or {}}: {error}") from None
    if not isinstance(built, Policy):
        raise BadInput(f"{name!r} is not a policy: make its class a subclass of headway.Policy")
    if ":" in name and getattr(cls, kind) is getattr(Policy, kind):
        raise BadInput(f"{name!r} does not define {kind}(), which every policy for {kind}= overrides")
    return built


def _user_class(name: str) -> type[Policy]:
    module_name, _, class_name = name.partition(":")
    if not all(module_name.split(".")):
        raise BadInput(f"policy {name!r}: {module_name!r} names no module; write module:Class, as in mine:Router")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise BadInput(
            f"cannot import {module_name!r} of policy {name!r}: {error}; give module:Class with the "
            "module on the import path"
        ) from None
    found = getattr(module, class_name, None)
    if found is None:
        classes = [k for k, v in vars(module).items() if isinstance(v, type) and issubclass(v, Policy)]
        raise UnknownName(f"class in module {module_name}", class_name, classes)
    if not isinstance(found, type):
        raise BadInput(f"{name!r} is a {type(found).__name__}, not a class")
    return found
