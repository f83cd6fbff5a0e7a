"""What `headway calibrate` rests on, and what it brings: learns its priors, and judges it on points it has not seen.

`python benchmarks/calibration.py learn FILE` fits the widths and noise of the prior to the groups (model, GPU, engine)
of a table of measurements, by expectation maximization, and writes them into the package. `... judge FILE` calibrates
each group on 10, 20 and 40 of its points and prints the errors on its other points, before and after, and how many of
those that its intervals are `calibrated` for they hold: with the points spread over the table, and with points drawn.
"""

from __future__ import annotations

import random
import sys
from collections import defaultdict
from pathlib import Path

import msgspec
import numpy as np

from headway.accuracy import calibrate, read_rows
from headway.accuracy.calibration_fit import Prior, errors_by_metric, fit, predictions, shipped_prior
from headway.accuracy.calibration_points import TERMS, Point, linearize, term_values
from headway.accuracy.rows import Row
from headway.accuracy.run import sample
from headway.cost.calibration import Calibration
from headway.cost.uncertainty import interval
from headway.errors import BadInput
from headway.specs import write_yaml

DATA = Path(__file__).resolve().parents[1] / "src" / "headway" / "accuracy" / "data" / "calibration.yaml"
LEAST, MOST = 12, 60  # points of a group
ROUNDS = 15
COUNTS = (10, 20, 40)
DRAWS = {10: 3, 20: 2, 40: 1}  # the first is spread over the table, for the errors; the others for coverage alone
FIGURES_LEAST = 4  # of a share held
TAIL = 4.0  # degrees of freedom of the deviations: groups that no law of ours fits hardly widen the prior
METRICS = ("tpot", "ttft", "output_throughput", "e2e")


def groups_of(path: str) -> dict[tuple[str, ...], list[Row]]:
    """Rows by source, model, GPU and engine, of those with enough of them, at most `MOST` spread over each."""
    groups: dict[tuple[str, ...], list[Row]] = defaultdict(list)
    for row in read_rows(path):
        groups[row.source, row.model_key, row.gpu_key, row.engine].append(row)
    return {key: sample(rows, MOST) for key, rows in groups.items() if len(rows) >= LEAST}


def points_of(path: str) -> dict[tuple[str, ...], list[Point]]:
    """Usable points of each group that has enough of them."""
    found = {}
    groups = groups_of(path)
    for done, (key, rows) in enumerate(groups.items(), start=1):
        points = [point for row in rows if not isinstance(point := linearize(row), str)]
        if len(points) >= LEAST:
            found[key] = points
        print(f"\r{done}/{len(groups)} groups", end="", file=sys.stderr, flush=True)
    return found


def learn(path: str) -> None:
    """Write the prior that explains the groups best."""
    groups = [[f for p in points for f in p.figures] for points in points_of(path).values()]
    prior = shipped_prior()
    for _ in range(ROUNDS):
        widths = np.array([prior.widths[name] for name in TERMS])
        squares, residuals = [], defaultdict(list)
        for figures in groups:
            found = fit(figures, prior)
            square = found.z**2 + np.diag(found.covariance)
            squares.append(square * (TAIL + len(TERMS)) / (TAIL + square.sum()))
            logs = np.log(predictions(figures, found.values) / np.array([f.measured for f in figures]))
            for figure, log in zip(figures, logs, strict=True):
                residuals[figure.metric].append(abs(float(log)))
        grown = widths * np.sqrt(np.mean(squares, axis=0))
        noise = {metric: 1.4826 * float(np.median(found)) for metric, found in residuals.items()}
        prior = Prior(
            groups=len(groups),
            widths={name: float(f"{w:.3g}") for name, w in zip(TERMS, grown, strict=True)},
            noise={metric: float(f"{max(0.02, noise.get(metric, prior.noise[metric])):.3g}") for metric in prior.noise},
        )
        print(prior, file=sys.stderr)
    about = [line for line in DATA.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    DATA.write_text("\n".join(about) + "\n" + write_yaml(prior), encoding="utf-8")


def judge(path: str) -> None:
    """Print the errors on points not used, before and after, by points used, and what share of them intervals hold."""
    table: dict[tuple[int, str], list[tuple[float, float]]] = defaultdict(list)
    held: dict[tuple[int, str], list[tuple[float, float]]] = defaultdict(list)
    kept: dict[int, list[bool]] = defaultdict(list)
    drawn = random.Random(1)
    for key, points in points_of(path).items():
        for count, draw in ((many, draw) for many in COUNTS for draw in range(DRAWS[many])):
            if len(points) < count + LEAST // 2:
                continue
            spread = [i * len(points) // count for i in range(count)]
            seen = set(drawn.sample(range(len(points)), count) if draw else spread)
            try:
                found = calibrate([points[i].row for i in sorted(seen)])
            except BadInput as error:
                print(f"{key}: {error}", file=sys.stderr)
                continue
            others = [point for i, point in enumerate(points) if i not in seen]
            for metric, share in coverage(others, found.calibration).items():
                held[count, metric].append(share)
            if draw:
                continue
            figures = [f for p in others for f in p.figures]
            measured = np.array([f.measured for f in figures])
            before = errors_by_metric(figures, np.log(np.array([f.shipped for f in figures]) / measured))
            values = term_values(found.calibration)
            after = errors_by_metric(figures, np.log(predictions(figures, values) / measured))
            kept[count].append(found.evidence.kept)
            for metric in before:
                table[count, metric].append((before[metric], after[metric]))
            shown = "  ".join(f"{m} {before[m]:.3f}>{after[m]:.3f}" for m in METRICS if m in before)
            print(f"{' '.join(key)} {count}: {shown}{'' if found.evidence.kept else '  (shipped law kept)'}")
    print("\npoints  metric              groups  median before  after   groups worse by over a fifth")
    for (count, metric), pairs in sorted(table.items()):
        both = np.array(pairs)
        worse = int((both[:, 1] > 1.2 * both[:, 0] + 0.01).sum())
        print(f"{count:6d}  {metric:18s}  {len(both):6d}  {np.median(both[:, 0]):13.3f}  {np.median(both[:, 1]):6.3f}"
              f"  {worse}")  # fmt: skip
    print({count: f"{sum(flags)}/{len(flags)} calibrated" for count, flags in kept.items()})
    print("\npoints  metric              draws   held, mean  10th percentile  high / low, median")
    for (count, metric), shares in sorted(held.items()):
        both = np.array(shares)
        least, width = np.quantile(both[:, 0], 0.1), np.median(both[:, 1])
        print(f"{count:6d}  {metric:18s}  {len(both):5d}  {both[:, 0].mean():11.3f}  {least:15.3f}  {width:.2f}")


def coverage(points: list[Point], calibration: Calibration) -> dict[str, tuple[float, float]]:
    """The share of figures inside their calibrated intervals and the width of those, of metrics with enough."""
    inside: dict[str, list[bool]] = defaultdict(list)
    widths: dict[str, float] = {}
    for point in points:
        replica = msgspec.structs.replace(point.case.deployment.pools[-1].replica, calibration=calibration)
        said = predictions(point.figures, term_values(calibration))
        for figure, predicted in zip(point.figures, said, strict=True):
            low, high, level = interval(replica, figure.metric)
            if level == "calibrated":
                inside[figure.metric].append(low <= figure.measured / predicted <= high)
                widths[figure.metric] = high / low
    return {m: (float(np.mean(found)), widths[m]) for m, found in inside.items() if len(found) >= FIGURES_LEAST}


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] not in ("learn", "judge"):
        sys.exit(__doc__)
    {"learn": learn, "judge": judge}[sys.argv[1]](sys.argv[2])
