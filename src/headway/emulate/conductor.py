"""When the tokens of each replica's step begin to leave: one process writes for all, and one write takes some time."""

from __future__ import annotations

import asyncio
import math
import time
from typing import Protocol

from headway.emulate.alarm import Alarm

LEAD_S = 0.002  # the most that a burst may begin early
_LEARNING = 0.02  # the share of an error that the next estimate makes up for
_FEW = 16  # tokens: a shorter burst says little about the price of one


class Player(Protocol):
    """A replica as the conductor sees it, on the monotonic clock."""

    def due_s(self) -> float:
        """When its next step ends or its next request arrives; infinity while there is neither."""

    def tokens_due(self) -> int:
        """About how many tokens will leave then."""

    def most_lead_s(self) -> float:
        """How much earlier it may be told."""

    def play(self) -> tuple[int, float]:
        """Let happen what is due next; the tokens that left, and by how much their middle was late."""


class Conductor:
    """Wakes replicas so that their tokens leave on time on the average.

    The tokens of a step leave one after the other. So a burst begins half its length early; bursts that would overlap
    make one, whose middle is on time.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, players: list[Player]) -> None:
        self.players = players
        self.alarm = Alarm(loop, self.ring)
        self.first: list[Player] = []
        self.token_s = 4e-6
        self.bias_s = 1e-4

    def plan(self) -> None:
        """Find the next burst, and set the alarm to its beginning."""
        due = sorted(((player.due_s(), number) for number, player in enumerate(self.players)))
        self.first = []
        begin_s, length_s, ahead_s, weight = math.inf, 0.0, 0.0, 0
        for due_s, number in due:
            player = self.players[number]
            tokens = player.tokens_due()
            burst_s = self.token_s * tokens
            if due_s == math.inf or due_s - burst_s / 2 > begin_s + length_s:
                break
            # The middle of this burst is on time if all begins here; the beginning is the mean over the tokens.
            ahead_s += (due_s - length_s - burst_s / 2) * (tokens + 1)
            weight += tokens + 1
            length_s += burst_s
            begin_s = ahead_s / weight
            self.first.append(player)
        if self.first:
            begin_s = max(begin_s, self.first[0].due_s() - self.first[0].most_lead_s())
        self.alarm.set(begin_s - self.bias_s)

    def ring(self) -> None:
        """Let the next burst leave."""
        for player in self.first:
            due_s = player.due_s()
            if due_s - time.monotonic() > player.most_lead_s():
                continue
            began_s = time.monotonic()
            tokens, late_s = player.play()
            if tokens >= _FEW:
                self.token_s += _LEARNING * ((time.monotonic() - began_s) / tokens - self.token_s)
                self.bias_s = min(max(self.bias_s + _LEARNING * late_s, 0.0), LEAD_S / 4)
        self.plan()

    def close(self) -> None:
        """Ring no more."""
        self.alarm.close()
