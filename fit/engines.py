"""Fits the host terms of every engine release on serving measurements, and writes `cost/data/engines.yaml`.

    python -m fit.engines TABLE.csv.gz [--cores 2] [--write]

Every row is simulated once; its steps do not depend on how long they take (`accuracy.schedule`), so each of its
figures is then the kernels' seconds plus a sum of host terms, with known factors. The terms of a release are fitted
on all its rows by robust least squares on log ratios, every (model, GPU, precision) weighing as the root of its rows,
with a ridge toward the prior. Printed beside it: the error where whole (model, GPU) pairs are left out.
"""

from __future__ import annotations

import argparse
import functools
from collections import Counter, defaultdict
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from scipy.optimize import least_squares

from headway.accuracy.express import Case, express
from headway.accuracy.physics import broken
from headway.accuracy.reading import Inexpressible, suspicion
from headway.accuracy.rows import Row, read_rows
from headway.accuracy.schedule import Schedule, Steps, schedule
from headway.cost import Replica, compile_replica
from headway.cost.engines import HostTerms
from headway.errors import HeadwayError
from headway.model import model

BARE = HostTerms(error=0.0)
DATA = Path(__file__).resolve().parents[1] / "src" / "headway" / "cost" / "data" / "engines.yaml"
# Chips whose servers, and what runs beside the kernels timed, differ: by the beginning of GPUs' keys. Others take the
# mean of the families, by how many rows of a release are of each.
FAMILIES = {"hopper": ("h100", "h200", "gh200"), "blackwell": ("b200", "gb200", "b300", "gb300")}
OWN = ("layer_s", "step_s", "sequence_s")  # terms that each family has of its own
SEQUENCES_SINCE = {"vllm": "0.12"}  # `sequence_s` from this release on; in older ones and other engines it is one
TIMED = ("h100", "h200", "b200", "gb200", "gb300", "l40s", "rtx-pro-6000")  # kernels timed: a factor drawn to 1
WEIGHTS = {"tpot": 1.0, "e2e": 1.0, "rate": 1.0, "ttft": 0.4}  # of a figure
SOFT = 0.15  # residual in log seconds beyond which a figure counts less
PULL, PULL_TIMED = 0.05, 1.0  # the ridge on a term, or on a GPU's log factor, and on that of one with kernels timed
STEADY_WARMUP = 0.2
REQUESTS_MAX = 40_000
FOLDS = 8
NOTHING = 1e-3  # of a term's usual size
# name, a usual size in seconds (the ridge's unit), smallest value
TERMS = (
    ("layer_s", 10e-6, -8e-6),
    ("moe_layer_s", 20e-6, 0.0),
    ("fp8_experts_s", 20e-6, 0.0),
    ("state_layer_s", 20e-6, 0.0),
    ("step_s", 300e-6, 0.0),
    ("sequence_s", 10e-6, 0.0),
    ("prompt_layer_s", 200e-6, 0.0),
    ("prompt_mla_layer_s", 500e-6, 0.0),
    ("prompt_state_layer_s", 500e-6, 0.0),
    ("image_s", 20e-3, 0.0),
    ("video_s", 20e-3, 0.0),
    ("rank_step_s", 2e-3, 0.0),
    ("intake_s", 20e-3, 0.0),
)
MEDIA = ("image", "video")  # in the order of their terms
NAMES = tuple(name for name, _, _ in TERMS)
SHARED = tuple(name for name in NAMES if name not in OWN)
OF_FAMILIES = tuple((name, family) for family in FAMILIES for name in OWN)
SIZED = (*SHARED, *(name for name, _ in OF_FAMILIES))  # the term that each value of a release is of
# vLLM 0.11.1 took 102 us more a layer with experts in fp8, TensorRT-LLM 22 and SGLang 5: launches outside a graph
PASSED = ("fp8_experts_s",)


class Figure(NamedTuple):
    """One measured figure: kernel seconds, and how often each host term is in it."""

    kind: str
    kernels_s: float
    counts: tuple[float, ...]
    measured_s: float


class Point(NamedTuple):
    """A row's figures and what they are grouped by."""

    row_id: str
    source: str
    pair: tuple[str, str]
    precision: str
    engine: str
    version: str
    gpu: str
    suspect: str
    figures: tuple[Figure, ...]


def point(row: Row) -> Point | None:
    """Simulate a row once; None where it cannot be expressed or says nothing of time."""
    try:
        case = express(row)
        if not usable(case) or broken(row, case):
            return None
        return point_of(row, case, scheduled(case))
    except (Inexpressible, HeadwayError):
        return None


def usable(case: Case) -> bool:
    """Whether a case is a closed loop, so that its steps do not depend on their times, and not too long."""
    return case.kind in ("closed", "steady", "static") and (case.workload.requests or 0) <= REQUESTS_MAX


def scheduled(case: Case) -> Schedule:
    """Return the steps of a case, of a steady state those after its start."""
    return schedule(case, STEADY_WARMUP if case.kind == "steady" else 0.0)


def point_of(row: Row, case: Case, made: Schedule) -> Point | None:
    """Return the figures of a row whose case has these steps; None where there is none."""
    replica = case.deployment.pools[-1].replica
    figures = tuple(figures_of(row, case, made))
    if not figures:
        return None
    return Point(
        row.row_id,
        row.source,
        (row.model_key, row.gpu_key),
        replica.weights,
        replica.engine.name,
        replica.engine.version,
        replica.gpu,
        suspicion(row),
        figures,
    )


def figures_of(row: Row, case: Case, made: Schedule) -> list[Figure]:
    """Return what the row measured of time, as kernel seconds and counts of host terms."""
    first, last = made.pools[0], made.pools[-1]
    prefill, decode = case.deployment.pools[0].replica, case.deployment.pools[-1].replica
    tokens = float((last.times * last.decodes).sum())
    found = []
    said = row.measured
    if "tpot_mean" in said and case.kind == "closed":
        found.append(figure_of("tpot", last, decode, last.times * last.resident, tokens, said["tpot_mean"]))
    elif "itl_p50" in said or "itl_mean" in said:
        usual = _usual_gaps(last)
        gap_s = said.get("itl_p50") or said["itl_mean"]
        found.append(figure_of("tpot", last, decode, usual, float(usual.sum()), gap_s))
    if "ttft_mean" in said and case.kind == "closed":
        ttft = figure_of("ttft", first, prefill, first.times * first.waiting, made.requests, said["ttft_mean"])
        found.append(ttft._replace(counts=(*ttft.counts[:-1], 1.0)))
    if "ttft_mean" in said and case.kind == "static":
        prompts = figure_of("ttft", last, decode, last.times * (last.chunks > 0), 1.0, said["ttft_mean"])
        found.append(prompts._replace(counts=(*prompts.counts[:-1], 1.0)))
    if "e2e_mean" in said and case.kind == "static":
        whole = figure_of("e2e", last, decode, last.times, 1.0, said["e2e_mean"])
        found.append(whole._replace(counts=(*whole.counts[:-1], 1.0)))
    elif case.kind == "steady" and ("tpot" not in {figure.kind for figure in found} or decode.media in MEDIA):
        rate = said.get("output_throughput")  # beside gaps, which are of steps without prompts, only for pictures
        if rate and len(made.pools) == 1:
            produced = tokens * case.deployment.pools[0].ranks
            found.append(figure_of("rate", last, decode, last.times, produced, case.scale / rate))
    return [figure for figure in found if np.isfinite(figure.kernels_s) and figure.kernels_s > 0.0]


def _usual_gaps(steps: Steps) -> Any:
    """Gaps by step among which the median lies: those without prompts, or with one where these are most."""
    gaps = steps.times * steps.decodes
    alone = gaps * (steps.chunks == 0)
    return alone if 2.0 * alone.sum() >= gaps.sum() else gaps - alone


def figure_of(kind: str, steps: Steps, replica: Replica, weights: Any, total: float, measured_s: float) -> Figure:
    """Return the weighted sum over steps, over `total`, that a figure is."""
    spec = model(replica.model)
    stages = replica.pp if kind in ("tpot", "ttft") else 1  # a pipeline's lanes overlap: each step holds one stage
    table = _bare(replica)
    layers, moe_layers = spec.layers, spec.moe_layers()
    share = weights / max(total, 1e-12) * stages
    once, prompts = float(share.sum()), float((share * (steps.chunks > 0)).sum())
    sequences = float((share * steps.sequences).sum())
    layer, moe_layer, states = (once * some / replica.pp for some in (layers, moe_layers, spec.state_layers))
    prompt, ranked = prompts * layers / replica.pp, once * (replica.dp > 1)
    fp8, latent = moe_layer * (replica.weights == "fp8"), prompt * (spec.attention == "mla")
    prompt_states = prompts * spec.state_layers / replica.pp
    media = (prompts * (replica.media == kind) for kind in MEDIA)
    counts = (layer, moe_layer, fp8, states, once, sequences, prompt, latent, prompt_states, *media, ranked, 0.0)
    return Figure(kind, float((share * steps.seconds(table)).sum()), counts, measured_s)


@functools.lru_cache(maxsize=4096)
def _bare(replica: Replica) -> Any:
    return compile_replica(replica, host=BARE)


# --- the fit ------------------------------------------------------------------------------------------------


class Group(NamedTuple):
    """Points of one release: kernel seconds, counts of terms (families' own apart), measured seconds."""

    kernels_s: Any
    counts: Any
    measured_s: Any
    weights: Any
    kinds: Any
    pairs: list[tuple[str, str]]
    pulls: Any  # of each GPU's factor


def gpus_of(points: list[Point]) -> dict[str, int]:
    """Number the GPUs, whose kernels each get a factor of their own."""
    return {gpu: i for i, gpu in enumerate(sorted({one.gpu for one in points}))}


def family_of(gpu: str) -> str:
    """Return the family of a GPU, "" for none."""
    return next((family for family, starts in FAMILIES.items() if gpu.startswith(starts)), "")


def shares_of(points: list[Point]) -> dict[str, float]:
    """Return what share of the points on a family's GPUs is on those of each."""
    rows = Counter(family_of(one.gpu) for one in points)
    known = sum(rows[family] for family in FAMILIES)
    return {family: rows[family] / known if known else 1.0 / len(FAMILIES) for family in FAMILIES}


def _part(one: Point, name: str, whose: str, shares: dict[str, float]) -> float:
    """How much of a family's own term is in a point: where families have none of their own, the same of each."""
    since = SEQUENCES_SINCE.get(one.engine)
    if name == "sequence_s" and (since is None or _number(release(one.engine, one.version)) < _number(since)):
        return 1.0 / len(FAMILIES)
    family = family_of(one.gpu)
    return float(whose == family) if family else shares[whose]


def grouped(points: list[Point], slow: dict[str, int], shares: dict[str, float] | None = None) -> Group:
    """Stack the figures of a release.

    `slow` numbers the GPUs whose kernels get a factor of their own; `shares` of the families make the terms of a GPU
    of none, None: those of these points.
    """
    shares = shares or shares_of(points)
    rows = [(one, figure) for one in points for figure in one.figures]
    size = Counter((one.pair, one.precision, figure.kind) for one, figure in rows)
    weights = [WEIGHTS[f.kind] / np.sqrt(size[(one.pair, one.precision, f.kind)]) for one, f in rows]
    counts = []
    for one, figure in rows:
        known = dict(zip(NAMES, figure.counts, strict=True))
        own = (known[name] * _part(one, name, whose, shares) for name, whose in OF_FAMILIES)
        counts.append([*(known[name] for name in SHARED), *own, *(float(one.gpu == gpu) for gpu in slow)])
    return Group(
        np.array([f.kernels_s for _, f in rows]),
        np.array(counts),
        np.array([f.measured_s for _, f in rows]),
        np.array(weights) / np.mean(weights),
        np.array([f.kind for _, f in rows]),
        [one.pair for one, _ in rows],
        np.array([PULL_TIMED if gpu.startswith(TIMED) else PULL for gpu in slow]),
    )


SIZES = np.array([TERMS[NAMES.index(name)][1] for name in SIZED])
FLOORS = np.array([TERMS[NAMES.index(name)][2] for name in SIZED])


def predicted_s(values: Any, group: Group) -> Any:
    """Seconds of every figure: kernels, times a family's factor, plus host terms."""
    terms, factors = values[: len(SIZES)], values[len(SIZES) :]
    slowed = group.kernels_s * np.exp(group.counts[:, len(SIZES) :] @ factors)
    return np.maximum(slowed + group.counts[:, : len(SIZES)] @ (terms * SIZES), 0.3 * slowed)


def fitted(group: Group, ridge: float = PULL, only: Any = None) -> Any:
    """Values in units of their usual size, then log factors of the GPUs."""
    rows = slice(None) if only is None else only
    part = Group(*(np.asarray(column)[rows] for column in group[:5]), [], group.pulls)
    start = np.concatenate([np.full(len(SIZES), 0.5), np.zeros(len(group.pulls))])
    low = np.concatenate([FLOORS / SIZES - 1e-9, np.full(len(group.pulls), -1.0)])
    wide = np.concatenate([np.full(len(SIZES), ridge), group.pulls]) * np.sqrt(len(part.kernels_s) / 10)

    def residuals(values: Any) -> Any:
        logs = np.log(predicted_s(values, part) / part.measured_s)
        return np.concatenate([part.weights * logs, wide * values])

    return least_squares(residuals, start, bounds=(low, np.inf), loss="soft_l1", f_scale=SOFT).x


def left_out(group: Group) -> Any:
    """Log ratios where each (model, GPU) pair was predicted without it."""
    pairs = sorted(set(group.pairs))
    fold = {pair: i % FOLDS for i, pair in enumerate(pairs)}
    of = np.array([fold[pair] for pair in group.pairs])
    logs = np.zeros(len(of))
    for k in sorted(set(of)):
        nothing = np.zeros(len(SIZES) + len(group.pulls))
        values = fitted(group, only=of != k) if (of != k).any() else nothing
        logs[of == k] = np.log(predicted_s(values, group) / group.measured_s)[of == k]
    return logs


# --- releases -----------------------------------------------------------------------------------------------

RELEASES: dict[str, list[str]] = {
    "vllm": ["0.2", "0.5", "0.6", "0.9", "0.11", "0.12"],
    "sglang": ["0"],
    "trtllm": ["0.10", "0.17", "1.0", "1.1"],
    "llama.cpp": ["0"],
    "deepspeed": ["0"],
    "deepspeed-mii": ["0"],
}
ALONE = {"sglang"}
# Steps composed ahead by default: vLLM's release notes of 0.14; TensorRT-LLM's and SGLang's documentation of their
# overlap schedulers (SGLang's since 0.4, older than any release measured).
AHEAD_SINCE = {"vllm": "0.14", "sglang": "0", "trtllm": "1.0"}


def _number(version: str) -> tuple[int, ...]:
    return tuple(int("".join(c for c in part if c.isdigit()) or 0) for part in version.split(".")[:3])


def release(engine: str, version: str) -> str:
    """The newest release up to a version; the last for none."""
    known = RELEASES[engine]
    if not version:
        return known[-1]
    return ([since for since in known if _number(since) <= _number(version)] or known[:1])[-1]


def main() -> None:
    """Fit, print, and write when asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--write", action="store_true")
    asked = parser.parse_args()
    rows = read_rows(asked.table)
    with ProcessPoolExecutor(asked.cores) as pool:
        points = [one for one in pool.map(point, rows, chunksize=20) if one is not None]
    print(f"{len(points)} of {len(rows)} rows")
    if not points:
        parser.error(f"{asked.table}: no row tells anything of time; nothing is fitted or written")
    groups: dict[tuple[str, str], list[Point]] = defaultdict(list)
    for one in points:
        if not one.suspect:
            groups[(one.engine, release(one.engine, one.version))].append(one)
    found = completed({key: report(key, members) for key, members in sorted(groups.items())})
    if asked.write:
        DATA.write_text(document(found), encoding="utf-8")


class Fit(NamedTuple):
    """Values in units of their usual size, which had figures, the GPUs, the families' shares, and the median error."""

    values: Any
    told: Any
    slow: dict[str, int]
    shares: dict[str, float]
    error: float


def completed(found: dict[tuple[str, str], Fit]) -> dict[tuple[str, str], Fit]:
    """Return the fits with what a release has no figures for taken from the next newer one that has, else older.

    What `PASSED` names is not taken from older ones: there it was a fault of theirs.
    """
    whole = {}
    for engine in sorted({engine for engine, _ in found}):
        there = [key for key in ((engine, since) for since in RELEASES.get(engine, ["0"])) if key in found]
        for place, key in enumerate(there):
            values, others = found[key].values.copy(), (*there[place + 1 :], *reversed(there[:place]))
            for term in np.flatnonzero(~found[key].told):
                newer = there[place + 1 :] if SIZED[term] in PASSED else others
                known = (found[other].values[term] for other in newer if found[other].told[term])
                values[term] = next(known, values[term])
            whole[key] = found[key]._replace(values=values)
    return whole


def report(key: tuple[str, str], members: list[Point]) -> Fit:
    """Fit one release and print its errors."""
    slow, shares = gpus_of(members), shares_of(members)
    group = grouped(members, slow)
    values = fitted(group)
    logs, out = np.log(predicted_s(values, group) / group.measured_s), left_out(group)
    bare = np.log(group.kernels_s / group.measured_s)
    told = (group.counts[:, : len(SIZES)] > 0.0).any(axis=0)
    names = (*SHARED, *(f"{family} {name}" for name, family in OF_FAMILIES))
    terms = {name: f"{value * size * 1e6:.1f}us" for name, value, size in zip(names, values, SIZES, strict=False)}
    print(*key, len(members), terms, {gpu: round(float(np.exp(values[len(SIZES) + i])), 2) for gpu, i in slow.items()})
    error = 0.3
    for kind in sorted(set(group.kinds)):
        at = group.kinds == kind
        print(
            f"    {kind:5} {at.sum():5} bare {_words(bare[at])}  fitted {_words(logs[at])}  pairs out {_words(out[at])}"
        )
        error = float(np.median(np.abs(out[at]))) if kind != "ttft" else error
    return Fit(values, told, slow, shares, error)


def _words(logs: Any) -> str:
    errors = np.abs(np.expm1(logs))
    return f"{np.median(errors):.3f}/{np.quantile(errors, 0.9):.3f} ({np.median(logs):+.3f})"


def document(found: dict[tuple[str, str], Fit]) -> str:
    """The data file."""
    engines: dict[str, Any] = {}
    for engine, sinces in RELEASES.items():
        releases = []
        for since in sinces:
            if (engine, since) not in found:
                continue
            values, told, slow, shares, error = found[(engine, since)]
            terms = np.where(abs(values) > NOTHING, values, 0.0)[: len(SIZES)] * SIZES
            seconds = dict(zip((*SHARED, *OF_FAMILIES), terms, strict=True))
            host = {}
            for name in NAMES:
                mean = seconds[name] if name in SHARED else sum(shares[of] * seconds[name, of] for of in FAMILIES)
                host |= {name: float(f"{mean:.3g}")} if mean else {}
            by_gpu: dict[str, Any] = {}
            for place, (name, family) in enumerate(OF_FAMILIES, start=len(SHARED)):
                for start in FAMILIES[family] if told[place] else ():
                    by_gpu.setdefault(start, {})[name] = float(f"{seconds[name, family]:.3g}")
            for gpu, i in slow.items():
                by_gpu.setdefault(gpu, {})["kernels"] = float(f"{np.exp(values[len(SIZES) + i]):.3g}")
            releases.append({"since": since, "host": {**host, "error": round(error, 2)}, "by_gpu": by_gpu})
        discipline: dict[str, Any] = {"prefill_alone": engine in ALONE}
        if engine in AHEAD_SINCE:
            discipline["ahead_since"] = AHEAD_SINCE[engine]
        engines[engine] = {**discipline, "releases": releases}
    head = (
        "# What an engine adds to its kernels, and how it batches: seconds on the host that the GPU waits for. A\n"
        "# release's numbers hold from that version on; `by_gpu` replaces some on a GPU family. By fit/engines.py.\n"
    )
    source = (
        "fitted on serving measurements of aiconfigurator and ML.ENERGY (Apache-2.0), TensorRT-LLM's documentation "
        "(Apache-2.0), MLPerf Inference, LLM-Inference-Bench (BSD-3-Clause), splitwise-sim (MIT), dstack (Apache-2.0), "
        "llmfit (MIT)"
    )
    body = yaml.safe_dump({"source": source, "engines": engines}, sort_keys=False, width=118, default_flow_style=None)
    return head + body


if __name__ == "__main__":
    main()
