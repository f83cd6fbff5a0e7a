"""What is to be different: from the options of `headway whatif` to another deployment, workload and SLO."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from headway.cli.asked import split_assignments, with_policies
from headway.cli.options import Options
from headway.cli.terminal import Terminal
from headway.errors import BadInput, UnknownName
from headway.units import parse_rate

if TYPE_CHECKING:
    from headway.metrics import Slo
    from headway.plan import Question
    from headway.plan.otherwise import Case
    from headway.sim import Deployment, Pool
    from headway.workload import Workload

    Limits = Slo | dict[int, Slo] | None

_FACTOR = re.compile(r"\s*(?:(\d+\.?\d*|\.\d+)\s*x|([+-]\d+\.?\d*)\s*%)\s*")
_OF_REPLICAS = ("gpu", "tp", "pp", "weights", "kv")
_LIMITS = ("ttft", "tpot", "itl", "e2e")
_HOW = "2x, +50% or -20% say what becomes of it, a plain rate as in 20 what it is today"


class Rates(NamedTuple):
    """What `--rate` said: requests per second as it is, and a factor; None where it said nothing."""

    today_req_s: float | None
    factor: float | None


def rates_of(texts: tuple[str, ...]) -> Rates:
    """Return today's rate and what it is multiplied by.

    Raises:
        BadInput: neither of the two forms, or one of them twice.
    """
    today: list[float] = []
    factors: list[float] = []
    for text in texts:
        match = _FACTOR.fullmatch(text)
        if match is None:
            try:
                today.append(parse_rate(text))
            except BadInput as error:
                raise BadInput(f"--rate: {error}; {_HOW}") from None
        else:
            factors.append(float(match[1]) if match[1] else 1 + float(match[2]) / 100)
        if len(today) > 1 or len(factors) > 1 or min([1.0, *today, *factors]) <= 0:
            raise BadInput(f"--rate {text}: give one of each, above zero: {_HOW}")
    return Rates(today[0] if today else None, factors[0] if factors else None)


def changes_of(asked: Options) -> list[str]:
    """Return what is to be different, as it was asked for.

    Raises:
        BadInput: nothing is, or a rate that is none.
    """
    rates_of(asked["rates"])
    said = [f"rate {text}" for text in asked["rates"] if _FACTOR.fullmatch(text)]
    said += [f"replicas {text}" for text in asked["copies"]]
    said += [f"{name} {asked[name]}" for name in _OF_REPLICAS if asked[name] is not None]
    said += [*asked["policies"], *(f"SLO {text}" for text in asked["limits"]), *asked["assignments"]]
    if not said:
        raise BadInput(
            "what is to be different? --rate 2x, --replicas -1, --gpu NAME, --policy KIND=NAME, --slo ttft=300ms or "
            "--set PATH=VALUE, as in --policy route=round-robin"
        )
    return said


def changed(case: Case, asked: Options, terminal: Terminal, question: Question | None = None) -> Case:
    """Return the case with every change made; a plan's `question` may know what each kind of GPU costs.

    Raises:
        BadInput: a change that cannot be, or that leaves everything as it is.
    """
    from headway.plan.otherwise import Case

    sets = split_assignments(asked["assignments"])
    after = Case(
        _repriced(case.deployment, changed_deployment(case.deployment, asked), question, terminal),
        _workload(case.workload, rates_of(asked["rates"]).factor, sets["workload"]),
        _slo(case, asked["limits"], sets["slo"]),
    )
    if asked["gpu"] is not None:
        _runs_there(after.deployment, asked["gpu"])
    if (after.deployment, after.workload.spec, after.slo) == (case.deployment, case.workload.spec, case.slo):
        raise BadInput(f"{', '.join(changes_of(asked))}: that is what there is, so nothing would be different")
    _note_nodes(case.deployment, after.deployment, terminal)
    return after


def _note_nodes(was: Deployment, now: Deployment, terminal: Terminal) -> None:
    """Say so where a model's replicas take more nodes than before, and the network between these counts."""
    from headway.plan.setups import goes_by_node

    for name in now.models:
        before, after = (each.nodes_taken(name) if name in each.models else 0 for each in (was, now))
        if not 0 < before < after or not goes_by_node(now, name):
            continue
        far, _ = now.links(name)
        kept = "" if now.policies.route == "same-node" else "; --policy route=same-node keeps it on its node"
        terminal.keep(
            f"the prefill and decode replicas of {name} take {after} nodes on the changed side, {before} as they are: "
            f"KV from one to another goes over the network, {far.bytes_per_s / 1e9:.3g} GB/s for a GPU{kept}"
        )


def _runs_there(deployment: Deployment, gpu: str) -> None:
    """Refuse another GPU that lacks the precision of what ran on the one before, with what to try.

    Raises:
        BadInput: it computes in others.
    """
    from headway.sim.run import compiled

    try:
        for pool in deployment.pools:
            compiled(pool.replica)
    except BadInput as error:
        if not str(error).startswith(("weights=", "kv=")):
            raise
        raise BadInput(f"--gpu {gpu}: {error}; take --weights bf16 --kv bf16") from None


def changed_deployment(deployment: Deployment, asked: Options) -> Deployment:
    """Return the deployment with every change that is its own.

    Raises:
        BadInput: a change that cannot be.
    """
    from headway.specs import override

    sets = [f"pools.*.replica.{name}={asked[name]}" for name in _OF_REPLICAS if asked[name] is not None]
    own = split_assignments(asked["assignments"])["deployment"]
    sets += [_count(deployment, text, own) for text in asked["copies"]]
    sets += own
    now = override(with_policies(deployment, asked["policies"]), sets)
    return _weighted(deployment, _recalibrated(deployment, now))


def _recalibrated(was: Deployment, now: Deployment) -> Deployment:
    """The deployment as it is now; what is published is taken of a changed replica anew."""
    import msgspec

    from headway.cost.published import followed, published

    bare = [msgspec.structs.replace(pool.replica, calibration=None) for pool in was.pools]
    known = [found for replica in bare if (found := published(replica)) is not None]
    pools = tuple(msgspec.structs.replace(pool, replica=followed(pool.replica, known)) for pool in now.pools)
    return msgspec.structs.replace(now, pools=pools)


def _weighted(was: Deployment, now: Deployment) -> Deployment:
    """The deployment as it is now, its router's weights those of as many replicas as there are now."""
    import msgspec

    from headway.plan.space import resized

    counts = [pool.count for pool in now.pools]
    if now.policies.params != was.policies.params or counts == [pool.count for pool in was.pools]:
        return now  # new weights are as they were given
    policies = msgspec.structs.replace(now.policies, params=resized(was, counts).policies.params)
    return msgspec.structs.replace(now, policies=policies)


def _repriced(was: Deployment, now: Deployment, question: Question | None, terminal: Terminal) -> Deployment:
    """The deployment as it is now; a price that was of another mixture of GPUs is the new one's, or the catalogue's."""
    import msgspec

    from headway.plan.space import priced

    usd, mixtures = now.prices.usd_per_gpu_hour, [_mixture(each) for each in (was, now)]
    if usd is None or usd != was.prices.usd_per_gpu_hour or mixtures[0] == mixtures[1]:
        return now
    if question is not None and set(mixtures[0]) == set(mixtures[1]):
        return priced(question, now)  # one price for all kinds stays
    now = msgspec.structs.replace(now, prices=msgspec.structs.replace(now.prices, usd_per_gpu_hour=None))
    if question is not None and set(mixtures[1]) <= set(question.usd_per_gpu_hour):
        return priced(question, now)
    terminal.keep(
        f"${usd:.2f} per GPU hour was the price of {' and '.join(mixtures[0])} as they were; the changed side has the "
        "catalogue's: --set prices.usd_per_gpu_hour=USD gives another"
    )
    return now


def _mixture(deployment: Deployment) -> dict[str, float]:
    """The share of each kind of GPU among all."""
    shares: dict[str, float] = {}
    for pool in deployment.pools:
        gpus = pool.count * pool.replica.gpus
        shares[pool.replica.gpu] = shares.get(pool.replica.gpu, 0.0) + gpus / deployment.gpus
    return shares


def _count(deployment: Deployment, text: str, own: list[str]) -> str:
    """The assignment that `--replicas` stands for, beside the user's own."""
    named, equals, number = text.rpartition("=")
    names = deployment.pool_names()
    if not equals and len(names) > 1:
        raise BadInput(f"--replicas {text}: of which pool? {names[0]}={text} or one of {', '.join(names[1:])}")
    if equals and named not in names:
        raise UnknownName("pool of --replicas", named, names)
    if not re.fullmatch(r"[+-]?\d+", number):
        raise BadInput(f"--replicas {text}: give a number, as in 4, +1 or -1")
    place = names.index(named) if equals else 0
    had = deployment.pools[place].count
    count = had + int(number) if number[0] in "+-" else int(number)
    if count < 1:
        raise BadInput(f"--replicas {text}: of {had} that leaves {count}; a pool has at least 1 replica")
    _check_placed(deployment.pools[place], place, count, text, own)
    return f"pools.{place}.count={count}"


def _check_placed(pool: Pool, place: int, count: int, text: str, own: list[str]) -> None:
    """Refuse another number of replicas whose nodes are said, unless the user's own assignments say them anew."""
    said = any(each.partition("=")[0].strip() in (f"pools.{place}.nodes", "pools.*.nodes") for each in own)
    if pool.nodes is None or pool.most is not None or said or count == pool.count:
        return
    nodes = [f"{node}" for node in pool.nodes[:count]] + ["NODE"] * (count - pool.count)
    raise BadInput(
        f"--replicas {text}: the deployment says on which nodes its {pool.count} {pool.role} replicas stand: say it of "
        f"{count}, as in --set 'pools.{place}.nodes=[{','.join(nodes)}]', or take `nodes` out of all its pools"
    )


def _workload(made: Workload, factor: float | None, assignments: list[str]) -> Workload:
    from headway.specs import override
    from headway.workload import workload

    if factor is not None:
        if made.rate_req_s is None:
            raise BadInput(f"--rate: {made.name} has no rate to multiply: give it open arrivals, as --arrival poisson")
        made = made.at_rate(made.rate_req_s * factor)
    return workload(override(made.spec, assignments, "--set workload")) if assignments else made


def _slo(case: Case, limits: tuple[str, ...], assignments: list[str]) -> Limits:
    """The limits with the new ones in place of theirs: CLASS:LIMIT=VALUE in a class, others in every class.

    Raises:
        BadInput, UnknownName: another form, or a class that there is not.
    """
    from headway.metrics import Slo

    slo, names = case.slo, [each.name for each in case.workload.spec.classes]
    every: list[str] = []
    by_class: dict[str, list[str]] = {}
    for text in limits:
        name, colon, several = text.partition(":")
        case.workload.check_classes([name] if colon else [])
        target = by_class.setdefault(name, []) if colon else every
        target += (several if colon else text).split(",")
    if not limits and not assignments:
        return slo
    if not by_class and (slo is None or isinstance(slo, Slo)):
        return _limited(slo or Slo(), every, assignments)
    each = {number: slo or Slo() for number in range(len(names))} if slo is None or isinstance(slo, Slo) else slo
    return {
        number: _limited(own, [*every, *by_class.get(names[number], [])], assignments) for number, own in each.items()
    }


def _limited(slo: Slo, limits: list[str], assignments: list[str]) -> Slo:
    from headway.metrics import Slo
    from headway.specs import override

    given = {f"{name}_s": getattr(slo, f"{name}_s") for name in _LIMITS} | {"attainment": slo.attainment}
    for text in limits:
        name, equals, value = text.partition("=")
        if name not in (*_LIMITS, "attainment"):
            raise UnknownName("limit of --slo", name, [*_LIMITS, "attainment"])
        if not equals or not value:
            raise BadInput(f"--slo {text}: write [CLASS:]LIMIT=VALUE[,...], as in ttft=300ms")
        parsed = Slo.parse(**{name: value})
        key = name if name == "attainment" else f"{name}_s"
        given[key] = getattr(parsed, key)
    return override(Slo(**given), assignments, "--set slo")
