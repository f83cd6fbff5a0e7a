"""`headway whatif`: the same requests on a deployment as it is and otherwise, or those of a gateway's decision log."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from headway.cli import options as o
from headway.cli.asked import (
    DEFAULT_WORKLOAD,
    answer_of,
    chosen,
    deployment_of,
    note_idle_route,
    slo_of,
    workload_of,
)
from headway.cli.blame import users_fault
from headway.cli.calibration import compare_machines, with_calibration
from headway.cli.change import changed, changes_of, rates_of
from headway.cli.terminal import Terminal, check_files, note_interpreted
from headway.errors import BadInput
from headway.units import counted, format_rate

if TYPE_CHECKING:
    from headway.metrics import Result, Slo
    from headway.metrics.comparison import Comparison
    from headway.plan import Question
    from headway.plan.fleet_answer import Fleet
    from headway.plan.otherwise import Case, WhatIf
    from headway.workload import Workload

RARE, MOST = 2_000, 80_000  # requests of a fleet's rarest class that a run should have, and of a run at most
TODAY = ("workload", "input", "output", "arrival", "requests", "skip_bad", "ttft", "tpot", "e2e", "calibration_from",
         "fingerprint_from")  # fmt: skip


@click.command(cls=o.Verb, short_help="What a change makes of a deployment, or of a gateway's logged traffic.")
@click.argument("source", metavar="DEPLOYMENT.yaml|PLAN.json|LOG")
@o.options(o.OTHERWISE, o.WORKLOAD[:3], o.ARRIVALS, o.TRACES, o.SLO, o.RUN_OF_LOG, o.CALIBRATION, o.SEED)
@o.options(o.JSON, o.RESULTS, o.QUIET)
def whatif(source: str, **asked: Any) -> None:
    """Simulate the same requests as things are and otherwise, and print both side by side.

    With a deployment, the workload and the SLO are named as for `headway simulate`; a plan has its own. LOG is the
    folder that `gateway.log.folder` names, or one file of a run: then its traffic is what arrives, beside what was
    measured. Differences have 95% intervals, and what they come to where the cost model is off.

    \b
    headway whatif best.yaml --workload chat --rate 20 --ttft 500ms --tpot 50ms --replicas -1
    headway whatif best.yaml --workload trace.csv.gz --ttft 500ms --rate 2x --policy route=prefix-affinity
    headway whatif plan.json --rate +50%
    headway whatif decisions/ --policy order=sjf --set pools.0.count=3 --out results/
    """
    terminal = Terminal(asked["json_to"], quiet=asked["quiet"])
    check_files(None, asked["json_to"])
    changes = changes_of(asked)
    if not source.endswith((".yaml", ".yml", ".json")):
        from headway.cli.whatif_log import whatif_of_log

        _refuse_today(source, asked)
        if rates_of(asked["rates"]).today_req_s is not None:
            raise BadInput("--rate: a log has its own rate; a factor, as in --rate 2x, changes it")
        whatif_of_log(source, changes, asked, terminal)
        return
    if asked["run_named"] is not None:
        raise BadInput(f"--run {asked['run_named']}: {source} is no log, and only a log has runs")
    before, question = (_planned if source.endswith(".json") else _case)(source, asked, terminal)
    before, notes = _bounded(before, asked) if question is None else (before, [])
    after = changed(before, asked, terminal, question)
    note_idle_route(after.deployment, terminal)
    note_interpreted(terminal)
    found = simulated(before, after, changes, asked["seed"], terminal)
    show(terminal, found, None, notes, asked)
    if asked["out_to"]:
        keep(Path(asked["out_to"]), {"simulated": found.before, "changed": found.after}, terminal)


def simulated(before: Case, after: Case, changes: list[str], seed: int, terminal: Terminal) -> WhatIf:
    """Both cases simulated, with a bar, and errors of the user's own policies told by their lines."""
    from headway.plan.otherwise import whatif as run

    faults = [users_fault(case.deployment.policies) for case in (before, after)]
    with faults[0], faults[1], terminal.stdout_for_data(), terminal.bar("simulating both") as bar:
        return run(before, after, changes, seed=seed, progress=bar.tell)


def show(terminal: Terminal, found: WhatIf, error: Comparison | None, notes: list[str], asked: o.Options) -> None:
    """The table and the JSON; `error` compares what was measured with its simulation."""
    if not terminal.quiet:
        from headway.report import whatif_text

        terminal.show(whatif_text(found, error), *notes)
    if asked["json_to"]:
        from headway.specs import json_text, to_mapping

        measured = None if error is None else to_mapping(error, defaults=True)
        terminal.write(asked["json_to"], json_text(found.to_mapping() | {"error": measured, "notes": notes}) + "\n")


def keep(folder: Path, results: dict[str, Result], terminal: Terminal) -> None:
    """Results as JSON with their rows beside them."""
    made_folder(str(folder))
    for name, result in results.items():
        path = folder / f"{name}.json"
        terminal.write(str(path), result.to_json() + "\n")
        if result.records is not None:
            result.records.write(path.with_suffix(".csv"))


def made_folder(path: str) -> Path:
    """The folder of `--out`, made where there is none.

    Raises:
        BadInput: it cannot be made.
    """
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"--out {path}: cannot be made: {error.strerror}") from None
    return Path(path)


def _case(file: str, asked: o.Options, terminal: Terminal) -> tuple[Case, None]:
    """As things are: what the file, the workload's options and the limits say."""
    from headway.plan import Case

    as_is: o.Options = dict.fromkeys(("model", "gpu", "replicas", "tp", "pp", "weights", "kv")) | {"policies": ()}
    compare_machines(asked, terminal)
    deployment = with_calibration(deployment_of(file, as_is, []), asked["calibration_from"], terminal)
    rate = rates_of(asked["rates"]).today_req_s
    source = asked["workload"] or (None if asked["input"] and asked["output"] else DEFAULT_WORKLOAD)
    workload = workload_of(asked | {"workload": source, "rate": rate, "replicas": 1}, [], terminal)
    slo = slo_of(asked, [])
    return Case(deployment, workload, _promised(file, workload, slo, terminal) or slo), None


def _bounded(case: Case, asked: o.Options) -> tuple[Case, list[str]]:
    """The case with at most `MOST` requests, whose rows are kept of every run, unless more are asked for by number.

    Of a trace as recorded those in a row that bring the most tokens a second, as a plan takes them; else the first.
    """
    whole = case.workload
    if asked["requests"] is not None or whole.requests <= MOST:
        return case, []
    from headway.plan.extent import stretch

    part = whole.densest(MOST)
    first = f"the first {MOST:,} of {whole.requests:,} requests"
    which = first if part is whole else stretch(whole, part, MOST)
    said = f"Simulated with {which}: --requests {whole.requests} takes all, and memory as they are more."
    return case._replace(workload=part.cut(MOST)), [said]


def _promised(file: str, workload: Workload, slo: Slo | None, terminal: Terminal) -> dict[int, Slo]:
    """The limits of each class by its number, where the file has those for a gateway in front of the deployment.

    Classes of which it says nothing have those of all, `slo`.
    """
    from headway.gateway import SloClass
    from headway.metrics import Slo
    from headway.specs import from_mapping, read_yaml

    names = [each.name for each in workload.spec.classes]
    section = from_mapping(dict[str, Any], read_yaml(file).get("gateway") or {}, f"{file}: gateway")
    promised = from_mapping(list[SloClass], section.get("classes") or [], f"{file}: gateway.classes")
    own = {each.name: each.slo for each in promised if each.name in names}
    if not own:
        return {}
    terminal.keep(f"limits of {', '.join(own)} as {file} promises them; --slo changes them")
    return {place: own.get(name, slo or Slo()) for place, name in enumerate(names)}


def _planned(file: str, asked: o.Options, terminal: Terminal) -> tuple[Case, Question]:
    """What a plan found, for what it was asked: of several classes the limits of each."""
    from headway.plan import Case, Plan
    from headway.sim import Deployment
    from headway.specs import from_mapping
    from headway.workload import workload

    found = answer_of(file)
    _refuse_today(file, asked)
    question, rate = found.question, rates_of(asked["rates"]).today_req_s
    if rate is None and not (isinstance(found, Plan) and found.alone):
        rate = found.rate_req_s
    deployment = from_mapping(Deployment, chosen(found, None, file), file)
    requests = found.requests if isinstance(found, Plan) else _of_all(found)
    made = workload(question.workload, rate=rate, skip_bad=question.skip_bad).densest(requests).cut(requests)
    fewest = ""
    if not isinstance(found, Plan) and len(found.classes) > 1:
        share, name = _rarest(found)
        fewest = f" (some {share * made.requests:,.0f} of {name}, the rarest class)"
    come = counted(made.requests, "request")
    come = f"{come} served alone" if rate is None else f"{format_rate(rate)}, {come}"
    up = f"; every replica up, though it was judged with {question.spare} of every pool down" if question.spare else ""
    terminal.keep(f"as planned: {come}{fewest}, the limits of {file}{up}")
    names = [each.name for each in made.spec.classes]
    slos = {place: question.slo_of(name) for place, name in enumerate(names)}
    apart = bool(question.slos) or not isinstance(found, Plan)
    return Case(deployment, made, slos if apart else question.slo), question


def _of_all(fleet: Fleet) -> int:
    """Requests of all classes together, so many that the rarest has enough; or as many as the question asked for."""
    longest = max(each.plan.requests for each in fleet.parts)
    if fleet.question.requests is not None:
        return longest
    return max(longest, min(math.ceil(RARE / _rarest(fleet)[0]), MOST))


def _rarest(fleet: Fleet) -> tuple[float, str]:
    """The smallest share of all requests that a class has, and the class."""
    return min((each.rate_req_s / fleet.rate_req_s, each.name) for each in fleet.classes)


def _refuse_today(source: str, asked: o.Options) -> None:
    """A log and a plan say themselves what arrives and what is promised."""
    for name in TODAY:
        if asked[name]:
            option = f"--{name.removesuffix('_from').replace('_', '-')}"
            change = "--slo, --rate 2x and --set change them"
            raise BadInput(f"{option}: {source} has its own workload and limits; {change}")
