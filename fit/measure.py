"""Everything the accuracy tables need of one row: two simulations, and its figures as sums under several step laws."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import log
from typing import NamedTuple

import msgspec

import headway.sim.run as simulation
from fit import engines, settings
from headway.accuracy.express import Case, express
from headway.accuracy.judge import Outcome, judge
from headway.accuracy.physics import broken
from headway.accuracy.reading import Inexpressible
from headway.accuracy.rows import Row
from headway.accuracy.schedule import Schedule
from headway.cost import Replica, StepTable, compile_replica
from headway.cost.efficiency import Efficiency, efficiency
from headway.cost.engines import engine_facts
from headway.cost.operators import CollectiveLaw, DecodeLaw, ExpertLaw, GemmLaw, MlaLaw, PrefillLaw
from headway.cost.power import PowerLaw
from headway.errors import HeadwayError
from headway.hardware import gpu
from headway.model import model
from headway.specs import from_mapping, read_yaml

SHEET = engines.DATA.with_name("efficiency.yaml")
POOLED = "pooled over"  # in the source of a number of the step table
# GPU families by the beginning of their keys, and the GPU whose laws stand in for theirs when they are left out: one of
# the same architecture, and one of another.
SIBLING = {
    "h100": "h200", "h200": "h100-sxm", "gh200": "h100-sxm", "b200": "b300", "gb200": "b300", "b300": "b200",
    "gb300": "b200", "l40s": "rtx-pro-6000", "rtx-pro-6000": "l40s",
}  # fmt: skip
STRANGER = {
    "h100": "b200", "h200": "b200", "gh200": "b200", "b200": "h100-sxm", "gb200": "h100-sxm", "b300": "h100-sxm",
    "gb300": "h100-sxm", "a100": "h100-sxm",
}  # fmt: skip
FEATURES = (
    "log users", "log users of a rank", "log prompt", "log output", "log active parameters", "log all parameters",
    "log bytes read by a GPU", "log KV bytes of a sequence on a GPU", "log bandwidth", "log FLOP/s", "layers",
    "experts", "log tp", "log dp", "log ep", "split", "vllm", "sglang", "trtllm",
)  # fmt: skip


class Sample(NamedTuple):
    """A row: what the simulator says by the shipped laws and by data sheets, and its figures as sums.

    `point` has the figures that host terms are fitted on, `whole` also the throughput of a steady state, `plain` those
    of `whole` where prompts and decodes mix and the engine looks for requests every step. `kernels` are the kernel
    seconds under other laws: "sheet" and "scalars" of `plain`, the others of `whole`, those of `LAWS` that exist.
    `tried` are `whole` by other readings of the row (`fit.settings`), where they change it.
    """

    row: Row
    shipped: Outcome
    sheet: Outcome
    point: engines.Point | None
    whole: engines.Point | None
    plain: engines.Point | None
    kernels: dict[str, tuple[float, ...]]
    features: tuple[float, ...]
    tried: dict[str, engines.Point]


def measured(row: Row) -> Sample:
    """Simulate a row by the shipped laws and by data sheets, then take its steps apart."""
    shipped = judge(row)
    with _step_law(_by_sheet):
        sheet = judge(row) if not shipped.reason else shipped
    nothing = Sample(row, shipped, sheet, None, None, None, {}, (), {})
    try:
        case = express(row)
        if not engines.usable(case) or broken(row, case):
            return nothing
        made = engines.scheduled(case)
        point = engines.point_of(row, case, made)
        if point is None:
            return nothing
        plain_made = engines.scheduled(_mixing(case)) if _mixing(case) != case else made
        plain = engines.point_of(row, case, plain_made)
    except (Inexpressible, HeadwayError):
        return nothing
    kernels = {}
    for name, (law, mixing) in LAWS.items():
        if all(law(pool.replica) is not None for pool in case.deployment.pools):
            steps = plain_made if mixing else made
            with _bare(law):
                other = engines.point_of(row, case, steps)
                found = other and _whole(row, case, steps, other)
            kernels[name] = tuple(figure.kernels_s for figure in found.figures) if found else ()
    whole, same = _whole(row, case, made, point), plain and _whole(row, case, plain_made, plain)
    return Sample(row, shipped, sheet, point, whole, same, kernels, _features(case), dict(_tried(row, case)))


def _tried(row: Row, case: Case) -> Iterator[tuple[str, engines.Point]]:
    for name, other in settings.others().items():
        try:
            with settings.read_as(other):
                changed = express(row)
            if changed != case:
                made = engines.scheduled(changed)
                point = engines.point_of(row, changed, made)
                if point is not None:
                    yield name, _whole(row, changed, made, point)
        except (Inexpressible, HeadwayError):
            continue  # no such row by that reading


def _whole(row: Row, case: Case, made: Schedule, point: engines.Point) -> engines.Point:
    """The point with the seconds of an output token of the whole steady state beside those between two tokens."""
    rate = row.measured.get("output_throughput")
    if case.kind != "steady" or not rate or len(made.pools) > 1 or any(f.kind == "rate" for f in point.figures):
        return point
    steps, pool = made.pools[0], case.deployment.pools[0]
    produced = float((steps.times * steps.decodes).sum()) * pool.ranks
    extra = engines.figure_of("rate", steps, pool.replica, steps.times, produced, case.scale / rate)
    return point._replace(figures=(*point.figures, extra))


def _mixing(case: Case) -> Case:
    """The case under an engine that computes prompts beside decodes, as soon as they come."""
    replace = msgspec.structs.replace

    def plain(replica: Replica) -> Replica:
        engine = replace(replica.engine, poll_steps=1, align_steps=0, gather_steps=0, ahead=False)
        if engine_facts(engine.name, engine.version, replica.gpu).prefill_alone:
            engine = replace(engine, name="vllm", version="")
        return replace(replica, engine=engine)

    pools = tuple(replace(pool, replica=plain(pool.replica)) for pool in case.deployment.pools)
    return replace(case, deployment=replace(case.deployment, pools=pools))


# --- step laws ----------------------------------------------------------------------------------------------

Law = Callable[[Replica], Efficiency | None]


def sheet_laws(replica: Replica) -> Efficiency:
    """Return usual shares of the data sheet for every operator, and a GPU that always draws its TDP."""
    return _sheet(replica.gpu, replica.engine.name)


@functools.cache
def _sheet(gpu_key: str, engine: str) -> Efficiency:
    card = gpu(gpu_key)
    read = read_yaml(SHEET)
    gemm = from_mapping(GemmLaw, read["gemm"], SHEET.name)
    experts = from_mapping(ExpertLaw, read["experts"], SHEET.name)
    link = read["collective"].get(card.link_kind, read["collective"]["xgmi"])
    collective = from_mapping(CollectiveLaw, link, SHEET.name)
    known, launch_s, flops, bytes_ = efficiency(card, engine), gemm.launch_s, gemm.compute, gemm.memory
    decode = DecodeLaw(launch_s=launch_s, head_s=0.0, memory=bytes_, memory_fp8=bytes_, error=gemm.error)
    prefill = PrefillLaw(compute=flops, head_s=0.0, tile_tokens=0.0, error=gemm.error)
    mla = MlaLaw(
        launch_s=launch_s, head_s=0.0, memory=bytes_, memory_fp8=bytes_, compute=flops, prefill_compute=flops,
        prefill_head_s=0.0, tile_tokens=0.0, error=gemm.error,
    )  # fmt: skip
    return Efficiency(
        source="data sheet",
        gemm=dict.fromkeys(known.gemm, gemm),
        experts=dict.fromkeys(known.experts, experts),
        decode=decode,
        prefill=prefill,
        mla=mla,
        collective=dict.fromkeys(known.collective, collective),
        gathers=dict.fromkeys(known.gathers, collective),
        dispatch={},
        power=PowerLaw(waiting=0.0, resident=1.0, memory=0.0, compute=0.0, experts=0.0, error=0.3),
    )


def scalar_laws(replica: Replica) -> Efficiency:
    """Return the shipped laws without their tables of ratios."""
    return _scalars(replica.gpu, replica.engine.name)


@functools.cache
def _scalars(gpu_key: str, engine: str) -> Efficiency:
    replace, laws = msgspec.structs.replace, efficiency(gpu(gpu_key), engine)
    return replace(
        laws,
        gemm={of: replace(law, ratio=None) for of, law in laws.gemm.items()},
        experts={of: replace(law, ratio=None) for of, law in laws.experts.items()},
        decode=replace(laws.decode, ratio=None, ratio_fp8=None),
        prefill=replace(laws.prefill, ratio=None),
    )


def sibling_laws(replica: Replica) -> Efficiency | None:
    """Return the laws timed on another GPU of the architecture; None without such for every operator."""
    return _of_another(SIBLING, replica)


def stranger_laws(replica: Replica) -> Efficiency | None:
    """Return the laws timed on a GPU of another architecture; None without such for every operator."""
    return _of_another(STRANGER, replica)


def _of_another(stand_ins: dict[str, str], replica: Replica) -> Efficiency | None:
    other = next((key for start, key in stand_ins.items() if replica.gpu.startswith(start)), None)
    return _foreign(replica, other) if other else None


@functools.lru_cache(1024)
def _foreign(replica: Replica, other: str) -> Efficiency | None:
    """Another GPU's laws; None where a pooled law is among them: the GPU that is left out took part in its fit."""
    laws = efficiency(gpu(other), replica.engine.name)
    made = compile_replica(replica, laws=laws, host=engines.BARE).provenance
    pooled = any(POOLED in number.source for name, number in made.items() if not name.startswith("power."))
    return None if pooled else laws


LAWS: dict[str, tuple[Law, bool]] = {  # and whether the steps are those of `plain`
    "sheet": (sheet_laws, True),
    "scalars": (scalar_laws, True),
    "sheet whole": (sheet_laws, False),
    "scalars whole": (scalar_laws, False),
    "sibling": (sibling_laws, False),
    "stranger": (stranger_laws, False),
}


@functools.lru_cache(maxsize=4096)
def _by_sheet(replica: Replica) -> StepTable:
    return compile_replica(replica, laws=sheet_laws(replica), host=engines.BARE)


@contextmanager
def _step_law(table: Callable[[Replica], StepTable]) -> Iterator[None]:
    """Let the simulator price steps by another law."""
    shipped, simulation.compiled = simulation.compiled, table
    try:
        yield
    finally:
        simulation.compiled = shipped


@contextmanager
def _bare(law: Law) -> Iterator[None]:
    """Let figures be summed from the kernels of another law."""
    shipped = engines._bare
    engines._bare = functools.lru_cache(256)(
        lambda replica: compile_replica(replica, laws=law(replica), host=engines.BARE)
    )
    try:
        yield
    finally:
        engines._bare = shipped


# --- features for a learned predictor -----------------------------------------------------------------------


def _features(case: Case) -> tuple[float, ...]:
    pool, load = case.deployment.pools[-1], case.workload
    replica, card, spec = pool.replica, gpu(pool.replica.gpu), model(pool.replica.model)
    users = float(load.arrival.concurrency)
    ranks = pool.count * replica.dp
    prompt, output = load.prompt.expected_tokens, load.output.expected_tokens
    gpus = replica.tp * replica.dp * replica.pp
    weights = spec.weight_bytes(replica.weights) / gpus
    kv = spec.kv_bytes_per_token(replica.kv) * (prompt + output / 2) / (replica.tp * replica.pp)
    peak = card.peak_flops.get(replica.weights, card.peak_flops["bf16"])
    engine = replica.engine.name
    return (
        log(users), log(max(users / ranks, 1.0)), log(prompt), log(output), log(spec.active_params()),
        log(spec.total_params()), log(weights), log(kv), log(card.memory_bytes_per_s), log(peak), float(spec.layers),
        float(spec.experts), log(replica.tp), log(replica.dp), log(replica.ep),
        float(len(case.deployment.pools) > 1), *(float(engine == name) for name in ("vllm", "sglang", "trtllm")),
    )  # fmt: skip
