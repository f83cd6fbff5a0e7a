"""`plans`: many questions, side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

from headway.plan.answer import Plan
from headway.plan.crew import Crew, Workforce, muster
from headway.plan.question import Question
from headway.plan.run import plan
from headway.plan.workers import cores

__all__ = ["plans"]


def plans(
    questions: Sequence[Question],
    *,
    workers: Workforce = None,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[tuple[int, Plan]]:
    """Yield (position, plan) of each question as it is answered: the plan that `plan` returns for it.

    A worker takes a question as a whole. So nothing of it waits for another worker, as the rounds of one plan do; but
    more workers than questions are of no use. Whoever stops asking for the next one stops the work; Ctrl-C does.

    Args:
        questions: any; of different workloads, models or GPUs. On a cluster the files that they name, as traces and a
            model's config.json, are there under the same paths.
        workers: processes to use, or a `RayCluster`; the plans do not depend on it. Default: one per core.
        progress: called with questions answered and in all.

    Raises:
        BadInput: as `plan` does for any of them; the others are then left unanswered.
        KeyboardInterrupt: meanwhile.
    """
    crew: Crew[Question, Plan] = muster(_asked, (), cores() if workers is None else workers)
    try:
        for done, answer in enumerate(crew.answers(questions), start=1):
            if progress is not None:
                progress(done, len(questions))
            yield answer
    finally:
        crew.close()


def _asked() -> Callable[[Question], Plan]:
    return partial(plan, workers=1)
