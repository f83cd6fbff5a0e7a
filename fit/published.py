"""What published measurements of a model on a GPU tell of its steps there: writes `cost/data/published.yaml`.

    python -m fit.published TABLE.csv.gz [--cores 2] [--write]

Rows of one model, GPU, engine release and precisions are one group. Its terms are those of `headway calibrate`, fitted
around the shipped law; those of each layout (TP, PP, DP, EP) are fitted around the group's. Whether a group or a layout
keeps its terms is chosen by rows left out; so are the errors that its intervals come from. Suspect rows and repeats
take no part, nor do split deployments, speculation, pictures, power limits, and groups without times per token.
Printed: the errors on rows that had no part in anything that is done here, by metric; the host terms of the releases
were fitted on them.
"""

from __future__ import annotations

import argparse
import math
import zlib
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import yaml

from fit.study import SERVED
from headway.accuracy.calibration_fit import Fit, errors_by_metric, fit, predictions, shipped_prior
from headway.accuracy.calibration_points import METRICS, TERMS, Figure, Point, linearize, term_values
from headway.accuracy.judge import Outcome
from headway.accuracy.ranking import Regret, rank
from headway.accuracy.reading import suspicion
from headway.accuracy.rows import Row, read_rows
from headway.accuracy.run import NAMES_A_ROW
from headway.accuracy.score import HEADLINES, Judged
from headway.cost import Replica
from headway.cost.calibration import FACTORS
from headway.cost.engines import engine_facts
from headway.cost.replica import limits
from headway.cost.uncertainty import shape, width

DATA = Path(__file__).resolve().parents[1] / "src" / "headway" / "cost" / "data" / "published.yaml"
Floats = npt.NDArray[np.float64]
Layout = tuple[int, int, int, int]
OUTER, INNER = 8, 10  # parts left out in turn: to tell the errors, and inside of each to choose
LEAST = 10  # times per token of a group: throughput alone does not tell the terms apart
# Of the shipped law no kernel takes less, by `FACTORS`: that is about what peak and bandwidth allow, which bound every
# operator when it is compiled. Attention of decoding sequences reads KV near the data sheet's bandwidth as it is.
PEAK = np.array([0.75, 0.75, 0.9])
LAYOUT_WIDTH = 0.4  # of the prior's widths: layouts of a group differ less than groups
CAP = 5.0  # noise beyond which an error counts no more
FIGURES_LEAST = 5  # of a metric, to say how far it is off
MARGINS = ("0", "0.01", "0.05", "0.1")  # of regret that are shown


class Place(NamedTuple):
    """What rows have in common that tell of one another."""

    model: str
    gpu: str
    engine: str
    since: str
    weights: str
    kv: str


class Law(NamedTuple):
    """The terms of a group and of its layouts; None where the shipped law is kept, no entry where the group's is."""

    group: Fit | None
    layouts: dict[Layout, Fit]

    def of(self, point: Point) -> Floats:
        """Return the terms for a point."""
        found = self.layouts.get(layout(point), self.group)
        return term_values(None) if found is None else found.values


def grouped(rows: Iterable[tuple[Row, Point | str]]) -> dict[Place, list[Point]]:
    """Return the points that take part, each measurement once."""
    groups: dict[Place, list[Point]] = defaultdict(list)
    names: dict[object, str] = {}  # models of one shape are one model, by the shortest name
    seen: set[str] = set()
    for row, point in rows:
        key = _measurement(row)
        if isinstance(point, str) or key in seen or suspicion(row) or len(point.case.deployment.pools) > 1:
            continue
        seen.add(key)
        replica = point.case.deployment.pools[0].replica
        if replica.engine.speculation is None and replica.media == "text" and not any(limits(replica)):
            like = shape(replica.model)
            names[like] = min(names.get(like, replica.model), replica.model, key=_plainness)
            groups[place(replica)].append(point)
    merged: dict[Place, list[Point]] = defaultdict(list)
    for where, points in groups.items():
        merged[where._replace(model=names[shape(where.model)])] += points
    return {where: points for where, points in merged.items() if _paced(points) >= LEAST}


def _plainness(name: str) -> tuple[int, str]:
    return len(name), name


def _paced(points: Sequence[Point]) -> int:
    return sum(figure.metric == "tpot" for figure in _figures(points))


def place(replica: Replica) -> Place:
    """Return where a replica belongs."""
    engine = replica.engine
    since = engine_facts(engine.name, engine.version, replica.gpu).since
    return Place(replica.model, replica.gpu, engine.name, since, replica.weights, replica.kv)


def layout(point: Point) -> Layout:
    """Return TP, PP, DP and EP."""
    replica = point.case.deployment.pools[0].replica
    return replica.tp, replica.pp, replica.dp, replica.ep


def _measurement(row: Row) -> str:
    settings = [getattr(row, name) for name in row.__struct_fields__ if name not in NAMES_A_ROW]
    return repr((*settings, *row.measured.items()))


def _part(point: Point, parts: int, salt: str) -> int:
    return zlib.crc32(f"{salt}{point.setting}".encode()) % parts


def fitted(points: Sequence[Point]) -> Law:
    """Return the terms, chosen by points left out."""
    group, own = _fits(points)
    logs = {name: np.zeros(0) for name in ("shipped", "group", "layout")}
    owners: list[Point] = []
    for part in range(INNER):
        kept = [point for point in points if _part(point, INNER, "inner") != part]
        asked = [point for point in points if _part(point, INNER, "inner") == part]
        if not kept or not asked:
            continue
        part_group, part_own = _fits(kept)
        laws = {"shipped": Law(None, {}), "group": Law(part_group, {}), "layout": Law(part_group, part_own)}
        for name, law in laws.items():
            logs[name] = np.concatenate([logs[name], _in_noise(asked, law)])
        owners += [point for point in asked for _ in point.figures]
    if not owners or not _gains(logs["shipped"], logs["group"], 1.0):
        return Law(None, {})
    where = [layout(point) for point in owners]
    better = {
        one: values for one, values in own.items()
        if (at := np.array([other == one for other in where])).any()
        and _gains(logs["group"][at], logs["layout"][at], 0.0)  # drawn to the group's, they can lose little
    }  # fmt: skip
    return Law(group, better)


def _fits(points: Sequence[Point]) -> tuple[Fit, dict[Layout, Fit]]:
    prior, least = shipped_prior(), PEAK / _kernels(points[0])
    group = fit(_figures(points), prior, least=least)
    by_layout: dict[Layout, list[Point]] = defaultdict(list)
    for point in points:
        by_layout[layout(point)].append(point)
    if len(by_layout) == 1:
        return group, {}
    own = {one: fit(_figures(of), prior, LAYOUT_WIDTH, group.values, least) for one, of in by_layout.items()}
    return group, own


def _kernels(point: Point) -> float:
    """The factor on kernel times that the shipped law has of the engine's release on the GPU."""
    replica = point.case.deployment.pools[0].replica
    return engine_facts(replica.engine.name, replica.engine.version, replica.gpu).host.kernels


def _figures(points: Sequence[Point]) -> list[Figure]:
    return [figure for point in points for figure in point.figures]


def _logs(points: Sequence[Point], law: Law) -> Floats:
    """ln(predicted / measured) of the points' figures."""
    found = [np.log(predictions(p.figures, law.of(p)) / [f.measured for f in p.figures]) for p in points]
    return np.concatenate(found) if found else np.zeros(0)


def _in_noise(points: Sequence[Point], law: Law) -> Floats:
    noise = np.array([shipped_prior().noise[figure.metric] for figure in _figures(points)])
    return np.minimum(np.abs(_logs(points, law)) / noise, CAP)


def _gains(before: Floats, after: Floats, errors: float) -> bool:
    """Whether errors fall, by more than so many standard errors of the gain."""
    gains = before - after
    return float(gains.mean()) > errors * float(gains.std()) / math.sqrt(len(gains))


class Told(NamedTuple):
    """A group's terms, and ln(predicted / measured) of its figures by what had not seen them: shipped, and by terms."""

    place: Place
    points: list[Point]
    law: Law
    shipped: Floats
    unseen: Floats


def told(group: tuple[Place, list[Point]]) -> Told:
    """Fit a group, and predict each of its parts by the others."""
    where, points = group
    unseen = dict.fromkeys(range(len(points)), np.zeros(0))
    for part in {_part(point, OUTER, "") for point in points}:
        kept = [point for point in points if _part(point, OUTER, "") != part]
        law = fitted(kept) if kept else Law(None, {})
        for i, point in enumerate(points):
            if _part(point, OUTER, "") == part:
                unseen[i] = _logs([point], law)
    return Told(where, points, fitted(points), _logs(points, Law(None, {})), np.concatenate(list(unseen.values())))


def document(found: Sequence[Told]) -> str:
    """Return the data file."""
    groups: list[dict[str, Any]] = []
    for one in sorted(found):
        if one.law.group is None:
            continue
        metrics = [figure.metric for figure in _figures(one.points)]
        counts = {name: count for name, count in Counter(metrics).items() if count >= FIGURES_LEAST}
        errors = errors_by_metric(_figures(one.points), one.unseen)
        groups.append({
            **one.place._asdict(),
            "points": len(one.points),
            "sources": sorted({point.row.source for point in one.points}),
            "off": {name: [float(f"{errors[name]:.3g}"), counts[name]] for name in METRICS if name in counts},
            "layouts": [list(each) for each in sorted({layout(point) for point in one.points})],
            **_short(one.law.group, 1.0),
            "own": [
                {"layout": list(each), **_short(own, LAYOUT_WIDTH)} for each, own in sorted(one.law.layouts.items())
            ],
        })  # fmt: skip
    head = (
        "# What published measurements of a model on a GPU change in the shipped law: terms of `headway calibrate`\n"
        f"# ({', '.join(TERMS)}),\n"
        "# of all layouts and of one of its `own` (tp, pp, dp, ep). `sds`: their standard deviations, of factors\n"
        "# those of the logarithm. `off`: the median error of rows without a part in the fit, of how many figures.\n"
        "# By fit/published.py.\n"
    )
    return head + yaml.safe_dump({"groups": groups}, sort_keys=False, width=160, default_flow_style=None)


def _short(found: Fit, strength: float) -> dict[str, list[float]]:
    """The terms and their standard deviations, in digits that matter."""
    widths = strength * np.array([shipped_prior().widths[name] for name in TERMS])
    sds = np.sqrt(np.diag(found.covariance)) * widths
    terms = [float(f"{value:.{4 if i < len(FACTORS) else 3}g}") + 0.0 for i, value in enumerate(found.values)]
    return {"terms": terms, "sds": [float(f"{sd:.2g}") for sd in sds]}


def section(found: Sequence[Told]) -> str:
    """Return the page's section."""
    kept = [one for one in found if one.law.group is not None]
    layouts = sum(len(one.law.layouts) for one in kept)
    return (
        "\n## Pairs measured, with `--calibration published`\n\n"
        f"{len(kept)} of {len(found)} groups (model, GPU, engine release, precisions) of {LEAST} times per token and "
        f"more, {layouts} layouts with\nterms of their own. Each part of a group ({OUTER} parts, repeats of a setting "
        "together) is predicted by terms fitted on the others,\nchosen by parts of these; suspect rows out. "
        "Host terms of the releases are the shipped ones.\n\n"
        "| figure | rows | shipped law | with the pair's other rows | inside the 90 % interval |\n"
        f"|---|---:|---:|---:|---:|\n{_cells(found)}\n\n"
        "Mean regret of choosing among these rows by the same predictions, in tokens/s per GPU as of the whole table:"
        "\n\n"
        "| chosen | margin on the limit | choices | shipped law | with the pair's other rows |\n"
        f"|---|---:|---:|---:|---:|\n{_regrets(found)}\n"
    )


def _cells(found: Sequence[Told]) -> str:
    lines = []
    served = [(metric, f"{metric} of InferenceX, sweeps and ML.ENERGY", SERVED) for metric in ("ttft", "tpot")]
    for metric, said_of, sources in [*((metric, metric, ()) for metric in METRICS), *served]:
        some = [(one, _of(one, metric, sources)) for one in found]
        logs = [np.concatenate([getattr(one, name)[at] for one, at in some]) for name in ("shipped", "unseen")]
        shipped, unseen = np.abs(np.expm1(logs))
        if len(shipped):
            said = [f"{100 * np.median(off):.1f} / {100 * np.quantile(off, 0.9):.0f} %" for off in (shipped, unseen)]
            held = np.concatenate([_held(one, metric, at) for one, at in some])
            lines.append(f"| {said_of} | {len(shipped):,} | {said[0]} | {said[1]} | {100 * held.mean():.0f} % |")
    return "\n".join(lines)


def _of(one: Told, metric: str, sources: Collection[str]) -> npt.NDArray[np.bool_]:
    """Which figures of a group are of a metric and, where any are named, of some sources."""
    wanted = [not sources or point.row.source in sources for point in one.points for _ in point.figures]
    return np.array([figure.metric == metric for figure in _figures(one.points)]) & np.array(wanted)


def _regrets(found: Sequence[Told]) -> str:
    shipped, unseen = (rank([each for one in found for each in _judged(one, logs)]) for logs in ("shipped", "unseen"))
    lines = []
    for title, name in (("a deployment", "deployments"), ("a deployment and its load", "throughput_per_gpu")):
        pair: tuple[Regret, Regret] = getattr(shipped, name), getattr(unseen, name)
        if pair[0].n:
            for margin in MARGINS:
                before, after = (100 * one.by_margin[margin] for one in pair)
                lines.append(f"| {title} | {float(margin):.0%} | {pair[0].n} | {before:.1f} % | {after:.1f} % |")
    return "\n".join(lines)


def _judged(one: Told, name: str) -> list[Judged]:
    """The group's rows as `headway validate` judges them, by these predictions."""
    logs, judged = iter(getattr(one, name)), []
    for point in one.points:
        row = point.row
        keys = [next(key for key in HEADLINES[figure.metric] if key in row.measured) for figure in point.figures]
        figures = {key: f.measured * math.exp(next(logs)) for key, f in zip(keys, point.figures, strict=True)}
        judged.append((row, Outcome(figures, gpus=row.gpu_count or point.case.deployment.gpus)))
    return judged


def _held(one: Told, metric: str, at: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Whether the figures left out are inside the interval that a calibration with the group's errors has."""
    count = int(at.sum())
    if one.law.group is None or count < FIGURES_LEAST:
        return np.zeros(0, dtype=bool)
    off = float(np.median(np.abs(np.expm1(one.unseen[at]))))
    return np.asarray(np.abs(one.unseen[at]) <= width(off, count, metric))


def read(table: Path, cores: int) -> list[tuple[Row, Point | str]]:
    """Return every row with its point, or why it is none."""
    rows = list(read_rows(table))
    with ProcessPoolExecutor(cores) as pool:
        return list(zip(rows, pool.map(linearize, rows, chunksize=20), strict=True))


def studied(groups: dict[Place, list[Point]], cores: int) -> list[Told]:
    """Return every group told, the large ones begun first."""
    ordered = sorted(groups.items(), key=lambda item: (-len(item[1]), item[0]))
    with ProcessPoolExecutor(cores) as pool:
        return list(pool.map(told, ordered, chunksize=max(1, math.ceil(len(ordered) / 200))))


def main() -> None:
    """Fit, print, and write when asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--write", action="store_true")
    asked = parser.parse_args()
    found = studied(grouped(read(asked.table, asked.cores)), asked.cores)
    kept = [one for one in found if one.law.group is not None]
    print(f"{len(kept)} of {len(found)} groups, {sum(len(one.law.layouts) for one in kept)} layouts of their own")
    print(section(found))
    if asked.write:
        DATA.write_text(document(found), encoding="utf-8")


if __name__ == "__main__":
    main()
