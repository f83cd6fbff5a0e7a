"""What is known of a deployment before simulating it: limits it misses for certain, and a guess of its goodput.

The bounds are proofs: a step takes at least as long as its tokens' share of `linear_s` (which never decreases), a
prompt is computed once, and a token comes out of a step that went through all stages. Data-parallel ranks step
together: as long as each of them alone, and then as long as the experts take for the tokens of all, which are no fewer
than those of one and no more than `ranks` times the most of any. The guess is no proof: the search only starts there.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from itertools import product
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from headway.cost import StepTable
from headway.metrics import Histogram, Slo
from headway.sim import Deployment

__all__ = ["Ceiling", "Guess", "Lengths", "Reach", "reach"]

_EPSILON = 1e-9
_TPOT_USED = 0.85  # mean TPOT over its 90th percentile, near the limit
_QUEUE_USED = 0.87  # of what the queue's formula allows: prompts that share a step end together
_BISECTIONS = 18  # of 0 to the most: what is left open is 0.02 % of a fiftieth of it
_FIXED = 24  # rounds to where batch and step agree, if they are not cut short
_SAMPLE = 64  # requests that stand for all in the guess

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


class Lengths(NamedTuple):
    """Tokens of the measured requests, which arrive within `span_s` at the rate asked for.

    `classes`: the number of each one's class.
    With `cached`, prompts may be found in a prefix cache. They come at `pace` times the rate asked for, as a part of a
    trace may, whose rate is that of all of it; most of them `peak` times faster still, in bursts, with gaps of the
    squared coefficient of variation `bursts`.
    """

    prompt: Ints
    output: Ints
    cached: bool
    span_s: float = math.inf
    pace: float = 1.0
    peak: float = 1.0
    bursts: float = 1.0
    classes: Ints | None = None

    def by_class(self, count: int) -> list[tuple[int, Lengths]]:
        """The requests of each of so many classes that has any, with its number; all of them where there is but one."""
        if count == 1 or self.classes is None:
            return [(0, self)]
        rows = [(i, self.classes == i) for i in range(count)]
        return [
            (i, self._replace(prompt=self.prompt[own], output=self.output[own], classes=None))
            for i, own in rows if own.any()
        ]  # fmt: skip

    def sample(self) -> Lengths:
        """A few requests whose prompts are spread like those of all, each with the mean output."""
        prompt = np.quantile(self.prompt, (np.arange(_SAMPLE) + 0.5) / _SAMPLE)
        return Lengths(prompt.astype(np.int64), np.full(_SAMPLE, int(self.output.mean())), self.cached)


class Reach(NamedTuple):
    """The best that can be hoped for: seconds no request can beat, and the share of requests that may meet the SLO.

    `fits`: the share whose KV fits.
    """

    attainment: float
    fits: float
    ttft_s: Floats
    tpot_s: float
    e2e_s: Floats


def reach(deployment: Deployment, tables: tuple[StepTable, ...], lengths: Lengths, slo: Slo) -> Reach:
    """Return lower bounds on each request's latency in an empty system, and who may meet the SLO at best.

    Where pools differ, a request may take the best of them, if its KV fits there. No gap between tokens is shorter than
    the shortest step, so neither is their 99th percentile, but that a histogram reads it back within a bin.
    """
    ttft_max, tpot_max, e2e_max = (limit * (1 + _EPSILON) for limit in slo.limits())
    ttft_s = e2e_s = np.full(len(lengths.prompt), math.inf)
    may, fit, best_tpot_s = np.zeros(len(lengths.prompt), bool), np.zeros(len(lengths.prompt), bool), math.inf
    for prefill, decode in _ways(deployment, tables):
        tpot_s = _kept(decode) * _step_s(decode)
        first_s = _kept(prefill) * np.maximum(_prompt_s(prefill, lengths), _step_s(prefill))
        last_s = first_s + tpot_s * (lengths.output - 1)
        in_time = (first_s <= ttft_max) & ((tpot_s <= tpot_max) | (lengths.output < 2)) & (last_s <= e2e_max)
        fits = (lengths.output < 2) | (lengths.prompt + lengths.output <= decode.longest_tokens)
        fits &= lengths.prompt < prefill.longest_tokens
        may, fit = may | (in_time & fits), fit | fits
        ttft_s, e2e_s, best_tpot_s = np.minimum(ttft_s, first_s), np.minimum(e2e_s, last_s), min(best_tpot_s, tpot_s)
    if slo.itl_s is not None and best_tpot_s > slo.itl_s * Histogram.GROWTH and lengths.output.max() > 1:
        may[:] = False
    return Reach(float(may.mean()), float(fit.mean()), ttft_s, best_tpot_s, e2e_s)


def _ways(deployment: Deployment, tables: tuple[StepTable, ...]) -> list[tuple[StepTable, StepTable]]:
    """Where a request may be computed: its prompt in the one, its tokens in the other."""
    by_role: dict[str, list[StepTable]] = {}
    for pool, table in zip(deployment.pools, tables, strict=True):
        by_role.setdefault(pool.role, []).append(table)
    return [(table, table) for table in by_role.get("mixed", [])] or list(
        product(by_role["prefill"], by_role["decode"])
    )


class Ceiling:
    """How many times the asked rate is beyond replicas for certain, whatever the policies; inf: none is.

    Requests that meet the SLO have their prompts computed within TTFT of the last arrival, and their tokens by when
    their limits say. If replicas have not the time for the smallest requests that the target allows for, no schedule
    meets it. Below 1 the asked rate is beyond them. What a kind of replica takes is worked out once for all deployments
    that have it.
    """

    def __init__(self, lengths: Lengths, slo: Slo) -> None:
        ttft_max, tpot_max, e2e_max = slo.limits()
        self.span_s, self.cached, self.target = lengths.span_s, lengths.cached, slo.attainment
        prompt, later = lengths.prompt.astype(np.float64), np.maximum(lengths.output - 1, 0).astype(np.float64)
        prompts = _Work(prompt, prompt * (prompt + 1) / 2, 0 * prompt)
        tokens = _Work(later, 0 * prompt, prompt * later)
        whole = _Work(prompt + later, prompts.area, tokens.context)
        longest = float(later.max())
        first_s, last_s = min(ttft_max, e2e_max), min(ttft_max + (tpot_max * longest if longest else 0.0), e2e_max)
        self.kinds = (
            ("mixed", prompts, first_s, False),
            ("mixed", whole, last_s, False),
            ("prefill", prompts, first_s, False),
            ("decode", tokens, last_s, True),
        )
        self.known: dict[tuple[int, frozenset[StepTable]], float] = {}

    def __call__(self, deployment: Deployment, tables: tuple[StepTable, ...]) -> float:
        """Return the number of times."""
        if self.cached:
            return math.inf
        by_role: dict[str, list[tuple[int, StepTable]]] = {}
        for pool, table in zip(deployment.pools, tables, strict=True):
            by_role.setdefault(pool.role, []).append((pool.ranks, table))
        longest_s = max(
            self._takes_s(place, by_role[role]) - within_s
            for place, (role, _, within_s, _) in enumerate(self.kinds) if role in by_role
        )  # fmt: skip
        return self.span_s / (longest_s * (1 - _EPSILON)) if longest_s > 0 else math.inf

    def _takes_s(self, kind: int, replicas: list[tuple[int, StepTable]]) -> float:
        """Seconds that so many replicas take at least for what may not be missing of the work of a kind."""
        _, work, _, alone = self.kinds[kind]
        paces = [(count, *_pace(table, alone)) for count, table in replicas]
        key = kind, frozenset(table for _, table in replicas)
        if key not in self.known:
            area, context = (min(pace[i] / pace[1] for pace in paces) for i in (2, 3))
            self.known[key] = work.least(area, max(0.0, context), self.target)
        return self.known[key] / sum(count / token_s for count, token_s, *_ in paces)


class _Work(NamedTuple):
    """Of each request: tokens in steps, pairs of tokens that its prompt attends, tokens that its decodes attend."""

    tokens: Floats
    area: Floats
    context: Floats

    def least(self, area: float, context: float, target: float) -> float:
        """A share `target` of it, the smallest requests, in tokens; pairs and attended tokens are worth so many."""
        work = self.tokens + area * self.area + context * self.context
        count = math.ceil(target * len(work) * (1 - _EPSILON))
        return float(np.partition(work, count - 1)[:count].sum())


@functools.lru_cache(maxsize=1024)
def _pace(table: StepTable, decodes_alone: bool) -> tuple[float, float, float]:
    """Seconds of a token, of a pair of tokens in a prompt, of an attended token; decodes alone: `max_seqs` at most."""
    most = table.max_seqs if decodes_alone else len(table.linear_s) - 1
    token_s = _token_share_s(table.linear_s, most) * _kept(table)
    if table.shared_s is not None:  # of a step in which all ranks have a token each
        token_s += table.ranks * _token_share_s(table.shared_s, table.ranks * most)
    return token_s, table.prefill_area_s, float(table.decode_ctx_s[1:].min())


def _token_share_s(step_s: Floats, most: int) -> float:
    """The least seconds per token of steps with up to `most` tokens."""
    return float((step_s[1 : most + 1] / np.arange(1, most + 1)).min())


def _step_s(table: StepTable) -> float:
    """The shortest step through all stages."""
    stage_s = float(table.linear_s[1]) + float(table.seq_s[1:].min()) + _together_s(table)
    return table.stages * stage_s + (table.stages - 1) * float(table.p2p_s[1:].min())


def _together_s(table: StepTable) -> float:
    """What ranks share of a step takes at least; 0 without."""
    return 0.0 if table.shared_s is None else float(table.shared_s[1:].min())


def _kept(table: StepTable) -> float:
    """The least share of what a step's tokens and sequences cost that its decodes leave of it: 1 without speculation.

    Where a real step gives several tokens, `decode_s` takes back a part of the others, and no more than of all.
    """
    n = min(len(table.decode_s), len(table.linear_s))
    own = table.linear_s[1:n] + table.seq_s[1:n]
    return float(min(1.0, ((own + np.minimum(table.decode_s[1:n], 0.0)) / own).min()))


def _prompt_s(table: StepTable, lengths: Lengths) -> Floats:
    """Seconds one stage computes at each prompt at least, in however many chunks and whatever runs beside it."""
    own_s, shared_s = _prompt_parts(table, lengths)
    return own_s + shared_s


def _prompt_parts(table: StepTable, lengths: Lengths) -> tuple[Floats, Floats]:
    """Seconds of each prompt at least: those of the rank that has it, and those that all ranks take together for it."""
    if lengths.cached:
        return np.zeros(len(lengths.prompt)), np.zeros(len(lengths.prompt))
    tokens = lengths.prompt.astype(np.float64)
    own_s = _token_share_s(table.linear_s, len(table.linear_s) - 1) * tokens
    own_s = own_s + table.prefill_area_s * tokens * (tokens + 1) / 2
    return own_s, (0.0 if table.shared_s is None else _token_share_s(table.shared_s, len(table.shared_s) - 1)) * tokens


# --- the guess ----------------------------------------------------------------------------------------------


class Guess:
    """About the rate at which deployments begin to miss the SLO, in requests/s.

    The lower of two rates: prompts queue until TTFT is missed; the batch grows until TPOT is missed, prompts beside it
    prolonging its steps in a mixed pool, or until requests wait for KV pages or for a place in the batch. Mixed pools
    side by side serve what each would alone. What a pool can do is worked out once for all deployments that have it.
    Of several classes the first that misses its SLO decides, served together with the others. Bursts are taken to last:
    where requests can wait for their end, or are decoded beyond it, `calm`, which knows nothing of them, is nearer.
    """

    def __init__(self, lengths: Lengths, *slos: Slo) -> None:
        self.slos, self.pace, self.bursts = slos, lengths.pace * lengths.peak, lengths.bursts
        self.calm = self if lengths.peak == 1.0 else Guess(lengths._replace(peak=1.0, bursts=1.0), *slos)
        self.samples = [(slos[i], own.sample()) for i, own in lengths.by_class(len(slos))]
        self.sample = lengths.sample() if len(slos) > 1 else self.samples[0][1]
        self.known: dict[tuple[str, StepTable, int], float] = {}

    def __call__(self, deployment: Deployment, tables: tuple[StepTable, ...]) -> float:
        """Return the rate; above 0 in any case."""
        pools = list(zip(deployment.pools, tables, strict=True))
        prompts, tokens, mixed = (
            sum(self._rate(role, table, pool.ranks) for pool, table in pools if pool.role == role)
            for role in ("prefill", "decode", "mixed")
        )
        return (mixed or min(prompts, tokens)) / self.pace

    def _rate(self, role: str, table: StepTable, count: int) -> float:
        key = role, table, count
        if key not in self.known:
            own_s, shared_s = self._prompt_s(table, self.sample)
            prompt_s, rates = own_s + shared_s, []
            for slo, sample in self.samples:
                if role != "decode":
                    theirs_s = prompt_s if sample is self.sample else np.add(*self._prompt_s(table, sample))
                    rates.append(self._prompts(table, count, slo, prompt_s, theirs_s))
                if role != "prefill":
                    beside = (float(own_s.mean()), float(shared_s.mean())) if role == "mixed" else (0.0, 0.0)
                    rates.append(self._tokens(table, count, slo, beside))
            self.known[key] = min(rates)
        return self.known[key]

    def _prompt_s(self, table: StepTable, sample: Lengths) -> tuple[Floats, Floats]:
        """Seconds of each prompt on its own rank, a step at least, and what all ranks share while all have prompts."""
        own_s, shared_s = _prompt_parts(table, sample)
        return np.maximum(own_s, _step_s(table) / table.stages), table.ranks * shared_s

    def _prompts(self, table: StepTable, count: int, slo: Slo, prompt_s: Floats, theirs_s: Floats) -> float:
        """By the wait behind all prompts, which those of a class, `theirs_s`, can spare."""
        ttft_max, _, e2e_max = slo.limits()
        wait_max = min(ttft_max, e2e_max)
        spare_s = wait_max - table.stages * theirs_s if wait_max < math.inf else np.full(_SAMPLE, math.inf)
        return _QUEUE_USED * _queued_rate(prompt_s, count, spare_s, 1 - slo.attainment, self.bursts)

    def _tokens(self, table: StepTable, count: int, slo: Slo, beside: tuple[float, float]) -> float:
        places = _places(table, self.sample)
        most = places * _no_wait(places * count, 1 - slo.attainment)
        return count * _decode_rate(table, self.sample, _TPOT_USED * slo.limits()[1], beside, most)


def _places(table: StepTable, sample: Lengths) -> float:
    """Requests that a replica can hold at once."""
    each = float((sample.prompt + sample.output).mean())
    return min(table.max_seqs * table.stages, table.kv_blocks * table.block_tokens / each)


def _no_wait(servers: float, missing: float) -> float:
    """The load at which a share `missing` of requests finds all servers taken (Sakasegawa, as below)."""
    return float(max(missing, 1e-3) ** (1 / (math.sqrt(2 * (servers + 1)) - 1)))


def _queued_rate(service_s: Floats, servers: int, spare_s: Floats, missing: float, bursts: float) -> float:
    """Rate at which a share `missing` of requests waits longer than it can spare, with gaps that vary by `bursts`.

    Sakasegawa's approximation of the queue G/G/c (Annals of the Institute of Statistical Mathematics 29, 1977), its
    conditional wait taken as exponential.
    """
    mean_s = float(service_s.mean())
    varied = max(bursts + float(service_s.var()) / mean_s**2, 1e-6)  # arrivals and prompts may all be alike
    minus_s = -spare_s[spare_s > 0]
    late = len(spare_s) - len(minus_s)

    def missed(load: float) -> float:
        waits = load ** (math.sqrt(2 * (servers + 1)) - 1)
        wait_s = mean_s * varied / (2 * servers * (1 - load))
        return float(late + waits * np.exp(minus_s / wait_s).sum()) / len(spare_s)

    return servers / mean_s * _highest(lambda load: missed(load) <= missing, 1 - 1e-6)


def _decode_rate(
    table: StepTable, sample: Lengths, tpot_max: float, beside: tuple[float, float], most: float
) -> float:
    """Rate of a replica, or of a rank, at which a token takes `tpot_max` or `most` requests are in it.

    Each prompt holds up the steps beside it for as long as its own rank computes at it, and then for what all ranks'
    prompts take together (`beside`).
    """
    output, (alone_s, together_s) = float(sample.output[0]), beside
    fixed_s, each_s = _token_s(table, float(sample.prompt.mean()) + output / 2)

    def token_s(n: float, spare: float) -> float:
        n = max(1.0, n / table.stages)
        place = min(int(n), len(fixed_s) - 1)
        return (fixed_s[place] + n * each_s[place]) / spare

    def keeps(rate: float) -> bool:
        spare = 1 - rate * (alone_s * _apart(rate * tpot_max, table.ranks) + together_s)
        if spare <= 0:
            return False
        batch = rate * output
        if batch * tpot_max <= most and token_s(batch * tpot_max, spare) <= tpot_max:
            return True
        seconds = 0.0
        for _ in range(_FIXED):  # by Little's law: the batch sets the step, the step the batch, upwards from none
            before, seconds = seconds, token_s(batch * seconds, spare)
            if seconds > tpot_max or batch * seconds > most:
                return False
            if seconds == before:
                break
        return True

    return _highest(keeps, most / (output * _step_s(table)))


def _apart(prompts: float, ranks: int) -> float:
    """How many times a rank's own prompts hold all ranks up, where it gets so many a step.

    As the most that any rank gets: all of them at low load, then a mean and some sqrt(2 ln ranks) deviations of it.
    """
    return min(ranks, 1 + math.sqrt(2 * math.log(ranks) / prompts)) if ranks > 1 and prompts > 0 else 1.0


def _token_s(table: StepTable, context: float) -> tuple[list[float], list[float]]:
    """Seconds of a token through all stages, n requests per stage and rank: [n] of one and n times [n] of the other."""
    batch = np.arange(min(table.max_seqs, table.max_batched_tokens) + 1)
    attended = min(context, table.window) if table.window else 0.0
    stage_s = table.linear_s[batch] + table.seq_s[batch] + table.decode_s[batch]
    if table.shared_s is not None:
        stage_s = stage_s + table.shared_s[batch * table.ranks]
    each_s = table.decode_ctx_s[batch] * context + table.decode_window_s[batch] * attended
    fixed_s = table.stages * stage_s + (table.stages - 1) * table.p2p_s[batch]
    return fixed_s.tolist(), (table.stages * each_s).tolist()


def _highest(holds: Callable[[float], bool], most: float) -> float:
    """The highest value up to `most` that holds, found by bisection; above 0 in any case."""
    low, high = 0.0, most
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return max(low, most * 1e-6)
