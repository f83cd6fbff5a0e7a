"""Rich renderables of how far simulated figures are from measured ones."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from headway.report.sheet import Sheet
from headway.units import format_seconds

if TYPE_CHECKING:
    from rich.console import RenderableType

    from headway.accuracy import Accuracy, Replay
    from headway.accuracy.score import Errors

NAMES = {
    "ttft": "TTFT",
    "tpot": "TPOT or ITL",
    "e2e": "E2E",
    "output_throughput": "throughput",
    "energy_per_token": "J/token",
    "power": "power",
}
GROUP_NAMES = {
    "source": "source",
    "engine": "engine",
    "model_key": "model",
    "gpu_key": "GPU",
    "tp": "TP",
    "mode": "mode",
}
SHOWN = 12  # rows of a table of groups
SHORTEST = 5  # a group of fewer figures says little
BROKEN_SHOWN = 5
MISSING = {  # reasons, and the empty columns that would tell
    "layout not stated": "tp, and pp, dp, ep where there are several",
    "load not stated": "concurrency, request_rate or batch_size",
    "output length not stated": "osl_mean",
    "no figure of ours was measured": "ttft_mean_ms, tpot_mean_ms, e2e_mean_ms or output_throughput_tok_s",
    "split: number of workers not stated": "notes, as in prefill[num_workers=2 tp_size=1 ...]; decode[...]",
}


def accuracy_text(accuracy: Accuracy) -> RenderableType:
    """Return errors overall and by group, what was skipped, rank agreement and regret."""
    from rich.console import Group
    from rich.text import Text

    if not accuracy.used:
        said = f"none of {accuracy.rows:,} rows could be used"
        return Group(Text(said, style="bold"), _skipped(accuracy.skipped), *_why(accuracy))
    share = accuracy.used / accuracy.rows
    said = f"{accuracy.used:,} of {accuracy.rows:,} rows simulated ({share:.0%}); errors are predicted / measured - 1"
    parts: list[RenderableType] = [Text(said, style="bold"), Text("")]
    parts.append(_errors("metric", ((NAMES[name], errors) for name, errors in accuracy.errors.items())))
    if accuracy.suspects:
        doubts = ", ".join(f"{count:,} {why}" for why, count in accuracy.suspects.items())
        parts.append(Text(f"without {sum(accuracy.suspects.values()):,} suspect rows ({doubts}):"))
        parts.append(_errors("metric", ((NAMES[name], errors) for name, errors in accuracy.trusted.items())))
    parts.append(_errors("figure", accuracy.figures.items()))
    parts += _filled(*(_groups(column, found) for column, found in accuracy.by.items()))
    parts += _filled(_skipped(accuracy.skipped))
    parts += _why(accuracy)
    parts += _filled(_agreement(accuracy), _regret(accuracy), _coverage(accuracy))
    return Group(*parts)


def replay_text(replay: Replay) -> RenderableType:
    """Return measured and simulated figures of every recorded run, and the distance of the curves."""
    from rich.console import Group
    from rich.text import Text

    parts: list[RenderableType] = []
    for name, run in replay.runs.items():
        parts.append(Text(f"{name}: {run.requests} requests", style="bold"))
        table = _table("figure", "measured", "simulated", "error")
        for metric, points in run.latencies.items():
            for stat, point in points.items():
                figures = (format_seconds(point.measured), format_seconds(point.simulated), _signed(point.error))
                table.add_row(f"{NAMES[metric].partition(' ')[0]} {stat}", *figures)
        whole = run.makespan_s
        table.add_row("makespan", format_seconds(whole.measured), format_seconds(whole.simulated), _signed(whole.error))
        parts.append(table)
        for curve, distance in run.curves.items():
            unit = "% of the KV cache" if curve == "kv" else "sequences"
            parts.append(
                Text(
                    f"{curve}: off by {distance.mean_distance:.1f} {unit} on average (at most "
                    f"{distance.max_distance:.0f}) over {distance.seconds} s, of {distance.measured_mean:.1f} measured"
                )
            )
        parts.append(Text(""))
    parts += [Text(f"skipped {name}: {reason}", style="yellow") for name, reason in replay.reasons.items()]
    return Group(*parts)


def _filled(*tables: Sheet) -> list[Sheet]:
    """Return those that have rows: of few measurements there is no order, no regret, no group worth a line."""
    return [table for table in tables if table.rows]


def _errors(label: str, rows: Iterable[tuple[str, Errors]]) -> Sheet:
    table = _table(label, "mean", "median", "p90", "bias", "n")
    for name, errors in rows:
        if errors.n:
            table.add_row(name, *_cells(errors), f"{errors.n:,}")
    return table


def _cells(errors: Errors) -> list[str]:
    return [_percent(errors.mape), _percent(errors.median), _percent(errors.p90), _signed(errors.bias)]


def _groups(column: str, groups: dict[str, dict[str, Errors]]) -> Sheet:
    """Median and bias of the four figures that most rows have."""
    metrics = ("ttft", "tpot", "e2e", "output_throughput")
    table = _table(GROUP_NAMES[column], *(f"{NAMES[metric]}" for metric in metrics), "n")
    shown = 0
    for value, found in list(groups.items())[:SHOWN]:
        most = max((errors.n for errors in found.values()), default=0)
        if most >= SHORTEST:
            table.add_row(value or "-", *(_short(found.get(metric)) for metric in metrics), f"{most:,}")
            shown += 1
    left = len(groups) - shown
    more = f"; {left} more with fewer rows (--points has every row)" if left else ""
    table.caption = f"median, p90 and bias{more}"
    return table


def _short(errors: Errors | None) -> str:
    if errors is None:
        return "-"
    return " ".join(
        f"{figure or 0:{form}}"
        for figure, form in zip((errors.median, errors.p90, errors.bias), (".0%", ".0%", "+.0%"), strict=True)
    )


def _skipped(skipped: dict[str, int]) -> Sheet:
    table = _table("skipped because", "rows")
    for reason, count in skipped.items():
        table.add_row(reason, f"{count:,}")
    return table


def _why(accuracy: Accuracy) -> list[RenderableType]:
    from rich.text import Text

    return [Text(line) for line in (*_missing(accuracy.skipped), *_broken(accuracy.broken))]


def _missing(skipped: dict[str, int]) -> list[str]:
    """Which empty columns would make rows usable."""
    return [f"{reason}: fill in {MISSING[reason]}" for reason in skipped if reason in MISSING]


def _broken(broken: dict[str, str]) -> list[str]:
    shown = [f"row {row}: {reason}" for row, reason in list(broken.items())[:BROKEN_SHOWN]]
    more = len(broken) - len(shown)
    return shown + ([f"and {more} more rows that break physics"] if more > 0 else [])


def _agreement(accuracy: Accuracy) -> Sheet:
    table = _table("order within a sweep (Kendall's tau)", "mean", "median", "sweeps")
    for name, found in accuracy.regret.kendall.items():
        if found.mean is not None and found.median is not None:
            table.add_row(name, f"{found.mean:.2f}", f"{found.median:.2f}", f"{found.n}")
    return table


def _regret(accuracy: Accuracy) -> Sheet:
    table = _table("regret of choosing by prediction", "mean", "median", "limit kept", "mean of these", "choices")
    every, trusted = accuracy.regret, accuracy.trusted_regret
    named = []
    for name, mine, less in (
        ("deployment, by tok/s per GPU", every.deployments, trusted.deployments),
        ("with its load, by tok/s per GPU", every.throughput_per_gpu, trusted.throughput_per_gpu),
        ("with its load, by J/token", every.energy_per_token, trusted.energy_per_token),
    ):
        named += [(name, mine)] + [(f"{name}, suspects left out", less)] * bool(accuracy.suspects)
    for name, found in named:
        if found.n:
            figures = (found.mean, found.median, found.kept, found.mean_kept)
            table.add_row(name, *(_percent(figure) for figure in figures), f"{found.n}")
            for margin, mean in found.by_margin.items():
                if margin != "0":
                    table.add_row(f"  {float(margin):.0%} under the limit", _percent(mean), "", "", "", "")
    return table


def _coverage(accuracy: Accuracy) -> Sheet:
    found = accuracy.coverage
    table = _table(f"measured inside the {found.claimed:.0%} interval", "share", "median high / low", "n")
    named = [("all", found.overall), *((NAMES[name], held) for name, held in found.metrics.items())]
    if accuracy.suspects:
        named.insert(1, ("suspects left out", found.trusted))
    for level, metrics in found.levels.items():
        named += [(level if name == "all" else f"  {NAMES[name]}", held) for name, held in metrics.items()]
    for name, held in named:
        if held.n:
            table.add_row(name, _percent(held.share), f"{held.width:.2f}", f"{held.n:,}")
    return table


def _table(first: str, *columns: str) -> Sheet:
    table = Sheet()
    table.add_column(first, words=True)
    for column in columns:
        table.add_column(column)
    return table


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}" if value < 1 else f"{value:.0%}"


def _signed(value: float | None) -> str:
    return "-" if value is None else f"{value:+.1%}" if abs(value) < 1 else f"{value:+.0%}"
