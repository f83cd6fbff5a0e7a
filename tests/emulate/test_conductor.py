"""When bursts begin, without a clock: fake replicas, and an alarm that only notes when it is set."""

import math

import pytest

from headway.emulate import conductor as module
from headway.emulate.conductor import LEAD_S, Conductor


class Note:
    def __init__(self, loop, ring):
        self.when_s = None

    def set(self, when_s):
        self.when_s = when_s


class Fake:
    def __init__(self, due_s, tokens, lead_s=LEAD_S):
        self.due, self.tokens, self.lead = due_s, tokens, lead_s

    def due_s(self):
        return self.due

    def tokens_due(self):
        return self.tokens

    def most_lead_s(self):
        return self.lead

    def play(self):
        self.due += 1.0
        return self.tokens, 0.0


@pytest.fixture
def planned(monkeypatch):
    monkeypatch.setattr(module, "Alarm", Note)

    def plan(*players):
        made = Conductor(None, list(players))
        made.token_s, made.bias_s = 4e-6, 0.0
        made.plan()
        return made

    return plan


def test_a_burst_begins_half_its_length_early(planned):
    made = planned(Fake(10.0, 250), Fake(11.0, 250))
    assert made.first == made.players[:1]
    assert made.alarm.when_s == pytest.approx(10.0 - 0.0005, abs=1e-9)


def test_bursts_that_would_overlap_have_one_middle(planned):
    made = planned(Fake(10.0002, 250), Fake(10.0, 250), Fake(10.1, 250))
    assert made.first == [made.players[1], made.players[0]]
    # 500 tokens in 2 ms around the mean of what is due, 10.0001
    assert made.alarm.when_s == pytest.approx(10.0001 - 0.001, abs=1e-8)


def test_nobody_is_told_earlier_than_allowed(planned):
    assert planned(Fake(10.0, 10_000, lead_s=0.0)).alarm.when_s == 10.0
    assert planned(Fake(10.0, 10_000)).alarm.when_s == 10.0 - LEAD_S


def test_with_nothing_to_do_it_sleeps(planned):
    made = planned(Fake(math.inf, 0), Fake(math.inf, 7))
    assert made.alarm.when_s == math.inf
    made.ring()
    assert made.alarm.when_s == math.inf


def test_what_is_due_too_far_ahead_is_left_for_later(planned, monkeypatch):
    made = planned(Fake(10.0, 250), Fake(10.0005, 250, lead_s=0.0001))
    monkeypatch.setattr(module.time, "monotonic", lambda: 9.9995)
    made.ring()
    assert [player.due for player in made.players] == [11.0, 10.0005]
