"""From what was typed to specs: deployment, workload and SLO, and the checks before long work."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headway.cli.options import Options
from headway.cli.terminal import Terminal
from headway.errors import BadInput, UnknownName
from headway.units import format_rate

if TYPE_CHECKING:
    from headway.metrics import Slo
    from headway.plan import Plan
    from headway.plan.crew import Workforce
    from headway.plan.fleet_answer import Fleet
    from headway.sim import Deployment, Policies
    from headway.workload import Workload

DEFAULT_WORKLOAD = "chat"
PEEK_BYTES = 100  # of a file, for its schema
LEAVE_OUT = "(skip_bad leaves such lines out)"  # what a reader of traces advises; here it is an option
SEEN_REQUESTS = 1024  # the first of them tell whether an order has something to go by
LIMITS = ("ttft", "tpot", "itl", "e2e", "attainment")
REPLICA_PATHS = {  # where the short options live in a deployment file
    "model": "pools.0.replica.model",
    "gpu": "pools.0.replica.gpu",
    "replicas": "pools.0.count",
    "tp": "pools.0.replica.tp",
    "pp": "pools.0.replica.pp",
    "weights": "pools.0.replica.weights",
    "kv": "pools.0.replica.kv",
}


def split_assignments(assignments: Iterable[str]) -> dict[str, list[str]]:
    """Sort `--set` assignments by what they change: the workload, the SLO, or else the deployment."""
    sets: dict[str, list[str]] = {"deployment": [], "workload": [], "slo": []}
    for assignment in assignments:
        first, _, rest = assignment.strip().partition(".")
        if first in ("workload", "slo"):
            sets[first].append(rest)
        else:
            sets["deployment"].append(assignment)
    return sets


def deployment_of(file: str | None, asked: Options, assignments: list[str]) -> Deployment:
    """Return the deployment of a file, or the one pool of replicas that the short options describe.

    Raises:
        BadInput: neither or both, or a field that is wrong.
    """
    from headway.sim import Deployment
    from headway.specs import from_mapping, override, read_yaml

    if file is None:
        deployment = _one_pool(asked)
    else:
        short = [name for name in REPLICA_PATHS if asked[name] is not None]
        if short:
            change = f"--set {REPLICA_PATHS[short[0]]}={asked[short[0]]}"
            raise BadInput(f"--{short[0]} beside the file {file}: change what is in the file with {change}")
        data = chosen(answer_of(file), None, file) if is_plan(file) else beside_file(read_yaml(file), file)
        data.pop("gateway", None)  # how `headway serve` reaches the replicas
        deployment = from_mapping(Deployment, data, file)
    return override(with_policies(deployment, asked["policies"]), assignments)


def beside_file(data: dict[str, Any], file: str) -> dict[str, Any]:
    """Return what a deployment's file says; the files of its GPUs may be named from its folder.

    Raises:
        BadInput: such a file is neither here nor there.
    """
    from headway.hardware.files import beside

    pools = data.get("pools")
    for pool in pools if isinstance(pools, list) else ():
        replica = pool.get("replica") if isinstance(pool, dict) else None
        if isinstance(replica, dict) and isinstance(replica.get("gpu"), str):
            replica["gpu"] = beside(replica["gpu"], file)
    return data


def is_plan(file: str) -> bool:
    """Return whether the file is the JSON of a plan or of a fleet, by its first field."""
    try:
        with Path(file).open("rb") as opened:
            return re.match(rb'\s*\{\s*"schema":\s*"headway\.(plan|fleet)/', opened.read(PEEK_BYTES)) is not None
    except OSError:
        return False


def answer_of(file: str) -> Plan | Fleet:
    """Return what `headway plan --json` wrote: a plan, or pools for several classes.

    Raises:
        BadInput: it cannot be read, or is neither.
    """
    from headway.plan import Plan
    from headway.plan.fleet_answer import Fleet

    try:
        text = Path(file).read_bytes()
    except OSError as error:
        raise BadInput(f"{file}: cannot be read: {error.strerror}") from None
    if b"headway.plan/" not in text and b"headway.fleet/" not in text:
        raise BadInput(
            f"{file}: not what `headway plan --json` writes, of the schema headway.plan/1 or headway.fleet/1; "
            "a deployment is a .yaml file"
        )
    return Fleet.from_json(text, file) if b"headway.fleet/" in text[:PEEK_BYTES] else Plan.from_json(text, file)


def chosen(plan: Plan | Fleet, name: str | None, file: str) -> dict[str, Any]:
    """Return the deployment of the candidate asked for, by default of the best.

    Raises:
        UnknownName: no such candidate. BadInput: there is no best.
    """
    from headway.plan import Plan

    if not isinstance(plan, Plan):
        if name is not None:
            raise BadInput(f"{file}: --candidate {name}: its pools were chosen together; --set changes one of them")
        if plan.deployment is None:
            again = "; run `headway plan` again, to its end" if plan.interrupted else ""
            raise BadInput(f"{file}: there is no deployment for all classes: {plan.missing}{again}")
        return plan.deployment
    if name is not None:
        by_name = {each.name: each for each in plan.ranked}
        if name not in by_name:
            raise UnknownName("candidate", name, by_name)
        return by_name[name].deployment
    if plan.best is None and plan.interrupted and not plan.ranked:
        raise BadInput(
            f"{file}: the plan was interrupted before any candidate was simulated, so it has none; run `headway plan` "
            "again, to its end"
        )
    if plan.best is None:
        why = plan.binding or "none is left to try"
        take = (
            f"`headway report {file} --text` has the deployment that comes nearest as YAML, which every verb takes; "
            "`headway export` takes any candidate with --candidate NAME"
            if plan.ranked
            else "its message says what would do"
        )
        first = "the plan was interrupted, and of those simulated by then " if plan.interrupted else ""
        again = "; run `headway plan` again to its end, or: " if plan.interrupted else "; "
        raise BadInput(f"{file}: {first}no candidate meets the SLO ({why}){again}{take}")
    return plan.best.deployment


def _one_pool(asked: Options) -> Deployment:
    from headway.cost import Replica
    from headway.model import model
    from headway.sim import Deployment, Pool

    for name in ("model", "gpu"):
        if asked[name] is None:
            names = f"`headway list {name}s` shows the names"
            raise BadInput(f"--{name} is missing: {names}; or give a DEPLOYMENT.yaml")
    given = {name: asked[name] for name in ("tp", "pp", "weights", "kv") if asked[name] is not None}
    weights = model(asked["model"]).native_dtype  # every GPU takes it: where it has no such products, weights alone
    replica = Replica(model=asked["model"], gpu=asked["gpu"], **{"weights": weights, **given})
    return Deployment(pools=(Pool(count=asked["replicas"] or 1, replica=replica),))


def with_policies(deployment: Deployment, named: Iterable[str]) -> Deployment:
    """Return the deployment with these policies (KIND=NAME) in place of its own."""
    import msgspec

    return msgspec.structs.replace(deployment, policies=chosen_policies(deployment.policies, named))


def chosen_policies(policies: Policies, named: Iterable[str]) -> Policies:
    """Return the policies with these (KIND=NAME) in place of those, whose parameters go with them.

    Raises:
        BadInput, UnknownName: another form, or a kind that there is not.
    """
    import msgspec

    chosen: dict[str, str] = {}
    kinds = [kind for kind in policies.__struct_fields__ if kind != "params"]
    for text in named:
        kind, equals, name = text.partition("=")
        if not equals or not name:
            raise BadInput(f"--policy {text!r}: write KIND=NAME, as in route=prefix-affinity, route=module:Class")
        if kind not in kinds:
            raise UnknownName("kind of policy", kind, kinds)
        if chosen.get(kind, name) != name:
            raise BadInput(f"--policy {kind}={chosen[kind]} against --policy {text}: give one of them")
        chosen[kind] = name
    kept = {kind for kind in kinds if chosen.get(kind) in (None, getattr(policies, kind))}
    params = {kind: each for kind, each in policies.params.items() if kind in kept}
    return msgspec.structs.replace(policies, **chosen, params=params)


def workload_of(asked: Options, assignments: list[str], terminal: Terminal) -> Workload:
    """Return the workload, and say what was assumed and what its reader has to say.

    Raises:
        BadInput: lengths that do not go together with the rest, a field that is wrong, or a broken trace.
    """
    try:
        made, lengths = _made(asked, assignments)
    except BadInput as error:
        if LEAVE_OUT not in str(error):
            raise
        raise BadInput(str(error).replace(LEAVE_OUT, LEAVE_OUT.replace("skip_bad", "--skip-bad"))) from None
    lines = "line" if made.skipped == 1 else "lines"
    skipped = f"skipped {made.skipped:,} broken {lines} of {asked['workload']}" if made.skipped else ""
    for said in _assumed(asked, lengths, made), *made.notes, skipped:
        if said:
            terminal.keep(said)
    return made


def _made(asked: Options, assignments: list[str]) -> tuple[Workload, bool]:
    """The workload, and whether lengths were given for it."""
    import msgspec

    from headway.specs import override
    from headway.workload import WorkloadSpec, workload

    lengths = {"prompt": asked["input"], "output": asked["output"]}
    given = {name: length for name, length in lengths.items() if length is not None}
    source = asked["workload"]
    skip_bad = asked["skip_bad"]
    if source is None and len(given) == 1:
        raise BadInput("--input and --output belong together; with a --workload one alone replaces its own")
    base: str | WorkloadSpec = source or (WorkloadSpec(**lengths) if given else DEFAULT_WORKLOAD)
    if source is not None and given:
        spec = workload(source, skip_bad=skip_bad).spec
        if spec.trace is not None:
            raise BadInput(f"--input and --output: {source} holds the lengths of its requests; leave them out")
        base = msgspec.structs.replace(spec, **given)
    change: Options = {name: asked.get(name) for name in ("rate", "requests", "arrival")}
    made = workload(base, skip_bad=skip_bad, **change)
    if assignments:
        made = workload(override(made.spec, assignments, "--set workload"), skip_bad=skip_bad)
    return made, bool(given)


def _assumed(asked: Options, lengths: bool, made: Workload) -> str:
    """What was not asked for and matters most."""
    assumed, changes = [], []
    if asked["workload"] is None and not lengths:
        assumed.append(f"workload {DEFAULT_WORKLOAD}")
        changes.append("--workload")
    if asked["rate"] is None and made.spec.trace is None and made.rate_req_s is not None:
        own = "" if lengths and asked["workload"] is None else ", its own rate"
        assumed.append(f"{format_rate(made.rate_req_s)}{own}")
        changes.append("--rate")
    if assumed and asked.get("replicas", 1) is None and asked.get("model"):
        assumed.append("1 replica")
        changes.append("--replicas")
    return f"assuming {', '.join(assumed)}; {', '.join(changes)} to change" if assumed else ""


def slo_of(asked: Options, assignments: list[str]) -> Slo | None:
    """Return the SLO; None where no limit was given.

    Raises:
        BadInput: a limit or share that is wrong.
    """
    from headway.metrics import Slo
    from headway.specs import override

    limits = {name: asked.get(name) for name in ("ttft", "tpot", "e2e")}
    slo = override(Slo.parse(**limits, attainment=asked["attainment"]), assignments, "--set slo")
    no_limit = all(limit is None for limit in (slo.ttft_s, slo.tpot_s, slo.itl_s, slo.e2e_s))
    return None if no_limit else slo


def slos_of(asked: Options) -> dict[str, Slo]:
    """Return the SLOs of classes by their names; none where none was given.

    Raises:
        BadInput: another form, a class twice, a limit or share that is wrong. UnknownName: a limit that there is not.
    """
    from headway.metrics import Slo

    slos: dict[str, Slo] = {}
    for text in asked["by_class"]:
        name, colon, limits = text.partition(":")
        given = dict(part.strip().partition("=")[::2] for part in limits.split(","))
        if not colon or not name or not all(given.values()):
            raise BadInput(f"--slo {text!r}: write CLASS:LIMIT=VALUE[,...], as in chat:ttft=300ms,tpot=30ms")
        if name in slos:
            raise BadInput(f"--slo {text!r}: class {name} has its SLO already; give all of its limits at once")
        for limit in given:
            if limit not in LIMITS:
                raise UnknownName(f"limit of --slo {name}", limit, LIMITS)
        slos[name] = Slo.parse(**{"attainment": asked["attainment"], **given})
    return slos


def slo_by_class(asked: Options, assignments: list[str], workload: Workload) -> Slo | dict[int, Slo] | None:
    """Return the SLO of all requests, or one for each class by its number; None where no limit was given.

    Raises:
        BadInput: as `slo_of` and `slos_of`. BadInput, UnknownName: a class that the workload does not have.
    """
    from headway.metrics import Slo

    slo, slos = slo_of(asked, assignments), slos_of(asked)
    if not slos:
        return slo
    names = [each.name for each in workload.spec.classes]
    workload.check_classes(slos)
    return {place: slos.get(name, slo or Slo()) for place, name in enumerate(names)}


def workforce_of(asked: Options) -> Workforce:
    """Return who does the work: so many processes (None: as many as are worth it), or a Ray cluster.

    Raises:
        BadInput: both are asked for, or an address that is none.
    """
    from headway.plan import RayCluster

    workers: int | None = asked["workers"]
    if asked["ray"] is None:
        return workers
    if workers is not None:
        raise BadInput(f"--workers {workers} against --ray {asked['ray']}: give one of them")
    return RayCluster(asked["ray"])


def check_records(path: str | None, none_kept: bool) -> None:
    """Refuse, before the work, records that could not be written.

    Raises:
        BadInput: another suffix, or `--no-records` beside it.
        MissingExtra: Parquet without pyarrow.
    """
    if path is None:
        return
    if none_kept:
        raise BadInput("--records and --no-records: leave one of them out")
    from headway.metrics import record_files

    record_files.check(path)


def note_release(name: str, version: str, terminal: Terminal) -> None:
    """Say so where a release of an engine is not known, and which one's times are taken for it.

    Raises:
        UnknownName, BadInput: there is no such engine, or a version without a number.
    """
    from headway.cost.engines import standing_for

    known = standing_for(name, version)
    if known:
        known = known if "." in known else f"{known}.x"
        terminal.keep(f"engine {name}: release {version} is not known; the step times are those of {known}")


def note_idle_route(deployment: Deployment, terminal: Terminal) -> None:
    """Say so where a router has nothing to go by."""
    spread = [name for name in deployment.models if deployment.spreads_decode(name)]
    if deployment.policies.route != "same-node" or any(map(deployment.has_neighbours, spread)):
        return
    none = "no node has both prefill and decode replicas" if spread else "no decode replicas stand on several nodes"
    terminal.keep(f"route=same-node: {none}, so it goes by load alone; pools.N.nodes says where replicas stand")


def note_fp16(kinds: Iterable[str], terminal: Terminal) -> None:
    """Say so where bf16 means fp16; raises UnknownName for a GPU that there is not."""
    from headway.hardware import gpu

    for kind in dict.fromkeys(kinds):
        card = gpu(kind)
        if not card.has_bf16:
            terminal.keep(
                f"{kind} has no bf16 (compute capability {card.compute_capability}): bf16 stands for fp16, which is as "
                "large"
            )


def note_idle_order(order: str, workload: Workload, terminal: Terminal) -> None:
    """Say so where an order has nothing to go by, or knows more than any server would."""
    if order not in ("edf", "sjf"):
        return
    first = next(iter(workload.batches(0, chunk=SEEN_REQUESTS)))
    if order == "edf" and (first.deadline_s == float("inf")).all():
        none = f"order=edf: none of the first {len(first):,} requests has a deadline, and without any it is fcfs"
        terminal.keep(f"{none}; workload.classes with deadline_s give them")
    if order == "sjf" and (first.predicted_output_tokens == first.output_tokens).all():
        knows = "order=sjf knows every output length in advance, which no server does"
        terminal.keep(f"{knows}; --set workload.prediction_sigma=0.5 predicts with errors")
