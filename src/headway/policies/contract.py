"""The contract that every policy must pass, ours and yours: `check_policy("route", "my_router:MyRouter")`.

It asks the policy about small views made here: pools of one to eight replicas that are idle, busy, full or hold a
prefix, queues of none to nine requests, requests without prediction or deadline. `docs/policies.md` gives the rules.
This module is compiled with the core because in compiled code only such a module may write to a view.
"""

from __future__ import annotations

import copy
import gc
import random
import sys
from collections.abc import Callable, Iterator
from numbers import Integral
from random import Random
from types import FrameType
from typing import Any, NamedTuple

import cython
import numpy as np

from headway.errors import BadInput
from headway.policies.base import Policy
from headway.policies.registry import policy, policy_names
from headway.policies.retaining import kept_s
from headway.state.decisions import Accept, Choose, Defer, Hold, Reject, Route, Scale
from headway.state.views import ClusterState, PoolState, QueueView, ReplicaState, Request

Load = tuple[int, ...]  # running, waiting, waiting_tokens, context_tokens, kv_used_blocks, tokens of a prefix held

NAN, INFINITY = float("nan"), float("inf")
WAKE_EVENTS = ("step",)
REASON_CHARACTERS = 120
REQUEST_FIELDS = (
    "id", "arrival_s", "prompt_tokens", "predicted_output_tokens", "priority", "deadline_s", "slo_class", "tenant",
    "session", "node", "models",
)  # fmt: skip
REPLICA_FIELDS = (
    "index", "node", "running", "waiting", "waiting_tokens", "context_tokens", "kv_used_blocks", "kv_total_blocks",
)  # fmt: skip
QUEUE_FIELDS = ("now", "arrival_s", "prompt_tokens", "predicted_output_tokens", "priority", "deadline_s")
CLOCK = "the machine's clock; expected time from the view's `now`"
MACHINE = {  # functions of the machine that a policy must not call
    "now": CLOCK,
    "utcnow": CLOCK,
    "today": CLOCK,
    "urandom": "the machine's random numbers; expected draws from the view's `rng`",
    "open": "a file; expected what it needs as arguments of the constructor",
    "input": "the terminal; expected what it needs as arguments of the constructor",
    "print": "the terminal; expected what it has to say in the decision's reason",
}


def check_policy(kind: str, candidate: str | type[Policy] | Policy, params: dict[str, Any] | None = None) -> None:
    """Put a policy to every test of the contract for a decision point; return if it passes.

    Args:
        kind: the decision point: "route", "order", "admit", "choose_model", "retain" or "scale".
        candidate: a built-in name, `module:Class`, a class, or an object (of which copies are asked).
        params: keyword arguments of the constructor.

    Raises:
        BadInput: it breaks the contract; the message has a line for each way in which it does, with what came and
            what is expected.
        UnknownName: no such decision point, or no such policy.
    """
    if kind not in ASKS:
        policy_names(kind)  # raises UnknownName
    make = _maker(kind, candidate, params or {})
    faults = _declared(make()) or _answer_faults(make, kind)
    if kind == "order" and not faults:
        faults = _key_faults(make)
    if faults:
        label = candidate if isinstance(candidate, str) else type(make()).__name__
        listed = "".join(f"\n- {fault}" for fault in faults)
        raise BadInput(f"{kind} policy {label!r} breaks the contract of docs/policies.md:{listed}")


# --- views ------------------------------------------------------------------------------------------------------


class StockedReplica(ReplicaState):
    """A replica that holds the first `stock` tokens of every prompt."""

    def __init__(self, index: cython.Py_ssize_t, counts: Load, node: cython.int = -1) -> None:
        ReplicaState.__init__(self, index, 1000)
        self.node = node
        self.load(counts)

    def load(self, counts: Load) -> None:
        """Set all counts."""
        self.running, self.waiting, self.waiting_tokens = counts[0], counts[1], counts[2]
        self.context_tokens, self.kv_used_blocks, self.stock = counts[3], counts[4], counts[5]

    def cached_tokens(self, request: Request) -> cython.longlong:
        """Tokens of the prompt held here; the last one never is."""
        return min(self.stock, request.prompt_tokens - 1)


def make_request(**fields: Any) -> Request:
    """A request view; fields left out are as of a request of which nothing is known."""
    made: Request = Request(fields["id"], fields["arrival_s"], fields["prompt_tokens"])
    made.predicted_output_tokens = fields.get("predicted_output_tokens", NAN)
    made.priority = fields.get("priority", 0)
    made.deadline_s = fields.get("deadline_s", INFINITY)
    made.slo_class = fields.get("slo_class", 0)
    made.tenant = fields.get("tenant", 0)
    made.session = fields.get("session", -1)
    made.node = fields.get("node", -1)
    made.models = fields.get("models", ())
    return made


def make_pool(
    role: str, loads: list[Load], rng: Random, now: float, held: int = 0, starting: int = 0, model: str = "",
    nodes: tuple[int, ...] | list[int] = (),
) -> PoolState:  # fmt: skip
    """A pool view with a replica for each load, `held` requests at the router and `starting` replicas on their way.

    Where `nodes` are not given, of replicas that hand over KV or take it two stand on each.
    """
    nodes = nodes or [-1 if role == "mixed" else i // 2 for i in range(len(loads))]
    replicas = [StockedReplica(i, counts, node) for i, (counts, node) in enumerate(zip(loads, nodes, strict=True))]
    made: PoolState = PoolState(role, replicas, rng, model)
    made.now = now
    made.held = held
    made.starting = starting
    return made


def make_cluster(pools: tuple[PoolState, ...], rng: Random, now: float) -> ClusterState:
    """A cluster view."""
    made: ClusterState = ClusterState(pools, rng)
    made.now = now
    return made


def _requests(now: float, models: tuple[str, ...] = (), role: str = "") -> list[Request]:
    """Requests of every kind that a host may ask about; bound for a decode pool, their KV is on a node."""
    late = {"deadline_s": 0.0}
    kinds: list[dict[str, Any]] = [
        {"id": 0, "arrival_s": now, "prompt_tokens": 100, "predicted_output_tokens": 50.0},
        {"id": 1, "arrival_s": now, "prompt_tokens": 1},
        {"id": 2, "arrival_s": now, "prompt_tokens": 30_000, "deadline_s": now + 5.0, "priority": -3, "session": 4},
        {"id": 3, "arrival_s": now, "prompt_tokens": 700, "priority": 9, "slo_class": 2, "tenant": 7, **late},
        {"id": 4, "arrival_s": 0.0, "prompt_tokens": 700, "predicted_output_tokens": 1e6, "session": 4},
    ]
    nodes = range(-1, 4) if role == "decode" else [-1] * len(kinds)
    return [make_request(models=models, node=node, **fields) for node, fields in zip(nodes, kinds, strict=True)]


def _loads(count: int, rng: Random, stale: bool) -> Iterator[list[Load]]:
    """Loads of `count` replicas: all idle, all full, all alike, and at random, with and without a cached prefix.

    `stale`: as a host may show them that does not bring their progress up to date.
    """
    alike: list[Load] = [(0, 0, 0, 0, 0, 0), (256, 5000, 9_000_000, 2_000_000, 1000, 0), (3, 1, 200, 4000, 250, 640)]
    drawn = [[_load(rng) for _ in range(count)] for _ in range(3)]
    for loads in [[load] * count for load in alike] + drawn:
        yield [(*load[:3], 0, 0, 0) for load in loads] if stale else loads


def _load(rng: Random) -> Load:
    counts = [rng.randint(0, most) for most in (9, 9, 5000, 9999, 1000)]
    return (*counts, rng.choice([0, 0, 64, 6400]))


# --- what is asked ----------------------------------------------------------------------------------------------


class Ask(NamedTuple):
    """One call of the policy: when that is, in words; its arguments; replicas to choose from, or requests to key."""

    when: str
    arguments: tuple[Any, ...]
    size: int


def _route_asks(stale: bool) -> Iterator[Ask]:
    for role in ("mixed", "prefill", "decode"):
        rng, stream = Random(f"loads/{role}"), Random(f"stream/{role}")
        for count in (1, 3, 2, 8, 1):  # replicas come and go
            for step, loads in enumerate(_loads(count, rng, stale)):
                for request in _requests(10.0 + step, role=role):
                    pool = make_pool(role, loads, stream, 10.0 + step)
                    yield Ask(f"with {_replicas(count, role)}", (request, pool), count)


def _admit_asks(stale: bool) -> Iterator[Ask]:
    rng, stream = Random("loads"), Random("stream")
    for roles in (("mixed",), ("prefill", "decode")):
        for count in (1, 3):
            for step, loads in enumerate(_loads(count, rng, stale)):
                for request in _requests(10.0 + step):
                    pools = tuple(make_pool(role, loads, Random(role), 10.0 + step, step % 3) for role in roles)
                    cluster = make_cluster(pools, stream, 10.0 + step)
                    yield Ask(f"with {_replicas(count, ' and '.join(roles))}", (request, cluster), count)


def _choose_asks(stale: bool) -> Iterator[Ask]:
    """Two models and three, whose pools differ in load and size; a request may go to some of them, in any order."""
    rng, stream = Random("loads"), Random("stream")
    for names in (("small", "large"), ("small", "middle", "large")):
        for count in (1, 3):
            for step, loads in enumerate(_loads(count * len(names), rng, stale)):
                pools = tuple(
                    make_pool("mixed", loads[i * count : (i + 1) * count], Random(name), 10.0 + step, step % 3, 0, name)
                    for i, name in enumerate(names)
                )
                for menu in (names, names[::-1], names[1:]):
                    for request in _requests(10.0 + step, menu):
                        cluster = make_cluster(pools, stream, 10.0 + step)
                        yield Ask(f"with {len(names)} models, of which {menu} may serve", (request, cluster), len(menu))


def _retain_asks(stale: bool) -> Iterator[Ask]:
    rng = Random("loads")
    for step, loads in enumerate(_loads(3, rng, stale)):
        for request in _requests(10.0 + step):
            for replica in make_pool("mixed", loads, rng, 10.0 + step).replicas:
                busy = "a busy" if replica.running + replica.waiting else "an idle"
                yield Ask(f"for a request at {busy} replica", (request, replica), 1)


def _order_asks(stale: bool) -> Iterator[Ask]:
    for count in (0, 1, 2, 9):
        for now in (10.0, 11.0):
            queue = QueueView(now, [_requests(10.0)[i % 5] for i in range(count)])
            yield Ask(f"with {count} waiting", (queue,), count)


def _scale_asks(stale: bool) -> Iterator[Ask]:
    """One question every 15 s for five minutes, and after a day; a pool has as many starting as it had last time."""
    rng = Random("loads")
    for roles in (("mixed",), ("prefill", "decode")):
        stream, now, starting = Random("stream"), 0.0, 0
        for count in (1, 3, 8, 2, 1):
            for loads in _loads(count, rng, stale):
                now += 86_400.0 if count == 1 and starting else 15.0
                held = rng.choice([0, 0, 7, 900])
                pools = tuple(make_pool(role, loads, Random(role), now, held, starting) for role in roles)
                yield Ask(
                    f"with {_replicas(count, ' and '.join(roles))}", (make_cluster(pools, stream, now),), len(roles)
                )
            starting = count


def _replicas(count: int, role: str) -> str:
    return f"{count} {role} {'replica' if count == 1 else 'replicas'}"


# --- what is right ----------------------------------------------------------------------------------------------


def _route_fault(answer: Any, ask: Ask) -> str:
    if isinstance(answer, Hold):
        if not any(replica.running + replica.waiting for replica in ask.arguments[1].replicas):
            return f"answered {answer!r}, all replicas idle: expected a Route, as nothing would end that could wake it"
        return _reason_fault(answer)
    if not isinstance(answer, Route):
        return f"answered {answer!r}: expected a Route(index, reason) or a Hold(reason)"
    if not isinstance(answer.index, Integral) or not 0 <= int(answer.index) < ask.size:
        return f"answered {answer!r}: expected an index from 0 to {ask.size - 1}"
    return _reason_fault(answer)


def _admit_fault(answer: Any, ask: Ask) -> str:
    if not isinstance(answer, Accept | Reject | Defer):
        return f"answered {answer!r}: expected Accept(reason), Reject(reason) or Defer(until_s, reason)"
    now = ask.arguments[1].now
    if isinstance(answer, Defer) and not now < answer.until_s < INFINITY:
        return f"answered {answer!r}: expected an absolute time after the view's now, {now}"
    return _reason_fault(answer)


def _choose_fault(answer: Any, ask: Ask) -> str:
    menu = ask.arguments[0].models
    if not isinstance(answer, Choose):
        return f"answered {answer!r}: expected a Choose(model, reason)"
    return _reason_fault(answer) if answer.model in menu else f"answered {answer!r}: expected one of {menu}"


def _retain_fault(answer: Any, ask: Ask) -> str:
    if kept_s(answer) is None:
        return f"answered {answer!r}: expected seconds, a finite number, 0 (or None) for as the engine does"
    return ""


def _scale_fault(answer: Any, ask: Ask) -> str:
    if not isinstance(answer, list) or not all(isinstance(each, Scale) for each in answer):
        return f"answered {answer!r}: expected a list of Scale(pool, replicas, reason), empty for no change"
    for each in answer:
        if not 0 <= each.pool < ask.size or each.replicas < 1:
            return f"answered {each!r}: expected a pool from 0 to {ask.size - 1} and at least 1 replica"
        if fault := _reason_fault(each):
            return fault
    return "" if len({each.pool for each in answer}) == len(answer) else f"answered {answer!r}: expected a pool once"


def _reason_fault(answer: Any) -> str:
    reason = answer.reason
    if not isinstance(reason, str) or not reason.strip() or "\n" in reason or len(reason) > REASON_CHARACTERS:
        limits = f"a reason of one line, 1 to {REASON_CHARACTERS} characters, for the decision log"
        return f"answered {type(answer).__name__} with the reason {reason!r}: expected {limits}"
    return ""


def _shape_fault(keys: Any, ask: Ask) -> str:
    count = ask.size
    try:
        numbers = np.asarray(keys, dtype=np.float64)
    except (TypeError, ValueError):
        return f"answered {keys!r}: expected an array of {count} numbers, one per request"
    if numbers.shape != (count,):
        return f"answered an array of shape {numbers.shape}: expected ({count},), one key per request"
    if np.isnan(numbers).any():
        return f"answered {numbers.tolist()}: expected numbers or infinity, no NaN, also where predictions are NaN"
    return ""


def _key_faults(make: Callable[[], Policy]) -> list[str]:
    """Keys of a policy that does not re-key must not depend on who else waits, or on the time."""
    if make().rekey_on:
        return []

    def keys(asked: Policy, now: float, requests: list[Request]) -> list[float]:
        return [float(key) for key in asked.order(QueueView(now, requests))]

    requests, one = _requests(10.0), make()
    together = keys(make(), 10.0, requests)
    singly = [key for request in requests for key in keys(one, 10.0, [request])]
    return [
        f"answered {together}, and {what} {others}: without rekey_on = ('step',) a request is keyed once, beside those "
        "that came with it, so its key may depend neither on who else waits nor on the time"
        for what, others in (("to one request after another", singly), ("490 s later", keys(make(), 500.0, requests)))
        if together != others
    ]


def _declared(asked: Policy) -> list[str]:
    """What is wrong with the attributes that tell the host how to ask."""
    faults = []
    if not isinstance(asked.reads_progress, bool):
        faults.append(f"reads_progress is {asked.reads_progress!r}: expected True or False")
    events = asked.rekey_on
    if not isinstance(events, tuple) or not set(events) <= set(WAKE_EVENTS):
        faults.append(f"rekey_on is {events!r}: expected a tuple of wake events, of which there are {WAKE_EVENTS}")
    return faults


ASKS = {
    "route": _route_asks, "order": _order_asks, "admit": _admit_asks, "choose_model": _choose_asks,
    "retain": _retain_asks, "scale": _scale_asks,
}  # fmt: skip
FAULTS = {
    "route": _route_fault, "order": _shape_fault, "admit": _admit_fault, "choose_model": _choose_fault,
    "retain": _retain_fault, "scale": _scale_fault,
}  # fmt: skip

# --- asking -----------------------------------------------------------------------------------------------------


def _maker(kind: str, candidate: str | type[Policy] | Policy, params: dict[str, Any]) -> Callable[[], Policy]:
    """What gives a new policy object at each call."""
    if isinstance(candidate, str):
        return lambda: policy(kind, candidate, params)
    cls = candidate if isinstance(candidate, type) else type(candidate)
    if not issubclass(cls, Policy):
        raise BadInput(f"{candidate!r} is not a policy: make its class a subclass of headway.Policy")
    if kind != "admit" and getattr(cls, kind) is getattr(Policy, kind):
        raise BadInput(f"{cls.__name__} does not define {kind}(): a {kind} policy overrides it")
    if isinstance(candidate, type):
        return lambda: cls(**params)
    return lambda: copy.deepcopy(candidate)


def _answer_faults(make: Callable[[], Policy], kind: str) -> list[str]:
    """What is wrong with the answers; where progress is not read, with those to stale views too."""
    again = "and the next time {}: expected the same decision for the same view"
    stale = (
        "but {} with other context_tokens, kv_used_blocks and cached_tokens: expected reads_progress = True, or an "
        "answer that does not need them"
    )
    faults = _differences(make, kind, False, again)
    return faults if faults or make().reads_progress else _differences(make, kind, True, stale)


def _differences(make: Callable[[], Policy], kind: str, stale: bool, complaint: str) -> list[str]:
    """What is wrong at the first ask that shows a fault, of two policies that are asked everything, each on its own."""
    one, other = make(), make()
    for ask, again in zip(ASKS[kind](False), ASKS[kind](stale), strict=True):
        answer, faults = _tell(one, kind, ask)
        second, _ = _tell(other, kind, again)
        if not faults and second != answer:
            faults = [f"answered {answer}, {complaint.format(second)}"]
        if faults:
            return [f"{ask.when}: {fault}" for fault in faults]
    return []


def _tell(asked: Policy, kind: str, ask: Ask) -> tuple[str, list[str]]:
    """The answer in words that can be compared, what is wrong with it, and what else the policy did."""
    before, states = [_seen(view) for view in ask.arguments], _global_randomness()
    said, faults = "", []
    with _Watch() as watch:
        try:
            answer = getattr(asked, kind)(*ask.arguments)
            faults = [fault for fault in [FAULTS[kind](answer, ask)] if fault]
            said = "" if faults else _words(answer)
        except Exception as error:  # whatever a policy raises is a fault of the policy
            faults = [f"raised {type(error).__name__}: {error}: expected an answer to every view, which is only read"]
    faults += [f"called {name} of {what}" for name, what in watch.calls.items()]
    for view, was in zip(ask.arguments, before, strict=True):
        if _seen(view) != was:
            faults.append(f"changed the {type(view).__name__} it was shown: expected a policy that only reads")
    if _global_randomness() != states:
        faults.append("drew from the global random stream: expected draws from the view's `rng`")
    return said, faults


def _words(answer: Any) -> str:
    if isinstance(answer, Route):
        return f"Route({answer.index}, {answer.reason!r})"
    if isinstance(answer, Choose | Hold | Defer | list):
        return repr(answer)
    if isinstance(answer, Accept | Reject):
        return f"{type(answer).__name__}({answer.reason!r})"
    return str(np.asarray(answer, dtype=np.float64).tolist())


def _global_randomness() -> tuple[object, ...]:
    numpys: Any = np.random.get_state()
    return random.getstate(), numpys[1].tobytes(), numpys[2:]


def _seen(view: Any) -> Any:
    """All that a view shows, to compare it with itself later; NaN is written as text, so that it equals itself."""
    if isinstance(view, Request):
        return [repr(getattr(view, name)) for name in REQUEST_FIELDS]
    if isinstance(view, ReplicaState):
        return [id(view), *(getattr(view, name) for name in REPLICA_FIELDS)]
    if isinstance(view, PoolState):
        replicas = [_seen(replica) for replica in view.replicas]
        return [view.role, view.model, view.now, view.held, view.starting, id(view.rng), replicas]
    if isinstance(view, ClusterState):
        return [view.now, id(view.rng), [_seen(pool) for pool in view.pools]]
    return [np.asarray(getattr(view, name)).tobytes() for name in QUEUE_FIELDS]


class _Watch:
    """Notes the calls of functions of the machine while it is entered.

    Garbage is not collected meanwhile: whoever hooks into that may look at the clock, and is not the policy.
    """

    def __init__(self) -> None:
        self.calls: dict[str, str] = {}

    def __enter__(self) -> _Watch:
        self.before, self.collects = sys.getprofile(), gc.isenabled()
        gc.disable()
        sys.setprofile(self.note)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(self.before)
        if self.collects:
            gc.enable()

    def note(self, frame: FrameType, event: str, called: Any) -> None:
        """Look at one event of the interpreter."""
        if event != "c_call":
            return
        name, module = getattr(called, "__name__", ""), getattr(called, "__module__", None)
        owner = getattr(getattr(called, "__self__", None), "__module__", None)
        if module == "time":
            self.calls[f"time.{name}"] = CLOCK
        elif name in MACHINE and (owner == "datetime" or module in ("builtins", "io", "_io", "posix", "nt")):
            self.calls[name] = MACHINE[name]
