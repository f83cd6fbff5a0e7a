"""`headway plan`: a question gives a `Plan`, deployments ranked with their predicted results."""

from __future__ import annotations

import math
from itertools import product
from typing import TYPE_CHECKING, Any, cast

import click

from headway.cli import options as o
from headway.cli.asked import (
    DEFAULT_WORKLOAD,
    chosen,
    chosen_policies,
    note_fp16,
    note_idle_order,
    note_release,
    slo_of,
    slos_of,
    split_assignments,
    workforce_of,
    workload_of,
)
from headway.cli.blame import users_fault
from headway.cli.calibration import ask_calibrated, compare_machines
from headway.cli.launched import launch_words
from headway.cli.terminal import Terminal, check_files, note_interpreted
from headway.cli.twice import check_twice
from headway.errors import BadInput, UnknownName

if TYPE_CHECKING:
    from headway.plan import Plan, Question
    from headway.plan.crew import Workforce
    from headway.plan.fleet_answer import Fleet
    from headway.plan.question import Objective
    from headway.sim import Policies
    from headway.workload import Workload

NO_ANSWER, INTERRUPTED = 1, 130
MISSING = {
    "model": "`headway list models` shows the names",
    "gpu": "`headway list gpus` shows the names",
    "gpus": "how many GPUs are there? Plans that use fewer are tried as well",
}


@click.command(cls=o.Verb, short_help="Which deployment to run, ranked, and why the others lost.")
@o.options(o.KINDS, o.WORKLOAD, o.ARRIVALS, o.TRACES, o.SLO, o.CLASSES, o.SEARCH, o.SHARING, o.CALIBRATION, o.SEED)
@o.options(o.OUTPUT, o.BEST, o.TEXT, o.TOP, o.QUIET)
@click.pass_context
def plan(ctx: click.Context, /, **asked: Any) -> None:
    """Find the deployments that serve a workload within its SLO, the best first.

    Tries the ways to use up to --gpus GPUs: replicas, tensor and pipeline parallelism, prefill and decode
    apart, data-parallel ranks that share experts, token budgets, precisions, several kinds of GPU; engines,
    policies and settings where several are named. What may win is simulated, and its goodput found by search
    on the rate.

    Several classes of requests with SLOs of their own, and several models, share the GPUs: then the answer says which
    classes share replicas, which have their own, and what that saves.

    \b
    headway plan --model llama-3.1-70b --gpu h100-sxm --gpus 16 --workload chat --rate 20 \\
        --ttft 500ms --tpot 50ms --html plan.html --yaml best.yaml
    headway plan --model llama-3.1-70b --gpu h100-sxm:8,a100-80gb-sxm:16 --rate 20 --ttft 500ms --tpot 50ms
    headway plan --gpu h100-sxm --gpus 16 --workload office.yaml --slo chat:ttft=300ms,tpot=30ms --slo batch:e2e=60s
    headway simulate best.yaml --workload chat --rate 20 --ttft 500ms --tpot 50ms
    headway export best.yaml --to vllm --out launch
    """
    from headway.plan import fleet
    from headway.plan import plan as run
    from headway.sim import CtrlC

    terminal = Terminal(asked["json_to"], asked["yaml_to"], asked["html_to"], quiet=asked["quiet"])
    check_files(asked["html_to"], asked["json_to"], asked["yaml_to"])
    check_twice(ctx, asked)
    question, made = question_of(asked, terminal)
    workforce = workforce_of(asked)
    note_interpreted(terminal)
    found: Plan | Fleet
    with CtrlC(math.inf) as ctrl_c:
        with users_fault(*_policies(question)), terminal.stdout_for_data(), terminal.bar("planning") as bar:
            if _has_parts(question, asked):
                found = fleet(question, workers=workforce, progress=bar.tell)
            else:
                found = run(question, made=made, workers=workforce, progress=bar.tell)
        if asked["why"] and not found.interrupted:
            found = _explained(found, made, workforce, terminal)
        _print(terminal, found, asked)
    if asked["html_to"] and (found.interrupted or ctrl_c.came):
        kept = asked["json_to"] if asked["json_to"] not in (None, "-") else None
        first = "" if kept else "--json FILE keeps the plan, and "
        later = f"{first}`headway report {kept or 'FILE'} --html {asked['html_to']}` writes it"
        terminal.note(f"interrupted: {asked['html_to']} was not written, a report takes too long; {later}")
    elif asked["html_to"]:
        from headway.report import plan_html

        terminal.write(asked["html_to"], plan_html(found))
    if found.interrupted or ctrl_c.came:
        ctx.exit(INTERRUPTED)
    if not found.feasible:
        ctx.exit(NO_ANSWER)


def _has_parts(question: Question, asked: o.Options) -> bool:
    """Whether classes may have pools of their own: where they have SLOs of their own, or name several models."""
    if asked["together"] or isinstance(question.workload, str):
        return False
    classes = question.workload.classes
    return len({each.model or question.model for each in classes}) > 1 or (len(classes) > 1 and bool(question.slos))


def _explained(found: Plan | Fleet, made: Workload | None, workers: Workforce, terminal: Terminal) -> Plan | Fleet:
    """The plan, or each of a fleet's, with what becomes of its best where something is otherwise."""
    from headway.plan.why import why

    faults = users_fault(*_policies(found.question))
    with faults, terminal.stdout_for_data(), terminal.bar("asking how far it holds") as bar:
        return why(found, made=made, workers=workers, progress=bar.tell)


def question_of(asked: o.Options, terminal: Terminal) -> tuple[Question, Workload | None]:
    """Return the question that the options ask, and its workload where it was read from a trace.

    Raises:
        BadInput: a field that is missing or wrong.
    """
    from headway.metrics import Slo
    from headway.plan import Question
    from headway.specs import override

    if asked["gpu"] is None or (asked["model"] is None and asked["workload"] is None):
        name = "gpu" if asked["model"] else "model"
        raise BadInput(f"--{name} is missing: {MISSING[name]}")
    gpu, gpus = _stock(asked["gpu"], asked["gpus"])
    sets = split_assignments(asked["assignments"])
    workload = workload_of(asked, sets["workload"], terminal)
    model = asked["model"] or next((each.model for each in workload.spec.classes if each.model), None)
    if model is None:
        raise BadInput(f"--model is missing: {MISSING['model']}")
    changed = sets["workload"] or asked["input"] or asked["output"] or asked["arrival"] or workload.spec.classes
    changed = changed or (asked["requests"] and workload.spec.trace)  # of a trace the first so many are meant
    question = Question(
        model=model,
        gpu=gpu,
        gpus=gpus,
        workload=workload.spec if changed else asked["workload"] or DEFAULT_WORKLOAD,
        skip_bad=asked["skip_bad"],
        rate_req_s=asked["rate"],
        slo=slo_of(asked, sets["slo"]) or Slo(),
        slos=slos_of(asked),
        objective=asked["objective"],
        front=_front(asked["front"] or ()),
        max_usd_per_hour=asked["max_usd_per_hour"],
        max_tp=asked["max_tp"],
        max_watts=asked["max_watts"],
        watts_per_rack=asked["watts_per_rack"],
        gpus_per_rack=asked["gpus_per_rack"],
        spare=asked["spare"],
        usd_per_gpu_hour=asked["prices"] or {},
        seed=asked["seed"],
        requests=asked["requests"],
        cap_watts=asked["cap_watts"],
        clock_mhz=asked["clock_mhz"],
    )
    question = _with_engine(override(question, sets["deployment"]), asked["engine"], sets["deployment"])
    question = _with_policies(question, asked["policies"], sets["deployment"])
    compare_machines(asked, terminal)
    question = ask_calibrated(question, asked["calibration_from"], terminal)
    for order in question.policies_to_try.get("order", (question.policies.order,)):
        note_idle_order(order, workload, terminal)
    for named in question.engines or (f"{question.engine.name}:{question.engine.version}",):
        name, _, version = named.partition(":")
        note_release(name, version, terminal)
    note_fp16(question.stock, terminal)
    return question, workload if workload.spec.trace else None


def _stock(kinds: dict[str, int | None], gpus: int | None) -> tuple[str | dict[str, int], int | None]:
    """The question's `gpu` and `gpus`: counts by kind, those without one up to all there are."""
    from headway.hardware import gpu

    for kind in kinds:  # a name that is none is told before how many there are of it
        gpu(kind)
    if list(kinds.values()) == [None]:
        if gpus is None:
            raise BadInput(f"--gpus is missing: {MISSING['gpus']}")
        return next(iter(kinds)), gpus
    stock = {}
    for kind, count in kinds.items():
        if count is None and gpus is None:
            raise BadInput(f"--gpu {kind}: how many are there? Give {kind}:N, or --gpus for all kinds together")
        stock[kind] = count or gpus or 0
    return stock, gpus


def _front(named: tuple[str, ...]) -> tuple[Objective, ...]:
    unknown = next((name for name in named if name not in o.OBJECTIVES), None)
    if unknown is not None:
        raise UnknownName("objective of --front", unknown, o.OBJECTIVES)
    return cast("tuple[Objective, ...]", named)


def _with_engine(question: Question, named: tuple[tuple[str, str], ...] | None, assignments: list[str]) -> Question:
    """The question for the one engine named, or with each of several to try."""
    import msgspec

    from headway.cost.engines import engine_facts

    if named is None:
        return question
    words = [f"{name}:{version}" if version else name for name, version in named]
    for each in assignments:
        if each.startswith(("engine.name=", "engine.version=", "engines=")):
            raise BadInput(f"--engine {','.join(words)} against --set {each}: give one of them")
    for kind, (name, version) in product(question.stock, named):
        engine_facts(name, version, kind)
    if len(named) > 1:
        return msgspec.structs.replace(question, engines=tuple(words))
    engine = msgspec.structs.replace(question.engine, name=named[0][0], version=named[0][1])
    return msgspec.structs.replace(question, engine=engine)


def _with_policies(question: Question, asked: tuple[str, ...], assignments: list[str]) -> Question:
    """The question with a policy for a decision point, or with each of several to try."""
    import msgspec

    policies, several, named = question.policies, dict(question.policies_to_try), dict[str, str]()
    for text in asked:
        kind, _, names = text.partition("=")
        set_by_hand = next((each for each in assignments if each.startswith(f"policies.{kind}=")), None)
        other = named.get(kind, set_by_hand and f"--set {set_by_hand}")
        if other is not None:
            raise BadInput(f"{other} against --policy {text}: give one of them; of several names each is tried")
        named[kind] = f"--policy {text}"
        listed = tuple(name.strip() for name in names.split(","))
        if len(listed) == 1:
            policies = chosen_policies(policies, [text])
        else:
            several[kind] = listed
    return msgspec.structs.replace(question, policies=policies, policies_to_try=several)


def _policies(question: Question) -> tuple[Policies, *tuple[str, ...]]:
    """The question's policies, and the names of those to try."""
    return question.policies, *(name for names in question.policies_to_try.values() for name in names)


def _print(terminal: Terminal, found: Plan | Fleet, asked: o.Options) -> None:
    """The table, the JSON and the best deployment: what an interruption must not cost."""
    if not terminal.quiet:
        from headway.report import plan_text

        terminal.show(plan_text(found, None if asked["in_full"] else asked["top"]))
    if asked["json_to"]:
        terminal.write(asked["json_to"], found.to_json() + "\n")
    if asked["yaml_to"] and found.feasible:
        terminal.write(asked["yaml_to"], _yaml(found))
    if found.feasible:
        from headway.sim import Deployment
        from headway.specs import from_mapping

        kept = asked["yaml_to"] or asked["json_to"]
        file = kept if kept and kept != "-" else "plan.json"
        words, does = launch_words(from_mapping(Deployment, chosen(found, None, file), file))
        first = "" if file == kept else f"--json {file} keeps the plan; "
        others = "; `headway list exports`: compose, Kubernetes, llm-d, Dynamo, the gateway's file"
        terminal.note(f"{first}`headway export {file} {words}` {does}{others}" if words else does)


def _yaml(found: Plan | Fleet) -> str:
    """The deployment; with classes it says what a gateway in front of it promises each, where one can be."""
    from headway.plan import Plan
    from headway.specs import from_mapping, write_yaml

    if isinstance(found, Plan):
        assert found.best is not None
        return write_yaml(found.best.deployment)
    from headway.cli.export import promised
    from headway.export import export
    from headway.sim import Deployment

    assert found.deployment is not None
    deployment = from_mapping(Deployment, found.deployment, "deployment")
    try:
        return export(deployment, "gateway", slo=promised(found), carry=False).files["gateway.yaml"]
    except BadInput:
        return write_yaml(found.deployment)
