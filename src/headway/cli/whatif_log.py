"""What would have come of the traffic in a gateway's decision log, had it been served otherwise."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from headway.cli import options as o
from headway.cli.change import changed, changed_deployment
from headway.cli.replay import logged
from headway.cli.terminal import Terminal, note_interpreted
from headway.cli.whatif import keep, made_folder, show, simulated
from headway.errors import BadInput, UnknownName

if TYPE_CHECKING:
    from headway.cli.serve import Served
    from headway.gateway.log.reader import Run
    from headway.gateway.log.traffic import Traffic
    from headway.metrics import Result
    from headway.plan.otherwise import Case
    from headway.sim import Deployment
    from headway.workload import Workload

BLOCK_TOKENS = 64
NAMED = 5  # runs that a note names
NOT_SIMULATED = (
    "Not simulated: Headway's queue (requests wait at their replica, which runs as many as limits.in_flight lets "
    "through), refusals by prediction, callers who leave, failures."
)


def whatif_of_log(log: str, changes: list[str], asked: o.Options, terminal: Terminal) -> None:
    """Simulate the traffic of a run as it was served and otherwise, and print both beside what was measured.

    Raises:
        BadInput: no log, or one whose gateway described no pools; a change that cannot be.
    """
    from headway.metrics.comparison import compare

    run = _run(log, asked["run_named"], terminal)
    served = logged(run, terminal)
    was = served.deployment
    if was is None:
        raise BadInput(f"run {run.header.run}: its gateway described no pools, so that there is nothing to simulate")
    was = _bounded(was, served.spec.limits.in_flight)
    note_interpreted(terminal)
    with tempfile.TemporaryDirectory() as scratch:
        folder = made_folder(asked["out_to"]) if asked["out_to"] else Path(scratch)
        case, measured, notes = _measured(run, served, was, folder, asked)
        found = simulated(case, changed(case, asked, terminal), changes, asked["seed"], terminal)
    show(terminal, found, compare(measured, found.before, case.slo), notes, asked)
    if asked["out_to"]:
        keep(folder, {"measured": measured, "simulated": found.before, "changed": found.after}, terminal)


def _run(log: str, named: str | None, terminal: Terminal) -> Run:
    """The run asked for, or the newest; then a note says which it is, and what the others are called."""
    from headway.gateway.log.reader import runs

    found = runs(log)
    if named is None:
        newest, others = found[-1], [run.header.run for run in found[-2::-1]]
        if others:
            more = f" and {len(others) - NAMED} more" if len(others) > NAMED else ""
            terminal.note(
                f"run {newest.header.run}, begun {newest.header.started}, is the newest of {len(found)} in {log}; "
                f"--run takes another: {', '.join(others[:NAMED])}{more}"
            )
        return newest
    for run in found:
        if run.header.run == named:
            return run
    raise UnknownName("run of the log", named, [run.header.run for run in found])


def _bounded(deployment: Deployment, in_flight: int | None) -> Deployment:
    """The deployment with engines that run no more at once than the gateway sent them."""
    import msgspec

    if in_flight is None:
        return deployment
    replace, pools = msgspec.structs.replace, []
    for pool in deployment.pools:
        engine = pool.replica.engine
        engine = replace(engine, max_seqs=max(min(engine.max_seqs, in_flight // pool.replica.dp), 1))
        pools.append(replace(pool, replica=replace(pool.replica, engine=engine)))
    return replace(deployment, pools=tuple(pools))


def _measured(
    run: Run, served: Served, was: Deployment, folder: Path, asked: o.Options
) -> tuple[Case, Result, list[str]]:
    """The traffic of a run as a case to simulate, and what came of it live."""
    from headway.gateway.log.traffic import limits_of, measured, traffic
    from headway.plan.otherwise import Case
    from headway.specs import to_mapping

    pools = (*was.pools, *changed_deployment(was, asked).pools)
    unit = math.lcm(BLOCK_TOKENS, *(pool.replica.engine.block_tokens for pool in pools))
    seen = traffic(run, served.spec, unit, several=len(was.models) > 1)
    workload = _workload(seen, unit, folder / "traffic.jsonl.gz")
    slo = limits_of(served.spec, seen.models)
    real = measured(
        seen, slo, was.gpus, was.priced(), deployment=to_mapping(was), seed=asked["seed"],
        workload=to_mapping(workload.spec),
        provenance={"measured": {"log": {"run": run.header.run, "began": run.header.started}, "notes": seen.notes}},
    )  # fmt: skip
    return Case(was, workload, slo), real, [*_classes(served, seen), *seen.notes, NOT_SIMULATED]


def _classes(served: Served, seen: Traffic) -> list[str]:
    """What the classes are called that figures number: traffic has no names."""
    names = [klass.name for klass in served.spec.classes]
    if len(names) == 1:
        return []
    asked = [f" of {model}" for model in seen.models] or [""] * len(names)
    named = ", ".join(f"{i} is {names[i % len(names)]}{of}" for i, of in enumerate(asked))
    return [f"Classes by number: {named}."]


def _workload(seen: Traffic, unit: int, path: Path) -> Workload:
    from headway.workload import workload
    from headway.workload.files import Header, write_batches

    write_batches([seen.batch], path, Header(block_tokens=unit, models=seen.models))
    return workload(path)
