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
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Annotated

import msgspec

from headway.gateway.decider import Decider
from headway.gateway.spec import address

TELL_S = 0.05
SILENT_S = 3.0  # longer than a busy machine keeps a process waiting
RESOLVE_S = 5.0
APART_S = 30.0  # that clocks may differ, and a datagram may be heard again
PEERS_MAX = 256
SIGNATURE_BYTES = 32
GATEWAY = "gateway.id"  # in the folder of a decision process: what its supervisor calls the gateway

Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 20)]
Name = Annotated[str, msgspec.Meta(max_length=128)]


class Told(msgspec.Struct, frozen=True):
    """What a process says: who it is, the how manieth time, when, requests by the replica's address; its gateway."""

    who: Name
    serial: int
    unix_s: float
    in_flight: dict[Name, Count]
    gateway: Name = ""


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

    def tell(self, unix_s: float, in_flight: dict[str, int]) -> bytes:
        """Return the next datagram."""
        self.serial += 1
        text = msgspec.json.encode(Told(self.who, self.serial, unix_s, in_flight, self.gateway))
        return self._signature(text) + text

    def hear(self, now: float, unix_s: float, datagram: bytes) -> bool:
        """Take in a datagram; whether it is a peer's, and newer than what was known of it."""
        signature, text = datagram[:SIGNATURE_BYTES], datagram[SIGNATURE_BYTES:]
        if not hmac.compare_digest(signature, self._signature(text)):
            return False
        try:
            told = msgspec.json.decode(text, type=Told)
        except msgspec.DecodeError:
            return False
        before = self.heard.get(told.who)
        stale = before is not None and told.serial <= before[1].serial
        if told.gateway == self.gateway or stale or abs(told.unix_s - unix_s) > APART_S:
            return False
        if before is None and len(self.heard) >= PEERS_MAX:
            return False
        self.heard[told.who] = now, told
        return True

    def in_flight(self, now: float) -> Counter[str]:
        """Return the requests of all others by the replica's address."""
        for who in [who for who, (at_s, _) in self.heard.items() if now - at_s > SILENT_S]:
            del self.heard[who]
        total: Counter[str] = Counter()
        for _, told in self.heard.values():
            total.update(told.in_flight)
        return total

    def _signature(self, text: bytes) -> bytes:
        return hmac.digest(self.key, text, "sha256")


class Ear(asyncio.DatagramProtocol):
    """Hears peers, and tells the brain what has changed."""

    def __init__(self, decider: Decider, roll: Roll) -> None:
        self.decider = decider
        self.roll = roll

    def datagram_received(self, data: bytes, addr: object) -> None:
        """A peer's counts, if it is one."""
        if self.roll.hear(self.decider.now(), time.time(), data):
            self.pass_on()

    def pass_on(self) -> None:
        """Let the brain know what the others have by now."""
        now = self.decider.now()
        total = self.roll.in_flight(now)
        for book, where in zip(self.decider.brain.books, self.decider.addresses, strict=True):
            if total[where] != book.beside:
                self.decider.deliver(self.decider.brain.beside(now, book.index, total[where]))


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
    ear = Ear(decider, roll)
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

    def send(in_flight: dict[str, int]) -> None:
        datagram = ear.roll.tell(time.time(), in_flight)
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
            books = zip(decider.addresses, decider.brain.books, strict=True)
            send({where: book.in_flight for where, book in books if book.in_flight and where})
            ear.pass_on()  # who is silent is gone
            await asyncio.sleep(TELL_S)
    finally:
        send({})
        resolving.cancel()
        for each in sockets.values():
            each.close()
