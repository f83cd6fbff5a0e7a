"""Budgets: never exceeded, kept through restarts and kills, and no reason not to serve when the disk fails."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from brain_cases import ADDRESSES, ask, brain

import headway
from headway.gateway import Backing, Brain, GatewaySpec, Tenant
from headway.gateway.events import EndRecord, Refused, Routed
from headway.gateway.ledger import Keeper, Ledger
from headway.gateway.tenants import Account, Budget, Usage
from headway.policies import policy

NOON = 20_000 * 86_400.0 + 43_200.0  # of a day
DAILY = (Tenant(name="a", tokens_per_day=1000),)


def at(epoch_s: float, tenants: tuple[Tenant, ...] = DAILY) -> Brain:
    policies = {kind: policy(kind, name) for kind, name in (("route", "least-requests"), ("order", "fcfs"))}
    spec = GatewaySpec(upstreams=ADDRESSES[:1], models=("m",), tenants=tenants)
    made = Brain(spec, [Backing()], policies | {"admit": policy("admit", "accept-all")})
    made.dated(0.0, epoch_s)
    return made


def use(b: Brain, id: str, now: float = 0.0, prompt: int = 100, output: int = 100) -> object:
    """Ask for as much, and use it."""
    (answer,) = b.arrive(now, ask(id, prompt_tokens=prompt, max_tokens=output))
    b.end(now, id)
    b.record(now, EndRecord(id=id, status=200, attempts=1, prompt_tokens=prompt, output_tokens=output))
    return answer


# --- budgets ------------------------------------------------------------------------------------------------------


def test_requests_at_once_never_exceed_a_budget_and_what_they_leave_is_given_back():
    b = at(NOON)
    answers = [b.arrive(0.0, ask(f"r{i}", prompt_tokens=100, max_tokens=200))[0] for i in range(5)]
    assert [type(answer) for answer in answers] == [Routed] * 3 + [Refused] * 2
    refused = answers[-1]
    assert isinstance(refused, Refused) and (refused.status, refused.code) == (429, "insufficient_quota")
    assert "100 tokens are left of this day's 1000, the request may use 300" in refused.message
    assert refused.retry_after_s == pytest.approx(43_200)
    b.end(1.0, "r0")
    b.record(1.0, EndRecord(id="r0", status=200, attempts=1, prompt_tokens=100, output_tokens=10))
    (budget,) = b.accounts[0].budgets.values()
    assert budget.states() == {"limit": 1000, "spent": 110, "reserved": 600, "others": 0}
    assert isinstance(b.arrive(1.0, ask("again", prompt_tokens=90, max_tokens=200))[0], Routed)


def test_text_is_set_aside_as_a_token_a_byte_and_an_output_without_a_limit_as_the_most_there_is():
    b = at(NOON, (Tenant(name="a", tokens_per_day=1e6),))
    b.arrive(0.0, ask("a", prompt_bytes=1000))
    assert b.live["a"].bound == 1000 + 64 + b.limits.output_tokens


@pytest.mark.parametrize(
    ("record", "spent"),
    [
        ({"status": 200, "prompt_tokens": 90, "output_tokens": 5}, 95),
        ({"status": 503, "upstream_failed": True}, 0),
        ({"status": 500}, 0),
        ({"status": 0, "caller_left": True}, 100 + 200),  # nobody has said what it was: as was expected
        ({"status": 200, "caller_left": True, "output_tokens": 7}, 107),
        (None, 300),  # no record at all: it may have been everything
        # of several answers that were cut short an engine may have told the tokens of one alone
        ({"status": 200, "caller_left": True, "output_tokens": 7, "counted_tokens": 15, "samples": 2}, 115),
        ({"status": 200, "prompt_tokens": 90, "output_tokens": 40, "counted_tokens": 15, "samples": 2}, 130),
        ({"status": 200, "prompt_tokens": 90, "output_tokens": 5, "counted_tokens": 15}, 95),
    ],
)
def test_what_a_request_costs(record, spent):
    b = at(NOON)
    known = dict(record or {})
    b.arrive(0.0, ask("a", prompt_tokens=100, max_tokens=200, samples=known.pop("samples", 1)))
    b.end(1.0, "a")
    if record is None:
        b.tick(100.0)
    else:
        b.record(1.0, EndRecord(id="a", attempts=1, **known))
    (budget,) = b.accounts[0].budgets.values()
    assert (budget.spent, budget.reserved) == (spent, 0)


def test_a_held_request_that_leaves_costs_nothing():
    b = brain(1, known=False, tenants=DAILY)
    b.books[0].window = 1
    b.arrive(0.0, ask("a", prompt_tokens=10, max_tokens=10))
    b.arrive(0.0, ask("b", prompt_tokens=10, max_tokens=10))
    b.end(0.1, "b")
    (budget,) = b.accounts[0].budgets.values()
    assert budget.states() == {"limit": 1000, "spent": 0, "reserved": 20, "others": 0}


def test_a_day_and_a_month_end_in_utc_and_the_clock_never_goes_back():
    day, month = Budget(100, monthly=False), Budget(100, monthly=True)
    for budget in (day, month):
        budget.left(31 * 86_400.0 - 1)
        budget.settle(31 * 86_400.0 - 1, 0, 60)
        assert budget.left(31 * 86_400.0 - 1) == 40
        assert budget.left(31 * 86_400.0) == 100, "the first of February 1970"
        budget.settle(31 * 86_400.0, 0, 10)
        assert budget.left(5.0) == 90, "a clock that is set back brings no budget back"
    assert day.end_s == 32 * 86_400.0 and month.end_s == (31 + 28) * 86_400.0


# --- the ledger ---------------------------------------------------------------------------------------------------


def kept(path: Path, b: Brain, say: Callable[[str], None] = lambda text: None) -> Keeper:
    """Read, and write."""
    keeper = Keeper(Ledger(path), b, lambda: 0.0, say)
    asyncio.run(twice(keeper))
    return keeper


async def twice(keeper: Keeper) -> None:
    await keeper.flush()
    await keeper.flush()


def close(keeper: Keeper) -> None:
    keeper.stop.set()
    asyncio.run(keeper.run())


def left(b: Brain) -> list[float]:
    return [budget.left(b.accounts[0].epoch_s) for budget in b.accounts[0].budgets.values()]


def test_budgets_and_rates_survive_a_restart(tmp_path):
    tenants = (Tenant(name="a", tokens_per_day=1000, tokens_per_month=5000, requests_per_min=6),)
    b = at(NOON, tenants)
    keeper = kept(tmp_path / "l", b)
    for i in range(4):
        assert isinstance(use(b, f"r{i}"), Routed)
    close(keeper)
    later = at(NOON + 10.0, tenants)
    kept(tmp_path / "l", later)
    account = later.accounts[0]
    assert left(later) == [200, 4200]
    assert account.requests.level == pytest.approx(6 - 4 + 1)
    tomorrow = at(NOON + 86_400.0, tenants)
    kept(tmp_path / "l", tomorrow)
    assert left(tomorrow) == [1000, 4200]


def test_what_is_under_way_counts_as_spent_for_who_comes_after(tmp_path):
    b = at(NOON)
    b.arrive(0.0, ask("a", prompt_tokens=100, max_tokens=300))
    kept(tmp_path / "l", b)
    after = at(NOON)
    kept(tmp_path / "l", after)
    assert left(after) == [600]


def test_two_processes_that_serve_at_once_share_a_budget(tmp_path):
    """Each knows of the other's use but for what neither has flushed; what one gives back the other may use."""
    one, other = at(NOON), at(NOON)
    keepers = [Keeper(Ledger(tmp_path / "l"), b, lambda: 0.0) for b in (one, other)]

    def flushed() -> None:
        for keeper in (*keepers, keepers[0]):
            asyncio.run(keeper.flush())

    flushed()
    one.arrive(0.0, ask("a", prompt_tokens=100, max_tokens=500))
    flushed()
    assert left(one) == left(other) == [400]
    assert isinstance(other.arrive(0.0, ask("b", prompt_tokens=100, max_tokens=400))[0], Refused)
    one.end(1.0, "a")
    one.record(1.0, EndRecord(id="a", status=200, attempts=1, prompt_tokens=100, output_tokens=20))
    use(other, "c")
    flushed()
    assert left(one) == left(other) == [1000 - 120 - 200]
    assert [row.value for row in Ledger(tmp_path / "l").read()] == [320]


def test_nothing_is_written_over_what_could_not_be_read(tmp_path):
    b = at(NOON)
    use(b, "r")
    close(kept(tmp_path / "l", b))
    after, said = at(NOON), []
    lock = sqlite3.connect(tmp_path / "l")
    lock.execute("PRAGMA locking_mode = EXCLUSIVE")
    lock.execute("BEGIN EXCLUSIVE")
    keeper = kept(tmp_path / "l", after, said.append)
    assert keeper.failing and keeper.status()["errors"] == 2 and len(said) == 1
    assert after.figures.total("headway_ledger_errors_total") == 2
    use(after, "s")
    lock.close()
    asyncio.run(twice(keeper))
    assert not keeper.failing and "kept again" in said[-1]
    assert left(after) == [600]
    assert {row.value for row in Ledger(tmp_path / "l").read()} == {400}


@pytest.mark.parametrize("broken", ["full", "folder", "no database", "gone"])
def test_a_disk_that_fails_is_told_and_does_not_stop_serving(tmp_path, broken):
    path, said = tmp_path / "l", []
    b = at(NOON)
    keeper = Keeper(Ledger(path), b, lambda: 0.0, said.append)
    if broken == "full":
        asyncio.run(keeper.flush())
        keeper.ledger.add = lambda rows: (_ for _ in ()).throw(sqlite3.OperationalError("database or disk is full"))  # type: ignore[method-assign]
    elif broken == "folder":
        path.mkdir()
    elif broken == "no database":
        path.write_bytes(b"not a database, but something of value" * 100)
    else:
        keeper.ledger = Ledger(tmp_path / "nowhere" / "l")
    for i in range(4):
        assert isinstance(use(b, f"r{i}", float(i)), Routed)
        asyncio.run(keeper.flush())
    assert isinstance(use(b, "one too many", 9.0, 100, 200), Refused), "budgets hold in memory"
    assert keeper.errors == 4 and keeper.failing and len(said) == 1
    assert keeper.status()["unwritten"] <= 2, "however long it lasts"
    if broken == "no database":
        assert path.read_bytes().startswith(b"not a database")
    if broken == "full":
        del keeper.ledger.add
        asyncio.run(twice(keeper))
        assert [row.value for row in Ledger(path).read()] == [800]
        assert keeper.status()["unwritten"] == 0


def test_use_of_tenants_and_limits_that_are_no_more_is_left_alone():
    account = Account(Tenant(name="a"))
    account.elsewhere(0.0, Usage("a", "tokens_per_day", 5.0, NOON))
    b = at(NOON)
    b.elsewhere(0.0, [Usage("gone", "tokens_per_day", 5.0, NOON)])
    assert left(b) == [1000]


SPENDER = """
import asyncio, sys, time
sys.path[:0] = {paths!r}
from test_ledger import *
async def main():
    b = at({epoch}, (Tenant(name="a", tokens_per_day=1e9),))
    keeper = Keeper(Ledger(Path({path!r})), b, lambda: 0.0)
    asyncio.create_task(keeper.run())
    for i in range(10**9):
        b.arrive(i * 1e-4, ask(f"r{{i}}", prompt_tokens=50, max_tokens=50))
        if i % 3:
            b.end(i * 1e-4, f"r{{i}}")
            b.record(i * 1e-4, EndRecord(id=f"r{{i}}", status=200, attempts=1, prompt_tokens=50, output_tokens=9))
        print(sum(x.spent + x.reserved for x in b.accounts[0].budgets.values()), flush=True)
        await asyncio.sleep(0.001)
asyncio.run(main())
"""


def test_a_killed_process_loses_at_most_what_was_not_yet_written(tmp_path):
    """kill -9 in the midst of writing: the file opens, and holds all that had got there, which comes every interval."""
    path = tmp_path / "l"
    paths = [str(Path(headway.__file__).parents[1]), str(Path(__file__).parent)]
    text = SPENDER.format(paths=paths, epoch=NOON, path=str(path))
    with (tmp_path / "said").open("w+") as said:
        process = subprocess.Popen([sys.executable, "-c", text], stdout=said)
        end = time.monotonic() + 60
        for _ in range(3):  # it writes again and again
            said.seek(0)
            spent = max((float(line) for line in said.read().splitlines()[:-1]), default=0.0)
            while not path.exists() or not (rows := Ledger(path).read()) or rows[0].value <= spent:
                assert time.monotonic() < end and process.poll() is None
                time.sleep(0.05)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    (row,) = Ledger(path).read()
    assert row.value >= rows[0].value > spent > 0, "what had got there has stayed"
    b = at(NOON, (Tenant(name="a", tokens_per_day=1e9),))
    kept(path, b)
    assert left(b) == [1e9 - row.value]
