"""A crew on a Ray cluster. Ray finds room for its tasks, and does those of a lost worker or node again."""

from __future__ import annotations

import json
import os
import pickle
import socket
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any, Generic, TypeVar

from headway.errors import BadInput, HeadwayError, MissingExtra

__all__ = ["Remote"]

J = TypeVar("J")
R = TypeVar("R")

_DIAL_S, _JOIN_S = 5.0, 60.0  # to reach the port; to be let in, which takes Ray itself one second, or two minutes
_SILENCE_S = 10.0  # without an answer, until it is asked whether the cluster is still there and has any processor
_RETRIES = 3  # of a job whose worker was lost
_AHEAD = 4  # jobs per processor that are handed out: a worker need not wait for its next one
_PROBE = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[2]); "
    "import ray; ray.init(address=sys.argv[1], log_to_driver=False, logging_level='ERROR')"
)


class Remote(Generic[J, R]):
    """Computes `make(*context)(job)` for many jobs on the cluster at `address`.

    Raises:
        MissingExtra: Ray is not installed.
        BadInput: it cannot be reached within some 65 s, or a node has another Headway, or none.
        HeadwayError: a job whose worker was lost time and again, a cluster that went away or has no processor.
    """

    def __init__(self, make: Callable[..., Callable[[J], R]], context: tuple[Any, ...], address: str) -> None:
        self.address = address
        self.setup = pickle.dumps((make, context), pickle.HIGHEST_PROTOCOL)
        self.ray: Any = None
        self.head = address  # where a connection can be had
        self.mine = False  # whether the connection is
        self.task: Any = None
        self.sent: tuple[Any, ...] = ()
        self.pending: dict[int, Any] = {}

    def prepare(self, jobs: int) -> None:
        """Do nothing: whether the cluster can be reached is said where it is needed."""

    def answers(self, jobs: Sequence[J]) -> Iterator[tuple[int, R]]:
        """Yield (position, answer) in order of completion."""
        if self.ray is None:
            self._connect()
        done: SimpleQueue[tuple[int, Future[Any]]] = SimpleQueue()
        try:
            waiting = iter(range(len(jobs)))
            ahead = max(64, _AHEAD * int(self.ray.cluster_resources().get("CPU", 0)))
            for i in waiting:
                self._hand_out(i, jobs[i], done)
                if len(self.pending) >= ahead:
                    break
            while self.pending:
                i, future = self._next(done)
                del self.pending[i]
                answer = self._said(future)
                for following in waiting:
                    self._hand_out(following, jobs[following], done)
                    break
                yield i, answer
        except BaseException:  # Ctrl-C above all: nobody waits for what is under way
            self.close()
            raise

    def close(self) -> None:
        """Cancel what is under way, and leave the cluster."""
        if self.ray is None:
            return
        pending, self.pending = self.pending, {}
        for task in pending.values():
            with suppress(Exception):  # one that has just ended
                self.ray.cancel(task)
        if self.mine:
            self.ray.shutdown()
        self.ray, self.task, self.sent = None, None, ()

    def _connect(self) -> None:
        try:
            import ray
        except ImportError:
            raise MissingExtra("a plan on a Ray cluster needs Ray", "ray") from None
        if ray.is_initialized():
            if self.address != "auto":
                raise BadInput(
                    f"Ray cluster {self.address}: this program is connected to Ray already; give the address auto to "
                    "use that connection, or call ray.shutdown() before"
                )
        else:
            _reach(self.address)
            try:
                ray.init(address=self.address, log_to_driver=False, logging_level="ERROR")
            except Exception as error:  # whatever its versions find to say
                ray.shutdown()  # a ray:// that failed would leave this program in client mode, without a client
                raise _unreachable(self.address, f"{error}") from None
            self.mine = True
        self.ray = ray
        if not self.address.startswith("ray://"):
            self.head = ray.get_runtime_context().gcs_address
        from ray import cloudpickle

        here = sys.modules[__name__]
        # By value, as a node may have no Headway, and then says so.
        cloudpickle.register_pickle_by_value(here)
        try:
            self.task = ray.remote(num_cpus=1, max_retries=_RETRIES)(_task)
            self.sent = (_edition(), list(sys.path), os.getcwd(), uuid.uuid4().hex, ray.put(self.setup))
            self.task.remote(*self.sent[:4], None, None)  # it is pickled with the first call
        finally:
            cloudpickle.unregister_pickle_by_value(here)

    def _hand_out(self, i: int, job: J, done: SimpleQueue[tuple[int, Future[Any]]]) -> None:
        task = self.task.remote(*self.sent, pickle.dumps(job, pickle.HIGHEST_PROTOCOL))
        self.pending[i] = task
        task.future().add_done_callback(lambda future: done.put((i, future)))

    def _next(self, done: SimpleQueue[tuple[int, Future[Any]]]) -> tuple[int, Future[Any]]:
        while True:
            try:
                return done.get(timeout=_SILENCE_S)
            except Empty:
                self._dial_again()
                if not self.ray.cluster_resources().get("CPU", 0):
                    raise HeadwayError(f"the Ray cluster at {self.address} has no processor to plan with") from None

    def _dial_again(self) -> None:
        """Refuse to wait for a cluster whose head is gone: Ray would end the program after a minute."""
        try:
            _dial(self.head)
        except OSError as error:
            raise HeadwayError(f"the Ray cluster at {self.address} is gone: {error}") from None

    def _said(self, future: Future[Any]) -> R:
        """The answer of a task, or what it raised."""
        try:
            kind, said = future.result()
        except self.ray.exceptions.RayTaskError:
            raise
        except self.ray.exceptions.RayError as error:
            raise HeadwayError(
                f"a worker of the Ray cluster at {self.address} was lost, and so were those in its place: {error}"
            ) from None
        if kind == "stranger":
            raise BadInput(f"Ray cluster {self.address}: {said}; install the same version on every node")
        fine, answer = pickle.loads(said)
        if not fine:
            raise answer
        found: R = answer
        return found


def _task(edition: str, path: list[str], folder: str, name: str, setup: Any, job: Any) -> tuple[str, Any]:
    """On a node, where this function is all there is of the sender: answer a job by the node's own Headway.

    Policies of the user are looked for where the sender has them, after all that the node has.
    """
    import os
    import pickle
    import sys

    sys.path.extend(each for each in path if each not in sys.path)
    if os.path.isdir(folder):
        os.chdir(folder)
    try:
        from headway.plan.workers import attempt, stationed, stations
    except ImportError as error:
        return "stranger", f"node {os.uname().nodename} has no Headway that can be used ({error})"
    if name not in stations and _edition() != edition:
        return "stranger", f"node {os.uname().nodename} has another Headway than this machine"
    if job is None:
        return "fine", None
    said = attempt(lambda each: stationed(name, setup)(pickle.loads(each)), job)
    return "fine", pickle.dumps(said, pickle.HIGHEST_PROTOCOL)


def _edition() -> str:
    """What an answer depends on: every source and data file of Headway, and the version of NumPy."""
    import hashlib
    from pathlib import Path

    import numpy as np

    from headway.plan import workers

    root, digest = Path(workers.__file__).parents[1], hashlib.sha256(np.__version__.encode())
    for file in sorted(root.rglob("*")):
        if file.suffix in (".py", ".pxd", ".yaml", ".json"):
            digest.update(str(file.relative_to(root)).encode() + file.read_bytes())
    return digest.hexdigest()


def _reach(address: str) -> None:
    """Find out in bounded time whether there is a cluster: Ray by itself tries for minutes, then ends the program."""
    if address != "auto":
        try:
            _dial(address)
        except (OSError, OverflowError) as error:
            raise _unreachable(address, f"{error}") from None
    if address.startswith("ray://"):
        return  # whose client gives up by itself after 30 s
    try:
        done = subprocess.run(
            [sys.executable, "-c", _PROBE, address, json.dumps(sys.path)],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_JOIN_S, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise _unreachable(address, f"no answer within {_JOIN_S:.0f} s") from None
    if done.returncode:
        raise _unreachable(address, (done.stderr.strip().splitlines() or ["no reason given"])[-1])


def _dial(address: str) -> None:
    host, _, port = address.removeprefix("ray://").rpartition(":")
    socket.create_connection((host.strip("[]"), int(port)), _DIAL_S).close()


def _unreachable(address: str, why: str) -> BadInput:
    return BadInput(
        f"Ray cluster {address}: cannot be reached ({why}); `ray status --address {address}` on the same machine tells "
        "more; without a cluster --workers N (workers=N) uses this machine's processes"
    )
