"""What of a workload a plan is judged on, in words, where it is not all there is to come; and what nothing serves."""

from __future__ import annotations

import math

from headway.model import model
from headway.plan.bounds import Lengths
from headway.plan.classes import Classes
from headway.plan.explain import of_class
from headway.plan.question import Question
from headway.units import format_rate
from headway.workload import Workload
from headway.workload.arrivals import Diurnal, Replay

__all__ = ["extent", "stretch", "unservable"]

_CHANCE = 3  # standard deviations of a share of a run's requests: others have as many more of a kind, rarely


def extent(question: Question, source: Workload, judged: Workload, requests: int, rate_req_s: float) -> str:
    """Return what the `requests` of `judged` leave out of the source: the rest of a trace, the peak of a day; or "".

    Of a recorded trace the densest part is judged, else the first requests; a sinusoid from its mean on, upwards.
    """
    arrival = source.spec.process
    if source.spec.trace is not None and requests < source.requests:
        whole = f"--set requests={source.requests} judges by all of them."
        if not isinstance(arrival, Replay) or judged is source:
            return f"Judged on the first {requests:,} of {source.requests:,} requests of the trace: {whole}"
        theirs = format_rate(rate_req_s * _pace(judged))
        return (
            f"Judged on {stretch(source, judged, requests)}. Rates are means of the whole trace; at "
            f"{format_rate(rate_req_s)} these come at {theirs}. {whole}"
        )
    if isinstance(arrival, Diurnal):
        swing = (arrival.peak_to_trough - 1) / (arrival.peak_to_trough + 1)
        peak = rate_req_s * (1 + swing)
        return (
            f"Planned for the mean rate of the day, and the first {requests / rate_req_s / arrival.period_s:.0%} of it "
            f"was simulated: at its peak come {format_rate(peak)}; --rate {peak:.4g} plans for that, "
            "`headway capacity` for each hour."
        )
    return ""


def unservable(question: Question, lengths: Lengths, classes: Classes) -> tuple[str, bool]:
    """Return how many requests no deployment serves, as they exceed the model's context, or ""; and if too many do."""
    most = model(question.model).max_context
    whole = lengths.prompt + lengths.output
    if whole.max() <= most:
        return "", False
    short = [
        (float(fits.mean()), classes.asked[i].attainment, len(fits), of_class(classes.name(i)))
        for i, own in lengths.by_class(len(classes.asked))
        if not (fits := own.prompt + own.output <= most).all()
    ]
    share, target, count, of = min(short, key=lambda each: each[0] - each[1])
    words = (
        f"{1 - share:.1%} of requests{of} are longer, prompt and output together, than the context of "
        f"{question.model}, {most:,} tokens (the longest has {int(whole.max()):,}): nothing serves these"
    )
    if share >= target:
        surely = share - _CHANCE * math.sqrt(share * (1 - share) / count)
        if surely >= target:
            return f"{words}.", False
        said = f"about as many as the SLO lets go; at {math.floor(100 * surely)}% chance would not decide."
        return f"{words}, {said}", False
    ask = "shorter ones or a model of a longer context"
    most_asked = math.floor(100 * share)  # down: at the share itself none of the others may miss
    return f"{words}; ask for {ask}" + (f", or an attainment of {most_asked}% or less." if share > 0.5 else "."), True


def stretch(source: Workload, judged: Workload, requests: int) -> str:
    """Return which `requests` of a recorded trace its densest part, `judged`, is."""
    if requests == 1:
        return f"the one of the trace's {source.requests:,} requests that brings the most tokens a second"
    return (
        f"the {requests:,} of the trace's {source.requests:,} requests in a row that bring the most tokens a second, "
        f"from number {judged.spec.first - source.spec.first + 1:,} on"
    )


def _pace(judged: Workload) -> float:
    """How many times the rate of the whole trace a part of it comes at."""
    *_, last = judged.batches(0)
    own_s, rate_req_s = float(last.arrival_s[-1]), judged.rate_req_s
    return (judged.requests - 1) / own_s / rate_req_s if own_s and rate_req_s and judged.requests > 1 else 1.0
