"""Two results side by side, simulated or measured, with intervals for their differences where rows are known.

Same workload and seed, whatever the rate: request i of the one is request i of the other, and what is looked at is each
request's own difference, in which the luck of lengths and arrivals cancels. Requests that queue behind each other share
their fate, so intervals come from batches of consecutive ones: means by batch means with Student's t (A. M. Law,
*Simulation Modeling and Analysis*, section 9.5.3), percentiles by a bootstrap of blocks (D. N. Politis and J. P.
Romano, *A circular block-resampling procedure for stationary data*, 1992).
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from headway.metrics.attainment import BATCHES, T95, Attainment, attained
from headway.metrics.records import Records
from headway.metrics.result import Latency, Result
from headway.metrics.slo import Slo, Slos
from headway.specs import Spec

__all__ = ["Comparison", "Difference", "compare"]

SCHEMA = "headway.comparison/1"
SHARES = ("mean", "p50", "p90", "p99")
RESAMPLES, RESAMPLED_VALUES = 400, 2e8  # the second bounds the first where there are many requests
LEAST_RESAMPLES = 50
ROUNDING = 1e-9  # of a figure
AT_ONCE_VALUES = 1e6  # of resamples, in memory
BEYOND = 0.025  # of the probability, on either side of a 95 % interval

Floats = NDArray[np.float64]


class Difference(Spec, frozen=True, kw_only=True):
    """One figure of both results. `low` and `high` hold the difference b - a at 95 %.

    They are None where rows are missing, and where these are too few for any such interval. `requests` were looked at
    for it: pairs where it is paired. `kind` is how energy came about, in a and in b where
    they differ ("fitted", "fitted / estimated"); "" for all else. `client_error` is what the load generators that
    measured them say they read too much, together.
    """

    figure: str
    unit: Literal["s", "1/s", "share", "J", "USD"]
    a: float | None
    b: float | None
    difference: float | None
    low: float | None = None
    high: float | None = None
    requests: int = 0
    kind: str = ""
    client_error: float | None = None

    @property
    def name(self) -> str:
        """The figure as it is printed: energy with how it came about."""
        return f"{self.figure} ({self.kind})" if self.kind else self.figure

    @property
    def noise(self) -> bool | None:
        """Whether the difference may be chance, or the error of the client that measured; None without an interval."""
        least = max(self.client_error or 0.0, ROUNDING * abs(self.a or 0.0))
        if self.difference is not None and 0.0 < abs(self.difference) <= least:
            return True
        return None if self.low is None or self.high is None else self.low <= 0.0 <= self.high

    @property
    def too_few(self) -> bool:
        """Whether so few requests were looked at that nothing tells this difference from chance."""
        return self.requests > 0 and self.low is None


class Comparison(Spec, frozen=True, kw_only=True):
    """Differences of two results, b - a. `unpaired_because` says why requests could not be paired, "" if they were."""

    schema: str = SCHEMA
    paired: bool
    unpaired_because: str = ""
    notes: list[str] = []  # noqa: RUF012 - msgspec copies it
    differences: list[Difference]


class _Rows(NamedTuple):
    """The measured rows of both, in order of arrival; of equal length and by pairs where `paired`."""

    a: Records
    b: Records
    paired: bool


def compare(a: Result, b: Result, slo: Slos | None = None, slo_b: Slos | None = None) -> Comparison:
    """Return the differences of two results.

    Attainment is judged anew under `slo`, for all or per class, by default the limits the results share; without rows
    it is what they say. `slo_b` are the limits of b where it is to be judged by others.
    """
    why = _unpaired(a, b)
    rows = None if a.records is None or b.records is None else _rows(a.records, b.records, not why)
    if rows is not None and not rows.paired:
        why = why or "fewer than two requests are measured in both"
    notes = []
    if rows is not None and rows.paired and len(rows.a) < min(_measured(a.records), _measured(b.records)):
        notes.append(f"{len(rows.a):,} requests are measured in both, and only these are paired")
    found = [
        *_with_error(_latency("TTFT", a.ttft_s, b.ttft_s, rows, "ttft_s"), a, b, "ttft_s"),
        *_latency("TPOT", a.tpot_s, b.tpot_s, rows, "tpot_s"),
        *_with_error(_latency("ITL", a.itl_s, b.itl_s, None, ""), a, b, "itl_s"),
        *_latency("E2E", a.e2e_s, b.e2e_s, rows, "e2e_s"),
        *_throughput(a, b, rows),
        *_attainments(a, b, rows, slo, slo_b),
        _energy(a, b),
        *_cost(a, b),
    ]
    if slo is None and a.slo.limits and b.slo.limits and a.slo.limits != b.slo.limits:
        notes.append("the results were judged by different limits: --ttft, --tpot and --e2e judge both by the same")
    known = [one for one in found if one.a is not None or one.b is not None]
    return Comparison(paired=rows is not None and rows.paired, unpaired_because=why, notes=notes, differences=known)


def mean_interval(values: Floats) -> tuple[float, float]:
    """Return mean and half the 95 % interval of at least 2 values, by means of batches of consecutive ones."""
    means = np.array([batch.mean() for batch in np.array_split(values, min(BATCHES, len(values)))])
    half = T95[len(means) - 2] * float(means.std(ddof=1)) / math.sqrt(len(means))
    return float(values.mean()), half


def percentile_interval(a: Floats, b: Floats, percent: float, paired: bool) -> tuple[float, float]:
    """Return the 95 % interval of the difference of a percentile, b - a, by a bootstrap of blocks."""
    rng = np.random.default_rng(0)
    times = int(max(LEAST_RESAMPLES, min(RESAMPLES, RESAMPLED_VALUES / (len(a) + len(b)))))
    at_once = max(1, int(AT_ONCE_VALUES / (len(a) + len(b))))
    found = []
    for first in range(0, times, at_once):
        rows = min(at_once, times - first)
        places = _resampled(rng, len(a), rows)
        others = places if paired else _resampled(rng, len(b), rows)
        found.append(np.percentile(b[others], percent, axis=1) - np.percentile(a[places], percent, axis=1))
    low, high = np.percentile(np.concatenate(found), (2.5, 97.5)).tolist()
    return low, high


def _resampled(rng: np.random.Generator, n: int, rows: int) -> NDArray[np.int64]:
    """Places of n values, in each row anew, in blocks of about sqrt(n) consecutive ones, which wrap around."""
    length = max(1, math.isqrt(n))
    starts = rng.integers(0, n, (rows, -(-n // length)))
    return np.asarray(((starts[:, :, None] + np.arange(length)) % n).reshape(rows, -1)[:, :n])


def _unpaired(a: Result, b: Result) -> str:
    if a.records is None or b.records is None:
        return "rows of both are needed: --records names their files"
    if a.workload is None or b.workload is None or _requests(a.workload) != _requests(b.workload):
        return "the workloads differ"
    if a.workload != b.workload and not _in_one_order(a.records, b.records):
        return "the classes come in another order at this rate"
    return "" if a.seed is not None and a.seed == b.seed else "the seeds differ"


def _in_one_order(a: Records, b: Records) -> bool:
    """Whether requests of one number are of one class: not where a class has sessions, and the rate another."""
    _, at_a, at_b = np.intersect1d(a["id"], b["id"], return_indices=True)
    return bool((a["slo_class"][at_a] == b["slo_class"][at_b]).all())


def _requests(workload: dict[str, Any]) -> dict[str, Any]:
    """A workload without its rate: another gives the same requests, sessions excepted, of which it shifts the calls.

    Of classes with rates of their own, without the rate of all.
    """
    arrival, classes = workload.get("arrival"), workload.get("classes")
    if classes and all(each.get("rate_req_s") for each in classes):
        total = sum(each["rate_req_s"] for each in classes)
        shares = [each | {"rate_req_s": round(each["rate_req_s"] / total, 9)} for each in classes]
        return workload | {"classes": shares}
    if workload.get("sessions") or not isinstance(arrival, dict):
        return workload
    steady = {name: value for name, value in arrival.items() if name != "rate_req_s"}
    if "rate_on_req_s" in arrival:  # bursts stay as long, and keep the ratio of their rates
        steady["rate_on_req_s"] = 1.0
        steady["rate_off_req_s"] = round(arrival.get("rate_off_req_s", 0.0) / arrival["rate_on_req_s"], 9)
    return workload | {"arrival": steady}


def _measured(records: Records | None) -> int:
    return 0 if records is None else int(records["measured"].sum())


def _rows(a: Records, b: Records, paired: bool) -> _Rows:
    kept = [_taken(records, np.flatnonzero(records["measured"])) for records in (a, b)]
    if paired:
        ids, at_a, at_b = np.intersect1d(kept[0]["id"], kept[1]["id"], return_indices=True)
        if len(ids) >= 2:
            order = np.argsort(kept[0]["arrival_s"][at_a], kind="stable")
            return _Rows(_taken(kept[0], at_a[order]), _taken(kept[1], at_b[order]), True)
    left, right = (_taken(one, np.argsort(one["arrival_s"], kind="stable")) for one in kept)
    return _Rows(left, right, False)


def _taken(records: Records, places: NDArray[np.int64]) -> Records:
    return Records({name: column[places] for name, column in records.columns.items()})


def _latency(name: str, a: Latency, b: Latency, rows: _Rows | None, column: str) -> list[Difference]:
    values = None if rows is None else _finite(getattr(rows.a, column), getattr(rows.b, column), rows)
    found = []
    for share in SHARES:
        left, right = getattr(a, share), getattr(b, share)
        between = None if left is None or right is None else right - left
        requests, low, high = 0, None, None
        if values is not None and rows is not None and between is not None:
            requests = min(map(len, values))
            if requests >= 2:
                between, low, high = _interval(*values, share, rows.paired)
            if not _enough(requests, share):
                low = high = None
        found.append(
            Difference(figure=f"{name} {share}", unit="s", a=left, b=right, difference=between, low=low, high=high,
                       requests=requests)
        )  # fmt: skip
    return found


def _enough(requests: int, share: str) -> bool:
    """Whether there can be a 95 % interval of so many requests.

    None reaches further than the values do, and by chance all of them lie on one side of the truth: of the median in
    2 x 0.5^n of cases, of p90 below it in 0.9^n.
    """
    if share == "mean":
        return requests >= 2
    percent = float(share[1:]) / 100
    return bool(max(percent, 1 - percent) ** requests <= BEYOND)


def _with_error(found: list[Difference], a: Result, b: Result, figure: str) -> list[Difference]:
    """The differences with what the clients of measured results say of their own error."""
    errors = [_client_error(one, figure) for one in (a, b)]
    return [
        msgspec.structs.replace(one, client_error=sum(error.get(at, 0.0) for error in errors) or None)
        for one in found
        for at in ["p99" if one.figure.endswith("p99") else "p50"]
    ]


def _client_error(result: Result, figure: str) -> dict[str, float]:
    client = result.provenance.get("measured", {}).get("client", {})
    error: dict[str, float] = (client.get("error") or {}).get(figure, {})
    return error


def _finite(a: Floats, b: Floats, rows: _Rows) -> tuple[Floats, Floats]:
    """Values of finished requests: of pairs where both have one."""
    good_a, good_b = rows.a.finished & np.isfinite(a), rows.b.finished & np.isfinite(b)
    if rows.paired:
        good_a = good_b = good_a & good_b
    return a[good_a], b[good_b]


def _interval(a: Floats, b: Floats, share: str, paired: bool) -> tuple[float, float, float]:
    if share != "mean":
        percent = float(share[1:])
        between = float(np.percentile(b, percent) - np.percentile(a, percent))
        return between, *percentile_interval(a, b, percent, paired)
    if paired:
        between, half = mean_interval(b - a)
    else:
        (mean_a, half_a), (mean_b, half_b) = mean_interval(a), mean_interval(b)
        between, half = mean_b - mean_a, math.hypot(half_a, half_b)
    return between, between - half, between + half


def _throughput(a: Result, b: Result, rows: _Rows | None) -> list[Difference]:
    found = []
    for figure, field in (("requests/s", "requests_per_s"), ("output tokens/s", "output_tokens_per_s")):
        left, right = getattr(a.throughput, field), getattr(b.throughput, field)
        between = None if left is None or right is None else right - left
        low = high = None
        if between is not None and a.records is not None and b.records is not None:
            slices = [_rates(one, field) for one in (a, b)]
            if rows is not None and rows.paired:
                half = mean_interval(slices[1] - slices[0])[1]
            else:
                half = math.hypot(mean_interval(slices[0])[1], mean_interval(slices[1])[1])
            low, high = between - half, between + half
        found.append(Difference(figure=figure, unit="1/s", a=left, b=right, difference=between, low=low, high=high))
    return found


def _rates(result: Result, field: str) -> Floats:
    """Rates in `BATCHES` equal parts of the window."""
    records = result.records
    assert records is not None
    done = records.finished
    weights = records["output_tokens"][done] if field == "output_tokens_per_s" else None
    ends = (result.window.start_s, max(result.window.end_s, result.window.start_s + 1e-9))
    counts, edges = np.histogram(records["last_token_s"][done], bins=BATCHES, range=ends, weights=weights)
    return np.asarray(counts / np.diff(edges), dtype=np.float64)


def _attainments(
    a: Result, b: Result, rows: _Rows | None, slo: Slos | None, slo_b: Slos | None
) -> list[Difference]:
    """Attainment of all, and of each class where both have limits by class."""
    left, right = a.slo.limits or b.slo.limits, b.slo.limits or a.slo.limits
    shared = slo or (left if left == right else None)
    judged = None if rows is None or shared is None else ((rows.a, shared), (rows.b, slo_b or shared))
    found = [_attainment("attainment", a.slo, b.slo, judged, rows)]
    if shared is None or isinstance(shared, Slo):
        return found
    names = [each.get("name", "") for each in (a.workload or {}).get("classes", [])]
    for number in sorted(set(map(int, a.slo.by_class)) & set(map(int, b.slo.by_class)) & shared.keys()):
        own = judged and tuple((_of_class(one, number), limits) for one, limits in judged)
        name = names[number] if number < len(names) else f"{number}"
        sides = a.slo.by_class[f"{number}"], b.slo.by_class[f"{number}"]
        found.append(_attainment(f"attainment of {name}", *sides, own, rows))
    return found


def _of_class(records: Records, number: int) -> Records:
    return _taken(records, np.flatnonzero(records["slo_class"] == number))


def _attainment(
    figure: str, a: Attainment, b: Attainment, judged: tuple[tuple[Records, Slos], ...] | None, rows: _Rows | None
) -> Difference:
    """Of the rows of both, each judged by its limits; without rows what the results say."""
    if judged is not None and rows is not None and min(len(one) for one, _ in judged) >= 2:
        good_a, good_b = (attained(one, limits).astype(np.float64) for one, limits in judged)
        between, low, high = _interval(good_a, good_b, "mean", rows.paired)
        ends: tuple[float | None, float | None] = _possible(float(good_a.mean()), low, high)
        requests = min(len(good_a), len(good_b))
        if not _enough(requests, "p50"):  # met or missed: a few that all changed alike show no spread, and a sign test
            ends = None, None  # tells as little of them as of a median
        return Difference(
            figure=figure, unit="share", a=float(good_a.mean()), b=float(good_b.mean()), difference=between,
            low=ends[0], high=ends[1], requests=requests,
        )  # fmt: skip
    left, right = a.attainment, b.attainment
    if left is None or right is None:
        return Difference(figure=figure, unit="share", a=left, b=right, difference=None)
    low_high: tuple[float | None, float | None] = None, None
    known = (a.attainment_low, a.attainment_high, b.attainment_low, b.attainment_high)
    if None not in known:
        low_a, high_a, low_b, high_b = (float(end or 0.0) for end in known)
        low = right - left - math.hypot(right - low_b, high_a - left)
        high = right - left + math.hypot(high_b - right, left - low_a)
        low_high = _possible(left, low, high)
    return Difference(
        figure=figure, unit="share", a=left, b=right, difference=right - left, low=low_high[0], high=low_high[1]
    )


def _possible(share: float, low: float, high: float) -> tuple[float, float]:
    """An interval of what is added to a share, without what would leave 0 to 1."""
    return max(low, -share), min(high, 1.0 - share)


def _energy(a: Result, b: Result) -> Difference:
    """Joules per output token: a measured run that read no meter has none."""
    left, right = (one.energy.joules_per_output_token if one.energy.joules else None for one in (a, b))
    between = None if left is None or right is None else right - left
    kinds = [one.energy.kind for one, joules in ((a, left), (b, right)) if joules is not None]
    kind = " / ".join(dict.fromkeys(kinds))
    return Difference(figure="energy per output token", unit="J", a=left, b=right, difference=between, kind=kind)


def _cost(a: Result, b: Result) -> list[Difference]:
    """Of all GPUs, where they have a price."""
    found = []
    for figure, field in (("cost per million output tokens", "usd_per_million_output_tokens"),
                          ("cost per hour", "usd_per_hour")):  # fmt: skip
        left, right = getattr(a.cost, field), getattr(b.cost, field)
        between = None if left is None or right is None else right - left
        found.append(Difference(figure=figure, unit="USD", a=left, b=right, difference=between))
    return found
