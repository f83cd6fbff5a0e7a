"""Several questions planned for side by side: one crew does the jobs of all, so nobody waits for the last of one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain, zip_longest

from headway.plan.crew import Crew, Workforce, muster
from headway.plan.evaluate import Evaluator, Job, Outcome
from headway.plan.question import Question
from headway.plan.run import Planning
from headway.workload import Workload

__all__ = ["side_by_side"]

_Context = tuple[Question, Workload, float]


def side_by_side(
    begun: Sequence[Planning], workers: Workforce, progress: Callable[[int, int], None] | None
) -> Iterator[int]:
    """Evaluate the candidates of all questions in rounds, and yield the place of each that has nothing left to do.

    Jobs of a round alternate between the questions, so that an interruption finds something known of each. What
    becomes of a question does not depend on those beside it.

    Raises:
        KeyboardInterrupt: meanwhile; what was evaluated by then is in `begun`.
    """
    crew: Crew[tuple[int, Job], Outcome] = muster(_Evaluators, tuple(each.context for each in begun), workers)
    left = list(range(len(begun)))
    try:
        while left:
            of = {place: begun[place].contest.jobs() for place in left}
            yield from (place for place in left if not of[place])
            left = [place for place in left if of[place]]
            turns = zip_longest(*([(place, job) for job in of[place]] for place in left))
            jobs = [each for each in chain.from_iterable(turns) if each is not None]
            for position, outcome in crew.answers(jobs):
                place, job = jobs[position]
                begun[place].contest.note(job, outcome, None)
                if progress is not None:
                    contests = [each.contest for each in begun]
                    progress(sum(each.done for each in contests), sum(each.planned for each in contests))
    finally:
        crew.close()


class _Evaluators:
    """Answers for a candidate of one of several questions."""

    def __init__(self, *contexts: _Context) -> None:
        self.each = [Evaluator(*context, among=len(contexts)) for context in contexts]

    def __call__(self, asked: tuple[int, Job]) -> Outcome:
        """Return the outcome of a question's job, by the question's place."""
        place, job = asked
        return self.each[place](job)
