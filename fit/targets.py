"""What was aimed at, and what is reached."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fit.joules import SEEN
from fit.study import SERVED, Flags, Floats, Study, figures, is_from
from headway.accuracy import Replay
from headway.cost.efficiency import efficiency
from headway.hardware import gpu

DENSE = "Llama"  # in the names of the recorded runs
MARGIN = "0.01"  # on limits on the time per token, as `plan` keeps it


class Target(NamedTuple):
    """A line: figure, target, what is reached on all rows and on trusted ones, by the data sheet, and whether met."""

    what: str
    wanted: str
    reached: str
    trusted: str
    sheet: str
    verdict: str
    rows: int


def targets(study: Study, replay: Replay | None) -> list[Target]:
    """Return all lines."""
    served, docs, mlperf = is_from(study, *SERVED), is_from(study, "trtllm-docs"), is_from(study, "mlperf")
    split = np.array([sample.row.mode == "disagg" for sample in study.samples])
    pairs, seen, level = study.splits["pair"].logs, study.splits["rows"].kriged, study.splits["rows"].levelled
    return [
        _line(study, "TPOT or ITL, unseen pair", pairs, "tpot", served, 0.08, 0.25),
        _line(study, "the same, unseen model", study.splits["model"].logs, "tpot", served, 0.08, 0.25),
        _line(study, "TPOT or ITL, seen pair", seen, "tpot", served, 0.04, 0.15),
        _line(study, "the same, by the pair's level alone", level, "tpot", served, 0.04, 0.15),
        _line(study, "TPOT, split prefill and decode, unseen pair", pairs, "tpot", split, 0.09),
        _line(study, "TTFT, closed loop, unseen pair", pairs, "ttft", served, 0.20, 0.60),
        _line(study, "TTFT, closed loop, seen pair", seen, "ttft", served, 0.12),
        _line(study, "the same, by the pair's level alone", level, "ttft", served, 0.12),
        _line(study, "output throughput, unseen pair", pairs, "throughput", served, 0.10),
        _line(study, "TensorRT-LLM docs, unseen pair", pairs, "throughput", docs, 0.15),
        _line(study, "MLPerf Offline, unseen pair", pairs, "throughput", mlperf, 0.12),
        *_new_gpu(study, served),
        *_energy(study),
        *_choices(study),
        *_replays(replay),
        _expressed(study),
    ]


def _line(
    study: Study, what: str, logs: Sequence[Floats], kind: str, member: Flags, median: float, p90: float | None = None
) -> Target:
    found, sheet = figures(study, logs, kind), figures(study, study.stages["data sheet"], kind)
    trusted = found.of(member & ~study.doubted)
    off = np.abs(np.expm1(trusted))
    met = bool(np.median(off) <= median)
    wanted = f"{100 * median:g}"
    verdict = _yes(met)
    if p90 is not None:
        wanted += f" / {100 * p90:g}"
        tail = bool(np.quantile(off, 0.9) <= p90)
        verdict = _yes(met) if met == tail else f"median {_yes(met)}, p90 {_yes(tail)}"
    by_sheet = _two(sheet.of(member & ~study.doubted), p90)
    every = found.of(member)
    return Target(what, wanted, _two(every, p90), _two(trusted, p90), by_sheet, verdict, len(every))


def _yes(met: bool) -> str:
    return "yes" if met else "no"


def _two(logs: Floats, p90: float | None) -> str:
    if not len(logs):
        return ""
    off = 100 * np.abs(np.expm1(logs))
    median = f"{np.median(off):.1f}"
    return median if p90 is None else f"{median} / {np.quantile(off, 0.9):.0f}"


def _new_gpu(study: Study, served: Flags) -> list[Target]:
    found = []
    names = {"sibling": "TPOT, unseen GPU, laws of its architecture", "stranger": "TPOT, unseen GPU, laws of another"}
    for law, name in names.items():
        had = served & np.array([bool(sample.kernels.get(law)) for sample in study.samples])
        found.append(_line(study, name, study.splits[law].logs, "tpot", had, 0.15))
    at = [i for i, sample in enumerate(study.samples) if sample.whole is not None and not _timed(sample.whole.gpu)]
    if at:
        clean = ~study.doubted[at]
        unseen, sheet = (np.array([logs[i][0] for i in at]) for logs in
                         (study.splits["gpu"].logs, study.stages["data sheet"]))  # fmt: skip
        met = _yes(float(np.median(np.abs(np.expm1(unseen[clean])))) <= 0.15)
        words = (_two(unseen, None), _two(unseen[clean], None), _two(sheet[clean], None))
        what = "times or rate, unseen GPU of whose architecture nothing was timed"
        found.append(Target(what, "15", *words, met, len(at)))
    return found


def _timed(key: str) -> bool:
    return efficiency(gpu(key)).gemm["bf16"].evidence in ("own", "engine", "sibling")


def _energy(study: Study) -> list[Target]:
    timed, watts, joules, trusted = study.energy
    power, tokens = study.sheet.trusted["power"].median, study.sheet.trusted["energy_per_token"].median
    lines = (
        ("power, unseen pair, at the measured pace", power, timed.get("pair"), 0.10),
        ("the same, at the predicted pace", power, watts.get("pair"), 0.10),
        ("power, seen pair", power, watts.get(SEEN), 0.10),
        ("energy per token, unseen pair", tokens, joules.get("pair"), 0.15),
        ("energy per token, seen pair", tokens, joules.get(SEEN), 0.10),
    )
    found = []
    for what, sheet, logs, wanted in lines:
        if logs is not None and sheet is not None:
            clean = float(np.median(np.abs(np.expm1(logs[trusted]))))
            found.append(Target(what, f"{100 * wanted:g}", _two(logs, None), f"{100 * clean:.1f}",
                                f"{100 * sheet:.1f}", _yes(clean <= wanted), len(logs)))  # fmt: skip
    shipped = (("power", "power", 0.10), ("energy per token", "energy_per_token", 0.15))
    for what, name, wanted in shipped:
        medians = [of[name].median for of in (study.shipped.errors, study.shipped.trusted, study.sheet.trusted)]
        if None not in medians:
            words = [f"{100 * (median or 0.0):.1f}" for median in medians]
            met = _yes((medians[1] or 0.0) <= wanted)
            rows = study.shipped.errors[name].n
            found.append(Target(f"{what}, shipped law on all rows", f"{100 * wanted:g}", *words, met, rows))
    return found


def _choices(study: Study) -> list[Target]:
    shipped = (study.shipped.regret, study.shipped.trusted_regret, study.sheet.trusted_regret)
    unseen = (study.rank_unseen, study.rank_unseen_trusted, study.sheet.trusted_regret)
    found = []
    for what, field, regrets in (
        ("of the deployment chosen, terms of the package", "deployments", shipped),
        ("of the deployment chosen, unseen pair", "deployments", unseen),
        ("with the load chosen, terms of the package", "throughput_per_gpu", shipped),
    ):
        chosen = [getattr(ranking, field) for ranking in regrets]
        if all(regret.n for regret in chosen):
            kept = [regret.by_margin[MARGIN] for regret in chosen]
            words = [f"{100 * value:.1f}" for value in kept]
            name = f"regret {what}, tokens/s per GPU under a limit, mean"
            found.append(Target(name, "5", *words, _yes(kept[1] <= 0.05), chosen[0].n))
    return found


def _replays(replay: Replay | None) -> list[Target]:
    found = []
    for name, run in (replay.runs if replay else {}).items():
        wanted = 0.03 if DENSE in name else 0.05
        for stat, limit in (("mean", wanted), ("p99", 0.12)):
            errors = {metric: points[stat].error for metric, points in run.latencies.items()}
            text = ", ".join(f"{metric.upper()} {100 * error:+.1f}" for metric, error in errors.items())
            label = "dense" if DENSE in name else "experts"
            met = max(abs(error) for error in errors.values()) <= limit
            what = f"recorded run, {label}, {stat}"
            found.append(Target(what, f"{100 * limit:g}", text, "", "", _yes(met), run.requests))
    return found


def _expressed(study: Study) -> Target:
    share = study.shipped.used / study.shipped.rows
    text = f"{100 * share:.1f}"
    return Target("rows expressed", "90", text, "", text, _yes(share >= 0.9), study.shipped.rows)
