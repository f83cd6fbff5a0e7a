"""One replica behind one port: requests in, tokens out when the engine's step ends, and what is counted on the way."""

from __future__ import annotations

import asyncio
import functools
import re
import socket
import time
from collections.abc import Callable
from hashlib import blake2b
from typing import Any

import numpy as np

from headway.cost import Replica
from headway.emulate import answers, prompts
from headway.emulate.asks import ApiError, Ask, read_ask, read_keep_s
from headway.emulate.conductor import LEAD_S, Conductor
from headway.emulate.faults import dice, plan
from headway.emulate.http import Connection, Request, parser_class
from headway.emulate.lines import Answer, Embedded, FaultyLine, Line, Streamed, Whole, make_frames
from headway.emulate.meters import Meters
from headway.emulate.settings import Settings
from headway.engine import Sequence
from headway.engine.live import make_sequence, told
from headway.errors import BadInput
from headway.model import model
from headway.workload.lengths import draw_lengths

_SWEEP_S = 0.5
_PLAIN_ID = re.compile(r"[A-Za-z0-9._-]{1,128}\Z")
_TEXT = b"text/plain; version=0.0.4; charset=utf-8"


class Port:
    """A replica that listens. Its virtual time is the wall clock's since `epoch_s`; the engine's times are what counts.

    When a step ends in virtual time its tokens leave as soon as the process can; that it was late does not move the
    next step, so lateness never adds up. It is measured (`Meters.late`).
    """

    def __init__(self, index: int, replica: Replica, make_engine: Callable[[], Any], settings: Settings) -> None:
        self.index = index
        self.replica = replica
        self.settings = settings
        self.limits = settings.limits
        self.model = model(replica.model)
        self.names = settings.names or (replica.model,)
        self.make_engine = make_engine  # a `PacedReplica`, or what behaves as one
        self.parser = parser_class()
        self.connections: set[Connection] = set()
        self.created = int(time.time())
        self.epoch_s = time.monotonic()
        self.held: list[tuple[Connection, Request]] | None = None
        self.serial = 0
        self.sock: socket.socket | None = None
        self.start_anew()

    @property
    def role(self) -> str:
        """What the replica does."""
        return "mixed"

    def start_anew(self) -> None:
        """Begin with an empty engine and empty counters."""
        self.paced = self.make_engine()
        self.meters = Meters(self.names[0])
        self.under_way: dict[int, Answer] = {}
        self.now_s = 0.0

    # --- listening ---

    async def listen(self, port: int, conductor: Conductor) -> None:
        """Begin to take connections; port 0 takes any that is free. The conductor hears of what there is to do.

        Raises:
            BadInput: it cannot be had.
        """
        self.loop = asyncio.get_running_loop()
        self.conductor = conductor
        await self._open(port)
        self._sweep()
        start_s = self.loop.time()
        for fault in self.settings.faults:
            if fault.at_s is not None and fault.replica == self.index:
                begin = self._crash if fault.kind == "crash" else self._freeze
                self.loop.call_at(start_s + fault.at_s, begin, fault.for_s)

    async def _open(self, port: int) -> None:
        host = self.settings.host
        try:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            self.sock = socket.create_server((host, port), family=family, backlog=1024)
        except (OSError, OverflowError) as error:
            why = getattr(error, "strerror", None) or str(error)
            raise BadInput(f"cannot listen on {host}:{port}: {why}; choose another --port or --host") from None
        self.address = self.sock.getsockname()[:2]
        self.server = await self.loop.create_server(lambda: Connection(self, self.parser), sock=self.sock)

    @property
    def url(self) -> str:
        """Where it listens."""
        host, port = self.address
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    def close(self) -> None:
        """Stop listening and cut all connections."""
        self.sweeper.cancel()
        self._shut()

    def _shut(self) -> None:
        self.server.close()
        for conn in list(self.connections):
            conn.cut()

    def _crash(self, for_s: float) -> None:
        """The process dies; a new one comes up later and knows nothing."""
        self._shut()
        self.start_anew()
        self.epoch_s = time.monotonic()
        self.conductor.plan()
        self.loop.call_later(for_s, lambda: self.loop.create_task(self._open(self.address[1])))

    def _freeze(self, for_s: float) -> None:
        """Nothing moves: neither the engine, whose time stands still, nor the answers to new requests."""
        self.held = []
        self.conductor.plan()
        self.loop.call_later(for_s, self._thaw, for_s)

    def _thaw(self, for_s: float) -> None:
        held, self.held = self.held or [], None
        self.epoch_s += for_s
        for conn, request in held:
            self.handle(conn, request._replace(received_s=time.monotonic()))
        self.conductor.plan()

    def _sweep(self) -> None:
        """Send away who is slow to send a request."""
        now_s = time.monotonic()
        for conn in [conn for conn in self.connections if conn.deadline_s < now_s]:
            if conn.started and not conn.discarding and not conn.busy:
                conn.refuse(408, "the request took too long to come")
            else:
                conn.cut()
        self.sweeper = self.loop.call_later(_SWEEP_S, self._sweep)

    # --- time ---

    def due_s(self) -> float:
        """When the next step ends or the next request arrives, on the monotonic clock."""
        return self.epoch_s + self.paced.next_s if self.held is None else float("inf")

    def tokens_due(self) -> int:
        """About how many tokens leave then."""
        return int(self.paced.running)

    def most_lead_s(self) -> float:
        """How early its step may be taken.

        Not earlier than a request needs to reach the engine: so no step begins without a request it should have seen.
        """
        return min(float(self.paced.intake_s), LEAD_S)

    def play(self) -> tuple[int, float]:
        """Let happen what is due next; how many tokens left, and by how much their middle was late."""
        clock, epoch_s, sent, late_s = time.monotonic, self.epoch_s, 0, 0.0
        for step_s, tokens, ended in self.paced.advance(self.paced.next_s):
            self.now_s = step_s
            begun_s = clock() - epoch_s - step_s
            self.step_ended(step_s, tokens, ended)
            over_s = clock() - epoch_s - step_s
            self.meters.late.add(max(over_s, 0.0))
            sent, late_s = sent + len(tokens), (begun_s + over_s) / 2
        return sent, late_s

    def step_ended(self, now_s: float, tokens: list[Sequence], ended: list[Sequence]) -> None:
        """Send each sequence's token; count gaps, which all who decoded in this step have alike, together.

        Last tokens leave last: what their readers ask for next could not be taken before all have left.
        """
        under_way, meters = self.under_way, self.meters
        if ended:
            last = {seq.id for seq in ended}
            for number in last & under_way.keys():
                under_way[number].ending = True
            tokens = [seq for seq in tokens if seq.id not in last] + ended
        gap_s, alike, count = -1.0, 0, 0
        for seq in tokens:
            answer = under_way.get(seq.id)
            if answer is None:
                continue
            number = answer.sent
            answer.sent = number + 1
            answer.emit(number)
            count += 1
            if number == 0:
                self._first_token(seq, now_s)
            elif now_s - answer.last_s == gap_s:
                alike += 1
            else:
                if alike:
                    meters.gap.add(gap_s, alike)
                gap_s, alike = now_s - answer.last_s, 1
            answer.last_s = now_s
        if alike:
            meters.gap.add(gap_s, alike)
        meters.output_tokens += count
        for seq in ended:
            self._ended(seq)

    def _first_token(self, seq: Sequence, now_s: float) -> None:
        self.meters.ttft.add(now_s - seq.arrival_s)
        self.meters.queue.add(told(seq).admitted_s - seq.arrival_s)
        self.meters.prompt_tokens += seq.prompt_tokens

    def _ended(self, seq: Sequence) -> None:
        answer = self.under_way.pop(seq.id, None)
        if answer is None:
            return  # its client has left
        so_far = told(seq)
        self.meters.ended[answer.reason] += 1
        self.meters.e2e.add(so_far.last_s - seq.arrival_s)
        if answer.sent > 1:
            self.meters.tpot.add((so_far.last_s - so_far.first_s) / (answer.sent - 1))

    # --- requests ---

    def handle(self, conn: Connection, request: Request) -> None:
        """Answer a request."""
        if self.held is not None:
            self.held.append((conn, request))
            return
        try:
            expected, answer = self._route(request.path)
            if request.method != expected and not (request.method == "HEAD" and expected == "GET"):
                raise ApiError(405, f"{request.method} {request.path}: use {expected}")
            answer(conn, request)
        except ApiError as error:
            self.meters.refused += 1
            conn.send(answers.response(error.status, error.body(), keep=conn.keep))
            conn.finish()

    def _route(self, path: str) -> tuple[str, Callable[[Connection, Request], None]]:
        routes: dict[str, tuple[str, Callable[[Connection, Request], None]]] = {
            "/v1/chat/completions": ("POST", functools.partial(self._generate, "chat")),
            "/v1/completions": ("POST", functools.partial(self._generate, "completion")),
            "/v1/embeddings": ("POST", functools.partial(self._generate, "embedding")),
            "/v1/models": ("GET", self._models),
            "/health": ("GET", self._health),
            "/metrics": ("GET", self._metrics),
        }
        if path not in routes:
            raise ApiError(404, f"no such path: {path[:200]}; there are {', '.join(routes)}")
        return routes[path]

    def _models(self, conn: Connection, request: Request) -> None:
        self._reply(conn, answers.models(self.names, self.created, self.paced.max_context))

    def _health(self, conn: Connection, request: Request) -> None:
        self._reply(conn, b"")

    def _metrics(self, conn: Connection, request: Request) -> None:
        books = self.paced.books(time.monotonic() - self.epoch_s)
        self._reply(conn, self.meters.text(books).encode(), _TEXT)

    def _reply(self, conn: Connection, body: bytes, kind: bytes = answers.JSON) -> None:
        conn.send(answers.response(200, body, kind, keep=conn.keep))
        conn.finish()

    def _generate(self, kind: str, conn: Connection, request: Request) -> None:
        """Put what is asked before the engine, or refuse it."""
        ask = read_ask(kind, request.body, self.names, self.model.vocab)
        if ask.stream and request.http_1_0:
            raise ApiError(400, "a stream needs HTTP/1.1")
        given = request.headers.get("x-request-id", "")
        self.serial += 1
        name = given if _PLAIN_ID.match(given) else f"{self.index}-{self.serial}"
        sent_s = request.received_s - self.epoch_s
        seqs, reason = self._sequences(ask, name, sent_s, read_keep_s(request.headers))
        befalls = plan(self.settings.faults, self.settings.seed, name, seqs[0][1])
        if befalls is not None and befalls.status:
            raise ApiError(befalls.status, "a fault was ordered")
        if befalls is not None and befalls.hangs:
            return
        line: Line = conn
        if befalls is not None:
            line = FaultyLine(conn, befalls, request.received_s, lambda: self.epoch_s + self.now_s, ask.stream)
        extra = f"x-request-id: {name}\r\n".encode()
        conn.answers = self._answers(ask, name, [seq for seq, _ in seqs], reason, line, extra)
        if ask.stream:
            conn.send(answers.stream_head(extra))
        for answer in conn.answers:
            self.under_way[answer.seq.id] = answer
            self.paced.send(answer.seq, sent_s)
        self.conductor.plan()

    def _sequences(
        self, ask: Ask, name: str, sent_s: float, keep_s: float
    ) -> tuple[list[tuple[Sequence, int]], str]:
        """The sequences to be computed with their output lengths, and why the answer will end."""
        made = []
        reason = "stop"
        for number, tokens in enumerate(ask.prompts):
            n = prompts.count(tokens)
            output, reason = self._output_tokens(ask, name, n)
            self.serial += number > 0
            units = None
            if self.paced.block_tokens:
                whole = tokens + prompts.filler(self._first_word(name), output)
                units = prompts.units(whole, self.paced.block_tokens, f"{self.replica.model}\0{ask.salt}".encode())
            seq = make_sequence(self.serial, sent_s, (n, output), ask.priority, units, keep_s)
            if not self.paced.fits(seq):
                message = f"prompt of {n} and output of {output} tokens need more KV than the replica has"
                raise ApiError(400, message, param="messages" if ask.kind == "chat" else "prompt")
            made.append((seq, output))
        return made, reason

    def _output_tokens(self, ask: Ask, name: str, prompt_tokens: int) -> tuple[int, str]:
        """How long the answer becomes, and why it ends there."""
        longest = self.paced.max_context
        room = longest - prompt_tokens
        asked = 1 if ask.limit is None else max(ask.limit, ask.least)
        if room < asked:
            param = "max_tokens" if room > 0 and ask.limit else None
            message = (
                f"this model's context is {longest} tokens; the request has {prompt_tokens} in the prompt and asks for "
                f"{asked}: shorten it"
            )
            raise ApiError(400, message, param=param, code="context_length_exceeded")
        limit = room if ask.limit is None else ask.limit
        if ask.kind == "embedding":
            return 1, "stop"
        if ask.ignore_eos and ask.limit is not None:
            return limit, "length"
        seed = int(dice(self.settings.seed, "output", name) * 2**53)
        rng = np.random.default_rng(seed)
        drawn = int(draw_lengths(self.settings.output, rng, np.array([prompt_tokens]))[0])
        drawn = max(drawn, ask.least)
        return (drawn, "stop") if drawn < limit else (limit, "length")

    def _first_word(self, name: str) -> int:
        return blake2b(name.encode(), digest_size=1).digest()[0] % len(prompts.WORDS)

    def _answers(
        self, ask: Ask, name: str, seqs: list[Sequence], reason: str, line: Line, extra: bytes
    ) -> list[Any]:
        if ask.kind == "embedding":
            body = functools.partial(
                answers.embeddings, self.names[0], ask.prompts, ask.dimensions or self.model.hidden, ask.base64
            )
            together: list[Embedded] = []
            together += [Embedded(seq, together, line, body) for seq in seqs]
            return list(together)
        frames = make_frames(ask.kind, name, self.names[0], int(time.time()), self._first_word(name))
        return [(Streamed if ask.stream else Whole)(seqs[0], ask, reason, frames, line, extra)]

    def gone(self, conn: Connection) -> None:
        """A client has left: what is under way for it ends, and its KV pages are free."""
        if self.held is not None:
            self.held = [(other, request) for other, request in self.held if other is not conn]
        left, conn.answers = conn.answers, []
        now_s = time.monotonic() - self.epoch_s
        for answer in left:
            if self.under_way.pop(answer.seq.id, None) is not None:
                self.meters.ended["abort"] += 1
                self.paced.abort(answer.seq, now_s)
        if left:
            self.conductor.plan()
