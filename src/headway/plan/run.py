"""`plan`: enumerate, let workers evaluate, and put what they found into an answer."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from functools import cached_property, partial
from typing import Any, NamedTuple

import msgspec

from headway.cost import Replica
from headway.errors import BadInput
from headway.plan import explain, unanswered
from headway.plan.answer import Binding, Candidate, Plan
from headway.plan.bounds import Guess
from headway.plan.classes import Classes, classes_of, long_requests, lowest
from headway.plan.contest import Contest
from headway.plan.crew import Crew, Workforce, muster
from headway.plan.curves import Looker, with_curves
from headway.plan.doubt import doubt
from headway.plan.evaluate import Asked, Evaluator, Job, Outcome
from headway.plan.extent import extent, unservable
from headway.plan.floor import Floor
from headway.plan.question import Question
from headway.plan.ranking import Entry, undecided
from headway.plan.remedy import Remedy, remedy
from headway.plan.screen import cheapest, screen
from headway.plan.space import Space, enumerate_space
from headway.plan.spare import standing
from headway.plan.trial import STEP, Load
from headway.plan.wish import Wish, wishes
from headway.sim import CtrlC, Deployment, Pool
from headway.sim.run import compiled
from headway.specs import check_argument, from_mapping, to_mapping
from headway.workload import Workload, workload

__all__ = ["Planning", "confirmed", "plan"]

_BUSY = 1.0  # requests in flight in the mean: what serves fewer within the SLO is hardly worth its price
_SEEDS = 6  # the interval is then 1.05 standard deviations of a seed to either side; with 4 seeds it is 1.6


def plan(
    question: Question,
    *,
    made: Workload | None = None,
    workers: Workforce = None,
    progress: Callable[[int, int], None] | None = None,
) -> Plan:
    """Return the deployments that serve a workload within its SLO, the best first, and why the others do not.

    Every candidate is simulated with the same requests: short runs find what each can serve, then the best of the
    ranking and of the front are searched again with long runs, until those in front all rest on long ones, and those
    that meet the SLO are confirmed on seeds that had no part in choosing them. That nothing fits, or nothing meets the
    SLO, is an answer too. Of a recorded trace that is longer than a simulation, the part that brings the most tokens a
    second is simulated. Ctrl-C returns what is known by then, marked `interrupted`: before any simulation, what
    estimates say; a second one while candidates are still listed is a KeyboardInterrupt.

    Args:
        question: what is asked.
        made: the question's workload where the caller has it already; its number of requests is the limit of a
            simulation's.
        workers: processes to use, or a `RayCluster`; the plan does not depend on it. Default: one per core.
        progress: called with evaluations done and planned so far; more are planned as contenders emerge.

    Raises:
        UnknownName: model, GPU, workload or policy. BadInput: an argument of another type, or anything else wrong with
            the question.
    """
    check_argument("question", question, Question, 'Question(model="llama-3.1-8b", gpu="h100-sxm", ...)')
    check_argument("made", made, Workload | None, 'headway.workload.workload("chat")')
    started_s = time.perf_counter()
    with CtrlC(spare=1) as ctrl_c:
        begun, found = Planning(question, made), None
        crew: Crew[Any, Any] = muster(Looker, begun.context, workers)
        crew.prepare(len(begun.space.options))
        contest = begun.contest  # candidates are screened while the crew gets ready
        ctrl_c.spare = 0
        if ctrl_c.came:
            crew.close()
        else:
            found = _evaluate(begun, crew, progress, ctrl_c)
        ctrl_c.hold()
        answer = begun.answer(found, started_s)
    if answer.interrupted:
        return answer
    told = None if progress is None else partial(_further, contest, progress)
    answer = with_curves(answer, crew, told)
    return msgspec.structs.replace(answer, seconds=time.perf_counter() - started_s)


class Planning:
    """A question on its way to a plan: its candidates, what is to be done next, and the answer that has come of it.

    `context` is what an `Evaluator` of its jobs takes.

    Raises:
        As `plan`.
    """

    def __init__(self, question: Question, made: Workload | None = None) -> None:
        source = made or workload(question.workload, skip_bad=question.skip_bad)
        rate = _rate(question, source)
        self.alone = rate is None
        rate_req_s = 1.0 if rate is None else rate  # whatever: one request waits for no other
        classes = classes_of(question, source)
        requests = _requests(question, classes, source, rate_req_s, made is not None)
        self.whole, self.source = source, source.densest(requests)
        self.most = source.requests if made is not None or source.ends else None
        lengths = Load(self.source, requests, rate_req_s, question.seed).lengths
        classes.check(lengths)
        self.unservable, barred = unservable(question, lengths, classes)
        self.guess = guess = Guess(lengths, *classes.aimed)
        self.space = enumerate_space(question, lambda replica: _alone(replica, guess))
        replicas = (pool.replica for option in self.space.options for pool in option.deployment.pools)
        self.low = lowest(list(replicas), lengths, classes.asked)
        if self.space.options and (self.low or barred):
            discarded = {**self.space.discarded, "floor" if self.low else "context": len(self.space.options)}
            self.space = Space([], discarded, self.space.nearest)
        self.classes, self.lengths, self.requests = classes, lengths, requests
        self.context = question, self.source, rate_req_s

    @cached_property
    def contest(self) -> Contest:
        """The candidates less those that need no simulation."""
        question, source, rate_req_s = self.context
        options = self.space.options
        screened = {} if question.exhaustive else screen(options, self.guess, self.lengths, question, rate_req_s)
        seeds, least = _seeds(question, source), self.classes.least

        def guessed(deployment: Deployment) -> float:
            return self.guess(*standing(deployment, question.spare))

        return Contest(question, rate_req_s, self.requests, options, screened, seeds, guessed, least)

    def beyond(self) -> Beyond:
        """Look for what would do where no candidate does; KeyboardInterrupt while it simulates."""
        bound = {entry.outcome.binding for entry in self.contest.ranked()[:1]}
        if "context" in self.space.discarded or (self.unservable and "memory" in bound):
            return Beyond()  # no other replica has a longer context
        return _beyond(self.contest, self.whole, self.most, self.low)

    def answer(self, found: Beyond | None, started_s: float) -> Plan:
        """Return the plan by what is known, with what was `found` beyond the candidates; None: it was interrupted."""
        contest, source = self.contest, self.source
        words = ""
        if contest.hopeful:
            words = extent(contest.question, self.whole, source, contest.long, contest.rate_req_s)
        part = _Part(" ".join(filter(None, (self.unservable, words))), source.spec.first, self.alone)
        answer = _answer(contest, self.space, found or Beyond(self.low), part, found is None, started_s)
        if found is not None or contest.hopeful or self.low or not contest.options:
            return answer
        left = [option for i, option in enumerate(contest.options) if i not in contest.screened]
        likely = cheapest(left, self.guess, contest.question, contest.rate_req_s)
        return msgspec.structs.replace(answer, message=explain.only_estimated(likely, contest.rate_req_s))


def _further(contest: Contest, progress: Callable[[int, int], None], done: int, planned: int) -> None:
    """Count on where the search has ended."""
    progress(contest.done + done, contest.planned + planned)


def _alone(replica: Replica, guess: Guess) -> float:
    """What one replica would serve by itself."""
    return guess(Deployment(pools=(Pool(replica=replica),)), (compiled(replica),))


class _Part(NamedTuple):
    """Which part is judged and what of it nothing serves, in words; its place in the trace; whether one is alone."""

    words: str
    first: int
    alone: bool


class Beyond(NamedTuple):
    """What was found besides the candidates, where none of them will do."""

    low: Floor | None = None
    whose: str = ""
    needs_s: float | None = None
    more: Remedy | None = None
    changes: list[Wish] = []  # noqa: RUF012 - never changed


def _beyond(contest: Contest, source: Workload, most: int | None, low: Floor | None) -> Beyond:
    """Look for what would do where no candidate does; KeyboardInterrupt while it simulates."""
    ranked = contest.ranked()
    if ranked and (ranked[0].meets or (ranked[0].outcome.goodput.req_s > 0 and ranked[0].outcome.binding != "memory")):
        return Beyond(more=remedy(contest, source, most))  # what does not fit one replica does not fit many
    question = contest.question
    if not ranked and low is None:
        return Beyond(changes=wishes(question, lambda deployment: True))
    evaluator = Evaluator(question, source, contest.rate_req_s)
    needs_s = None if low is None else evaluator.needs_s(low)
    whose = evaluator.classes.name(low.slo_class) if low else ""
    busy = partial(evaluator.meets_alone, in_flight=_BUSY)
    found = wishes(question, busy) or wishes(question, evaluator.meets_alone)
    changes = [wish._replace(serves_req_s=evaluator.serves_alone(wish.deployment)) for wish in found]
    return Beyond(low, whose, needs_s, changes=changes)


def _answer(
    contest: Contest, space: Space, beyond: Beyond, part: _Part, interrupted: bool, started_s: float
) -> Plan:
    ranked, question, rate_req_s, requests = contest.ranked(), contest.question, contest.rate_req_s, contest.long
    verdict = _verdict(contest, ranked, space, beyond, part, interrupted)
    candidates = [_candidate(entry, ranked[0], question, rate_req_s) for entry in ranked]
    sure = doubt(ranked, contest.objective, rate_req_s)
    discarded = Counter(space.discarded) + Counter(each.reason for each in contest.screened.values())
    open_yet = undecided(ranked, contest.objective, question.slo.attainment)
    tied = explain.undecided_words(open_yet if verdict.feasible else [])
    told = verdict.message, tied, explain.of_the_stock(question), sure.words, part.words
    message = " ".join(filter(None, told))
    return Plan(
        question=question,
        rate_req_s=rate_req_s,
        requests=requests,
        alone=part.alone,
        first_request=part.first,
        feasible=verdict.feasible,
        binding=verdict.binding,
        message=f"Interrupted; so far: {message}" if interrupted else message,
        interrupted=interrupted,
        enumerated=len(space.options) + sum(space.discarded.values()),
        evaluated=len(candidates),
        discarded=dict(discarded),
        tolerance=STEP - 1,
        seconds=time.perf_counter() - started_s,
        best=candidates[0] if verdict.feasible else None,
        front=[entry.deployment.name for entry in contest.front(ranked)],
        ranked=candidates,
        long_runs=sum(candidate.requests == requests for candidate in candidates),
        confirmed=sum(candidate.confirmed for candidate in candidates),
        uncertainty=sure.error,
        ratio_error=sure.ratio if ranked else None,
        ties=sure.ties,
        undecided=[entry.deployment.name for entry in open_yet],
    )


def _evaluate(
    begun: Planning, crew: Crew[Job, Outcome], progress: Callable[[int, int], None] | None, ctrl_c: CtrlC
) -> Beyond | None:
    """Let the crew do all there is to do; what was found beyond it, None where Ctrl-C came before the end.

    The crew stays for more, but where this ends early.
    """
    contest = begun.contest
    try:
        while jobs := contest.jobs():
            for position, outcome in crew.answers(jobs):
                contest.note(jobs[position], outcome, progress)
        beyond = begun.beyond()
        ctrl_c.hold()
    except BaseException as error:
        ctrl_c.hold()
        crew.close()
        if not isinstance(error, KeyboardInterrupt):
            raise
        return None
    return beyond


def _rate(question: Question, source: Workload) -> float | None:
    """The rate planned for; None of one request that is served alone, as nobody gave a rate."""
    if source.concurrency is not None:
        raise BadInput(f"workload {source.name} is a closed loop, which has no rate to plan for: give open arrivals")
    rate = question.rate_req_s or source.rate_req_s
    if rate is None and source.requests > 1:
        raise BadInput(
            f"workload {source.name} has no rate of its own, as its {source.requests:,} requests come all at once: "
            "have their times drawn, as by --set 'workload.arrival={kind: poisson, rate_req_s: 5}'"
        )
    return rate


def _requests(question: Question, classes: Classes, source: Workload, rate_req_s: float, made: bool) -> int:
    """Requests of a long run; a trace ends, and a workload that the caller made has as many as it has."""
    wanted = question.requests or long_requests(classes.asked, rate_req_s, source.mean_output_tokens)
    return min(wanted, source.requests) if made or source.ends else wanted


def _seeds(question: Question, source: Workload) -> tuple[int, ...]:
    """Seeds that confirm a candidate: none where a trace is replayed as recorded, which is the same with any."""
    if source.recorded:
        return ()
    return tuple(range(question.seed + 1, question.seed + 1 + _SEEDS))


class _Verdict(NamedTuple):
    feasible: bool
    binding: Binding | None
    message: str


def _verdict(
    contest: Contest, ranked: list[Entry], space: Space, beyond: Beyond, part: _Part, interrupted: bool
) -> _Verdict:
    question, rate_req_s = contest.question, None if part.alone else contest.rate_req_s
    if beyond.low is not None:
        words = unanswered.below_floor(beyond.low, beyond.whose, beyond.needs_s, question, beyond.changes)
        return _Verdict(False, beyond.low.binding, words)
    if "context" in space.discarded:
        return _Verdict(False, "memory", f"No plan of {question.model} meets the SLO, so nothing was searched.")
    if not space.options:
        return _nothing(question, space, beyond.changes)
    if not ranked:
        return _Verdict(False, None, "nothing is known yet.")
    best = ranked[0]
    if best.meets:
        return _Verdict(True, None, explain.verdict(best, question, rate_req_s, part.first))
    if interrupted:
        return _Verdict(
            False, None, explain.so_far(best, len(ranked), len(space.options) - len(contest.screened), rate_req_s)
        )
    if beyond.more is not None:
        return _Verdict(False, "rate", explain.too_much(best, contest, beyond.more))
    return _Verdict(False, best.outcome.binding, unanswered.too_tight(best, question, beyond.changes))


def _nothing(question: Question, space: Space, changes: list[Wish]) -> _Verdict:
    """The answer where no candidate is left to try."""
    freer = enumerate_space(msgspec.structs.replace(question, spare=0)) if question.spare else space
    holds = bool(freer.options) or any(count for reason, count in freer.discarded.items() if reason != "memory")
    words = unanswered.nothing_allowed(space.discarded, question, changes, without_spare=holds)
    if words:
        return _Verdict(False, None, words)
    return _Verdict(False, "memory", unanswered.nothing_fits(space.nearest, question, changes))


_UNKNOWN = Asked(None, None, None, None, None, None, None, False)


def confirmed(plan: Plan, candidate: Candidate) -> Candidate:
    """Return a candidate of a plan as it is on seeds that had no part in the choice, by runs of full length.

    Raises:
        KeyboardInterrupt: while it simulated.
    """
    question = plan.question
    source = workload(question.workload, skip_bad=question.skip_bad).densest(plan.requests)
    seeds = _seeds(question, source)
    if candidate.confirmed or (not seeds and candidate.requests == plan.requests):
        return candidate
    deployment = from_mapping(Deployment, candidate.deployment, candidate.name)
    job = Job(0, deployment, plan.requests, candidate.goodput_req_s or None, seeds=seeds)
    outcome = Evaluator(question, source, plan.rate_req_s)(job)
    entry = Entry(deployment, outcome, outcome.asked is not None and outcome.asked.meets)
    made = _candidate(entry, entry, question, plan.rate_req_s)
    return msgspec.structs.replace(made, reason=candidate.reason)


def _candidate(entry: Entry, best: Entry, question: Question, rate_req_s: float) -> Candidate:
    outcome, deployment = entry.outcome, entry.deployment
    asked, goodput = outcome.asked or _UNKNOWN, outcome.goodput
    return Candidate(
        name=deployment.name,
        deployment=to_mapping(deployment),
        gpus=deployment.gpus,
        goodput_req_s=goodput.req_s,
        goodput_low_req_s=goodput.low_req_s,
        goodput_high_req_s=goodput.high_req_s,
        goodput_req_s_per_gpu=entry.goodput_per_gpu,
        attainment=asked.attainment,
        attainment_low=asked.attainment_low,
        attainment_high=asked.attainment_high,
        ttft_p90_s=asked.ttft_p90_s,
        tpot_p90_s=asked.tpot_p90_s,
        usd_per_hour=entry.usd_per_hour,
        usd_per_million_output_tokens=asked.usd_per_million_output_tokens,
        joules_per_output_token=asked.joules_per_output_token,
        meets=asked.meets,
        binding=outcome.binding,
        reason=explain.reason(entry, best, question, rate_req_s),
        requests=outcome.requests,
        simulations=outcome.simulations,
        seeds=outcome.seeds or (question.seed,),
        confirmed=bool(outcome.seeds),
        idle_joules_per_output_token=asked.idle_joules_per_output_token,
        prefill_joules_per_output_token=asked.prefill_joules_per_output_token,
        decode_joules_per_output_token=asked.decode_joules_per_output_token,
        mean_watts=asked.mean_watts,
        energy_kind=asked.energy_kind,
        carbon_g_per_million_output_tokens=asked.carbon_g_per_million_output_tokens,
        embodied_g_per_million_output_tokens=asked.embodied_g_per_million_output_tokens,
        attainment_all_up=asked.attainment_all_up,
        ttft_s=asked.ttft_s,
        tpot_s=asked.tpot_s,
        by_class=asked.by_class,
        binding_class=outcome.binding_class,
    )
