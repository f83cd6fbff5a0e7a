"""The contract of policies: every built-in keeps it, and each way to break it is found and said."""

from __future__ import annotations

import gc
import random
import re
import sys
import time
from datetime import datetime

import numpy as np
import pytest

from headway.errors import BadInput, UnknownName
from headway.policies import Policy, check_policy, policy, policy_names
from headway.state import Accept, Defer, Hold, Reject, Route, Scale

BUILT_IN = [
    (kind, name)
    for kind in ("route", "order", "admit", "choose_model", "retain", "scale")
    for name in policy_names(kind)
]


class Router(Policy):
    """Keeps the contract; the broken ones below differ from it in one thing."""

    def route(self, request, pool):
        return Route(len(pool.replicas) - 1, "the last")


class Orderer(Policy):
    def order(self, queue):
        return queue.prompt_tokens


@pytest.mark.parametrize(("kind", "name"), BUILT_IN)
def test_every_built_in_policy_keeps_the_contract(kind, name):
    check_policy(kind, name)
    check_policy(kind, policy(kind, name))


def test_what_looks_at_the_clock_when_garbage_is_collected_is_not_the_policy():
    def timed(*_):
        time.perf_counter()

    before = gc.get_threshold()
    gc.callbacks.append(timed)
    gc.set_threshold(1)  # at every object made
    try:
        check_policy("order", Orderer)
    finally:
        gc.set_threshold(*before)
        gc.callbacks.remove(timed)
    assert gc.isenabled()


def test_seconds_may_be_of_any_kind_of_number_or_none():
    class Kinds(Policy):
        def retain(self, request, replica):
            return (5, 2.5, np.float32(0.5), np.int64(7), None)[request.id]

    check_policy("retain", Kinds)


def test_a_name_a_class_and_an_object_can_be_checked():
    check_policy("route", Router)
    check_policy("route", Router())
    check_policy("route", f"{__name__}:Router")
    check_policy("admit", "queue-limit", {"limit": 3})
    check_policy("admit", Router)  # the base accepts all


class NoRoute(Router):
    def route(self, request, pool):
        return 0


class TooFar(Router):
    def route(self, request, pool):
        return Route(2, "always the third")


class Negative(Router):
    def route(self, request, pool):
        return Route(-1, "the last")


class Silent(Router):
    def route(self, request, pool):
        return Route(0, " ")


class Talkative(Router):
    def route(self, request, pool):
        return Route(0, "because " * 40)


class Fresh(Router):
    def __init__(self):
        self.rng = random.Random()

    def route(self, request, pool):
        return Route(self.rng.randrange(len(pool.replicas)), "a stream of its own")


class Dice(Router):
    def route(self, request, pool):
        return Route(random.randrange(len(pool.replicas)), "the global stream")


class NumpyDice(Router):
    def route(self, request, pool):
        return Route(int(np.random.rand() * len(pool.replicas)), "numpy's global stream")


class Clock(Router):
    def route(self, request, pool):
        return Route(0, "late" if time.monotonic() < 0 else "early")


class Calendar(Router):
    def route(self, request, pool):
        return Route(0, "past" if datetime.now().year < 2000 else "present")


class Printer(Router):
    def route(self, request, pool):
        print("hello")
        return Route(0, "said so")


class Reader(Router):
    def route(self, request, pool):
        with open(__file__) as file:
            return Route(0, file.readline()[:5])


class Sorter(Router):
    def route(self, request, pool):
        pool.replicas.sort(key=lambda replica: -replica.index)
        return Route(0, "sorted in place")


class Meddler(Router):
    def route(self, request, pool):
        pool.replicas[0].waiting += 1
        return Route(0, "counted itself")


class Cheat(Router):
    def route(self, request, pool):
        return Route(request.output_tokens % len(pool.replicas), "the true length")


class Trusting(Router):
    def route(self, request, pool):
        return Route(int(request.predicted_output_tokens) % len(pool.replicas), "the prediction")


class Rigid(Router):
    def __init__(self):
        self.count = 0

    def route(self, request, pool):
        self.count = max(self.count, len(pool.replicas))
        return Route(self.count - 1, "the last there ever was")


class Undecided(Router):
    reads_progress = "yes"


class Thrifty(Router):
    reads_progress = False

    def route(self, request, pool):
        return Route(min(range(len(pool.replicas)), key=lambda i: pool.replicas[i].kv_used_blocks), "most room")


class Hourly(Orderer):
    rekey_on = ("hour",)


class OneKey(Orderer):
    def order(self, queue):
        return 1.0


class TooFew(Orderer):
    def order(self, queue):
        return queue.prompt_tokens[:-1]


class Words(Orderer):
    def order(self, queue):
        return ["soon"] * len(queue.prompt_tokens)


class NanKeys(Orderer):
    def order(self, queue):
        return queue.predicted_output_tokens


class NeedsOne(Orderer):
    def order(self, queue):
        return queue.prompt_tokens - queue.prompt_tokens.max()


class InPlace(Orderer):
    def order(self, queue):
        queue.prompt_tokens[:] = np.sqrt(queue.prompt_tokens)
        return queue.prompt_tokens


class Ranks(Orderer):
    def order(self, queue):
        return np.argsort(np.argsort(queue.prompt_tokens, kind="stable"))


class Slack(Orderer):
    def order(self, queue):
        return queue.deadline_s - queue.now


class Yes(Policy):
    def admit(self, request, cluster):
        return True


class Hoarder(Router):
    def route(self, request, pool):
        return Hold("later")


class Mumbler(Router):
    def route(self, request, pool):
        busy = any(replica.running + replica.waiting for replica in pool.replicas)
        return Hold() if busy else Route(0, "idle")


class Past(Policy):
    def admit(self, request, cluster):
        return Defer(cluster.now, "now")


class Forever(Policy):
    def admit(self, request, cluster):
        return Defer(float("inf"), "never")


class Grow(Policy):
    def scale(self, cluster):
        return Scale(0, 3, "more")


class Vanish(Policy):
    def scale(self, cluster):
        return [Scale(0, 0, "nobody there")]


class Elsewhere(Policy):
    def scale(self, cluster):
        return [Scale(1, 1, "the decode pool")]


class Torn(Policy):
    def scale(self, cluster):
        return [Scale(0, 1, "fewer"), Scale(0, 9, "more")]


class Seconds(Policy):
    def retain(self, request, replica):
        return "60s"


class Eternal(Policy):
    def retain(self, request, replica):
        return float("inf")


class Backwards(Policy):
    def retain(self, request, replica):
        return -1.0


class Affirmative(Policy):
    def retain(self, request, replica):
        return True


class ByRoom(Policy):
    reads_progress = False

    def retain(self, request, replica):
        return replica.kv_total_blocks - replica.kv_used_blocks


class Greedy(Policy):
    def retain(self, request, replica):
        replica.waiting += 1
        return 1.0


class Mute(Policy):
    def admit(self, request, cluster):
        return Reject("")


class Stubborn(Policy):
    def admit(self, request, cluster):
        return Accept("a decode pool") if len(cluster.pools[1].replicas) else Reject("none")


@pytest.mark.parametrize(
    ("kind", "broken", "message"),
    [
        ("route", NoRoute, r"with 1 mixed replica: answered 0: expected a Route\(index, reason\)"),
        ("route", TooFar, r"answered Route\(2, 'always the third'\): expected an index from 0 to 0"),
        ("route", Negative, "expected an index from 0 to 0"),
        ("route", Silent, "with the reason ' ': expected a reason of one line"),
        ("route", Talkative, "expected a reason of one line, 1 to 120 characters"),
        ("route", Fresh, r"answered Route.*and the next time Route.*expected the same decision"),
        ("route", Dice, "drew from the global random stream: expected draws from the view's `rng`"),
        ("route", NumpyDice, "drew from the global random stream"),
        ("route", Clock, "called time.monotonic of the machine's clock; expected time from the view's `now`"),
        ("route", Calendar, "called now of the machine's clock"),
        ("route", Printer, "called print of the terminal"),
        ("route", Reader, "called open of a file"),
        ("route", Sorter, "with 3 mixed replicas: changed the PoolState it was shown"),
        ("route", Meddler, "changed the PoolState|raised AttributeError.*which is only read"),
        ("route", Cheat, "raised AttributeError: .*output_tokens"),
        ("route", Trusting, "raised ValueError: cannot convert float NaN to integer"),
        ("route", Rigid, "with 2 mixed replicas: answered .* expected an index from 0 to 1"),
        ("route", Undecided, "reads_progress is 'yes': expected True or False"),
        ("route", Thrifty, "but .* with other context_tokens.*expected reads_progress = True"),
        ("order", Hourly, "rekey_on is .*hour.*: expected a tuple of wake events"),
        ("order", OneKey, r"answered an array of shape \(\): expected \(0,\), one key per request"),
        ("order", TooFew, r"with 1 waiting: answered an array of shape \(0,\): expected \(1,\)"),
        ("order", Words, "expected an array of 1 numbers, one per request"),
        ("order", NanKeys, "no NaN, also where predictions are NaN"),
        ("order", NeedsOne, "with 0 waiting: raised ValueError"),
        ("order", InPlace, "changed the QueueView it was shown"),
        ("order", Ranks, r"to one request after another \[0.0, 0.0.*without rekey_on"),
        ("order", Slack, "490 s later .*without rekey_on"),
        ("admit", Yes, r"answered True: expected Accept\(reason\), Reject\(reason\) or Defer"),
        ("route", Hoarder, r"answered Hold\('later'\), all replicas idle: expected a Route"),
        ("route", Mumbler, "answered Hold with the reason ''"),
        ("admit", Past, r"answered Defer\(10.0, 'now'\): expected an absolute time after the view's now, 10.0"),
        ("admit", Forever, "answered Defer.inf.*expected an absolute time"),
        ("scale", Grow, r"answered Scale\(0, 3, 'more'\): expected a list of Scale"),
        ("scale", Vanish, "answered Scale.0, 0.*at least 1 replica"),
        ("scale", Elsewhere, "answered Scale.1.*expected a pool from 0 to 0"),
        ("scale", Torn, "expected a pool once"),
        ("retain", Seconds, "answered '60s': expected seconds, a finite number, 0 .or None. for as the engine does"),
        ("retain", Eternal, "answered inf: expected seconds, a finite number"),
        ("retain", Backwards, "answered -1.0: expected seconds"),
        ("retain", Affirmative, "answered True: expected seconds"),
        ("retain", ByRoom, "for a request at an? .* replica: .* with other context_tokens.*expected reads_progress"),
        ("retain", Greedy, "changed the ReplicaState|changed the StockedReplica|raised AttributeError.*only read"),
        ("admit", Mute, "answered Reject with the reason ''"),
        ("admit", Stubborn, "raised IndexError"),
    ],
)
def test_each_way_to_break_the_contract_is_found(kind, broken, message, capsys):
    with pytest.raises(BadInput) as error:
        check_policy(kind, broken)
    first, *faults = str(error.value).splitlines()
    assert first == f"{kind} policy {broken.__name__!r} breaks the contract of docs/policies.md:"
    assert any(re.search(message, fault) for fault in faults), faults
    assert all(fault.startswith("- ") for fault in faults)


def test_a_policy_that_re_keys_at_every_step_may_look_at_the_time_and_at_the_others():
    class Urgent(Slack):
        rekey_on = ("step",)

        def order(self, queue):
            return np.argsort(np.argsort(queue.deadline_s - queue.now, kind="stable"))

    check_policy("order", Urgent)


def test_what_is_no_policy_for_this_decision_is_refused():
    with pytest.raises(UnknownName, match="decision point 'rout': nearest: route"):
        check_policy("rout", Router)
    with pytest.raises(UnknownName, match="route policy 'round-robbin'"):
        check_policy("route", "round-robbin")
    with pytest.raises(BadInput, match=r"Orderer does not define route\(\)"):
        check_policy("route", Orderer)
    with pytest.raises(BadInput, match="is not a policy"):
        check_policy("route", dict)


def test_checking_leaves_profiler_and_random_streams_as_they_were():
    def profiler(frame, event, called):
        return None

    random.seed(3)
    np.random.seed(3)
    before = random.getstate(), np.random.get_state()[1].tolist()
    sys.setprofile(profiler)
    try:
        check_policy("route", "power-of-two")
        assert sys.getprofile() is profiler
    finally:
        sys.setprofile(None)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before
