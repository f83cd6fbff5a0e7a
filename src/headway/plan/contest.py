"""Which candidate is simulated next, and how long: all shortly, those that matter at length, leaders on more seeds."""

from __future__ import annotations

from collections.abc import Callable

from headway.plan.evaluate import Job, Outcome
from headway.plan.question import Question
from headway.plan.ranking import Entry, front, rank
from headway.plan.space import Option

__all__ = ["Contest"]

_SHORT_SHARE, _SHORT_MIN = 8, 500  # short runs have an eighth of the requests, but enough to see a tenth missing
_CONTENDERS = 32  # so many at the top of the ranking rest on long runs, and all of the front
_LEADERS = 3  # so many of those that meet the SLO rest on further seeds, and all of the front
_DOUBT = 0.1  # nearer than this to the asked rate, short runs do not tell whether it is met
_NEAREST = 8  # where nothing works, so many at a time are simulated to find what comes nearest
_HOPE = 1.15  # by which factor short runs may underrate a goodput: two standard deviations of 1,000 requests


class Contest:
    """The outcomes so far, and the jobs that follow from them: the same whoever does them in whatever order."""

    def __init__(
        self, question: Question, rate_req_s: float, requests: int, options: list[Option], seeds: tuple[int, ...]
    ) -> None:
        self.seeds = seeds
        self.question, self.rate_req_s, self.options = question, rate_req_s, options
        self.long = requests
        self.short = min(requests, max(_SHORT_MIN, requests // _SHORT_SHARE))
        self.outcomes: dict[int, Outcome] = {}
        self.planned = self.done = 0

    def jobs(self) -> list[Job]:
        """Return what is to be done next; nothing when those in front rest on long runs and are confirmed."""
        if not self.planned:
            jobs = [Job(i, option.deployment, self.short) for i, option in enumerate(self.options)]
        else:
            jobs = self._refined() or self._confirmed() or self._nearest()
        self.planned += len(jobs)
        return jobs

    def _refined(self) -> list[Job]:
        """Long runs for those in front and in doubt that have none."""
        entries = [self._entry(i, hopeful=True) for i in self.outcomes]
        doubtful = [e for e in entries if abs(e.outcome.goodput.req_s / self.rate_req_s - 1) < _DOUBT]
        matter = [*rank(entries, self.question.objective)[:_CONTENDERS], *front(entries), *doubtful]
        names = {entry.deployment.name for entry in matter if not self._final(entry.outcome)}
        return [
            Job(i, self.options[i].deployment, self.long, self.outcomes[i].goodput.req_s)
            for i in sorted(self.outcomes)
            if self.options[i].name in names
        ]

    def _confirmed(self) -> list[Job]:
        """Runs of seeds that had no part in the choice, for those in front that meet the SLO or may have had bad luck.

        The best of many candidates on one seed is among the luckiest on it.
        """
        if not self.seeds:
            return []
        entries = [entry for i in self.outcomes if (entry := self._entry(i, hopeful=True)).meets]
        matter = [*rank(entries, self.question.objective)[:_LEADERS], *front(entries)]
        names = {entry.deployment.name for entry in matter if not entry.outcome.seeds}
        return [
            Job(i, self.options[i].deployment, self.long, self.outcomes[i].goodput.req_s, seeds=self.seeds)
            for i in sorted(self.outcomes)
            if self.options[i].name in names
        ]

    def _nearest(self) -> list[Job]:
        """Runs that tell what comes nearest where no rate meets the SLO.

        Bounds lie below what simulation finds, so once the first of the ranking is simulated, none is nearer.
        """
        ranked = self.ranked()
        if not ranked or ranked[0].outcome.goodput.req_s > 0 or ranked[0].outcome.simulations:
            return []
        names = [entry.deployment.name for entry in ranked if not entry.outcome.simulations][:_NEAREST]
        return [
            Job(i, self.options[i].deployment, self.short, alone=True)
            for i in sorted(self.outcomes)
            if self.options[i].name in names
        ]

    def note(self, job: Job, outcome: Outcome, progress: Callable[[int, int], None] | None) -> None:
        """Take in an outcome."""
        self.outcomes[job.place] = outcome
        self.done += 1
        if progress is not None:
            progress(self.done, self.planned)

    def ranked(self) -> list[Entry]:
        """Return what is known, the best first."""
        return rank([self._entry(i, hopeful=False) for i in self.outcomes], self.question.objective)

    def _entry(self, index: int, *, hopeful: bool) -> Entry:
        outcome = self.outcomes[index]
        meets = outcome.asked is not None and outcome.asked.meets
        if hopeful and not self._final(outcome):
            meets = meets or outcome.goodput.req_s * _HOPE >= self.rate_req_s
        elif hopeful and not outcome.seeds and self.seeds:
            meets = meets or (outcome.goodput.req_s > 0 and self._may_meet(outcome))
        return Entry(self.options[index].deployment, outcome, meets)

    def _may_meet(self, outcome: Outcome) -> bool:
        high = outcome.asked.attainment_high if outcome.asked else None
        return high is not None and high >= self.question.slo.attainment

    def _final(self, outcome: Outcome) -> bool:
        """Whether longer runs would tell nothing new."""
        return outcome.requests >= self.long or outcome.goodput.req_s == 0
