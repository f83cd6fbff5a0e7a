"""`headway export`: a deployment, or the best of a plan, as files that an engine or an orchestrator starts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from headway.cli import options as o
from headway.cli.asked import answer_of, chosen, deployment_of
from headway.cli.terminal import Terminal
from headway.errors import BadInput

if TYPE_CHECKING:
    from headway.export import Exported
    from headway.gateway import SloClass
    from headway.metrics import Slo
    from headway.plan import Plan
    from headway.plan.fleet_answer import Fleet
    from headway.sim import Deployment

# fmt: off
WHAT = (
    click.option("--to", required=True, cls=o.Section, section="Export", metavar="TARGET",
                 help="vllm, kubernetes, ...: `headway list exports` shows all."),
    click.option("--candidate", cls=o.Section, section="Export", metavar="NAME",
                 help="Of a plan: which one.  [default: the best]"),
    click.option("--model", cls=o.Section, section="Export", metavar="NAME",
                 help="From the catalogue, or a config.json; with a file that serves several, which one."),
    click.option("--model-path", default="", cls=o.Section, section="Export", metavar="REPO|PATH",
                 help="The checkpoint, in the deployment's precision.  [default: the catalogue's repository]"),
    click.option("--hosts", default="", cls=o.Section, section="Export", metavar="A[,B]",
                 help="Addresses of the hosts, where files name them.  [default: names to replace]"),
    click.option("--out", "out_to", cls=o.Section, section="Output", metavar="DIR",
                 help="Write the files there; made if it does not exist.  [default: show them]"),
)
# fmt: on


@click.command(cls=o.Verb, short_help="Launch files for vLLM, SGLang, TensorRT-LLM, Kubernetes, ...")
@click.argument("file", required=False, metavar="[DEPLOYMENT.yaml|PLAN.json]")
@o.options(WHAT, o.MODEL[1:], o.REPLICAS, o.JSON, o.QUIET)
def export(file: str | None, **asked: Any) -> None:
    """Write what starts a deployment; each command is checked by what its engine takes.

    The deployment is a YAML file or a plan, as `headway plan --yaml` and `--json` write them, or --model and --gpu.
    What a target cannot express is said, in the files too, or refused.

    \b
    headway export plan.json --to vllm --out launch
    headway export best.yaml --to kubernetes
    headway export fleet.json --to kubernetes --model llama-3.1-8b
    headway export --model llama-3.1-8b --gpu h100-sxm --replicas 2 --to compose --out here
    """
    from headway.export import export as run

    terminal = Terminal(asked["json_to"], quiet=asked["quiet"])
    deployment, slo = _read(file, asked)
    hosts = tuple(host for host in asked["hosts"].split(",") if host)
    which = asked["model"] if file else None  # else the model of the one pool
    made = run(deployment, asked["to"], model=which or "", model_path=asked["model_path"], hosts=hosts, slo=slo)
    if asked["json_to"]:
        from headway.specs import json_text, to_mapping

        terminal.write(asked["json_to"], json_text(to_mapping(made, defaults=True)) + "\n")
    if asked["out_to"]:
        _write(Path(asked["out_to"]), made, terminal)
    elif not asked["json_to"]:
        click.echo("\n".join(f"# ===== {name} =====\n{text}" for name, text in made.files.items()), nl=False)
    for note in made.notes:
        terminal.note(f"note: {note}")


def _read(file: str | None, asked: o.Options) -> tuple[Deployment, Slo | list[SloClass] | None]:
    """The deployment, and of a plan the SLO that it was made for, of several classes all of theirs."""
    if file is None or not file.endswith(".json"):
        if asked["candidate"]:
            raise BadInput("--candidate chooses from a plan: give a PLAN.json, as `headway plan --json` writes it")
        # Beside a file, --model chooses among what it serves.
        described = {**asked, "model": None} if file else asked
        return deployment_of(file, described, asked["assignments"]), None
    from headway.sim import Deployment
    from headway.specs import from_mapping, override

    plan = answer_of(file)
    for name in ("gpu", "replicas", "tp", "pp", "weights", "kv", "policies"):
        if asked[name]:
            raise BadInput(f"--{name} beside the plan {file}: change what it found with --set, or plan again")
    deployment = from_mapping(Deployment, chosen(plan, asked["candidate"], file), file)
    return override(deployment, asked["assignments"]), promised(plan)


def promised(plan: Plan | Fleet) -> Slo | list[SloClass]:
    """Return what a gateway in front of a plan promises: the SLO of all, or that of each class."""
    from headway.gateway import SloClass
    from headway.plan import Plan

    if isinstance(plan, Plan):
        return plan.question.slo
    return [
        SloClass(name=each.name, slo=each.slo, priority=each.priority, deadline_s=each.deadline_s)
        for each in plan.classes
    ]


def _write(folder: Path, made: Exported, terminal: Terminal) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"--out {folder}: cannot be made: {error.strerror}") from None
    for name, text in made.files.items():
        terminal.write(str(folder / name), text)
        if name.endswith(".sh"):
            (folder / name).chmod(0o755)
