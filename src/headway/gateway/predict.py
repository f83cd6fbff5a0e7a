"""What is predicted of a request before it runs: its output, its time to first token, its pace; learned as it goes."""

from __future__ import annotations

import math
from functools import lru_cache

from headway.cost import StepTable, chunk_area

LEARNING = 0.05  # weight of the newest observation: about the last forty count
KNOWN_AFTER = 20  # observations, where no cost model says what to expect
SIGMA_LEAST = 0.15  # of ln(actual / predicted): nothing is predicted better than by about 15 %
RATIO_RANGE = (0.05, 20.0)
PRIOR_VARIANCE = 0.25
FRESH_S = 10.0  # so long after an observation nothing is forgotten
HALF_LIFE_S = 20.0  # of slowness and doubt that nothing confirms any more
NOMINAL_FIRST_S, NOMINAL_TOKEN_S, NOMINAL_PACE_S = 0.02, 50e-6, 0.02


class OutputLengths:
    """Output tokens by tenant: an exponentially weighted mean, and a quantile that follows by small steps.

    The quantile moves up by `quantile` and down by `1 - quantile` steps in the logarithm, which settles where that
    share of the observations lies below.
    """

    def __init__(self, quantile: float = 0.9) -> None:
        self.quantile = quantile
        self.known: dict[int, tuple[float, float]] = {}

    def predict(self, tenant: int, max_tokens: int | None) -> float:
        """Return the mean expected, at most what the request allows; NaN when nothing is known."""
        if tenant in self.known:
            return min(self.known[tenant][0], max_tokens or math.inf)
        return math.nan

    def budget(self, tenant: int, max_tokens: int | None) -> int:
        """Return the tokens to set aside: the upper quantile, at most what the request allows; 256 when unknown."""
        expected = self.known[tenant][1] if tenant in self.known else 256.0
        return math.ceil(min(expected, max_tokens or math.inf))

    def learn(self, tenant: int, tokens: int) -> None:
        """Take in what a request did generate."""
        seen = float(max(tokens, 1))
        mean, upper = self.known.get(tenant, (seen, seen))
        step = 2 * LEARNING * (self.quantile if seen > upper else self.quantile - 1)
        self.known[tenant] = mean + LEARNING * (seen - mean), upper * math.exp(step)


class TokenSizes:
    """Bytes of a prompt's text per token, by tenant: 4 until engines report how many tokens a prompt was."""

    def __init__(self) -> None:
        self.known: dict[int, float] = {}

    def tokens(self, tenant: int, size_bytes: int) -> int:
        """Estimate the tokens of a prompt."""
        return max(round(size_bytes / self.known.get(tenant, 4.0)), 1)

    def learn(self, tenant: int, size_bytes: int, tokens: int) -> None:
        """Take in what the engine counted."""
        if tokens > 0 and size_bytes > 0:
            was = self.known.get(tenant, 4.0)
            self.known[tenant] = was + LEARNING * (min(max(size_bytes / tokens, 0.5), 64.0) - was)


class Learned:
    """A ratio of actual to predicted time, and the variance of its logarithm, learned from observations.

    Slowness and doubt, which turn requests away and with them the observations that would correct it, are forgotten
    while nothing is observed: a ratio above 1 and a variance above its prior return to them by half each
    `HALF_LIFE_S`. What is better than its prior lets requests in, and is corrected by them. What is shown at a time
    depends on the observations alone, not on who looked in between.
    """

    def __init__(self) -> None:
        self.ratio = 1.0
        self.variance = PRIOR_VARIANCE
        self.observed = 0
        self.seen = (math.inf, 1.0, PRIOR_VARIANCE)  # when the last observation came, and what was known after it

    def relax(self, now: float) -> None:
        """Forget what is old."""
        idle_s = now - self.seen[0] - FRESH_S
        if idle_s > 0:
            _, ratio, variance = self.seen
            kept = 0.5 ** (idle_s / HALF_LIFE_S)
            self.ratio = min(ratio, math.exp(math.log(ratio) * kept))
            self.variance = min(variance, PRIOR_VARIANCE + (variance - PRIOR_VARIANCE) * kept)

    def learn(self, now: float, error: float) -> None:
        """Take in ln(actual / predicted)."""
        self.relax(now)
        self.observed += 1
        self.variance += LEARNING * (min(error * error, 9.0) - self.variance)
        self.ratio = min(max(self.ratio * math.exp(LEARNING * error), RATIO_RANGE[0]), RATIO_RANGE[1])
        self.seen = (now, self.ratio, self.variance)

    def chance(self, predicted_s: float, limit_s: float) -> float:
        """Return the probability that what is predicted to take so long stays within the limit; lognormal errors."""
        if predicted_s <= 0 or limit_s == math.inf:
            return 1.0
        sigma = max(math.sqrt(self.variance), SIGMA_LEAST)
        return 0.5 * math.erfc(-(math.log(limit_s) - math.log(predicted_s)) / (sigma * math.sqrt(2)))


class Law:
    """A step table's seconds in plain lists: a decision looks a dozen up, each five times as quick as in an array.

    Of a pipeline a step takes as long as it takes to come out.
    """

    def __init__(self, table: StepTable) -> None:
        self.table = table
        self.linear_s, self.seq_s = table.linear_s.tolist(), table.seq_s.tolist()
        self.decode_s, self.p2p_s = table.decode_s.tolist(), table.p2p_s.tolist()
        self.context_s, self.windowed_s = table.decode_ctx_s.tolist(), table.decode_window_s.tolist()
        self.shared_s = None if table.shared_s is None else table.shared_s.tolist()

    def step_s(self, running: int, context: int, prefix: int = 0, new: int = 0) -> float:
        """Return the seconds of a step: `StepTable.step_seconds` with one chunk, or none where `new` is 0."""
        table, tokens = self.table, running + new
        seconds: float = self.linear_s[tokens] + self.seq_s[running + (new > 0)]
        if self.shared_s is not None:
            seconds += self.shared_s[tokens * table.ranks]
        if running:
            windowed = min(context, running * table.window) if table.window else 0
            seconds += self.decode_s[running]
            seconds += self.context_s[running] * context + self.windowed_s[running] * windowed
        if new:
            seconds += table.prompt_step_s
            seconds += table.prefill_base_s + table.prefill_area_s * chunk_area(prefix, new)
            if table.prefill_window_area_s:
                seconds += table.prefill_window_area_s * chunk_area(prefix, new, table.window)
        if table.stages > 1:
            seconds = table.stages * seconds + (table.stages - 1) * self.p2p_s[tokens]
        return seconds


@lru_cache(maxsize=64)
def law_of(table: StepTable) -> Law:
    """Return the law of a table, which replicas of a kind share."""
    return Law(table)


class Pace:
    """How fast one replica is: the cost model's step table, or a nominal law, times a ratio learned from what is seen.

    The nominal law, where no table is given, is 20 ms and 50 us a token to the first token, and 20 ms a token after it;
    what it predicts counts only once `KNOWN_AFTER` requests have corrected it.
    """

    def __init__(self, table: StepTable | None) -> None:
        self.table = table
        self.reset()

    def reset(self) -> None:
        """Know nothing but the law: what comes back from a failure may be another engine."""
        self.first = Learned()
        self.token = Learned()

    def relax(self, now: float) -> None:
        """Forget slowness that nothing confirms any more."""
        self.first.relax(now)
        self.token.relax(now)

    @property
    def known(self) -> bool:
        """Whether predictions may be acted on."""
        return self.table is not None or self.first.observed >= KNOWN_AFTER

    def first_s(self, new: int, cached: int, ahead: int, running: int, context: int) -> tuple[float, float]:
        """Predict what a prompt adds: seconds of the engine's work, and seconds that pass beside it.

        `new` tokens are computed after `cached` ones, behind `ahead` tokens of other prompts and beside `running`
        requests. An engine computes waiting prompts together, so a short one behind others adds little: what it adds is
        the difference to the steps that are needed without it.
        """
        if self.table is None:
            return self.first.ratio * NOMINAL_TOKEN_S * new, self.first.ratio * NOMINAL_FIRST_S
        law = law_of(self.table)
        running = min(running, self.table.max_seqs - 1)
        room = max(self.table.max_batched_tokens - running, 1)
        begun = ahead % room
        seconds = self._prompts_s(law, begun + new, cached, room, running, context)
        if begun:
            seconds = max(seconds - self._prompts_s(law, begun, 0, room, running, context), 0.0)
        return self.first.ratio * seconds, self.first.ratio * self.table.intake_s

    @staticmethod
    def _prompts_s(law: Law, left: int, prefix: int, room: int, running: int, context: int) -> float:
        seconds = 0.0
        while left > 0:
            chunk = min(left, room)
            seconds += law.step_s(running, context, prefix, chunk)
            prefix, left = prefix + chunk, left - chunk
        return seconds

    def token_s(self, running: int, context: int) -> float:
        """Predict the seconds from one output token to the next with so many running."""
        if self.table is None:
            return self.token.ratio * NOMINAL_PACE_S
        running = min(max(running, 1), self.table.max_seqs)
        return self.token.ratio * max(law_of(self.table).step_s(running, context), 1e-6)

    def learn_first(self, now: float, predicted_s: float, actual_s: float) -> None:
        """Take in how long a first token did take."""
        self.first.learn(now, math.log(max(actual_s, 1e-4) / max(predicted_s, 1e-4)))

    def learn_token(self, now: float, predicted_s: float, actual_s: float) -> None:
        """Take in how far apart tokens did come."""
        self.token.learn(now, math.log(max(actual_s, 1e-6) / max(predicted_s, 1e-6)))

    def chance_first(self, predicted_s: float, limit_s: float) -> float:
        """Return the probability that a first token predicted after so long comes within the limit."""
        return self.first.chance(predicted_s, limit_s) if self.known else 1.0

    def chance_token(self, predicted_s: float, limit_s: float) -> float:
        """Return the probability that the time per token stays within the limit; 1 while too few were seen to say."""
        known = self.table is not None or self.token.observed >= KNOWN_AFTER
        return self.token.chance(predicted_s, limit_s) if known else 1.0
