"""What is true of a brain at the moment, for Prometheus."""

from __future__ import annotations

from collections.abc import Iterator

from headway.gateway.brain import Brain


def gauges_of(brain: Brain) -> Iterator[tuple[str, dict[str, str], float]]:
    """What is true at the moment, by name and labels."""
    for book, text in zip(brain.books, brain.spec.upstreams, strict=True):
        yield (
            "headway_replica_info",
            {"replica": text, "model": brain.backings[book.index].model, "role": book.role},
            1.0,
        )
        yield "headway_in_flight", {"replica": text}, book.in_flight
        yield "headway_others", {"replica": text}, book.others
        yield "headway_healthy", {"replica": text}, float(book.healthy)
        sample = brain.engines.get(book.index)
        if sample is not None and sample.running is not None:
            yield "headway_engine_requests", {"replica": text, "state": "running"}, sample.running
            yield "headway_engine_requests", {"replica": text, "state": "waiting"}, sample.waiting or 0
        if book.drift is not None:
            yield "headway_drift", {"replica": text}, book.drift
        if sample is not None and sample.kv_share is not None:
            yield "headway_kv_share", {"replica": text}, sample.kv_share
        if book.pace.known and book.role != "decode":
            own_s = sum(book.pace.first_s(512, 0, book.waiting_tokens, book.running, book.context))
            yield "headway_predicted_ttft_seconds", {"replica": text}, max(book.free_s - book.at_s, 0.0) + own_s
    for account in brain.accounts:
        for limit, budget in account.budgets.items():
            whose = {"tenant": account.tenant.name, "limit": limit}
            for state, tokens in budget.states().items():
                yield "headway_budget_tokens", whose | {"state": state}, tokens
    yield "headway_held", {}, len(brain.held)
    yield from brain.advisor.gauges()
    for kind, count in brain.fence.errors.items():
        yield "headway_policy_errors_total", {"kind": kind}, count
