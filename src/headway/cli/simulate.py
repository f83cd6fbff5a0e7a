"""`headway simulate`: a deployment, a workload and a seed give a `Result`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import click

from headway.cli import options as o
from headway.cli.asked import (
    check_records,
    deployment_of,
    note_fp16,
    note_idle_order,
    note_idle_route,
    note_release,
    slo_by_class,
    split_assignments,
    workload_of,
)
from headway.cli.blame import users_fault
from headway.cli.calibration import compare_machines, with_calibration
from headway.cli.terminal import Terminal, check_files, note_interpreted

if TYPE_CHECKING:
    from headway.metrics import Result, Slo
    from headway.sim import Deployment
    from headway.workload import Workload

INTERRUPTED = 130
KEPT_REQUESTS = 1_000_000
STOPPED_ROWS = 100_000  # written after Ctrl-C: as text that takes 0.5 s


@click.command(cls=o.Verb, short_help="What one deployment does under one workload.")
@click.argument("deployment_file", required=False, metavar="[DEPLOYMENT.yaml]")
@o.options(o.MODEL, o.REPLICAS, o.WORKLOAD, o.ARRIVALS, o.TRACES, o.SLO, o.CLASSES)
@o.options(o.CALIBRATION, o.SEED, o.OUTPUT, o.RECORDS, o.QUIET)
@click.pass_context
def simulate(ctx: click.Context, /, deployment_file: str | None, **asked: Any) -> None:
    """Simulate a deployment under a workload and print what happened.

    The deployment is a YAML file, as `headway plan --yaml` writes it, or --model and --gpu. Only these two
    are needed: the rest has defaults, which a note names.

    \b
    headway simulate --model llama-3.1-8b --gpu h100-sxm --rate 20 --ttft 500ms --tpot 50ms
    headway simulate best.yaml --workload trace.csv.gz --set pools.0.count=4
    headway simulate --model qwen3-32b --gpu h100-sxm --replicas 4 --policy route=mine:Router
    """
    terminal = Terminal(asked["json_to"], asked["html_to"], quiet=asked["quiet"])
    check_files(asked["html_to"], asked["json_to"], asked["records_to"])
    check_records(asked["records_to"], asked["no_records"])
    deployment, workload, slo, records = _asked(terminal, deployment_file, asked)
    from headway.sim import CtrlC
    from headway.sim import simulate as run

    with CtrlC(math.inf) as ctrl_c:
        with users_fault(deployment.policies), terminal.stdout_for_data(), terminal.bar("simulating") as bar:
            result = run(deployment, workload, slo=slo, seed=asked["seed"], records=records, progress=bar.tell)
        result = with_trace(result, workload)
        _print(terminal, result, asked)
    write_files(terminal, result, asked, bool(ctrl_c.came))
    if ctrl_c.came or "stopped" in result.provenance:
        ctx.exit(INTERRUPTED)


def _asked(
    terminal: Terminal, deployment_file: str | None, asked: o.Options
) -> tuple[Deployment, Workload, Slo | dict[int, Slo] | None, bool]:
    """What is to be simulated, and whether rows are kept."""
    sets = split_assignments(asked["assignments"])
    deployment = deployment_of(deployment_file, asked, sets["deployment"])
    compare_machines(asked, terminal)
    deployment = with_calibration(deployment, asked["calibration_from"], terminal)
    workload = workload_of(asked, sets["workload"], terminal)
    slo = slo_by_class(asked, sets["slo"], workload)
    note_interpreted(terminal)
    note_idle_order(deployment.policies.order, workload, terminal)
    note_idle_route(deployment, terminal)
    engines = [pool.replica.engine for pool in deployment.pools]
    for name, version in dict.fromkeys((each.name, each.version) for each in engines):
        note_release(name, version, terminal)
    note_fp16((pool.replica.gpu for pool in deployment.pools), terminal)
    return deployment, workload, slo, _keeps_records(asked, workload, terminal)


def with_trace(result: Result, workload: Workload) -> Result:
    """The result, with what the reader of a trace had to say."""
    import msgspec

    told: dict[str, Any] = {"notes": list(workload.notes)} if workload.notes else {}
    told |= {"skipped_lines": workload.skipped} if workload.skipped else {}
    return msgspec.structs.replace(result, provenance=result.provenance | ({"trace": told} if told else {}))


def _keeps_records(asked: o.Options, workload: Workload, terminal: Terminal) -> bool:
    """Whether rows are kept: of more than `KEPT_REQUESTS` only for a file that shows them."""
    if asked["no_records"] or asked["records_to"] or asked["html_to"] or (workload.requests or 0) <= KEPT_REQUESTS:
        return not asked["no_records"]
    kept = f"no rows are kept of more than {KEPT_REQUESTS:,} requests (--records FILE keeps them)"
    terminal.keep(f"{kept}: percentiles come from histograms within 1 %")
    return False


def _print(terminal: Terminal, result: Result, asked: o.Options) -> None:
    """The table and the JSON: what an interruption must not cost."""
    if not terminal.quiet:
        from headway.report import result_text

        terminal.show(result_text(result))
    if asked["json_to"]:
        terminal.write(asked["json_to"], result.to_json() + "\n")


def write_files(terminal: Terminal, result: Result, asked: o.Options, interrupted: bool) -> None:
    """The rows and the report; after Ctrl-C only what takes no time."""
    records_to, html_to = asked["records_to"], asked["html_to"]
    interrupted = interrupted or "stopped" in result.provenance
    if records_to and interrupted and (result.records is None or result.requests.arrived > STOPPED_ROWS):
        terminal.note(f"interrupted: {records_to} was not written, {result.requests.arrived:,} rows take too long")
    elif records_to and interrupted and records_to.endswith(".parquet"):
        terminal.note(f"interrupted: {records_to} was not written, loading Parquet takes too long; .csv does not")
    elif records_to and result.records is not None:
        result.records.write(records_to)
        terminal.note(f"wrote {records_to}")
    if html_to and interrupted:
        terminal.note(f"interrupted: {html_to} was not written, a report takes too long; --json FILE does not")
    elif html_to:
        from headway.report import result_html

        terminal.write(html_to, result_html(result))
