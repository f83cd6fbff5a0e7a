"""`plan`: every candidate by short runs, the contenders by long ones, then the answer."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import NamedTuple

import msgspec

from headway.errors import BadInput, DoesNotFit
from headway.plan import explain
from headway.plan.answer import Binding, Candidate, Plan
from headway.plan.evaluate import Evaluator, Job, Outcome
from headway.plan.question import Question, default_requests
from headway.plan.ranking import Entry, front, rank
from headway.plan.space import Option, Space, enumerate_space
from headway.plan.trial import STEP
from headway.plan.workers import Workers
from headway.specs import to_mapping
from headway.workload import Workload, workload

__all__ = ["plan"]

Progress = Callable[[int, int], None]

_SHORT_SHARE, _SHORT_MIN = 8, 500  # short runs have an eighth of the requests, but enough to see a tenth missing
_CONTENDERS = 32  # that many at the top of the ranking, and the front, rest on long runs
_HOPE = 1.15  # by which factor short runs may be wrong about a goodput (two standard deviations of 1,000 requests)


def plan(
    question: Question,
    *,
    made: Workload | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Plan:
    """Return the deployments that serve a workload within its SLO, the best first, and why the others do not.

    Every candidate is simulated with the same requests: short runs find what each can serve, then the best of the
    ranking and of the front are searched again with long runs, until those in front all rest on long ones. That nothing
    fits, or nothing meets the SLO, is an answer too. Ctrl-C returns what is known by then, marked `interrupted`.

    Args:
        question: what is asked.
        made: the question's workload where the caller has it already, as one read with broken lines left out; its
            number of requests is the limit of a simulation's.
        workers: processes to use; the plan does not depend on it. Default: as many as there are cores.
        progress: called with evaluations done and planned so far; more are planned as contenders emerge.

    Raises:
        UnknownName: model, GPU, workload or policy. BadInput: anything else wrong with the question.
    """
    started_s = time.perf_counter()
    source = made or workload(question.workload)
    rate_req_s = _rate(question, source)
    requests = min(question.requests or default_requests(question.slo, rate_req_s), _available(source, made))
    space = enumerate_space(question)
    evaluator = Evaluator(question, source, rate_req_s)
    contest = _Contest(question, rate_req_s, requests, space.options)
    crew: Workers[Job, Outcome] = Workers(Evaluator, (question, source, rate_req_s), workers)
    interrupted = False
    try:
        while jobs := contest.jobs():
            for position, outcome in crew.answers(jobs):
                contest.outcomes[jobs[position].index] = outcome
                if progress is not None:
                    contest.tell(progress)
    except KeyboardInterrupt:
        interrupted = True
    finally:
        crew.close()
    answer = _answer(contest, space, evaluator, interrupted)
    ranked = [_candidate(entry, answer.ranked[0], question, rate_req_s) for entry in answer.ranked]
    return Plan(
        question=question,
        rate_req_s=rate_req_s,
        requests=requests,
        feasible=answer.feasible,
        binding=answer.binding,
        message=answer.message,
        interrupted=interrupted,
        enumerated=len(space.options) + sum(space.discarded.values()),
        evaluated=len(ranked),
        discarded=space.discarded,
        tolerance=STEP - 1,
        seconds=time.perf_counter() - started_s,
        best=ranked[0] if answer.feasible else None,
        front=[entry.deployment.name for entry in front(answer.ranked)],
        ranked=ranked,
    )


def _rate(question: Question, source: Workload) -> float:
    if source.concurrency is not None:
        raise BadInput(f"workload {source.name} is a closed loop, which has no rate to plan for: give it an open arrival")
    rate = question.rate_req_s or source.rate_req_s
    if rate is None:
        raise BadInput(f"workload {source.name} has no rate of its own: give rate_req_s")
    return rate


def _available(source: Workload, made: Workload | None) -> float:
    """How many requests there are: a trace ends, and a workload that was made says how many it is to have."""
    return source.requests if made is not None or source.spec.trace is not None else math.inf
