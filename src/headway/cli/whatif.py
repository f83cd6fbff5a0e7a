"""`headway whatif`: what would have come of the traffic in a gateway's decision log, had it been served otherwise."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from headway.cli import options as o
from headway.cli.asked import with_policies
from headway.cli.blame import users_fault
from headway.cli.replay import logged
from headway.cli.terminal import Terminal, check_files, note_interpreted
from headway.errors import BadInput, UnknownName

if TYPE_CHECKING:
    from headway.cli.serve import Served
    from headway.gateway.log.reader import Run
    from headway.gateway.log.traffic import Traffic
    from headway.metrics import Result
    from headway.sim import Deployment
    from headway.workload import Workload

BLOCK_TOKENS = 64
NOT_SIMULATED = (
    "Not simulated: Headway's queue (requests wait at their replica, which runs as many as limits.in_flight lets "
    "through), refusals by prediction, callers who leave, failures."
)


class Runs(NamedTuple):
    """The same traffic three times."""

    measured: Result
    simulated: Result
    changed: Result


@click.command(cls=o.Verb, short_help="The traffic of a gateway's log under other policies.")
@click.argument("log", metavar="LOG")
@o.options(o.OTHERWISE, o.SEED, o.JSON, o.RESULTS, o.QUIET)
def whatif(log: str, **asked: Any) -> None:
    """Simulate the traffic of a decision log as it was served, and otherwise, beside what was measured.

    LOG is the folder that `gateway.log.folder` names, or one file of a run. The deployment is the one that the log
    began with; --policy and --set say what is to be different.

    \b
    headway whatif decisions/ --policy route=prefix-affinity
    headway whatif decisions/ --policy order=sjf --set pools.0.count=3 --out results/
    """
    terminal = Terminal(asked["json_to"], quiet=asked["quiet"])
    check_files(None, asked["json_to"])
    if log.endswith((".yaml", ".yml")):
        raise BadInput(f"{log}: expected a decision log; `headway simulate {log}` takes a deployment and a workload")
    if not asked["policies"] and not asked["assignments"]:
        raise BadInput(
            "what is to be different? --policy KIND=NAME or --set PATH=VALUE, as in --policy route=round-robin"
        )
    run = _run(log, asked["run_named"])
    served = logged(run, terminal)
    was = served.deployment
    if was is None:
        raise BadInput(f"run {run.header.run}: its gateway described no pools, so that there is nothing to simulate")
    if len(was.models) > 1:
        raise BadInput(
            f"run {run.header.run}: its gateway served {', '.join(was.models)}, and which of them a request asked for "
            "is not carried over into a simulation yet: `headway replay` decides such a log again"
        )
    from headway.specs import override

    was = _bounded(was, served.spec.limits.in_flight)
    changed = override(with_policies(was, asked["policies"]), asked["assignments"])
    note_interpreted(terminal)
    with tempfile.TemporaryDirectory() as scratch:
        folder = _folder(asked["out_to"]) or Path(scratch)
        runs, notes = _runs(run, served._replace(deployment=was), changed, folder, asked["seed"], terminal)
    _show(runs, notes, served, asked, terminal)


def _show(runs: Runs, notes: list[str], served: Served, asked: o.Options, terminal: Terminal) -> None:
    from headway.gateway.log.traffic import limits_of
    from headway.metrics.comparison import compare
    from headway.report import whatif_text
    from headway.specs import json_text, to_mapping

    slo = limits_of(served.spec)
    error, change = compare(runs.measured, runs.simulated, slo), compare(runs.simulated, runs.changed, slo)
    terminal.show(whatif_text(error, change, ", ".join([*asked["policies"], *asked["assignments"]])), *notes)
    if asked["json_to"]:
        found = {name: to_mapping(one, defaults=True) for name, one in (("error", error), ("change", change))}
        terminal.write(asked["json_to"], json_text({"schema": "headway.whatif/1", **found, "notes": notes}) + "\n")
    if asked["out_to"]:
        for name, result in runs._asdict().items():
            path = Path(asked["out_to"]) / f"{name}.json"
            terminal.write(str(path), result.to_json() + "\n")
            result.records.write(path.with_suffix(".csv"))


def _run(log: str, named: str | None) -> Run:
    from headway.gateway.log.reader import runs

    found = runs(log)
    if named is None:
        return found[-1]
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


def _folder(path: str | None) -> Path | None:
    if path is None:
        return None
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"--out {path}: cannot be made: {error.strerror}") from None
    return Path(path)


def _runs(
    run: Run, served: Served, changed: Deployment, folder: Path, seed: int, terminal: Terminal
) -> tuple[Runs, list[str]]:
    """What was measured, and both simulations of the same requests."""
    from headway.gateway.log.traffic import limits_of, measured, traffic
    from headway.sim import simulate
    from headway.specs import to_mapping

    was = served.deployment
    assert was is not None
    pools = (*was.pools, *changed.pools)
    unit = math.lcm(BLOCK_TOKENS, *(pool.replica.engine.block_tokens for pool in pools))
    seen = traffic(run, served.spec, unit)
    workload = _workload(seen, unit, folder / "traffic.jsonl.gz")
    slo = limits_of(served.spec)
    real = measured(
        seen, slo, was.gpus, was.priced(), deployment=to_mapping(was), seed=seed, workload=to_mapping(workload.spec),
        provenance={"measured": {"log": {"run": run.header.run, "began": run.header.started}, "notes": seen.notes}},
    )  # fmt: skip
    found = []
    for deployment, doing in ((was, "as it was"), (changed, "otherwise")):
        with users_fault(deployment.policies), terminal.bar(f"simulating {doing}") as bar:
            found.append(simulate(deployment, workload, slo=slo, seed=seed, progress=bar.tell))
    return Runs(real, *found), [*seen.notes, NOT_SIMULATED]


def _workload(seen: Traffic, unit: int, path: Path) -> Workload:
    from headway.workload import workload
    from headway.workload.files import Header, write_batches

    write_batches([seen.batch], path, Header(block_tokens=unit))
    return workload(path)
