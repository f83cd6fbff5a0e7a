"""Which candidate is simulated next, and how long: all shortly, those that matter at length, leaders on more seeds."""

from __future__ import annotations

import math
from bisect import bisect
from collections.abc import Callable

from headway.plan.evaluate import Job, Outcome
from headway.plan.question import Question
from headway.plan.ranking import EXACT, Entry, front, rank, undecided
from headway.plan.screen import BEHIND, Screened
from headway.plan.space import Option
from headway.plan.trial import STEP

__all__ = ["Contest"]

_RUNGS = ((16, 0), (4, 128), (1, 32))  # a share of the long run's requests, and how many at the top get such runs
_SHORT_MIN = 500  # requests, enough to see a tenth missing
_LEADERS = 3  # so many of those that meet the SLO rest on further seeds, and all of the front
_HOPELESS = 3  # where none may meet it, so many get long runs
_SEEDS_MOST = 24  # then those whose interval holds the target are said to be undecided
_NEAREST = 8  # where nothing works, so many at a time are simulated to find what comes nearest
_RECALLED = 500  # so many at a time of those screened out, where nothing else meets the SLO
_PROVEN = 32  # the ablest by estimate, where all are proven unable: they tell what comes near
_PEERS = 9  # so many nearest in goodput tell by how much longer runs find less
_NOISE, _NOISE_REQUESTS = 0.075, 1_000  # a standard deviation of the goodput that short runs find, as a share


class Contest:
    """The outcomes so far, and the jobs that follow from them: the same whoever does them in whatever order.

    The class with the fewest requests has a share `least` of them. Where all candidates are proven unable to serve the
    asked rate, `most_req_s` is what none of them is proven unable to serve.
    """

    def __init__(
        self,
        question: Question,
        rate_req_s: float,
        requests: int,
        options: list[Option],
        screened: dict[int, Screened],
        seeds: tuple[int, ...],
        least: float = 1.0,
    ) -> None:
        self.seeds, self.least = seeds, least
        self.question, self.rate_req_s, self.options, self.screened = question, rate_req_s, options, screened
        self.long = requests
        rungs = ((1, len(options)),) if question.exhaustive else _RUNGS
        self.rungs = [(min(requests, max(_SHORT_MIN, requests // share)), most) for share, most in rungs]
        self.objective = question.known(question.objective)
        self.outcomes: dict[int, Outcome] = {}
        self.alike: dict[int, dict[int, Outcome]] = {requests: {} for requests, _ in self.rungs}  # on one seed
        self.planned = self.done = 0
        self.recalled = False
        proven = screened and len(screened) == len(options) and all(e.reason == "rate" for e in screened.values())
        self.most_req_s = max(each.most for each in screened.values()) if proven else None

    def jobs(self) -> list[Job]:
        """Return what is to be done next; nothing when those in front rest on long runs and are confirmed."""
        jobs = self._first() or self._refined() or self._recalled() or self._confirmed() or self._settled()
        jobs = jobs or self._nearest()
        self.planned += len(jobs)
        return jobs

    def front(self, entries: list[Entry]) -> list[Entry]:
        """Return the front of ranked entries; of those confirmed if the first is: only one seed tells of the others."""
        confirmed = [entry for entry in entries if entry.meets and entry.outcome.seeds]
        return self._unmatched(confirmed if confirmed[:1] == entries[:1] else entries)

    def _unmatched(self, entries: list[Entry]) -> list[Entry]:
        return front(entries, tuple(map(self.question.known, self.question.front)), self.objective)

    def _likely(self, requests: int) -> list[Entry]:
        """The front, were all runs as long and of one seed.

        Those without such a run are taken to lose by it no more than the luckiest of those of about their goodput that
        have one: few requests overrate a large fleet, which has not filled up when they end. Those with runs of the
        length before are taken to have had bad luck besides: by two standard deviations, or one before the longest.
        """
        told, likely = self.alike[requests], dict[int, Outcome]()
        shorter = max((length for length in self.alike if length < requests), default=0)
        for length in sorted(length for length in self.alike if length <= requests):
            outcomes = self.alike[length]
            pairs = [(outcomes[i].goodput.req_s, told[i].goodput.req_s) for i in outcomes if i in told]
            falls = sorted((before, after / before) for before, after in pairs if before)
            bad_luck = (1 if requests == self.long else 2) * self._noise(length) if length == shorter else 0.0
            likely |= {i: _fallen(outcome, falls, 1 + bad_luck) for i, outcome in outcomes.items()}
        entries = [self._entry(i, hopeful=True)._replace(outcome=outcome) for i, outcome in likely.items()]
        return self._unmatched(entries)

    def _first(self) -> list[Job]:
        """Short runs for all that were not screened out."""
        new = [i for i in range(len(self.options)) if i not in self.screened and i not in self.outcomes]
        requests = self.rungs[0][0]
        return [Job(i, self.options[i].deployment, requests, width=self._width(requests)) for i in new]

    def _recalled(self) -> list[Job]:
        """Short runs for those screened out, the ablest first, while nothing meets the SLO and they may."""
        if any(self._entry(i, hopeful=True).meets for i in self.outcomes):
            return []
        count = _RECALLED if self.most_req_s is None else _PROVEN
        ablest = sorted(self.screened, key=lambda i: (-self.screened[i].guess, i))[:count]
        hopeless = self.most_req_s is not None or not ablest
        if self.recalled and (hopeless or self.screened[ablest[0]].guess < BEHIND * self.rate_req_s):
            return []
        self.recalled = True
        for i in ablest:
            del self.screened[i]
        return self._first()

    def _refined(self) -> list[Job]:
        """Longer runs for those in front that have none, the longest for the fewest."""
        for requests, most in self.rungs[1:]:
            likely = [] if self.most_req_s is not None else self._likely(requests)
            names = {entry.deployment.name for entry in [*self._contenders(most), *likely]}
            width = self._width(requests)
            jobs = [
                Job(i, self.options[i].deployment, requests, outcome.goodput.req_s, width=width)
                for i, outcome in sorted(self.outcomes.items())
                if self.options[i].name in names and outcome.requests < requests and not self._final(outcome)
            ]
            if jobs:
                return jobs
        return []

    def _contenders(self, most: int) -> list[Entry]:
        """The first of the ranking, were all that may meet the SLO to meet it; no more than have a chance to win.

        Where chance has no part in the objective, who costs more than one that surely meets the SLO cannot win.
        """
        first = rank([self._entry(i, hopeful=True) for i in self.outcomes], self.objective)
        if not first or not first[0].meets:
            return first[:_HOPELESS]
        sure = math.inf
        if self.objective in EXACT:
            sure = min((each.measure(self.objective) for each in first if self._surely(each)), default=math.inf)
        able = sum(each.meets and each.measure(self.objective) <= sure for each in first)
        return first[: min(most, max(able, _LEADERS))]

    def _surely(self, entry: Entry) -> bool:
        goodput_req_s = entry.outcome.goodput.req_s
        return entry.meets and goodput_req_s >= self.rate_req_s * (1 + self._hope(entry.outcome))

    def _hope(self, outcome: Outcome) -> float:
        """The share by which runs this short may be wrong about a goodput: two standard deviations."""
        return 0.0 if self._final(outcome) else 2 * self._noise(outcome.requests)

    def _noise(self, requests: int) -> float:
        return _NOISE * math.sqrt(_NOISE_REQUESTS / (requests * self.least))

    def _width(self, requests: int) -> int:
        """Places of the grid that runs of so many requests leave open: a finer search would find their noise."""
        return 1 if requests >= self.long else max(1, round(self._noise(requests) / math.log(STEP)))

    def _confirmed(self) -> list[Job]:
        """Runs of seeds that had no part in the choice, for those in front that meet the SLO or may have had bad luck.

        The best of many candidates on one seed is among the luckiest on it.
        """
        if not self.seeds:
            return []
        entries = [entry for i in self.outcomes if (entry := self._entry(i, hopeful=True)).meets]
        matter = [*rank(entries, self.objective)[:_LEADERS], *self._likely(self.long)]
        names = {entry.deployment.name for entry in matter if entry.meets}
        return [
            Job(i, self.options[i].deployment, self.long, self.outcomes[i].goodput.req_s, seeds=self.seeds)
            for i in sorted(self.outcomes)
            if self.options[i].name in names and not self.outcomes[i].seeds
        ]

    def _settled(self) -> list[Job]:
        """Twice as many seeds for those that would win and whose interval still holds the target."""
        entries = undecided(self.ranked(), self.objective, self.question.slo.attainment)
        more = {e.deployment.name: 2 * len(e.outcome.seeds) for e in entries if 2 * len(e.outcome.seeds) <= _SEEDS_MOST}
        return [
            Job(i, option.deployment, self.long, self.outcomes[i].goodput.req_s, seeds=self._seeds(more[option.name]))
            for i, option in enumerate(self.options)
            if option.name in more
        ]

    def _seeds(self, count: int) -> tuple[int, ...]:
        first = self.seeds[0]
        return tuple(range(first, first + count))

    def _nearest(self) -> list[Job]:
        """Runs that tell what comes nearest where no rate meets the SLO.

        Bounds lie below what simulation finds, so once the first of the ranking is simulated, none is nearer.
        """
        ranked = self.ranked()
        if not ranked or ranked[0].outcome.goodput.req_s > 0 or ranked[0].outcome.simulations:
            return []
        names = [entry.deployment.name for entry in ranked if not entry.outcome.simulations][:_NEAREST]
        return [
            Job(i, self.options[i].deployment, self.rungs[0][0], alone=True)
            for i in sorted(self.outcomes)
            if self.options[i].name in names
        ]

    def note(self, job: Job, outcome: Outcome, progress: Callable[[int, int], None] | None) -> None:
        """Take in an outcome."""
        self.outcomes[job.place] = outcome
        if not outcome.seeds:
            self.alike[outcome.requests][job.place] = outcome
        self.done += 1
        if progress is not None:
            progress(self.done, self.planned)

    def ranked(self) -> list[Entry]:
        """Return what is known, the best first."""
        return rank([self._entry(i, hopeful=False) for i in self.outcomes], self.objective)

    def _entry(self, index: int, *, hopeful: bool) -> Entry:
        outcome = self.outcomes[index]
        meets = outcome.asked is not None and outcome.asked.meets
        if hopeful and not self._final(outcome):
            meets = meets or outcome.goodput.req_s * (1 + self._hope(outcome)) >= self.rate_req_s
        elif hopeful and not outcome.seeds and self.seeds:
            meets = meets or (outcome.goodput.req_s > 0 and self._may_meet(outcome))
        return Entry(self.options[index].deployment, outcome, meets)

    def _may_meet(self, outcome: Outcome) -> bool:
        return outcome.asked is not None and outcome.asked.may_meet(self.question.slo.attainment)

    def _final(self, outcome: Outcome) -> bool:
        """Whether longer runs would tell nothing new."""
        return outcome.requests >= self.long or outcome.goodput.req_s == 0


def _fallen(outcome: Outcome, falls: list[tuple[float, float]], luck: float) -> Outcome:
    """An outcome with the goodput that longer runs may find, by what they found of others: (goodput, share left).

    And by `luck`, of which it had little.
    """
    goodput = outcome.goodput
    first = max(0, min(bisect(falls, (goodput.req_s, 0.0)) - _PEERS // 2, len(falls) - _PEERS))
    left = [share for _, share in falls[first : first + _PEERS]] or [1.0]
    return outcome._replace(goodput=goodput._replace(req_s=goodput.req_s * max(left) * luck))
