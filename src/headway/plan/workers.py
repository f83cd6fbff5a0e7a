"""Worker processes. They start from an import path alone, so neither threads nor an unguarded script disturb them.

A worker is given a function and its context once, then one job after another, as pickles through its standard input;
it answers through its standard output. Standard `multiprocessing` would import the caller's script again, which runs
it again where it has no `if __name__ == "__main__"`, or fork, which is unsafe beside threads.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from typing import Any, BinaryIO, Generic, TypeVar

from headway.errors import HeadwayError

__all__ = ["PROGRAM", "Workers", "attempt", "cores", "serve", "stationed", "stations"]

J = TypeVar("J")
R = TypeVar("R")

_JOBS_PER_WORKER = 4  # fewer, and starting a process (0.3 s) takes longer than it saves
_LOST = EOFError, OSError, pickle.UnpicklingError  # the last: it ended in the middle of an answer
PROGRAM = """
import os, pickle, sys
jobs, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
os.dup2(2, 1)
try:
    sys.path[:] = pickle.load(jobs)
except (EOFError, pickle.UnpicklingError):  # Ctrl-C came while it was being started
    sys.exit()
from headway.plan.workers import serve
serve(jobs, answers)
"""


def serve(jobs: BinaryIO, answers: BinaryIO) -> None:
    """Answer jobs until the pipe is closed; an error is an answer too."""
    try:
        make, context = pickle.load(jobs)
    except (EOFError, pickle.UnpicklingError):
        return
    answer = make(*context)
    while True:
        try:
            job = pickle.load(jobs)
        except EOFError:
            return
        pickle.dump(attempt(answer, job), answers, pickle.HIGHEST_PROTOCOL)
        answers.flush()


def attempt(answer: Callable[[J], R], job: J) -> tuple[bool, R | BaseException]:
    """Return whether it went well, and the answer or the error."""
    try:
        return True, answer(job)
    except (Exception, SystemExit) as error:  # a user's policy may call exit()
        if not isinstance(error, HeadwayError):
            error.add_note(traceback.format_exc())
        return False, error


stations: dict[str, Callable[[Any], Any]] = {}  # by the name that their sender gave them


def stationed(name: str, setup: bytes) -> Callable[[Any], Any]:
    """Return what answers jobs by a pickled (make, context), made once in this process; only the last one is kept."""
    if name not in stations:
        stations.clear()
        make, context = pickle.loads(setup)
        stations[name] = make(*context)
    return stations[name]


def cores() -> int:
    """Cores this process may use; not every system can tell them from those it has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Workers(Generic[J, R]):
    """Computes `make(*context)(job)` for many jobs in `count` processes, or here when one is enough.

    Each answer depends on its job alone, so results do not depend on `count`.
    """

    def __init__(
        self, make: Callable[..., Callable[[J], R]], context: tuple[Any, ...], count: int | None = None
    ) -> None:
        self.make, self.context = make, context
        self.count = cores() if count is None else count
        self.few = count is None
        self.here: Callable[[J], R] | None = None
        self.idle: list[subprocess.Popen[bytes]] = []
        self.started: list[subprocess.Popen[bytes]] = []
        self.ending = False
        self.lock = threading.Lock()  # none is started anew while all are ended

    def prepare(self, jobs: int) -> None:
        """Start the processes for so many jobs, so that they are there when the jobs are."""
        count = self._needed(jobs)
        while count > max(1, len(self.started)):
            self.idle.append(self._start())

    def _needed(self, jobs: int) -> int:
        return min(self.count, jobs if self.started or not self.few else jobs // _JOBS_PER_WORKER)

    def answers(self, jobs: Sequence[J]) -> Iterator[tuple[int, R]]:
        """Yield (position, answer) in order of completion."""
        count = self._needed(len(jobs))
        if count < 2:
            self.here = self.here or self.make(*self.context)
            yield from ((i, self.here(job)) for i, job in enumerate(jobs))
            return
        self.ending = False
        threads = ThreadPoolExecutor(count)
        try:
            self.prepare(len(jobs))
            futures: dict[Future[R], int] = {threads.submit(self._ask, job): i for i, job in enumerate(jobs)}
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BaseException:  # Ctrl-C above all, at any line of these: nobody waits for what is under way
            threads.shutdown(wait=False, cancel_futures=True)
            self.close()
            raise
        threads.shutdown()

    def close(self) -> None:
        """End all processes; what they were computing is lost."""
        with self.lock:
            self.ending = True
            for process in self.started:
                process.kill()
                process.communicate()
            self.started, self.idle = [], []

    def _start(self) -> subprocess.Popen[bytes]:
        # A session of its own: Ctrl-C at the terminal is for the caller, who then ends its workers.
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
        )
        self.started.append(process)
        assert process.stdin is not None
        for setup in (sys.path, (self.make, self.context)):
            pickle.dump(setup, process.stdin, pickle.HIGHEST_PROTOCOL)
        process.stdin.flush()
        return process

    def _ask(self, job: J) -> R:
        process = self.idle.pop()  # as many threads as processes: there is always one
        try:
            fine, said = _told(process, job)
        except _LOST:  # killed, as for its memory: another one is asked once
            process = self._anew(process)
            try:
                fine, said = _told(process, job)
            except _LOST:
                raise RuntimeError(_ended(process)) from None
        self.idle.append(process)
        if not fine:
            raise said
        answer: R = said
        return answer

    def _anew(self, ended: subprocess.Popen[bytes]) -> subprocess.Popen[bytes]:
        """A process in place of one that ended."""
        with self.lock:
            if self.ending:
                raise RuntimeError(_ended(ended))
            self.started.remove(ended)
            ended.kill()
            ended.communicate()
            return self._start()


def _told(process: subprocess.Popen[bytes], job: object) -> tuple[bool, Any]:
    """What a process answers to a job: whether it went well, and the answer or the error."""
    assert process.stdin is not None and process.stdout is not None
    pickle.dump(job, process.stdin, pickle.HIGHEST_PROTOCOL)
    process.stdin.flush()
    fine, said = pickle.load(process.stdout)
    return fine, said


def _ended(process: subprocess.Popen[bytes]) -> str:
    return f"a worker process of the planner ended early (exit code {process.poll()}), and so did one in its place"
