"""`headway capacity`: the replicas that each hour of a day takes, beside those of its peak all day long."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from headway.cli import options as o
from headway.cli.asked import (
    answer_of,
    deployment_of,
    is_plan,
    slo_by_class,
    split_assignments,
    workforce_of,
    workload_of,
)
from headway.cli.blame import users_fault
from headway.cli.calibration import compare_machines, with_calibration
from headway.cli.terminal import Terminal, check_files, note_interpreted
from headway.errors import BadInput
from headway.units import parse_rate

if TYPE_CHECKING:
    from headway.metrics import Slo
    from headway.plan import Question
    from headway.plan.day import Capacity
    from headway.sim import Deployment
    from headway.workload import Workload

NO_ANSWER = 1
COLUMN = "rate_req_s"  # of a file with a curve
CSV_FIELDS = (
    "start_s", "end_s", "rate_req_s", "replicas", "gpus", "usd_per_hour", "attainment", "mean_watts",
    "static_mean_watts",
)  # fmt: skip


@click.command(cls=o.Verb, short_help="Replicas hour by hour over a day, against those of its peak.")
@click.argument("deployment_file", required=False, metavar="[DEPLOYMENT.yaml|PLAN.json]")
@o.options(o.MODEL, o.REPLICAS, o.WORKLOAD, o.ARRIVALS[:1], o.DAY, o.TRACES, o.SLO, o.CLASSES)
@o.options(o.CALIBRATION, o.WORKERS, o.SEED, o.OUTPUT, o.CSV, o.QUIET)
@click.pass_context
def capacity(ctx: click.Context, /, deployment_file: str | None, **asked: Any) -> None:
    """Find the fewest replicas for each hour of a day, and what that saves against the peak's number all day.

    The day is that of diurnal arrivals, of a trace with times, or of --curve, whose rates are those of all classes
    together. What is copied are the replicas of the deployment; each of several pools is sized by itself. Of a plan it
    is the best, with its workload and limits where no others are given; of several classes and models all pools.

    \b
    headway capacity best.yaml --rate 100 --arrival diurnal:peak_to_trough=5 --ttft 500ms --attainment 0.99
    headway capacity best.yaml --workload day.csv.gz --slot 30min --ttft 500ms --tpot 50ms --csv day.csv
    headway capacity fleet.json --curve 4,2,8,12,10,6
    headway capacity best.yaml --curve 20,12,8,6,5,8,20,45,80,95,100,90 --ttft 500ms --html capacity.html
    """
    terminal = Terminal(asked["json_to"], asked["csv_to"], asked["html_to"], quiet=asked["quiet"])
    check_files(asked["html_to"], asked["json_to"], asked["csv_to"])
    found = _found(terminal, deployment_file, asked)
    if not terminal.quiet:
        from headway.report import capacity_text

        terminal.show(capacity_text(found))
    if asked["json_to"]:
        terminal.write(asked["json_to"], found.to_json() + "\n")
    if asked["csv_to"]:
        terminal.write(asked["csv_to"], _rows(found))
    if asked["html_to"]:
        from headway.report import capacity_html

        terminal.write(asked["html_to"], capacity_html(found))
    if not found.feasible:
        ctx.exit(NO_ANSWER)


def _found(terminal: Terminal, file: str | None, asked: o.Options) -> Capacity:
    from headway.metrics import Slo
    from headway.plan.day import capacity as run

    sets = split_assignments(asked["assignments"])
    planned = answer_of(file).question if file is not None and is_plan(file) else None
    if planned is not None and asked["workload"] is None and asked["input"] is None:
        asked = asked | {"workload": planned.workload}
        terminal.keep(f"the workload is that of {file}, --workload names another")
    if planned is not None and planned.spare:
        terminal.keep(f"every replica is up in each slot, though {file} was judged with {planned.spare} of a pool down")
    deployment = deployment_of(file, asked, sets["deployment"])
    compare_machines(asked, terminal)
    deployment = with_calibration(deployment, asked["calibration_from"], terminal)
    if any(pool.nodes is not None for pool in deployment.pools):
        terminal.keep("pools.N.nodes are left out: the replicas of each slot stand on as few nodes as hold them")
    curve = None if asked["curve"] is None else curve_of(asked["curve"])
    rate = asked["rate"] if curve is None else asked["rate"] or sum(curve) / len(curve) or None
    workload = workload_of(asked | {"rate": rate, "requests": None}, sets["workload"], terminal)
    if curve is not None and asked["rate"] is not None:
        curve = [each * asked["rate"] * len(curve) / (sum(curve) or 1.0) for each in curve]
    if curve is not None and workload.spec.trace is not None:
        terminal.keep(
            "--curve: the trace's requests come as Poisson arrivals at its rates; their own times are left out"
        )
    usd = _planned_usd(planned, deployment) if "prices" not in " ".join(sets["deployment"]) else None
    slo = slo_by_class(asked, sets["slo"], workload) or _planned_slo(planned, workload, asked)
    note_interpreted(terminal)
    with users_fault(deployment.policies), terminal.stdout_for_data(), terminal.bar("sizing the day") as bar:
        return run(
            deployment, workload, slo or Slo(), curve=curve, usd_per_gpu_hour=usd, slot_s=asked["slot"],
            seed=asked["seed"], workers=workforce_of(asked), progress=bar.tell,
        )  # fmt: skip


def _planned_usd(planned: Question | None, deployment: Deployment) -> dict[str, float] | None:
    """The prices by kind of GPU that a plan was asked for."""
    if planned is None or not planned.usd_per_gpu_hour:
        return None
    usd = {pool.replica.gpu: planned.usd_per_hour(pool.replica.gpu) for pool in deployment.pools}
    known = {kind: each for kind, each in usd.items() if each is not None}
    return known if len(known) == len(usd) else None


def _planned_slo(planned: Question | None, workload: Workload, asked: o.Options) -> Slo | dict[int, Slo] | None:
    """The limits that a plan was asked for, with another share where one is given; of each class its own."""
    import msgspec

    from headway.metrics import Slo

    if planned is None:
        return None
    given = click.get_current_context().get_parameter_source("attainment")
    share = None if given is ParameterSource.DEFAULT else Slo.parse(attainment=asked["attainment"]).attainment

    def shared(slo: Slo) -> Slo:
        return slo if share is None else msgspec.structs.replace(slo, attainment=share)

    if not planned.slos:
        return shared(planned.slo)
    return {place: shared(planned.slo_of(each.name)) for place, each in enumerate(workload.spec.classes)}


def curve_of(text: str) -> list[float]:
    """Return the rates of a day: written with commas between them, or the lines or the column rate_req_s of a file.

    Raises:
        BadInput: no such file, or what is no rate.
    """
    if "," in text or not Path(text).exists():
        return _written(text)
    try:
        lines = [row for row in csv.reader(Path(text).read_text(encoding="utf-8").splitlines()) if row]
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"--curve {text}: cannot be read as text: {error}") from None
    at = 0
    if lines and COLUMN in lines[0]:
        at = lines.pop(0).index(COLUMN)
    elif any(len(row) > 1 for row in lines):
        raise BadInput(f"--curve {text}: expected a rate on each line, or a CSV with a column {COLUMN}")
    rates = []
    for number, row in enumerate(lines, start=1):
        try:
            rates.append(parse_rate(row[at]))
        except (BadInput, IndexError) as error:
            raise BadInput(f"--curve {text}, rate {number}: {error}") from None
    if not rates:
        raise BadInput(f"--curve {text}: holds no rates")
    return rates


def _written(text: str) -> list[float]:
    """The rates between commas; one alone is a number that somebody forgot the others of, or the name of a file."""
    rates = []
    for number, part in enumerate(text.split(","), start=1):
        try:
            rates.append(parse_rate(part))
        except BadInput as error:
            if "," not in text:
                raise BadInput(
                    f"--curve {text}: no such file; or give the rates of the slots, as in 20,12,8,30,90"
                ) from None
            raise BadInput(f"--curve {text}, rate {number}: {error}") from None
    if len(rates) == 1:
        raise BadInput(
            f"--curve {text}: one rate is no curve: give that of each slot of the day, as in 20,12,8,30,90; how many "
            f"replicas {text} takes by itself `headway plan --rate {text}` says"
        )
    return rates


def _rows(found: Capacity) -> str:
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(CSV_FIELDS)
    lines.writerows([getattr(slot, field) for field in CSV_FIELDS] for slot in found.slots)
    return text.getvalue()
