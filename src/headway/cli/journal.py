"""What follows a host's brain: the shadow policies, and the decision log."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from headway.cli.serve import Served
    from headway.cli.terminal import Terminal
    from headway.gateway import Decider, GatewaySpec
    from headway.gateway.log.writer import LogWriter
    from headway.gateway.shadow import Shadow


@contextmanager
def followed(decider: Decider, served: Served, seed: int, terminal: Terminal) -> Iterator[None]:
    """Ask the shadow and write the log, as far as the file asks for them, while the host runs inside."""
    decider.brain.shadow = shadow = _shadow(served.spec, seed)
    if shadow is not None:
        decider.overview.shadow = shadow.status
    log = _log(served, seed, terminal)
    if log is None:
        yield
        return
    decider.journal = log
    log.follow(decider.brain)
    try:
        yield
    finally:
        log.close(decider.now())


def _shadow(spec: GatewaySpec, seed: int) -> Shadow | None:
    if spec.shadow is None:
        return None
    from headway.gateway.shadow import Alarm, Shadow
    from headway.policies import policy

    asked = {kind: getattr(spec.shadow, kind) for kind in ("route", "admit")}
    policies = {kind: policy(kind, name, spec.shadow.params.get(kind)) for kind, name in asked.items() if name}
    return Shadow(policies, seed, Alarm())


def _log(served: Served, seed: int, terminal: Terminal) -> LogWriter | None:
    if served.spec.log is None:
        return None
    import headway
    from headway.gateway.log.writer import LogWriter, header_of
    from headway.specs import to_mapping

    described: Any = served.deployment
    file = {"policies": to_mapping(served.names)} if described is None else to_mapping(described, defaults=True)
    file["gateway"] = to_mapping(served.spec, defaults=True)
    return LogWriter(served.spec.log, header_of(served.spec, file, seed, headway.__version__), terminal.note)


def rows(spec: GatewaySpec) -> Iterator[tuple[str, str]]:
    """What the summary of a file says of both."""
    from headway.units import format_bytes, format_seconds

    if spec.shadow is not None:
        named = [("route", spec.shadow.route), ("admit", spec.shadow.admit)]
        asked = ", ".join(f"{kind} {name}" for kind, name in named if name)
        yield "shadow", f"{asked}: asked beside the live ones, decides nothing"
    if spec.log is not None:
        kept = f"at most {format_bytes(spec.log.max_bytes)}, {format_seconds(spec.log.max_age_s)}"
        yield "log", f"{spec.log.folder}, {kept}, {'with' if spec.log.prompts else 'without'} prompts"
