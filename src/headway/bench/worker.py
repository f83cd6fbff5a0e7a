"""A process that drives its share: jobs come in through a pipe, the log of each goes out through another."""

from __future__ import annotations

import asyncio
import gc
import resource
import traceback
from typing import Any

from headway.bench.connection import event_loop
from headway.bench.driver import Driver, Job
from headway.bench.frames import receive, send
from headway.bench.measured import Log
from headway.errors import BadInput, HeadwayError

__all__ = ["serve"]

TELL_S = 0.25


def serve(jobs: int, answers: int) -> None:
    """Do jobs until the pipe is closed. To each: "ready", then "go" with the start comes, then the log."""
    _raise_limit()
    while True:
        try:
            job = receive(jobs)
            if isinstance(job, Job):
                send(answers, ("log", run(job, jobs, answers)))
        except EOFError:
            return
        except (Exception, SystemExit) as error:
            if not isinstance(error, HeadwayError):
                error.add_note(traceback.format_exc())
            send(answers, ("error", error))


def run(job: Job, jobs: int, answers: int) -> Log:
    """Do one job on an event loop of its own."""
    loop = event_loop()
    try:
        return loop.run_until_complete(_run(job, jobs, answers))
    finally:
        loop.close()
        gc.enable()
        gc.collect()


async def _run(job: Job, jobs: int, answers: int) -> Log:
    loop, log = asyncio.get_running_loop(), Log()
    try:
        driver = Driver(job, log, 0.0)
    except OSError as error:
        raise BadInput(f"{job.target.url}: {error.strerror or error}") from None
    await driver.connections.open_ahead()
    gc.collect()
    gc.freeze()
    gc.disable()  # a collection of many requests would stop the clock for tens of milliseconds
    send(answers, ("ready", None))
    said = receive(jobs)
    if said[0] != "go":
        return log.frozen()
    driver.start_s = said[1]

    def told() -> None:
        try:
            receive(jobs)
        except EOFError:
            loop.remove_reader(jobs)
        driver.stop()

    def tell() -> None:
        send(answers, ("progress", (log.requests, len(log.counts["id"]), log.in_flight, _problems(log))))
        loop.call_later(TELL_S, tell)

    loop.add_reader(jobs, told)
    tell()
    driver.go()
    await driver.finished.wait()
    loop.remove_reader(jobs)
    driver.close()
    return log.frozen()


def _problems(log: Log) -> dict[str, int]:
    return {reason: lost.requests for reason, lost in log.lost.items()}


def _raise_limit() -> None:
    """Allow as many open connections as the system lets."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted: Any = most
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))
