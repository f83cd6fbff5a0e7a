"""The schedule: what is due is sent when it is due, latencies count from then, and what waits on answers waits."""

import asyncio
import json
import sys
import time

import numpy as np
import pytest
from bench_cases import DONE, END, HEAD, chunk, drive, event, failing, plain, requests_of

from headway.bench import Job, Target
from headway.bench.connection import Connection
from headway.bench.driver import rows, share_count
from headway.errors import BadInput
from headway.metrics import Status
from headway.workload import Sessions, parse_length, workload
from headway.workload.arrivals import Closed

FINISHED, REJECTED, FAILED, UNFINISHED = (int(status) for status in Status)


def ends(log):
    return log.counts["status"].tolist()


def answers_after(seconds):
    async def script(server, number, body, writer):
        await asyncio.sleep(seconds)
        writer.write(HEAD + chunk(event(" a")))
        await asyncio.sleep(0.001)
        writer.write(chunk(event(" b")) + chunk(DONE) + END)

    return script


def conversation(n=60, arrival="constant", rate=400.0):
    sessions = Sessions(calls=parse_length("uniform:2:5"), growth=parse_length("8"))
    return requests_of(n=n, arrival=arrival, rate=rate, sessions=sessions)


def test_requests_arrive_when_the_workload_says_and_are_sent_in_that_order(monkeypatch):
    sent, write = [], Connection.write

    def noted(connection, data):
        sent.append(json.loads(data.partition(b"\r\n\r\n")[2])["max_tokens"])
        write(connection, data)

    monkeypatch.setattr(Connection, "write", noted)
    what = requests_of(n=30, rate=500.0, output="uniform:2:9")
    log, server = drive(what)
    (batch,) = what.batches(0)
    assert ends(log) == [FINISHED] * 30
    assert log.times["arrival_s"] == pytest.approx(batch.arrival_s)
    assert (log.times["sent_s"] >= log.times["arrival_s"]).all()
    assert sent == batch.output_tokens.tolist()
    assert all(len(body["prompt"]) == 16 and body["ignore_eos"] and body["stream"] for body in server.bodies)


def test_a_server_that_stalls_shows_in_all_that_was_due_meanwhile():
    """Ten requests due 5 ms apart, served one after the other in 20 ms each: the k-th answered waits for all before it.

    Which one that is, is the server's affair: those sent in one turn of the loop may change places.
    """
    turn = asyncio.Lock()

    async def script(server, number, body, writer):
        async with turn:
            await asyncio.sleep(0.02)
            await plain(server, number, body, writer)

    log, server = drive(requests_of(n=10, rate=200.0), script)
    first_s, due_s = np.sort(log.times["first_token_s"]), log.times["arrival_s"]
    k = np.arange(10)
    assert (first_s - due_s[0] >= 0.02 * (k + 1) - 0.002).all()
    ttft_s = log.times["first_token_s"] - due_s
    assert ttft_s.sum() >= (0.02 * (k + 1) - 0.005 * k - 0.002).sum(), "counted from when each was due"
    assert server.most > 5, "it went on sending while nothing was answered"


def test_a_client_that_stalls_counts_from_the_schedule_too():
    """The loop stands still for 150 ms while requests come due: their latencies hold what was left of that time."""
    stood = []

    async def script(server, number, body, writer):
        if number == 0:
            stood.append(time.monotonic() - server.start_s)
            time.sleep(0.15)  # the server runs in the client's loop
            stood.append(time.monotonic() - server.start_s)
        writer.write(HEAD + chunk(event(" a")) + chunk(DONE) + END)

    log, _ = drive(requests_of(n=80, rate=100.0), script)
    (begun_s, over_s), due_s = stood, log.times["arrival_s"]
    meanwhile = (begun_s < due_s) & (due_s < over_s)
    assert meanwhile.sum() > 5
    assert (log.lateness_s >= over_s - due_s - 1e-6)[meanwhile].all()
    assert (log.times["first_token_s"] - due_s >= log.lateness_s).all()


def test_the_kernels_stamp_tells_when_a_token_came_though_nobody_read_it():
    """The first token is written, then the loop stands still; with the kernel's stamp its time is before that's end."""
    over_s = []

    async def script(server, number, body, writer):
        writer.write(HEAD + chunk(event(" a")))
        time.sleep(0.1)
        over_s.append(time.monotonic() - server.start_s)
        await asyncio.sleep(0.02)
        writer.write(chunk(DONE) + END)

    log, _ = drive(requests_of(n=3, arrival="closed:1"), script)  # stamps begin some milliseconds after asking for them
    if sys.platform != "linux":
        pytest.skip("this system does not stamp what arrives")
    assert log.times["first_token_s"][-1] < over_s[-1] - 0.05


@pytest.mark.parametrize("arrival", ["constant", "closed:7"])
def test_a_session_waits_for_its_previous_answer(arrival):
    log, _ = drive(conversation(arrival=arrival), answers_after(0.01))
    (batch,) = conversation(arrival=arrival).batches(0)
    assert ends(log) == [FINISHED] * 60
    sessions = batch.session[log.counts["id"]]
    waited = 0
    for session in np.unique(sessions):
        own = np.flatnonzero(sessions == session)
        own = own[np.argsort(log.counts["id"][own])]
        ended, began = log.times["last_token_s"][own[:-1]], log.times["arrival_s"][own[1:]]
        assert (began >= ended).all()
        waited += len(own) - 1
    assert waited > 10


@pytest.mark.parametrize("users", [1, 3, 8])
def test_a_closed_loop_keeps_its_users_busy_and_never_has_more(users):
    async def script(server, number, body, writer):
        while server.most < users:  # nobody is answered before all are busy
            await asyncio.sleep(0.001)
        await answers_after(0.003)(server, number, body, writer)

    log, server = drive(requests_of(n=24, arrival=f"closed:{users}"), script)
    assert ends(log) == [FINISHED] * 24
    assert server.most == log.peak == users


def test_a_user_thinks_before_the_next_request():
    log, _ = drive(_thinking(), answers_after(0.001))
    order = np.argsort(log.counts["id"])
    began, ended = log.times["arrival_s"][order], log.times["last_token_s"][order]
    assert began[1:] == pytest.approx(ended[:-1] + 0.02)


def _thinking():
    return workload(requests_of(n=5).spec, arrival=Closed(concurrency=1, think_s=0.02))


@pytest.mark.parametrize("places", [1, 2, 3, 5])
def test_shares_are_the_whole_each_once_and_sessions_stay_together(places):
    what = conversation(n=100)
    shares = [list(rows(Job(Target(url="http://x.org"), None, what, 0, 1, i, places))) for i in range(places)]
    assert sorted(row.id for share in shares for row in share) == list(range(100))
    homes = {}
    for place, share in enumerate(shares):
        for row in share:
            assert homes.setdefault(row.session, place) == place


@pytest.mark.parametrize(("places", "users"), [(1, 5), (2, 5), (3, 7), (4, 4)])
def test_users_are_dealt_out_whole(places, users):
    what = requests_of(n=50, arrival=f"closed:{users}")
    jobs = [Job(Target(url="http://x.org"), None, what, 0, 1, i, places) for i in range(places)]
    assert sum(job.users for job in jobs) == users
    assert all(job.users for job in jobs)


def test_no_more_processes_than_there_is_work_for():
    assert share_count(requests_of(n=3), 8) == 3
    assert share_count(requests_of(n=30, arrival="closed:2"), 8) == 2
    with pytest.raises(BadInput, match="0 processes"):
        share_count(requests_of(), 0)


# --- what goes wrong ---


def test_refusals_and_failures_are_counted_by_reason_with_an_example():
    async def script(server, number, body, writer):
        answers = {0: failing(429), 1: failing(500, b"out of memory, key sk-12345"), 2: failing(500)}
        writer.write(answers.get(number % 4, b""))
        if number % 4 == 3:
            await plain(server, number, body, writer)

    log, server = drive(requests_of(n=12, arrival="closed:1"), script, key="sk-12345")
    assert [ends(log).count(status) for status in (FINISHED, REJECTED, FAILED)] == [3, 3, 6]
    assert log.lost["HTTP 429"].requests == 3
    assert log.lost["HTTP 500"].requests == 6
    assert log.lost["HTTP 500"].example == "out of memory, key ***"
    assert all(b"Authorization: Bearer sk-12345\r\n" in head for head in server.heads)


def test_what_no_replica_could_keep_is_refused_and_what_a_server_cannot_read_has_failed():
    said = [b'{"error": {"message": "no", "code": "unmeetable"}}', b'{"detail": "ensure this value is right"}']

    async def script(server, number, body, writer):
        writer.write(failing(422, said[number % 2]))

    log, _ = drive(requests_of(n=8, arrival="closed:1"), script)
    assert ends(log) == [REJECTED, FAILED] * 4
    assert {why: lost.requests for why, lost in log.lost.items()} == {"HTTP 422, unmeetable": 4, "HTTP 422": 4}


def test_a_cut_stream_is_a_failure_with_the_tokens_that_came():
    async def script(server, number, body, writer):
        writer.write(HEAD + chunk(event(" a")) + chunk(event(" b")))
        return False

    log, _ = drive(requests_of(n=2), script)
    assert ends(log) == [FAILED, FAILED]
    assert log.counts["output_tokens"].tolist() == [2, 2]
    assert log.lost["stream cut"].requests == 2


def test_a_kept_connection_that_had_closed_is_replaced_without_a_failure():
    async def script(server, number, body, writer):
        await plain(server, number, body, writer)
        if number % 2:
            return False
        await writer.drain()

    log, server = drive(requests_of(n=12, arrival="closed:1"), script)
    assert ends(log) == [FINISHED] * 12
    assert server.connections > 1


def test_nobody_listening_is_a_reason_not_a_crash():
    log, _ = drive(requests_of(n=3), port=9)
    assert ends(log) == [FAILED] * 3
    assert log.lost["connection: connection refused"].requests == 3


def test_an_answer_that_takes_too_long_is_given_up():
    async def script(server, number, body, writer):
        writer.write(HEAD + chunk(event(" a")))
        await asyncio.sleep(30)

    log, _ = drive(requests_of(n=2), script, timeout_s=1.5)  # long enough for the first token on a busy machine
    assert ends(log) == [FAILED] * 2
    assert list(log.lost) == ["no complete answer within 1.5 s"]
    assert log.counts["output_tokens"].tolist() == [1, 1]


def test_what_was_under_way_when_it_stopped_is_unfinished_and_what_was_not_sent_is_not_there():
    log, _server = drive(requests_of(n=1000, rate=100.0), answers_after(30.0), stop_after_s=0.1)
    assert 0 < len(ends(log)) < 1000
    assert set(ends(log)) == {UNFINISHED}


def test_a_large_prompt_goes_out_whole():
    log, server = drive(requests_of(n=2, prompt="400000"))
    assert ends(log) == [FINISHED] * 2
    assert [len(body["prompt"]) for body in server.bodies] == [400_000] * 2
