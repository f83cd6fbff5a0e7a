"""The views of `state`, filled from a live gateway's books instead of a simulated engine.

This module is compiled with the core because in compiled code only such a module may write to a view. The books decide
what is in a view; here it is only put there.
"""

from __future__ import annotations

from typing import Any

import cython

from headway.state.views import ClusterState, PoolState, ReplicaState, Request


class LiveRequest(Request):
    """A request at the gateway; `chain` names the blocks of its prompt, each hash covering all before it."""

    def __init__(self, id: cython.longlong, arrival_s: cython.double, prompt_tokens: cython.longlong) -> None:
        super().__init__(id, arrival_s, prompt_tokens)
        self.chain: tuple[int, ...] = ()

    def describe(
        self,
        predicted_output_tokens: cython.double,
        priority: cython.int,
        deadline_s: cython.double,
        slo_class: cython.int,
        tenant: cython.int,
        chain: tuple[int, ...],
        session: cython.longlong = -1,
    ) -> None:
        """Say what is known beside the prompt's length."""
        self.predicted_output_tokens = predicted_output_tokens
        self.priority = priority
        self.deadline_s = deadline_s
        self.slo_class = slo_class
        self.tenant = tenant
        self.chain = chain
        self.session = session

    def stand(self, node: cython.int) -> None:
        """Say on which node its KV will be; -1 while it has no prefill replica."""
        self.node = node

    def allow(self, models: tuple[str, ...]) -> None:
        """Say which models may serve it."""
        self.models = models

    def expect(self, prompt_tokens: cython.longlong, predicted_output_tokens: cython.double) -> None:
        """Say how long it is, by the model that may serve it."""
        self.prompt_tokens = prompt_tokens
        self.predicted_output_tokens = predicted_output_tokens

    def hurry(self, priority: cython.int) -> None:
        """Change the priority of a request that has waited."""
        self.priority = priority


class LiveReplica(ReplicaState):
    """One upstream. `prefixes` (an object with `cached_tokens(chain, prompt_tokens)`) knows what its cache may hold."""

    def __init__(
        self, index: cython.Py_ssize_t, kv_total_blocks: cython.longlong, prefixes: Any, node: cython.int = -1
    ) -> None:
        super().__init__(index, kv_total_blocks)
        self.prefixes = prefixes
        self.node = node

    def show(
        self,
        running: cython.longlong,
        waiting: cython.longlong,
        waiting_tokens: cython.longlong,
        context_tokens: cython.longlong,
        kv_used_blocks: cython.longlong,
    ) -> None:
        """Bring the counts up to the present."""
        self.running = running
        self.waiting = waiting
        self.waiting_tokens = waiting_tokens
        self.context_tokens = context_tokens
        self.kv_used_blocks = kv_used_blocks

    def renumber(self, index: cython.Py_ssize_t) -> None:
        """Give the replica its place among those that may be chosen now."""
        self.index = index

    def cached_tokens(self, request: Request) -> cython.longlong:
        """Tokens of the prompt that this replica has been sent before by the same tenant; the last one never counts."""
        chain: tuple[int, ...] = getattr(request, "chain", ())
        cached: cython.longlong = self.prefixes.cached_tokens(chain, request.prompt_tokens)
        return cached


class LivePool(PoolState):
    """The replicas that may be chosen now."""

    def show(
        self, now: cython.double, replicas: list[Any], held: cython.longlong, starting: cython.longlong = 0
    ) -> None:
        """Set the time, who may be chosen, how many wait in Headway's queue, and how many replicas will come."""
        self.now = now
        self.replicas = replicas
        self.held = held
        self.starting = starting


class LiveCluster(ClusterState):
    """The pools at the present."""

    def show(self, now: cython.double) -> None:
        """Set the time."""
        self.now = now
