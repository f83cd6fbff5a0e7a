"""Headway: which deployment serves a language-model workload within its SLOs, at the least cost and energy.

The names below load their room on first use, so `import headway` stays fast. Rooms that carry the name of
their verb are reached as modules: `headway.plan.plan(...)`, `headway.workload.workload("chat")`.
"""

from __future__ import annotations

import importlib

TYPE_CHECKING = False  # as in `typing`, whose import is most of the time until `headway.cli` can answer to Ctrl-C

if TYPE_CHECKING:
    from typing import Any

    from headway.cost import EngineSettings, Replica
    from headway.hardware import Gpu
    from headway.metrics import Result, Slo
    from headway.model import Model
    from headway.policies import Policy
    from headway.sim import Deployment, Pool, simulate
    from headway.workload import Workload

__version__ = "0.1.0"
__all__ = [
    "Deployment",
    "EngineSettings",
    "Gpu",
    "Model",
    "Policy",
    "Pool",
    "Replica",
    "Result",
    "Slo",
    "Workload",
    "interpreted_modules",
    "simulate",
]

_ROOM = {
    "Deployment": "sim",
    "EngineSettings": "cost",
    "Gpu": "hardware",
    "Model": "model",
    "Policy": "policies",
    "Pool": "sim",
    "Replica": "cost",
    "Result": "metrics",
    "Slo": "metrics",
    "Workload": "workload",
    "simulate": "sim",
}


def __getattr__(name: str) -> Any:
    if name in _ROOM:
        return getattr(importlib.import_module(f"headway.{_ROOM[name]}"), name)
    from pathlib import Path

    if (Path(__file__).parent / name / "__init__.py").is_file():
        return importlib.import_module(f"headway.{name}")
    raise AttributeError(f"module 'headway' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def interpreted_modules() -> list[str]:
    """Return the core's modules that run uncompiled here: all when no C compiler was found, else none."""
    from importlib.machinery import EXTENSION_SUFFIXES
    from pathlib import Path

    here = Path(__file__).parent
    paired = [path for path in sorted(here.rglob("*.pxd")) if path.with_suffix(".py").exists()]
    plain = [path for path in paired if not any(path.with_suffix(end).exists() for end in EXTENSION_SUFFIXES)]
    return [".".join(("headway", *path.relative_to(here).with_suffix("").parts)) for path in plain]
