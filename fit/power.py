"""Fit the power laws: ``python -m fit.power DATA_DIR`` prints the error table and writes the data file.

DATA_DIR holds ``serving.csv.gz``, whose rows of ML.ENERGY Benchmark V3 (Apache-2.0) have the watts of the GPUs, and the
operator timings of NVIDIA aiconfigurator (Apache-2.0) as ``ops_gemm.csv.gz``, some with the watts of one kernel. The
result depends on nothing but these files and on the step law; it takes about ten seconds on one core.

Watts are of measured step times: what a GPU reads and computes in a step is by the step law, how long it took is
measured. So an error of the step law's time is no error here.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow.compute as pa_compute
import pyarrow.csv as pa_csv
from scipy.optimize import least_squares

from fit.engines import MEDIA
from fit.read import DTYPES, PEAK_OF
from fit.solve import errors
from headway.accuracy.express import express
from headway.accuracy.reading import suspicion
from headway.accuracy.rows import Row, read_rows
from headway.cost import Replica, StepTable, chunk_area, compile_replica
from headway.cost.efficiency import efficiency
from headway.cost.power import PowerLaw
from headway.hardware import gpu
from headway.model import model
from headway.workload import workload

Floats = npt.NDArray[np.float64]
Texts = npt.NDArray[np.str_]

DATA = Path(__file__).resolve().parents[1] / "src" / "headway" / "cost" / "data" / "power.yaml"
SOURCE = "ml.energy-v3"
SERVED = {"h100": "h100-sxm", "b200": "b200"}  # families whose watts while serving are known
KERNELS = {"h100": "h200", "b200": "b200"}  # the card of their architecture whose kernels' watts are known
FEATURES = ("resident", "memory", "compute", "experts")
SOFT = 0.05  # residual in log watts beyond which a row counts less
INNER_FOLDS = 4
STEADY_S = 1e-4  # kernels shorter than this were over before the meter saw them
MEAN_AGE = 0.55  # a running sequence has this share of the mean output behind it: lengths vary
# With an engine loaded and no step: H100 and H200 draw 120 and 118 W (nvidia-smi in public logs), 0.08 and 0.07 of TDP
# less idle. H200's least busy kernels draw 0.09 and B200's 0.13, of which the same part is taken.
WAITING = {"h100": 0.08, "b200": 0.10, "default": 0.09}
TIMED = {
    "h100": "vLLM 0.11.1, {rows} rows; kernels of H200",
    "b200": "vLLM 0.11.1, {rows} rows; kernels",
    "default": "H100 and B200",
}
LIKE = {"h200": "h100", "h800": "h100", "gh200": "h100", "b300": "b200", "gb200": "b200", "gb300": "b200"}
_HEADER = """# Power of one GPU in shares of TDP less the idle card's: an engine loaded and waiting, a step in flight,
# memory at full bandwidth, tensor cores at full FLOP/s (by the root of the share in use), a step of a model of
# experts. `media`: what is not drawn of that while the host prepares pictures. `error`: median relative error of watts
# on models, and for `default` on GPUs, that took no part in the fit. Written by fit/power.py; see docs/cost-model.md.
"""


Fit = Callable[["Points", "Points", str], Floats]


class Settings(NamedTuple):
    """How the law is fitted: chosen by trying.

    `kernels` is the weight of all kernel cells together against all rows of a family, `shrinkage` pulls a family's law
    toward the pooled one, and a pair counts by its rows to the power `pairs`, for a third are of one model.
    """

    kernels: float = 0.03
    shrinkage: float = 0.05
    pairs: float = 0.5


CHOSEN = Settings()
TRIED = {"kernels": (0.0, 0.1, 0.3), "shrinkage": (0.02, 0.1, 0.2, 0.4), "pairs": (0.0, 0.3, 1.0)}


class Points(NamedTuple):
    """Operating points of one GPU each: watts, and the law's terms as shares of the time, float64[points, 4].

    `media`, float64[points, 2], is 1 in the column of what prompts hold beside text.
    """

    watts: Floats
    terms: Floats
    media: Floats
    span: Floats  # TDP less idle
    idle: Floats
    weight: Floats
    family: Texts
    model: Texts

    def of(self, rows: npt.NDArray[np.bool_]) -> Points:
        """Return some of the points."""
        return Points(*(column[rows] for column in self))

    def paced(self, logs: Floats) -> Points:
        """Return the points with steps exp(`logs`) times as long: what is done in a step is done more slowly."""
        slower = np.column_stack([np.zeros_like(logs), logs, logs / 2.0, np.zeros_like(logs)])
        return self._replace(terms=self.terms * np.exp(-slower))

    def predicted(self, law: Floats) -> Floats:
        """Return watts by the law's shares: four of what is done, then what each of the media takes of them."""
        done, taken = law[: len(FEATURES)], law[len(FEATURES) :]
        return self.idle + self.span * np.minimum(self.terms @ done * (1.0 - self.media @ taken), 1.0)


# --- serving ------------------------------------------------------------------------------------------------


def unit_table(replica: Replica, **term: float) -> StepTable:
    """Return the step table of a replica of text with one term of the power law alone, of share 1."""
    laws, replica = efficiency(gpu(replica.gpu), replica.engine.name), msgspec.structs.replace(replica, media="text")
    power = PowerLaw(**{**dict.fromkeys(("waiting", *FEATURES, "error"), 0.0), **term})
    return compile_replica(replica, laws=msgspec.structs.replace(laws, power=power))


def mean_step(table: StepTable, running: float, prompt: float, output: float) -> float:
    """Return the joules of the mean step: `running` decoding sequences, and prompts at the rate outputs end."""
    chunks = running / output
    tokens = min(running + chunks * prompt, float(table.max_batched_tokens))
    context = prompt + MEAN_AGE * output
    window = min(context, table.window) if table.window else 0.0

    def at(values: Floats, where: float) -> float:
        return float(np.interp(where, np.arange(len(values)), values))

    joules = at(table.linear_j, tokens) + at(table.seq_j, running) + at(table.decode_j, running)
    if table.ranks > 1:
        joules += at(table.shared_j, tokens * table.ranks) / table.ranks
    joules += running * context * at(table.decode_ctx_j, running)
    joules += running * window * at(table.decode_window_j, running)
    joules += chunks * (table.prefill_base_j + table.prefill_area_j * chunk_area(0, round(prompt)))
    return joules + chunks * table.prefill_window_area_j * chunk_area(0, round(prompt), table.window)


def serving_point(row: Row) -> list[float]:
    """Return the law's terms of one GPU as shares of the time."""
    case = express(row)
    replica, load = case.deployment.pools[0].replica, workload(case.workload)
    card, ranks = gpu(replica.gpu), case.scale * replica.dp
    running, tokens_s = (row.batch_size or 1.0) / ranks, row.measured["output_throughput"] / ranks
    lengths = (running, load.mean_prompt_tokens, load.mean_output_tokens)
    step_s = running / tokens_s
    whole = (card.tdp_watts - card.idle_watts) * replica.rank_gpus
    of_law = {name: mean_step(unit_table(replica, **{name: 1.0}), *lengths) / whole for name in FEATURES[:3]}
    stretch = step_s / of_law["resident"]  # to the measured step
    experts = float(model(replica.model).experts > 0)
    return [1.0, of_law["memory"] / step_s, of_law["compute"] * stretch**0.5 / step_s, experts]


def serving(folder: Path, suspects: bool = False) -> Points:
    """Return every trusted row with watts of a steady state under vLLM, or suspects too."""
    rows = [row for row in read_rows(folder / "serving.csv.gz") if row.source == SOURCE]
    rows = [row for row in rows if "power" in row.measured and (suspects or not suspicion(row))]
    replicas = [express(row).deployment.pools[0].replica for row in rows]
    cards = [gpu(SERVED[row.gpu_key.lower()]) for row in rows]
    return Points(
        watts=np.array([row.measured["power"] / (row.gpu_count or 1) for row in rows]),
        terms=np.array([serving_point(row) for row in rows]),
        media=np.array([[float(case.media == kind) for kind in MEDIA] for case in replicas]),
        span=np.array([card.tdp_watts - card.idle_watts for card in cards]),
        idle=np.array([card.idle_watts for card in cards]),
        weight=np.ones(len(rows)),
        family=np.array([row.gpu_key.lower() for row in rows]),
        model=np.array([row.model_key for row in rows]),
    )


# --- kernels ------------------------------------------------------------------------------------------------


def kernels(folder: Path) -> Points:
    """Return cells of matrix products of both families."""
    table = pa_csv.read_csv(folder / "ops_gemm.csv.gz")
    table = table.filter(pa_compute.is_valid(table["power_w"]))
    read = {name: table[name].to_numpy(zero_copy_only=False) for name in table.column_names}
    parts = []
    for family, key in KERNELS.items():
        mine = read["gpu"] == key.upper()
        parts.append(_cells(family, key, {name: values[mine] for name, values in read.items()}))
    return joined(parts)


def _cells(family: str, key: str, read: dict[str, npt.NDArray]) -> Points:
    """Median watts of long products, bf16, in cells of bandwidth and FLOP/s in use."""
    card = gpu(key)
    keep = (read["time_us"] * 1e-6 >= STEADY_S) & np.isin(read["dtype"], ["bfloat16"])
    seconds, watts = read["time_us"][keep] * 1e-6, read["power_w"][keep]
    m, n, k = (read[name][keep].astype(float) for name in "mnk")
    peak, weight_bytes, input_bytes = PEAK_OF[DTYPES["bfloat16"]]
    flops = 2.0 * m * n * k / card.peak_flops[peak] / seconds
    used = (weight_bytes * n * k + input_bytes * m * k + 2.0 * m * n) / card.memory_bytes_per_s / seconds
    cells = np.stack([np.floor(used * 8.0), np.floor(np.sqrt(flops) * 8.0)], axis=1)
    real = (used < 1.0) & (flops < 1.0)
    terms, middle = [], []
    for cell in np.unique(cells[real], axis=0):
        here = real & np.all(cells == cell, axis=1)
        if here.sum() >= 20:
            terms.append([1.0, float(np.median(used[here])), float(np.sqrt(np.median(flops[here]))), 0.0])
            middle.append(float(np.median(watts[here])))
    count = len(middle)
    return Points(
        watts=np.array(middle),
        terms=np.array(terms),
        media=np.zeros((count, len(MEDIA))),
        span=np.full(count, card.tdp_watts - card.idle_watts),
        idle=np.full(count, card.idle_watts),
        weight=np.ones(count),
        family=np.full(count, family),
        model=np.full(count, "kernels"),
    )


# --- fit ----------------------------------------------------------------------------------------------------


def joined(parts: Sequence[Points]) -> Points:
    """Return the points of all parts."""
    return Points(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def shares(points: Points, cells: Points, toward: Floats | None = None, by: Settings = CHOSEN) -> Floats:
    """Return the law closest to the watts, by soft-L1 of log residuals; given one, drawn toward it, its media kept."""
    rows = points._replace(weight=_pair_weights(points, by.pairs))
    share = by.kernels * len(points.watts) / len(cells.watts)
    every = joined([rows, cells._replace(weight=np.full(len(cells.watts), share))])
    root, logs, pull = np.sqrt(every.weight), np.log(every.watts), by.shrinkage * len(points.watts) ** 0.5
    done, start = len(FEATURES), [0.4, 0.3, 0.5, 0.1, 0.1, 0.1]

    def whole(free: Floats) -> Floats:
        return free if toward is None else np.append(free, toward[done:])

    def residual(free: Floats) -> Floats:
        off = root * (np.log(every.predicted(whole(free))) - logs)
        return off if toward is None else np.append(off, pull * (free - toward[:done]))

    most = [3.0] * done + [0.8] * len(MEDIA)
    free = slice(None if toward is None else done)
    found = least_squares(residual, start[free], bounds=(0.0, most[free]), loss="soft_l1", f_scale=SOFT)
    return np.array([float(f"{value:.3f}") for value in whole(found.x)])


def _pair_weights(points: Points, power: float) -> Floats:
    """The rows' weights, one on average, such that a pair of model and GPU counts by a power of its rows."""
    _, which, rows = np.unique(_pairs(points), return_inverse=True, return_counts=True)
    weights = rows[which] ** (power - 1.0)
    return np.asarray(weights / weights.mean())


def _pairs(points: Points) -> Texts:
    return np.char.add(np.char.add(points.family, " "), points.model)


def fitted(points: Points, cells: Points, family: str, by: Settings = CHOSEN) -> Floats:
    """Return the law of a family, or without points of it the pooled one."""
    pooled = shares(points, cells, by=by)
    mine = points.family == family
    return shares(points.of(mine), cells.of(cells.family == family), pooled, by) if mine.any() else pooled


def settled(points: Points, cells: Points, family: str) -> Floats:
    """Return the law of a family, fitted by the settings that predict best the pairs of these very points.

    They are left out in parts; one setting is changed at a time, and every one that gains is taken.
    """
    plain = _error_left_out(points, cells, Settings())
    taken = {}
    for name, values in TRIED.items():
        errors = {value: _error_left_out(points, cells, Settings()._replace(**{name: value})) for value in values}
        best = min(errors, key=lambda value: errors[value])
        if errors[best] < plain:
            taken[name] = best
    return fitted(points, cells, family, Settings(**taken))


def _error_left_out(points: Points, cells: Points, by: Settings) -> float:
    """Mean absolute log error of watts, by laws that have not seen the pair."""
    _, which = np.unique(_pairs(points), return_inverse=True)
    off = np.zeros(len(which))
    for part in range(INNER_FOLDS):
        out = which % INNER_FOLDS == part
        for family in sorted(set(points.family[out])):
            asked = out & (points.family == family)
            law = fitted(points.of(~out), cells, family, by)
            off[asked] = np.log(points.of(asked).predicted(law) / points.watts[asked])
    return float(np.abs(off).mean())


def constant(points: Points, cells: Points, family: str) -> Floats:
    """Return the baseline: one share of TDP less idle for a family."""
    mine = points.family == family
    points = points.of(mine) if mine.any() else points
    share = float(np.median((points.watts - points.idle) / points.span))
    return np.array([share] + [0.0] * (len(FEATURES) - 1 + len(MEDIA)))


def predictions(points: Points, cells: Points, fit: Fit, split: str, asked: Points | None = None) -> Floats:
    """Return watts of every point by a law that has seen it, or not its pair of model and GPU, model, or GPU.

    `asked` are points to predict in place of those that laws are fitted on.
    """
    asked = asked or points
    watts = np.zeros(len(asked.watts))
    for family in sorted(set(asked.family)):
        mine = asked.family == family
        for key in sorted(set(asked.model[mine])) if split in ("pair", "model") else [""]:
            test, same = (mine & (asked.model == key) if key else mine), points.model == key
            here = points.family == family
            out = {"seen": points.model == "", "model": same, "pair": here & same}.get(split, here)
            seen_cells = cells.of(cells.family != family) if split == "gpu" else cells
            watts[test] = asked.of(test).predicted(fit(points.of(~out), seen_cells, family))
    return watts


def table(points: Points, cells: Points) -> dict[tuple[str, str], float]:
    """Print errors by form and by what was left out; return the law's medians by split and family."""
    text, found = ~points.media.any(axis=1), {}
    print(f"{'form':10}{'left out':10}{'GPU':6}{'all: median  mean   p90':>26}{'text only':>26}{'n':>6}")
    for form, fit in (("constant", constant), ("law", fitted)):
        for split in ("seen", "pair", "model", "gpu"):
            watts = predictions(points, cells, fit, split)
            for family in ("both", *sorted(SERVED)):
                rows = (points.family == family) | (family == "both")
                every, some = (errors(watts[mask], points.watts[mask]) for mask in (rows, rows & text))
                said = "".join(f"{e.median:12.3f}{e.mean:7.3f}{e.p90:7.3f}" for e in (every, some))
                print(f"{form:10}{split:10}{family:6}{said}{every.rows:6}")
                if form == "law":
                    found[split, family] = every.median
    return found


def main(folder: Path) -> None:
    """Fit, print the table of errors, write the data file."""
    points, cells = serving(folder), kernels(folder)
    medians = table(points, cells)
    laws = {family: fitted(points, cells, family) for family in (*sorted(SERVED), "default")}
    for family, law in laws.items():
        mine = cells.of((cells.family == family) | (family == "default"))
        off = errors(mine.predicted(law), mine.watts)
        print(f"{family:8} {law}; long matrix products: {off.median:.3f} / {off.mean:.3f} / {off.p90:.3f}, {off.rows}")
    others(folder, laws)
    write(points, laws, medians)


def others(folder: Path, laws: dict[str, Floats]) -> None:
    """Print the errors on rows of another study, of other engines and years, that nothing was fitted on."""
    rows = [row for row in read_rows(folder / "serving.csv.gz") if row.source == "argonne-llm-inference-bench"]
    rows = [row for row in rows if "power" in row.measured and row.batch_size]
    for key, law in (("A100", laws["default"]), ("H100", laws["h100"])):
        some = [row for row in rows if row.gpu_key == key]
        off = errors(*(np.array(values) for values in zip(*(_other(row, law) for row in some), strict=True)))
        print(f"static batches of Llama on {key}: {off.median:.3f} / {off.mean:.3f} / {off.p90:.3f}, {off.rows} rows")


def _other(row: Row, law: Floats) -> tuple[float, float]:
    output = row.measured["total_throughput"] / 2.0  # prompts and outputs of one length
    timed = msgspec.structs.replace(row, measured={**row.measured, "output_throughput": output})
    card = gpu(express(row).deployment.pools[0].replica.gpu)
    share = min(1.0, float(np.array(serving_point(timed)) @ law[: len(FEATURES)]))
    return card.idle_watts + share * (card.tdp_watts - card.idle_watts), row.measured["power"]


def write(points: Points, laws: dict[str, Floats], medians: dict[tuple[str, str], float]) -> None:
    """Write the data file."""

    def line(family: str) -> str:
        numbers = dict(zip(FEATURES, laws[family].tolist(), strict=False))
        error = medians[("gpu", "both") if family == "default" else ("model", family)]
        said = {"waiting": WAITING[family], **numbers, "error": round(error, 2)}
        said |= {"kind": "modelled", "evidence": "pooled"} if family == "default" else {}
        rows = int((points.family == family).sum())
        said["timed"] = f'"{TIMED[family].format(rows=rows)}"'
        return f"{family}: {{{', '.join(f'{name}: {value}' for name, value in said.items())}}}\n"

    media = dict(zip(MEDIA, laws["default"][len(FEATURES) :].tolist(), strict=True))
    taken = ", ".join(f"{kind}: {share}" for kind, share in media.items())
    like = ", ".join(f"{start}: {family}" for start, family in LIKE.items())
    families = "".join(f"  {line(family)}" for family in SERVED)
    text = f"{_HEADER}{line('default')}families:\n{families}media: {{{taken}}}\nlike: {{{like}}}\n"
    DATA.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m fit.power DATA_DIR")
    main(Path(sys.argv[1]))
