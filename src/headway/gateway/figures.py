"""What has happened, counted under names that do not change; `docs/gateway.md` lists them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable

from headway.gateway.events import Outcome
from headway.metrics.exposition import Buckets, Labels, family

BOUNDS_S = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 300.0)
TOKEN_BOUNDS_S = (0.002, 0.005, 0.01, 0.015, 0.02, 0.025, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.2, 0.5, 1.0)
LIMITS_S = {"headway_tpot_seconds": TOKEN_BOUNDS_S}
# Values of a label told apart, the rest is "other": a tenant has 70 series for each class, and a policy may put numbers
# into its reasons.
TOLD_APART = {"reason": 64, "tenant": 100}
HELP = {
    "headway_arrived_total": ("counter", "Requests that arrived and were well formed."),
    "headway_decisions_total": ("counter", "Decisions by outcome and reason."),
    "headway_refused_total": ("counter", "Well-formed requests that were not served."),
    "headway_ended_total": (
        "counter",
        "Accepted requests that ended, by the status the caller saw (0: left before one).",
    ),
    "headway_attained_total": ("counter", "Requests that met every limit of their class."),
    "headway_edge_replies_total": ("counter", "Requests that Envoy answered by itself: too large, too late, no HTTP."),
    "headway_tokens_total": ("counter", "Tokens of ended requests, as the engines or the stream's events count them."),
    "headway_cached_tokens_total": ("counter", "Prompt tokens that engines said were in their prefix caches."),
    "headway_policy_errors_total": ("counter", "Decisions that a policy failed to give; the fallback gave them."),
    "headway_ledger_errors_total": ("counter", "Times that the ledger of tenants' use could not be read or written."),
    "headway_budget_tokens": ("gauge", "Tokens of a tenant's budget: spent, set aside for what runs, the limit."),
    "headway_retried_total": ("counter", "Requests that the second host of their decision answered."),
    "headway_hedged_total": ("counter", "Requests that were sent to this replica, too, as their first byte was late."),
    "headway_hedges_won_total": ("counter", "Hedged requests that the second replica answered."),
    "headway_misrouted_total": ("counter", "Requests answered by a host that was not chosen: must be 0."),
    "headway_unmatched_total": ("counter", "Ends without a record in time; records and second ends that nobody knows."),
    "headway_drifted_total": ("counter", "Readings in which an engine and the books differed by more than 2 and 10 %."),
    "headway_ejected_total": ("counter", "Times that a replica was taken out after failures in a row."),
    "headway_chosen_total": ("counter", "Requests for which the policy chose a model, by the model and why."),
    "headway_kept_total": ("counter", "Requests whose prefix the policy would have kept, obeyed or not."),
    "headway_shadow_total": ("counter", "Decisions in which the shadow policy agreed with the live one, or failed."),
    "headway_logged_total": ("counter", "Rows of the decision log that were written."),
    "headway_peers": ("gauge", "Other gateways that are heard."),
    "headway_peer_clock_seconds": ("gauge", "How far the clock of the gateway heard last is from this one."),
    "headway_peer_refused_total": ("counter", "Datagrams of peers that were not believed."),
    "headway_log_dropped_total": ("counter", "Events that the decision log lacks: its disk was full or too slow."),
    "headway_queue_seconds": ("histogram", "Arrival to being passed on, of accepted requests."),
    "headway_ttft_seconds": ("histogram", "Arrival to first event of a stream."),
    "headway_tpot_seconds": ("histogram", "Mean time per output token after the first."),
    "headway_e2e_seconds": ("histogram", "Arrival to the end."),
    "headway_attainment": ("gauge", "Share of the requests that arrived and are over which met every limit."),
    "headway_goodput_requests_per_second": ("gauge", "Requests a second that met every limit, over the last minute."),
    "headway_in_flight": ("gauge", "Requests at a replica by the books."),
    "headway_others": ("gauge", "Requests at a replica that are not in these books: of peers, or of strangers."),
    "headway_engine_requests": ("gauge", "Requests at a replica as its own metrics say, running and waiting."),
    "headway_kv_share": ("gauge", "Share of a replica's KV in use, as its own metrics say."),
    "headway_drift": ("gauge", "Requests that the engine had more than the books when it was read last."),
    "headway_replica_info": ("gauge", "1 for each replica, with its model and the role of its pool."),
    "headway_prefilled_total": ("counter", "Requests whose prompt this prefill replica was given to compute."),
    "headway_healthy": ("gauge", "1 while a replica is sent requests."),
    "headway_held": ("gauge", "Requests that wait in Headway's queue."),
    "headway_predicted_ttft_seconds": (
        "gauge",
        "Time to first token of a prompt of 512 tokens sent now, as predicted.",
    ),
    "headway_estimated_power_watts": ("gauge", "Power of a replica's GPUs at its load, by the cost model."),
    "headway_estimated_energy_joules_total": ("counter", "That power summed over time; idle power counts."),
    "headway_estimated_cost_usd_per_hour": ("gauge", "What a replica's GPUs cost an hour, idle or busy."),
    "headway_estimated_cost_usd_total": ("counter", "What they cost since the start of this process."),
    "headway_log_lines_dropped_total": ("counter", "Log lines left out because whoever reads the log was too slow."),
    "headway_traces_dropped_total": ("counter", "Traces left out because too many waited for the collector."),
    "process_cpu_seconds_total": ("counter", "CPU time of the decision process."),
    "process_resident_memory_bytes": ("gauge", "Memory of the decision process."),
    "process_open_fds": ("gauge", "Open files and sockets of the decision process."),
    "process_start_time_seconds": ("gauge", "When the decision process began, in seconds since 1970."),
}


class Figures:
    """Counters and histograms by name and labels."""

    def __init__(self) -> None:
        self.counters: dict[str, Counter[Labels]] = defaultdict(Counter)
        self.spreads: dict[str, dict[Labels, Buckets]] = defaultdict(dict)
        self.known: dict[str, set[str]] = {label: set() for label in TOLD_APART}
        self.keys: dict[tuple[str, str], tuple[Labels, Labels, Labels]] = {}  # by class and tenant, which are few
        self.seen: set[Labels] = set()  # that are as few

    def count(self, name: str, amount: float = 1, **labels: str) -> None:
        """Add to a counter."""
        self._add(name, self._key(labels), amount)

    def spread(self, name: str, seconds: float, **labels: str) -> None:
        """Add a duration to a histogram."""
        self._spread(name, self._key(labels), seconds)

    def _add(self, name: str, key: Labels, amount: float) -> None:
        self.counters[name][key] += amount  # type: ignore[assignment]

    def _spread(self, name: str, key: Labels, seconds: float) -> None:
        spreads = self.spreads[name]
        if key not in spreads:
            spreads[key] = Buckets(LIMITS_S.get(name, BOUNDS_S))
        spreads[key].add(seconds)

    def arrived(self, slo_class: str, tenant: str) -> None:
        """Count a request that has arrived."""
        self._add("headway_arrived_total", self._keys(slo_class, tenant)[0], 1)

    def over(self, outcome: Outcome) -> None:
        """Count a request that is over."""
        key, prompt, output = self._keys(outcome.slo_class, outcome.tenant)
        if outcome.code:
            self._add("headway_refused_total", key, 1)
            return
        counters = self.counters
        counters["headway_ended_total"][*key, ("status", str(outcome.status))] += 1
        counters["headway_attained_total"][key] += outcome.attained
        tokens = counters["headway_tokens_total"]
        tokens[prompt] += outcome.prompt_tokens or 0
        tokens[output] += outcome.output_tokens or 0
        counters["headway_cached_tokens_total"][key] += outcome.cached_tokens or 0
        if outcome.sent_s is not None:
            self._spread("headway_queue_seconds", key, max(outcome.sent_s - outcome.arrived_s, 0.0))
        if outcome.ttft_s is not None:
            self._spread("headway_ttft_seconds", key, outcome.ttft_s)
        if outcome.tpot_s is not None:
            self._spread("headway_tpot_seconds", key, outcome.tpot_s)
        if outcome.e2e_s is not None:
            self._spread("headway_e2e_seconds", key, outcome.e2e_s)

    def _keys(self, slo_class: str, tenant: str) -> tuple[Labels, Labels, Labels]:
        """The labels of a class and a tenant, alone and for tokens of prompts and outputs."""
        found = self.keys.get((slo_class, tenant))
        if found is None:
            key = self._key({"slo_class": slo_class, "tenant": tenant})
            found = self.keys[slo_class, tenant] = key, (*key, ("kind", "prompt")), (*key, ("kind", "output"))
        return found

    def total(self, name: str, **labels: str) -> float:
        """Return the sum of a counter over all labels that include these."""
        wanted = set(labels.items())
        return sum(value for key, value in self.counters[name].items() if wanted <= set(key))

    def outcomes(self) -> dict[Labels, tuple[float, float]]:
        """Return how many requests are over, and how many met every limit, by class and tenant."""
        over: Counter[Labels] = Counter()
        for name in ("headway_ended_total", "headway_refused_total"):
            for key, count in self.counters[name].items():
                over[key[:2]] += count
        met = self.counters["headway_attained_total"]
        return {key: (count, met[key]) for key, count in over.items()}

    def text(self, gauges: Iterable[tuple[str, dict[str, str], float]]) -> str:
        """Return everything in Prometheus' text format, these gauges of the moment included."""
        samples: dict[str, list[tuple[Labels, float | Buckets]]] = defaultdict(list)
        for values in (self.counters, self.spreads):
            for name, by_labels in values.items():
                samples[name] += by_labels.items()
        samples["headway_attainment"] += [(key, met / over) for key, (over, met) in self.outcomes().items()]
        for name, labels, value in gauges:
            samples[name].append((tuple(labels.items()), value))
        lines: list[str] = []
        for name, (kind, said) in HELP.items():
            if samples.get(name):
                lines += family(name, kind, said, samples[name])
        return "\n".join(lines) + "\n"

    def _key(self, labels: dict[str, str]) -> Labels:
        key = tuple(labels.items())
        if key in self.seen:
            return key
        for label, known in self.known.items():
            value = labels.get(label)
            if value is not None and value not in known:
                if len(known) < TOLD_APART[label]:
                    known.add(value)
                else:
                    labels[label] = "other"
        key = tuple(labels.items())
        self.seen.add(key)
        return key
