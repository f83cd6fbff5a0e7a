"""What is shown of a running gateway: gauges for Prometheus, JSON for the live page, and the page itself.

It hears of every request that is over and looks at the brain between decisions; nothing here decides.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from importlib.resources import files
from typing import Any

import msgspec

from headway.gateway.books import ReplicaBook
from headway.gateway.brain import Brain
from headway.gateway.estimates import LOOK_S, Meter
from headway.gateway.events import Outcome
from headway.gateway.history import RECENT_S, SPREAD_S, STEP_S, History
from headway.gateway.plainhttp import Page
from headway.gateway.process import process_gauges

FILES = {"/headway": "index.html", "/headway/live.js": "live.js", "/headway/live.css": "live.css"}
TYPES = {"html": "text/html; charset=utf-8", "js": "text/javascript; charset=utf-8", "css": "text/css; charset=utf-8"}
DECISIONS_MAX = 12


class Overview:
    """The sights of one brain. `now`: seconds on its clock.

    `shadow` returns how a shadow policy stands beside the live one, where there is one; `more` what others count.
    """

    def __init__(self, brain: Brain, now: Callable[[], float]) -> None:
        self.brain = brain
        self.now = now
        self.shadow: Callable[[], dict[str, Any]] | None = None
        self.meters = [
            Meter(book, backing.usd_per_hour) for book, backing in zip(brain.books, brain.backings, strict=True)
        ]
        self.history = History([klass.name for klass in brain.spec.classes], self._moment)
        self.looked_s = float("-inf")

    def hear(self, outcome: Outcome) -> None:
        """Take in a request that is over."""
        self.history.add(self.now(), outcome)

    def mark(self) -> None:
        """Look at the meters, and add a point to the history when one is due."""
        now = self.now()
        if now >= self.looked_s + LOOK_S:
            self.looked_s = now
            for meter in self.meters:
                meter.look(now)
            self.history.mark(now)

    def gauges(self) -> Iterator[tuple[str, dict[str, str], float]]:
        """What is true at the moment beside the brain's own gauges, and what is summed over time."""
        for name, kept in self.history.classes.items():
            yield "headway_goodput_requests_per_second", {"slo_class": name}, kept.lately()["met"] / self._recent_s()
        for meter, address in zip(self.meters, self.brain.spec.upstreams, strict=True):
            if meter.watts is not None:
                yield "headway_estimated_power_watts", {"replica": address}, meter.watts
                yield "headway_estimated_energy_joules_total", {"replica": address}, meter.joules
            if meter.usd_per_hour is not None:
                yield "headway_estimated_cost_usd_per_hour", {"replica": address}, meter.usd_per_hour
                yield "headway_estimated_cost_usd_total", {"replica": address}, meter.usd
        yield from process_gauges()

    def pages(self) -> dict[str, Page]:
        """The live page and what it asks for, by path."""
        return {
            **{path: lambda name=name: _file(name) for path, name in FILES.items()},  # type: ignore[misc]
            "/headway/now": lambda: ("application/json", msgspec.json.encode(self.present())),
            "/headway/history": lambda: ("application/json", msgspec.json.encode(list(self.history.points))),
        }

    def present(self) -> dict[str, Any]:
        """What the live page shows of this moment."""
        brain, spec = self.brain, self.brain.spec
        return {
            "schema": "headway.live/1",
            "models": spec.models,
            "now_s": self.now(),
            "unix_s": time.time(),
            "step_s": STEP_S,
            "recent_s": RECENT_S,
            "spread_s": SPREAD_S,
            "live": len(brain.live),
            "held": len(brain.held),
            "held_max": spec.limits.held,
            "faults": brain.check(),
            "policies": {kind: type(policy).__name__ for kind, policy in brain.fence.policies.items()},
            "policy_errors": dict(brain.fence.errors),
            "policy_error": brain.fence.last,
            "classes": self._classes(),
            "replicas": [self._replica(book) for book in brain.books],
            "advice": self._advice(),
            "decisions": self._decisions(),
            "refusals": list(self.history.refusals)[::-1],
            "estimates": self._estimates(),
            "shadow": self.shadow() if self.shadow else None,
            "points": list(self.history.points)[-3:],
        }

    def _recent_s(self) -> float:
        return min(max(self.now(), STEP_S), RECENT_S)

    def _moment(self) -> dict[str, Any]:
        """What is kept of a moment in the history."""
        watts = [meter.watts for meter in self.meters if meter.watts is not None]
        replicas = [
            [book.in_flight, book.in_flight - book.running, self._kv_share(book), book.healthy]
            for book in self.brain.books
        ]
        return {"held": len(self.brain.held), "watts": sum(watts) if watts else None, "replicas": replicas}

    def _classes(self) -> list[dict[str, Any]]:
        shown = []
        outcomes = self.brain.figures.outcomes().items()
        for klass in self.brain.spec.classes:
            kept = self.history.classes[klass.name]
            lately = kept.lately()
            ever = [counts for labels, counts in outcomes if ("slo_class", klass.name) in labels]
            over, met = sum(over for over, _ in ever), sum(met for _, met in ever)
            shown.append(
                {
                    "name": klass.name,
                    "priority": klass.priority,
                    "target": klass.slo.attainment,
                    "limits_s": {"ttft": klass.slo.ttft_s, "tpot": klass.slo.tpot_s, "e2e": klass.slo.e2e_s},
                    "lately": dict(lately),
                    "attainment": lately["met"] / lately["over"] if lately["over"] else None,
                    "attainment_ever": met / over if over else None,
                    "over_ever": over,
                    "goodput_req_s": lately["met"] / self._recent_s(),
                }
            )
        return shown

    def _replica(self, book: ReplicaBook) -> dict[str, Any]:
        sample, meter = self.brain.engines.get(book.index), self.meters[book.index]
        return {
            "address": self.brain.spec.upstreams[book.index],
            "model": self.brain.backings[book.index].model,
            "role": book.role,
            "healthy": book.healthy,
            "in_flight": book.in_flight,
            "computing": book.in_flight - book.running,
            "others": book.others,
            "window": book.window,
            "engine_running": sample.running if sample else None,
            "engine_waiting": sample.waiting if sample else None,
            "drift": book.drift,
            "kv_share": self._kv_share(book),
            "kv_said": sample is not None and sample.kv_share is not None,
            "ttft_ratio": book.pace.first.ratio if book.pace.known else None,
            "watts": meter.watts,
        }

    def _kv_share(self, book: ReplicaBook) -> float | None:
        """Share of KV in use: the engine's own word, else the books' prediction."""
        sample = self.brain.engines.get(book.index)
        if sample is not None and sample.kv_share is not None:
            return sample.kv_share
        total = book.view.kv_total_blocks
        return min(book.view.kv_used_blocks / total, 1.0) if total else None

    def _advice(self) -> list[dict[str, Any]]:
        """How many replicas of each pool there should be, as the `scale` policy said last."""
        advisor = self.brain.advisor
        there = Counter((self.brain.backings[book.index].model, book.role) for book in self.brain.books)
        return [
            {
                "model": pool[0],
                "role": pool[1],
                "there": there[pool],
                "replicas": asked,
                "reason": why,
                "at_s": advisor.asked_s,
            }
            for pool, (asked, why) in advisor.said.items()
        ]

    def _decisions(self) -> list[dict[str, Any]]:
        counted = self.brain.figures.counters["headway_decisions_total"].most_common(DECISIONS_MAX)
        return [{**dict(labels), "count": count} for labels, count in counted]

    def _estimates(self) -> dict[str, float | None]:
        """Watts, joules, dollars of all replicas, and per million output tokens; None where they are not known."""
        tokens = self.brain.figures.total("headway_tokens_total", kind="output")
        known = all(meter.watts is not None for meter in self.meters)
        priced = [meter.usd_per_hour for meter in self.meters if meter.usd_per_hour is not None]
        joules, usd = sum(meter.joules for meter in self.meters), sum(meter.usd for meter in self.meters)
        paid = len(priced) == len(self.meters)
        return {
            "watts": sum(meter.watts or 0.0 for meter in self.meters) if known else None,
            "joules": joules if known else None,
            "usd_per_hour": sum(priced) if paid else None,
            "joules_per_output_token": joules / tokens if known and tokens else None,
            "usd_per_million_output_tokens": usd / tokens * 1e6 if paid and tokens else None,
        }


@cache
def _file(name: str) -> tuple[str, bytes]:
    body = (files("headway.gateway") / "livepage" / name).read_bytes()
    return TYPES[name.rpartition(".")[2]], body
