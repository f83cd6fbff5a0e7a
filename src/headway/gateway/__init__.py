"""The live gateway: Envoy carries the traffic, the policies that won in the simulator decide.

Lives here: `Brain` (events in, decisions out, no I/O), its books, and its hosts: `Decider`, `Supervisor`.
May import: policies, state, metrics, workload, cost, model, hardware; never sim or bench.
Start reading in `brain.py`, then `decider.py`; `envoy_config.py` is what Envoy is told.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # loaded when first used: the supervisor needs neither the brain nor what that needs
    from typing import Any

    from headway.gateway.books import Backing
    from headway.gateway.brain import Brain
    from headway.gateway.decider import Decider
    from headway.gateway.deciding import decide
    from headway.gateway.hosts import addresses_in
    from headway.gateway.reading import Reader
    from headway.gateway.spec import GatewaySpec, SloClass, Tenant, is_loopback, with_models
    from headway.gateway.supervisor import Supervisor

__all__ = [
    "Backing",
    "Brain",
    "Decider",
    "GatewaySpec",
    "Reader",
    "SloClass",
    "Supervisor",
    "Tenant",
    "addresses_in",
    "decide",
    "is_loopback",
    "with_models",
]

_HOME = {
    "Backing": "books",
    "Brain": "brain",
    "Decider": "decider",
    "GatewaySpec": "spec",
    "Reader": "reading",
    "SloClass": "spec",
    "Supervisor": "supervisor",
    "Tenant": "spec",
    "addresses_in": "hosts",
    "decide": "deciding",
    "is_loopback": "spec",
    "with_models": "spec",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'headway.gateway' has no attribute {name!r}")
    return getattr(importlib.import_module(f"headway.gateway.{_HOME[name]}"), name)
