"""Gateways beside this one, in front of the same replicas: each tells the others how many requests it has at each.

A datagram every `TELL_S` holds all counts of one gateway. One that is lost is made good by the next; who is silent for
`SILENT_S` is taken to be gone, with its requests. So what one believes of another is what that had `TELL_S` and a
datagram's way ago, and a replica gets at most so much more than its window as the others sent it in that time.
"""

from __future__ import annotations

import asyncio
import hmac
import socket
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

import msgspec

from headway.gateway.decider import Decider
from headway.gateway.hosts import GATEWAY
from headway.gateway.spec import address

TELL_S = 0.05
SILENT_S = 3.0  # longer than a busy machine keeps a process waiting
RESOLVE_S = 5.0
APART_S = 30.0  # that clocks may differ, and a datagram may be heard again
PEERS_MAX = 256
SAY_S = 60.0  # from one complaint to the next of its kind
WRONG = {
    "key": "signed with another key: gateway.peers.key_file must be the same everywhere",
    "clock": "its clock is {apart_s:+.0f} s from this one, and 30 s are allowed: set the clocks",
    "form": "signed, but not understood: another version of Headway",
    "many": "more gateways than 256",
}
SIGNATURE_BYTES = 32

Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 20)]
Name = Annotated[str, msgspec.Meta(max_length=128)]


class Told(msgspec.Struct, frozen=True):
    """What a process says: who it is, the how manieth time, when, requests by the replica's address; its gateway."""

    who: Name
    serial: int
    unix_s: float
    in_flight: dict[Name, Count]
    gateway: Name = ""
    orphans: dict[Name, Count] = {}  # requests that an earlier process of this gateway has left running


class Roll:
    """What has been told and heard; no I/O.

    `key`: the secret of all peers. `gateway`: what the processes of one gateway share, "" for one by itself: what an
    elder still has under way its heir has counted already, and need not hear where `others` names itself.
    """

    def __init__(self, key: bytes, gateway: str = "") -> None:
        self.key = key
        self.gateway = gateway or uuid.uuid4().hex
        self.who = uuid.uuid4().hex
        self.serial = 0
        self.heard: dict[str, tuple[float, Told]] = {}
        self.apart_s = self.wrong_s = 0.0  # the clock of who was heard last less this one; of who was refused for it
        self.refused: Counter[str] = Counter()

    def tell(self, unix_s: float, in_flight: dict[str, int], orphans: dict[str, int] | None = None) -> bytes:
        """Return the next datagram."""
        self.serial += 1
        text = msgspec.json.encode(Told(self.who, self.serial, unix_s, in_flight, self.gateway, orphans or {}))
        return self._signature(text) + text

    def hear(self, now: float, unix_s: float, datagram: bytes) -> bool:
        """Take in a datagram; whether it is a peer's, and newer than what was known of it."""
        signature, text = datagram[:SIGNATURE_BYTES], datagram[SIGNATURE_BYTES:]
        try:
            signed = hmac.compare_digest(signature, self._signature(text))
            told = msgspec.json.decode(text, type=Told) if signed else None
        except msgspec.DecodeError:
            return self._refuse("form")
        if told is None:
            return self._refuse("key")
        if told.gateway == self.gateway:
            return False
        apart_s = told.unix_s - unix_s
        if abs(apart_s) > APART_S:
            self.wrong_s = apart_s
            return self._refuse("clock")
        before = self.heard.get(told.who)
        if before is not None and told.serial <= before[1].serial:
            return self._refuse("overtaken")
        if before is None and len(self.heard) >= PEERS_MAX:
            return self._refuse("many")
        self.heard[told.who], self.apart_s = (now, told), apart_s
        return True

    def _refuse(self, why: str) -> bool:
        self.refused[why] += 1
        return False

    def gateways(self, now: float) -> dict[str, list[Told]]:
        """Return what the processes of each gateway said last; who is silent is gone."""
        for who in [who for who, (at_s, _) in self.heard.items() if now - at_s > SILENT_S]:
            del self.heard[who]
        found: dict[str, list[Told]] = {}
        for _, told in self.heard.values():
            found.setdefault(told.gateway or told.who, []).append(told)
        return found

    def in_flight(self, now: float) -> Counter[str]:
        """Return the requests of all others by the replica's address.

        What a process left running its heir tells as orphans: once where the elder tells of them still, as when a file
        was read anew, and for it where it was killed.
        """
        total: Counter[str] = Counter()
        for processes in self.gateways(now).values():
            own: Counter[str] = Counter()
            for told in processes:
                own.update(told.in_flight)
            for told in processes:
                own |= Counter(told.in_flight) + Counter(told.orphans)
            total.update(own)
        return total

    def _signature(self, text: bytes) -> bytes:
        return hmac.digest(self.key, text, "sha256")


class Ear(asyncio.DatagramProtocol):
    """Hears peers, and tells the brain what has changed."""

    def __init__(self, decider: Decider, roll: Roll) -> None:
        self.decider = decider
        self.roll = roll
        self.known = 0  # gateways, as was said last
        self.said_s = {why: float("-inf") for why in WRONG}
        self.said = Counter[str]()

    def datagram_received(self, data: bytes, addr: object) -> None:
        """A peer's counts, if it is one."""
        self.hear(data, time.time())

    def hear(self, data: bytes, unix_s: float) -> None:
        """Take in a datagram that came at this time."""
        if self.roll.hear(self.decider.now(), unix_s, data):
            self.pass_on()

    def pass_on(self) -> None:
        """Let the brain know what the others have by now."""
        now = self.decider.now()
        total = self.roll.in_flight(now)
        for book, where in zip(self.decider.brain.books, self.decider.addresses, strict=True):
            if total[where] != book.beside:
                self.decider.deliver(self.decider.brain.beside(now, book.index, total[where]))
        self.speak(now)

    def speak(self, now: float) -> None:
        """Say who has come and gone, and once a minute what is wrong with datagrams that came."""
        if (known := len(self.roll.gateways(now))) != self.known:
            change = "another gateway is heard" if known > self.known else "a gateway is silent"
            self.decider.say(f"peers: {change}; {known} beside this one")
            self.known = known
        for why, words in WRONG.items():
            new = self.roll.refused[why] - self.said[why]
            if new and now >= self.said_s[why] + SAY_S:
                self.said[why], self.said_s[why] = self.roll.refused[why], now
                told = words.format(apart_s=self.roll.wrong_s)
                self.decider.say(f"peers: a datagram is not believed ({new} since this was said): {told}")

    def gauges(self) -> Iterator[tuple[str, dict[str, str], float]]:
        """Who is heard, and what is not believed, for Prometheus."""
        yield "headway_peers", {}, len(self.roll.gateways(self.decider.now()))
        yield "headway_peer_clock_seconds", {}, self.roll.apart_s
        for why in (*WRONG, "overtaken"):
            yield "headway_peer_refused_total", {"reason": why}, self.roll.refused[why]

    def status(self) -> dict[str, Any]:
        """The same as JSON."""
        heard = len(self.roll.gateways(self.decider.now()))
        return {"heard": heard, "clock_s": round(self.roll.apart_s, 3), "refused": dict(self.roll.refused)}


def gateway_in(folder: Path) -> str:
    """Return the gateway's id from the folder of a decision process; "" where no supervisor gave one."""
    file = folder / GATEWAY
    return file.read_text(encoding="ascii") if file.exists() else ""


@asynccontextmanager
async def peering(decider: Decider, stop: asyncio.Event, gateway: str = "") -> AsyncIterator[None]:
    """Inside, this gateway and its peers tell each other, if the file names some; `gateway` as in `Roll`.

    When `stop` is set a successor hears instead; what is still under way here is told to the end.

    Raises:
        OSError: the address cannot be listened on.
    """
    spec = decider.brain.spec.peers
    if spec is None:
        yield
        return
    roll = Roll(spec.key(), gateway)
    ear = decider.peers = Ear(decider, roll)
    loop = asyncio.get_running_loop()
    hearing, _ = await loop.create_datagram_endpoint(
        lambda: ear, local_addr=address(spec.listen, "gateway.peers.listen"), reuse_port=True
    )
    telling = asyncio.create_task(_tell(ear, spec.others))
    stopping = asyncio.create_task(stop.wait())
    stopping.add_done_callback(lambda task: hearing.close())
    try:
        yield
    finally:
        telling.cancel()
        stopping.cancel()
        hearing.close()
        with suppress(asyncio.CancelledError):
            await telling


async def _tell(ear: Ear, others: tuple[str, ...]) -> None:
    decider, loop = ear.decider, asyncio.get_running_loop()
    sockets = {family: socket.socket(family, socket.SOCK_DGRAM) for family in (socket.AF_INET, socket.AF_INET6)}
    for each in sockets.values():
        each.setblocking(False)
    found: dict[str, list[tuple[int, tuple[object, ...]]]] = {}

    def send(in_flight: dict[str, int], orphans: dict[str, int]) -> None:
        datagram = ear.roll.tell(time.time(), in_flight, orphans)
        for family, where in {place for places in found.values() for place in places}:
            with suppress(OSError):  # what does not arrive is told again
                sockets[socket.AddressFamily(family)].sendto(datagram, where)

    async def resolve() -> None:
        for text in others:
            host, port = address(text, "gateway.peers.others")
            with suppress(OSError, UnicodeError):  # a name that does not resolve now is looked up again
                listed = await loop.getaddrinfo(host, port, type=socket.SOCK_DGRAM)
                found[text] = [(family, where) for family, _, _, _, where in listed if family in sockets]

    async def keep_resolving() -> None:
        while True:
            await resolve()
            await asyncio.sleep(RESOLVE_S)

    resolving = asyncio.create_task(keep_resolving())
    try:
        while True:
            books = [each for each in zip(decider.addresses, decider.brain.books, strict=True) if each[0]]
            orphans = {where: book.orphans for where, book in books if book.orphans}
            send({where: book.in_flight for where, book in books if book.in_flight}, orphans)
            ear.pass_on()  # who is silent is gone
            await asyncio.sleep(TELL_S)
    finally:
        send({}, {})
        resolving.cancel()
        for each in sockets.values():
            each.close()
