"""Ports of prefill and decode replicas, and the player that lets their common virtual time follow the wall clock."""

from __future__ import annotations

import math
import time

from headway.cost import Replica
from headway.emulate.asks import ApiError
from headway.emulate.conductor import LEAD_S
from headway.emulate.http import Connection, Request
from headway.emulate.pools import PacedPools, Seat
from headway.emulate.port import Port
from headway.emulate.settings import Settings

PREFILLER = ("x-prefiller-host-port", "x-llm-d-prefiller-host-port")  # as llm-d's sidecar reads them, older name first


class PoolPort(Port):
    """A prefill or a decode replica that listens.

    A request to a decode replica that names one of the prefill replicas in a header has its prompt computed there; any
    other is served by the replica that it was sent to alone, as llm-d's sidecar has it.
    """

    def __init__(self, index: int, replica: Replica, seat: Seat, settings: Settings) -> None:
        super().__init__(index, replica, lambda: seat, settings)
        self.seat = seat
        self.prefills: list[PoolPort] = []

    @property
    def role(self) -> str:
        """What the replica does."""
        return self.seat.pools.roles[self.seat.number]

    def _generate(self, kind: str, conn: Connection, request: Request) -> None:
        self.paced = Seat(self.seat.pools, self.seat.number, self._prefill(request))
        super()._generate(kind, conn, request)

    def _prefill(self, request: Request) -> int | None:
        """The prefill replica that a request names, by its port: all of them are in this process."""
        named = next((request.headers[name] for name in PREFILLER if request.headers.get(name)), "")
        if not named or self.role != "decode":
            return None
        port = named.rpartition(":")[2].strip()
        for each in self.prefills:
            if str(each.address[1]) == port:
                return each.seat.number
        there = ", ".join(f"{each.address[0]}:{each.address[1]}" for each in self.prefills)
        raise ApiError(502, f"{PREFILLER[0]}: no prefill replica is at {named[:100]}: there are {there}")


class PoolPlayer:
    """The replicas of one model's pools to the conductor: what one does at an instant, others hear at that instant."""

    def __init__(self, pools: PacedPools, ports: list[PoolPort]) -> None:
        self.pools = pools
        self.ports = ports
        self.epoch_s = ports[0].epoch_s
        for port in ports:
            port.epoch_s = self.epoch_s
            port.prefills = [other for other in ports if other.role == "prefill"]

    def due_s(self) -> float:
        """When something happens next, on the monotonic clock."""
        return self.epoch_s + self.pools.next_s

    def tokens_due(self) -> int:
        """About how many tokens leave then: those of one replica."""
        return math.ceil(self.pools.running() / len(self.ports))

    def most_lead_s(self) -> float:
        """How early it may be told: not earlier than a request needs to reach its engine."""
        return min(self.pools.intake_s, LEAD_S)

    def play(self) -> tuple[int, float]:
        """Let happen what is due next; how many tokens left, and by how much their middle was late."""
        clock, epoch_s, sent, late_s = time.monotonic, self.epoch_s, 0, 0.0
        for step_s, number, parts in self.pools.advance(self.pools.next_s):
            begun_s = clock() - epoch_s - step_s
            for part in parts:
                port = self.ports[part.replica]
                port.now_s = step_s
                port.step_ended(step_s, part.tokens, part.ended)
                sent += len(part.tokens)
            over_s = clock() - epoch_s - step_s
            self.ports[number].meters.late.add(max(over_s, 0.0))
            late_s = (begun_s + over_s) / 2
        return sent, late_s
