"""`export`: a deployment and a target give files."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

from headway.cost.engines import cut_blocks
from headway.cost.handover import Side, withheld
from headway.errors import BadInput
from headway.export.compose import compose
from headway.export.dynamo import dynamo
from headway.export.engine import ENGINES, Ask, check_engine, check_vendor
from headway.export.gateway import carried, gateway_file
from headway.export.kubernetes import kubernetes
from headway.export.llmd import llm_d
from headway.export.one_model import of_model
from headway.export.place import addresses, asked, place
from headway.export.script import commented, scripts
from headway.export.sidecar import port_of, sidecar_notes
from headway.export.target import Exported, Target, target
from headway.export.vendors import image
from headway.export.wires import host_notes
from headway.gateway import SloClass
from headway.hardware import gpu
from headway.metrics import Slo
from headway.model import model
from headway.sim import Deployment
from headway.specs import check_argument, write_yaml

__all__ = ["export"]


def export(
    deployment: Deployment,
    to: str,
    *,
    model: str = "",
    model_path: str = "",
    hosts: Sequence[str] = (),
    slo: Slo | Sequence[SloClass] | None = None,
    carry: bool = True,
) -> Exported:
    """Return a deployment as files for a target: "vllm", "kubernetes", ... (`targets`).

    `model` names which to export of a deployment that serves several, by the name that requests ask for ("": all).
    `model_path` is a repository of Hugging Face or a folder on the hosts, in the deployment's precision; by default the
    repository that the catalogue read the model from. `hosts` are the hosts' addresses where they matter, `slo` the
    promise of the gateway's first class, or there are all its classes. What the target cannot express is in the notes,
    and as comments in the files. `carry`: files that describe GPUs come along with the gateway's file,
    which names them from its folder; else it has their paths here.

    Raises:
        UnknownName: no such target, or model. BadInput: an argument of another type, a setting that the target cannot
        be given, or a deployment that it cannot hold. DoesNotFit: the model does not fit its GPUs.
    """
    check_argument("deployment", deployment, Deployment, "Deployment(pools=[Pool(replica=Replica(...))])")
    check_argument("hosts", hosts, tuple[str, ...], '["node-1"]')
    if slo is not None and not isinstance(slo, Slo):
        check_argument("slo", slo, tuple[SloClass, ...], 'Slo.parse(ttft="500ms")')
    to_ = target(to)
    if model:
        deployment = of_model(deployment, model)
    head = f"{to_.version}, by headway: {deployment.name}" if deployment.name else f"{to_.version}, by headway"
    if to == "gateway":
        return _gateway(deployment, to_, head, hosts, slo, carry)
    asks = _asks(deployment, to, model_path)
    if to in ENGINES:
        placed = place(deployment)
        policies = deployment.policies
        files, notes = scripts(placed, asks, addresses(placed, hosts), policies.route, head)
        if asks[0].role == "mixed":
            said = f"policies.route={policies.route}, admit={policies.admit}"
            notes.append(f"{said}: no engine's; --to gateway has them")
        notes += host_notes(deployment)
    elif hosts:
        raise BadInput(f"--hosts: {to} finds its hosts by itself; leave it out")
    elif to == "dynamo":
        files, notes = dynamo(deployment, asks, head)
    else:
        engine = asks[0].replica.engine.name
        head += f"; {', '.join(dict.fromkeys(image(engine, ask.replica.gpu) for ask in asks))}"
        if to == "compose":
            files, notes = compose(deployment, place(deployment), asks, slo, head)
        else:
            files, notes = {"kubernetes": kubernetes, "llm-d": llm_d}[to](deployment, asks, head)
    if deployment.kv_link is not None:
        notes.append(f"kv_link={deployment.kv_link.name}: NIXL takes the links that it finds")
    return Exported(target=to_, files=files, notes=tuple(notes))


def _asks(deployment: Deployment, to: str, model_path: str) -> list[Ask]:
    """What to ask the exporter of the pools' one engine for, a pool each, after what no target can hold is refused."""
    several = len(deployment.models) > 1
    if several and to in ("kubernetes", "llm-d", "dynamo"):
        raise BadInput(
            f"pools serve {', '.join(deployment.models)}: one route of {to} leads to one model: export each by "
            f"itself, as with --model {deployment.models[0]}, and --to gateway for the whole"
        )
    if several and model_path:
        raise BadInput(
            f"--model-path: one folder for {', '.join(deployment.models)}: export each by itself, as with --model "
            f"{deployment.models[0]}"
        )
    asks = asked(deployment, model_path)
    for ask in asks:
        check_engine(to, ask)
        check_vendor(to, ask)
    names = {ask.replica.engine.name for ask in asks}
    if len(names) > 1:
        raise BadInput(
            f"pools run {' and '.join(sorted(names))}: an export is for one engine; export each pool by itself"
        )
    _check_handover(asks)
    for ask in asks:
        one = ask.replica
        cut = cut_blocks(one.engine.name, model(one.model), one.tp, one.dp, one.ep)
        if cut and not ask.given and one.weights == "fp8":
            raise BadInput(
                f"{ask.where}.replica: tp {one.tp}, dp {one.dp} and ep {one.ep} cut {cut}, and {one.engine.name} does "
                "not load that; set replica.ep to divide the experts, cut them less, or plan again"
            )
    if to not in ENGINES:
        _check_places(deployment, to, *names)
    return asks


def _check_handover(asks: list[Ask]) -> None:
    """Refuse prefill and decode pools that their engine does not pass KV between."""
    for ask, other in product(asks, repeat=2):
        if ask.name != other.name or (ask.role, other.role) != ("prefill", "decode"):
            continue
        one, two = ask.replica, other.replica
        sides = [Side(gpu(each.gpu), each.tp, each.pp, each.engine.block_tokens) for each in (one, two)]
        if why := withheld(one.engine.name, model(one.model), *sides):
            raise BadInput(
                f"{ask.where}.replica and {other.where}.replica: {why}; set what both need alike, or plan again: no "
                "plan has pools that its engine passes no KV between"
            )


def _check_places(deployment: Deployment, to: str, engine: str) -> None:
    """Refuse what hangs on which node something stands on, and on a router that knows."""
    if any(pool.replica.apart for pool in deployment.pools):
        raise BadInput(
            f"replica.apart: {to} does not say which stage stands on which host: export to {engine}, a script for each"
        )
    if deployment.policies.route == "same-node" and any(map(deployment.wide, deployment.models)):
        raise BadInput(
            f"policies.route=same-node: {to}'s router does not know where KV is, and without it the deployment is not "
            f"the one that was simulated: export to {engine}, a script for each replica, and to gateway, which routes "
            "so; or plan with --policy route=least-requests"
        )


def _gateway(
    deployment: Deployment,
    to: Target,
    head: str,
    hosts: Sequence[str],
    slo: Slo | Sequence[SloClass] | None,
    carry: bool,
) -> Exported:
    placed = place(deployment)
    at = addresses(placed, hosts)
    file = gateway_file(deployment, [f"{at[each.hosts[0]]}:{port_of(each, deployment)}" for each in placed], slo)
    notes = [
        "no tenants: whoever reaches gateway.listen may ask; gateway.tenants says who, by the hashes of their keys",
        *sidecar_notes(placed, deployment, at),
    ]
    if len(at) > 1 and not hosts:
        notes.append(f"addresses {at[0]} to {at[-1]} stand for your hosts: --hosts names them")
    cards = carried(file, ["gateway.yaml"]) if carry else {}
    files = {"gateway.yaml": commented([head, *notes], write_yaml(file))} | cards
    return Exported(target=to, files=files, notes=tuple(notes))
