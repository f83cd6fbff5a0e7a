"""One process's share of the load: what is due is sent when it is due, whatever the answers do.

Open loop: a request's clock starts at the time its workload gives it, sent late or not, so a stall of the server or of
this process shows in the latencies (no coordinated omission). Closed loop: a user's next request is due the think time
after the last token of the one before. A call of a session is due at its time, but not before the session's previous
answer has ended.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

import msgspec

from headway.bench.answer import REFUSALS, Answer
from headway.bench.connection import CONNECT_S, SPARE, Connection, Connections
from headway.bench.measured import Log
from headway.bench.prompts import Prompts
from headway.bench.target import Target, redacted, request_parts
from headway.errors import BadInput
from headway.metrics import Status
from headway.workload import Workload

__all__ = ["Driver", "Job", "Row", "rows"]

OPEN_AHEAD_MAX = 2048  # connections
AHEAD, AHEAD_BYTES = 256, 1 << 25  # requests whose bytes are made before they are due
LOOK_S = 0.1  # between two looks at timeouts
EXAMPLE_CHARS = 300


class Job(NamedTuple):
    """What a process is to do: its share, number `place` of `places`, of a workload."""

    target: Target
    key: str | None
    workload: Workload
    seed: int
    salt: int
    place: int
    places: int

    @property
    def users(self) -> int | None:
        """Of a closed loop, those of this share."""
        users = self.workload.concurrency
        return None if users is None else users // self.places + (self.place < users % self.places)


class Row(NamedTuple):
    """A request as the workload has it."""

    id: int
    arrival_s: float
    prompt_tokens: int
    output_tokens: int
    session: int
    slo_class: int
    tenant: int
    chain: list[int]


def rows(job: Job) -> Iterator[Row]:
    """Yield a share of the workload: sessions stay together, all else is dealt out in turn."""
    for batch in job.workload.batches(job.seed, chunk=1024):
        session, number = batch.session.tolist(), batch.id.tolist()
        columns = [
            getattr(batch, name).tolist()
            for name in ("arrival_s", "prompt_tokens", "output_tokens", "slo_class", "tenant")
        ]
        offsets = None if batch.hash_offsets is None else batch.hash_offsets.tolist()
        for i, (arrival_s, prompt, output, slo_class, tenant) in enumerate(zip(*columns, strict=True)):
            if (session[i] if session[i] >= 0 else number[i]) % job.places != job.place:
                continue
            chain: list[int] = []
            if offsets is not None and batch.hashes is not None:
                chain = batch.hashes[offsets[i] : offsets[i + 1]].tolist()
            yield Row(number[i], arrival_s, prompt, output, session[i], slo_class, tenant, chain)


class Call:
    """A request on its way."""

    __slots__ = ("answer", "bytes", "connection", "due_s", "kept", "retried", "row", "sent_s")

    def __init__(self, row: Row, data: bytes) -> None:
        self.row, self.bytes = row, data
        self.due_s = self.sent_s = 0.0
        self.answer = Answer()
        self.connection: Connection | None = None
        self.kept = self.retried = False  # on a connection that was open before; sent a second time


class Driver:
    """Sends a share of a workload and logs what came; `finished` is set when all of it has ended.

    It decides by the rules above; `Connections` and the event loop are its edges.
    """

    def __init__(self, job: Job, log: Log, start_s: float) -> None:
        self.job, self.log, self.start_s = job, log, start_s
        self.loop = asyncio.get_running_loop()
        self.prompts = Prompts(job.target, job.salt)
        self.parts = request_parts(job.target, job.key)
        named = [name or job.target.model for name in job.workload.models] or [job.target.model]
        own = [msgspec.structs.replace(job.target, model=name) for name in named]
        self.fields = [request_parts(target, job.key)[1] for target in own]  # of bodies, by SLO class
        self.block_tokens = job.workload.block_tokens
        self.rows = rows(job)
        self.ahead: deque[Call] = deque()
        self.ahead_bytes = 0
        self.parked: dict[int, deque[Call]] = {}  # calls of sessions whose answer is under way
        self.ended_s: dict[int, float] = {}  # when the last answer of a session had come
        self.ready: deque[Call] = deque()  # of a closed loop: parked before, free now
        self.thinking = 0
        self.in_flight: dict[Call, None] = {}  # in order of sending
        self.finished = asyncio.Event()
        self.connections = Connections(job.target.address, self, min(max(SPARE, job.users or 0), OPEN_AHEAD_MAX))
        self.to_log: list[tuple[Call, str, Status]] = []
        self.refilling = False
        self.timer: asyncio.TimerHandle | None = None
        self._refill()

    # --- what is due ---

    def go(self) -> None:
        """Start: at `start_s` the workload's time is 0."""
        self.loop.call_later(LOOK_S, self._look)
        users = self.job.users
        if users is None:
            self._wait_for_next()
        else:
            for _ in range(users):
                self.thinking += 1
                self.loop.call_at(self.start_s, self._user_sends, self.start_s)
        self._done_if_idle()

    def stop(self) -> None:
        """Give up what is in flight, and what was not sent."""
        self.ahead.clear()
        self.rows = iter(())
        self.parked.clear()
        self.ready.clear()
        if self.timer is not None:
            self.timer.cancel()
        for call in list(self.in_flight):
            self._end(call, "", Status.UNFINISHED)
        self.thinking = 0
        self._write_log()
        self.finished.set()

    def close(self) -> None:
        """End all connections."""
        self.connections.close()

    def _wait_for_next(self) -> None:
        if self.ahead:
            self.timer = self.loop.call_at(self.start_s + self.ahead[0].row.arrival_s, self._send_due)

    def _send_due(self) -> None:
        while self.ahead and self.start_s + self.ahead[0].row.arrival_s <= time.monotonic():
            call = self._next()
            self._send_or_park(call, self.start_s + call.row.arrival_s)
        self._refill()
        self._wait_for_next()
        self._done_if_idle()

    def _think(self, ended_s: float) -> None:
        """A user of a closed loop has its answer, and sends its next request when it has thought."""
        self.thinking += 1
        think_s = self.job.workload.think_s
        if think_s:
            self.loop.call_at(ended_s + think_s, self._user_sends, ended_s + think_s)
        else:
            self._user_sends(ended_s)

    def _user_sends(self, due_s: float) -> None:
        self.thinking -= 1
        if self.finished.is_set():
            return
        call = self.ready.popleft() if self.ready else None
        while call is None and self.ahead:
            call = self._next()
            if call.row.session in self.parked:  # somebody else's conversation, under way
                self.parked[call.row.session].append(call)
                call = None
            if self.ahead:
                self._refill_soon()
            else:
                self._refill()
        if call is not None:
            self._send(call, due_s)
        self._done_if_idle()

    def _next(self) -> Call:
        call = self.ahead.popleft()
        self.ahead_bytes -= len(call.bytes)
        return call

    def _refill_soon(self) -> None:
        """Make further requests once all that are due now are sent."""
        if not self.refilling:
            self.refilling = True
            self.loop.call_soon(self._refill)

    def _refill(self) -> None:
        self.refilling = False
        head, _, before, after = self.parts
        while len(self.ahead) < AHEAD and self.ahead_bytes < AHEAD_BYTES:
            row = next(self.rows, None)
            if row is None:
                return
            prompt = self.prompts.make(row.id, row.prompt_tokens, row.chain, self.block_tokens)
            opened = self.fields[min(row.slo_class, len(self.fields) - 1)]
            body = b"".join((opened, b"%d" % row.output_tokens, before, prompt, after))
            session = b"x-headway-session: %d\r\n" % row.session if row.session >= 0 else b""
            call = Call(row, head + b"%d\r\n%b\r\n" % (len(body), session) + body)
            self.ahead.append(call)
            self.ahead_bytes += len(call.bytes)

    # --- sending ---

    def _send_or_park(self, call: Call, due_s: float) -> None:
        waiting = self.parked.get(call.row.session)
        if waiting is None:
            self._send(call, due_s)
        else:
            waiting.append(call)

    def _send(self, call: Call, due_s: float) -> None:
        if call.row.session >= 0:
            self.parked.setdefault(call.row.session, deque())
            due_s = max(due_s, self.ended_s.get(call.row.session, due_s))
        call.due_s = due_s
        self.in_flight[call] = None
        self.log.sent(len(self.in_flight))
        self._post(call)

    def _post(self, call: Call) -> None:
        connection = call.connection = self.connections.take()
        connection.work, call.kept = call, connection.open
        call.sent_s = time.monotonic()  # where it is not open yet, set again when it is
        connection.write(call.bytes)
        self.loop.call_soon(self.connections.spare)

    # --- what connections say ---

    def opened(self, connection: Connection) -> None:
        """A connection is ready: its request is sent now, or it waits for one."""
        self.connections.opened(connection)
        if connection.work is not None:
            connection.work.sent_s = time.monotonic()

    def data(self, connection: Connection, data: bytes, now_s: float) -> None:
        """Bytes of an answer."""
        call: Call | None = connection.work
        if call is None:  # nobody asked: such a connection is of no use
            self.connections.lost(connection)
            connection.close()
            return
        call.answer.feed(data, now_s)
        if call.answer.complete:
            self._completed(call)

    def lost(self, connection: Connection, why: str) -> None:
        """A connection is gone; a request on a kept one that had closed in the meantime is sent once more."""
        self.connections.lost(connection)
        call: Call | None = connection.work
        if call is None:
            return
        if call.kept and not call.answer.got_bytes and not call.retried:
            call.retried = True
            self.log.retried += 1
            self._post(call)
            return
        if why:
            call.answer.fail(f"connection: {why}")
        call.answer.closed()
        self._completed(call)

    def _completed(self, call: Call) -> None:
        answer = call.answer
        refused, problem = answer.problem in REFUSALS, answer.problem
        self._end(call, problem, Status.REJECTED if refused else Status.FAILED if problem else Status.FINISHED)

    def _end(self, call: Call, problem: str, status: Status) -> None:
        connection, answer = call.connection, call.answer
        del self.in_flight[call]
        if connection is not None and status in (Status.FINISHED, Status.REJECTED) and answer.keep_alive:
            self.connections.back(connection)
        elif connection is not None:
            connection.work = None
            self.connections.lost(connection)
            connection.close()
        self.to_log.append((call, problem, status))
        if len(self.to_log) == 1:
            self.loop.call_soon(self._write_log)
        self._after(call, time.monotonic() if not answer.times_s else answer.times_s[-1])

    def _write_log(self) -> None:
        """Log what has ended, once what waited for it has been sent."""
        ended, self.to_log = self.to_log, []
        for call, problem, status in ended:
            answer = call.answer
            answer.parser = None  # it holds the answer: a cycle nobody collects during a run
            example = redacted(answer.raw.decode("utf-8", "replace"), self.job.key)[:EXAMPLE_CHARS]
            self.log.ended(call.row, answer, status, (call.due_s, call.sent_s, self.start_s), (problem, example))
        self._done_if_idle()

    def _after(self, call: Call, ended_s: float) -> None:
        """Let go what waited for this answer."""
        if call.row.session >= 0:
            self.ended_s[call.row.session] = ended_s
        waiting = self.parked.get(call.row.session)
        if waiting is not None and self.job.users is not None:
            del self.parked[call.row.session]
            if waiting:  # the others of this session wait on for the first of them
                self.ready.append(waiting.popleft())
                self.parked[call.row.session] = waiting
        elif waiting:
            following = waiting.popleft()
            self._send(following, self.start_s + following.row.arrival_s)
        elif waiting is not None:
            del self.parked[call.row.session]
        if self.job.users is not None and not self.finished.is_set():
            self._think(ended_s)
        self._done_if_idle()

    def _done_if_idle(self) -> None:
        if not (self.in_flight or self.ahead or self.thinking or self.ready or self.to_log):
            self.finished.set()

    def _look(self) -> None:
        """End what takes too long."""
        if self.finished.is_set():
            return
        self.connections.clock.set()
        limit_s = self.job.target.timeout_s
        now_s = time.monotonic()
        for call in list(self.in_flight):
            connection = call.connection
            if call.due_s < now_s - limit_s:
                self._end(call, f"no complete answer within {limit_s:g} s", Status.FAILED)
            elif connection and not connection.open and connection.started_s < now_s - CONNECT_S:
                self._end(call, f"connection: not open within {CONNECT_S:g} s", Status.FAILED)
        self.loop.call_later(LOOK_S, self._look)


def share_count(workload: Workload, processes: int) -> int:
    """Return how many processes are of use.

    Raises:
        BadInput: none was asked for.
    """
    if processes < 1:
        raise BadInput(f"{processes} processes: expected at least 1")
    return min(processes, workload.concurrency or processes, workload.requests)
