"""Which candidate is simulated next, and how long: all shortly, those that matter at length, leaders on more seeds."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

from headway.plan.evaluate import Job, Outcome
from headway.plan.falls import Falls
from headway.plan.question import Objective, Question
from headway.plan.ranking import EXACT, TOLERANCE, Entry, front, rank, undecided
from headway.plan.screen import BEHIND, Screened
from headway.plan.space import Option
from headway.plan.trial import STEP
from headway.sim import Deployment

__all__ = ["Contest"]

Family = tuple[object, ...]  # what is alike in it

_RUNGS = ((16, 0), (4, 128), (1, 32))  # a share of the long run's requests, and how many at the top get such runs
_PIONEERS = 4  # one in so many of a family is simulated before the others, which begin where it says
_SHORT_MIN = 500  # requests, enough to see a tenth missing
_ROUND = 6  # jobs at a time where it can be guessed what will be asked next, so that nobody waits for the last of few
_LEADERS = 3  # so many of those that meet the SLO rest on further seeds, the first among them, and all of the front
_HOPELESS = 3  # where none may meet it, so many get long runs
_CONFIRMED = math.inf  # longer than any run: runs of further seeds
_SEEDS_MOST = 24  # then those whose interval holds the target are said to be undecided
_NEAREST = 8  # where nothing works, so many at a time are simulated to find what comes nearest
_RECALLED = 500  # so many at a time of those screened out, where nothing else meets the SLO
_PROVEN = 32  # the ablest by estimate, where all are proven unable: they tell what comes near
_KINDS = False, True  # of a fleet: mixed, split
_NOISE, _NOISE_REQUESTS = 0.075, 1_000  # a standard deviation of the goodput that short runs find, as a share


class Contest:
    """The outcomes so far, and the jobs that follow from them: the same whoever does them in whatever order.

    `guess` estimates goodput. The class with the fewest requests has a share `least` of them. Where all candidates are
    proven unable to serve the asked rate, `most_req_s` is what none of them is proven unable to serve.
    """

    def __init__(
        self,
        question: Question,
        rate_req_s: float,
        requests: int,
        options: list[Option],
        screened: dict[int, Screened],
        seeds: tuple[int, ...],
        guess: Callable[[Deployment], float],
        least: float = 1.0,
    ) -> None:
        self.seeds, self.guess, self.least = seeds, guess, least
        self.question, self.rate_req_s, self.options, self.screened = question, rate_req_s, options, screened
        self.split = [option.deployment.split for option in options]
        self.long = requests
        rungs = ((1, len(options)),) if question.exhaustive else _RUNGS
        self.rungs = [(min(requests, max(_SHORT_MIN, requests // share)), most) for share, most in rungs]
        self.objective = question.known(question.objective)
        simulated = {"rate", self.objective, *map(question.known, question.front)} - {*EXACT}
        self.simulated = sorted(simulated)
        self.hopeful: dict[int, Entry] = {}  # by the last outcome, and what longer runs and further seeds may find
        self.known: dict[float, dict[int, Entry]] = {requests: {} for requests, _ in self.rungs}  # on one seed
        self.known[_CONFIRMED] = {}
        self.planned = self.done = 0
        self.recalled = False
        proven = screened and len(screened) == len(options) and all(e.reason == "rate" for e in screened.values())
        self.most_req_s = max(each.most for each in screened.values()) if proven else None

    def jobs(self) -> list[Job]:
        """Return what is to be done next; nothing when those in front rest on long runs and are confirmed."""
        jobs = self._first() or self._refined() or self._recalled() or self._confirmed() or self._settled()
        jobs = self._and_next(jobs) if jobs else self._nearest()
        self.planned += len(jobs)
        return jobs

    def _and_next(self, jobs: list[Job]) -> list[Job]:
        """These and, where they are few, those that will be asked for if these find what is usual."""
        jobs, guessed, ahead = list(jobs), 0, copy.copy(self)
        ahead.hopeful = dict(self.hopeful)
        ahead.known = {length: dict(entries) for length, entries in self.known.items()}
        while guessed < len(jobs) < _ROUND and all(job.place in self.hopeful for job in jobs):
            usual = {length: self._as_of(length, hope=False) for length in {_length(job) for job in jobs[guessed:]}}
            for job in jobs[guessed:]:
                entry = usual[_length(job)][job.place]
                outcome = entry.outcome._replace(requests=job.requests, seeds=job.seeds)
                ahead._take(job.place, entry._replace(outcome=outcome))
            guessed, places = len(jobs), {job.place for job in jobs}
            more = ahead._refined() or ahead._confirmed() or ahead._settled()
            jobs += [job for job in more if job.place not in places]
        return jobs

    def front(self, entries: list[Entry]) -> list[Entry]:
        """Return the front of ranked entries; of those confirmed if the first is: only one seed tells of the others."""
        confirmed = [entry for entry in entries if entry.meets and entry.outcome.seeds]
        return self._unmatched(confirmed if confirmed[:1] == entries[:1] else entries)

    def _unmatched(self, entries: list[Entry]) -> list[Entry]:
        return front(entries, tuple(map(self.question.known, self.question.front)), self.objective)

    def _as_of(self, length: float, *, hope: bool) -> dict[int, Entry]:
        """All candidates as runs of one length show them, by place; `_CONFIRMED`: as those of further seeds do.

        What shorter runs found is taken to change from one length to the next as it did for others of its kind, mixed
        or split: few requests overrate a large fleet, which has not filled up when they end, the one kind more than the
        other, and their prompts and answers are not the mean ones. If `hope`, it becomes as much better as can be
        expected of the luckiest; else what is usual.
        """
        found, before, told = dict[int, Entry](), dict[int, Entry](), dict[int, Entry]()
        for told in (self.known[each] for each in sorted(self.known) if each <= length):
            if untold := found.keys() - told.keys():
                falls = [(name, _falls(name, before, told)) for name in self.simulated]
                factors = {split: [(name, _factor(name, of[split], hope)) for name, of in falls] for split in _KINDS}
                found |= {i: _changed(found[i], factors[self.split[i]]) for i in untold}
            found, before = found | told, told
        able = {i for i, entry in found.items() if hope and i not in told and -entry.measure("rate") >= self.rate_req_s}
        return {i: _that(i in able or self.hopeful[i].meets, entry) for i, entry in found.items()}

    def _first(self) -> list[Job]:
        """Short runs for all that were not screened out: for a few of each family, then for the others.

        A family has the same replicas in other numbers. How far an estimate is off is much the same in it.
        """
        families: dict[Family, list[int]] = {}
        for i, option in enumerate(self.options):
            if i not in self.screened and i not in self.hopeful:
                families.setdefault(_family(option.deployment), []).append(i)
        if not families:
            return []
        told = dict[Family, list[int]]()
        for i in sorted(self.hopeful):
            told.setdefault(_family(self.options[i].deployment), []).append(i)
        pioneers = [i for family, members in families.items() if family not in told for i in members[::_PIONEERS]]
        requests = self.rungs[0][0]
        width = self._width(requests)
        if pioneers:
            return [Job(i, self.options[i].deployment, requests, width=width) for i in sorted(pioneers)]
        near = {i: self._told(i, told[family]) for family, members in families.items() for i in members}
        return [Job(i, self.options[i].deployment, requests, near[i], width=width) for i in sorted(near)]

    def _told(self, place: int, known: list[int]) -> float | None:
        """The goodput of a candidate by its estimate, that being as far off as for the nearest known of its family."""
        mine = self.options[place].deployment
        nearest = min(known, key=lambda i: _distance(self.options[i].deployment, mine))
        found_req_s = self.hopeful[nearest].outcome.goodput.req_s
        return found_req_s * self.guess(mine) / self.guess(self.options[nearest].deployment) or None

    def _recalled(self) -> list[Job]:
        """Short runs for those screened out, the ablest first, while nothing meets the SLO and they may."""
        if any(entry.meets for entry in self.hopeful.values()):
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
        """Longer runs for those in front that have none, the longest for the fewest: each the next longer ones."""
        for requests, most in self.rungs[1:]:
            known = self._as_of(requests, hope=True)
            likely = [] if self.most_req_s is not None else self._unmatched([*known.values()])
            names = {entry.deployment.name for entry in [*self._contenders(known, requests, most), *likely]}
            short = [
                i
                for i, (deployment, outcome, *_) in sorted(self.hopeful.items())
                if deployment.name in names and outcome.requests < requests and not self._final(outcome)
            ]
            if short:
                usual = self._as_of(requests, hope=False)
                return [self._longer(usual[i], i) for i in short]
        return []

    def _longer(self, usual: Entry, place: int) -> Job:
        """The next longer runs, which begin near the goodput that they usually find."""
        requests = min(length for length, _ in self.rungs if length > usual.outcome.requests)
        near_req_s, width = -usual.measure("rate"), self._width(requests)
        return Job(place, usual.deployment, requests, near_req_s, width=width)

    def _contenders(self, known: dict[int, Entry], requests: int, most: int) -> list[Entry]:
        """The first of the ranking, were all that may meet the SLO to meet it; no more than have a chance to win.

        Who is behind one that surely meets the SLO cannot win, even with luck.
        """
        first = rank(list(known.values()), self.objective)
        if not first or not first[0].meets:
            return first[:_HOPELESS]
        leaders, exact = first[:_LEADERS], self.objective in EXACT
        told = known if exact else {i: known[i] for i in self.known[requests]}
        names = {entry.deployment.name for entry in told.values()}
        if any(entry.deployment.name not in names for entry in leaders):
            return leaders
        sure = [entry.measure(self.objective) for i, entry in told.items() if self._surely(self.hopeful[i])]
        least = min(sure, default=math.inf)
        least += 0.0 if exact or not sure else TOLERANCE * abs(least)
        able = sum(each.meets and each.measure(self.objective) <= least for each in first)
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

        The best of many candidates on one seed is among the luckiest on it. Who stood for others on that seed may not
        on further ones: then these come to the front, unless others that are confirmed stand for them.
        """
        if not self.seeds:
            return []
        usual = [entry for entry in self._as_of(_CONFIRMED, hope=False).values() if entry.meets]
        likely = self._unmatched([*self._as_of(self.long, hope=True).values()])
        sure = [entry for entry in usual if entry.outcome.seeds]
        new = [entry for entry in self._unmatched(usual) if entry in self._unmatched([*sure, entry])]
        matter = [*rank(usual, self.objective)[: 1 if len(sure) >= _LEADERS else _LEADERS], *likely, *new]
        names = {entry.deployment.name for entry in matter if entry.meets}
        return [
            Job(i, entry.deployment, self.long, entry.outcome.goodput.req_s, seeds=self.seeds)
            for i, entry in sorted(self.hopeful.items())
            if entry.deployment.name in names and not entry.outcome.seeds
        ]

    def _settled(self) -> list[Job]:
        """Twice as many seeds for those that would win and whose interval still holds the target."""
        entries = undecided(self.ranked(), self.objective, self.question.slo.attainment)
        more = {e.deployment.name: 2 * len(e.outcome.seeds) for e in entries if 2 * len(e.outcome.seeds) <= _SEEDS_MOST}
        known = ((i, *entry[:2]) for i, entry in sorted(self.hopeful.items()))
        return [
            Job(i, deployment, self.long, outcome.goodput.req_s, seeds=self._seeds(more[deployment.name]))
            for i, deployment, outcome in known
            if deployment.name in more
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
            for i in sorted(self.hopeful)
            if self.options[i].name in names
        ]

    def note(self, job: Job, outcome: Outcome, progress: Callable[[int, int], None] | None) -> None:
        """Take in an outcome."""
        self._take(job.place, Entry(self.options[job.place].deployment, outcome, self._hopes(outcome)))
        self.done += 1
        if progress is not None:
            progress(self.done, self.planned)

    def _take(self, place: int, entry: Entry) -> None:
        self.hopeful[place] = entry
        self.known[_CONFIRMED if entry.outcome.seeds else entry.outcome.requests][place] = entry

    def ranked(self) -> list[Entry]:
        """Return what is known, the best first."""
        length = max((length for length, entries in self.known.items() if entries), default=self.long)
        known = self._as_of(length, hope=False).values()
        return rank([entry._replace(meets=_meets(entry.outcome)) for entry in known], self.objective)

    def _hopes(self, outcome: Outcome) -> bool:
        """Whether the SLO is met, or may be by longer runs or further seeds."""
        if _meets(outcome):
            return True
        if not self._final(outcome):
            return outcome.goodput.req_s * (1 + self._hope(outcome)) >= self.rate_req_s
        return bool(self.seeds) and not outcome.seeds and outcome.goodput.req_s > 0 and self._may_meet(outcome)

    def _may_meet(self, outcome: Outcome) -> bool:
        return outcome.asked is not None and outcome.asked.may_meet(self.question.slo.attainment)

    def _final(self, outcome: Outcome) -> bool:
        """Whether longer runs would tell nothing new."""
        return outcome.requests >= self.long or outcome.goodput.req_s == 0


def _family(deployment: Deployment) -> Family:
    return deployment.policies.route, *((pool.role, pool.replica) for pool in deployment.pools)


def _distance(one: Deployment, other: Deployment) -> float:
    """Between members of a family, by their numbers of replicas."""
    return sum(abs(math.log(a.count / b.count)) for a, b in zip(one.pools, other.pools, strict=True))


def _meets(outcome: Outcome) -> bool:
    return outcome.asked is not None and outcome.asked.meets


def _length(job: Job) -> float:
    """Of which length its runs are."""
    return _CONFIRMED if job.seeds else job.requests


def _falls(objective: Objective, before: dict[int, Entry], after: dict[int, Entry]) -> dict[bool, Falls]:
    """By those of whom both are known, mixed or split."""
    known: dict[bool, list[tuple[float, float]]] = {split: [] for split in _KINDS}
    for i in before.keys() & after.keys():
        was, became = (each[i].measure(objective) for each in (before, after))
        if was and became and math.isfinite(was) and math.isfinite(became):
            known[before[i].deployment.split].append((-before[i].measure("rate"), became / was))
    return {split: Falls(pairs) for split, pairs in known.items()}


def _factor(objective: Objective, falls: Falls, hope: bool) -> Callable[[float], float]:
    """What a figure is multiplied by; what is wanted large is negative, so that it is to become larger."""
    if not hope:
        return falls.usually
    return falls.at_most if objective in ("rate", "goodput") else falls.at_least


def _changed(entry: Entry, factors: list[tuple[Objective, Callable[[float], float]]]) -> Entry:
    """An entry whose figures change as they do at its goodput."""
    goodput_req_s, before = -entry.measure("rate"), entry.changes
    changes = {name: factor(goodput_req_s) * before.get(name, 1.0) for name, factor in factors}
    return Entry(entry.deployment, entry.outcome, entry.meets, changes)


def _that(meets: bool, entry: Entry) -> Entry:
    """The entry, with that it meets the SLO or does not."""
    return entry if entry.meets == meets else Entry(entry.deployment, entry.outcome, meets, entry.changes)
