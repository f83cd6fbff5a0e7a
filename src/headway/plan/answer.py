"""`Plan`: the candidates with their predicted results, ranked; as JSON the schema headway.plan/1.

None (null in JSON, never NaN) is a value that is unknown. `docs/plan-schema.md` describes every field.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from headway.metrics.result import EnergyKind, Uncertainty
from headway.plan.leaders import Course, LoadCurve
from headway.plan.question import Question
from headway.specs import Spec, from_json, json_text, to_mapping

__all__ = ["SCHEMA", "Binding", "Candidate", "ClassShare", "Kind", "Plan", "Sensitivity", "Variant"]

SCHEMA = "headway.plan/1"
Binding = Literal["memory", "ttft", "tpot", "itl", "e2e", "rate"]
Kind = Literal["base", "rate", "lengths", "model", "parts", "replicas"]


class ClassShare(Spec, frozen=True, kw_only=True):
    """What a candidate does at the asked rate for one class of several.

    Attainment has its 95 % interval as the candidate's own. `ttft_s`, `tpot_s` and `e2e_s` are the quantile at the
    share `target`, to be held against the limits of the class.
    """

    attainment: float
    attainment_low: float
    attainment_high: float
    target: float
    meets: bool
    ttft_s: float
    tpot_s: float
    e2e_s: float


class Candidate(Spec, frozen=True, kw_only=True):
    """One deployment, what it can serve at most, and what happens at the rate asked for.

    Attributes:
        name: unique in the plan.
        deployment: as a YAML file has it, defaults left out.
        goodput_req_s: highest rate at which attainment reaches its target, interpolated between
            `goodput_low_req_s`, the highest rate simulated that met the SLO, and `goodput_high_req_s`, 3 % above
            it, which did not; 0 when the SLO is missed at any rate. A confirmed one meets it where the lower end of the
            interval does. Where even the highest rate tried met the SLO, both are that rate, a lower bound, and the
            upper end is None.
        attainment, ...: at the asked rate; None where a bound proves that no rate meets the SLO. Confirmed: over all
            requests of all `seeds`, the other figures the mean of the seeds'. Like goodput, attainment and latencies
            are of what is left when `question.spare` replicas of every pool are down; what it costs, draws
            and emits is of all of them.
        attainment_all_up: attainment with every replica up: the same where none may be down.
        ttft_s, tpot_s: what the SLO's share of requests keeps to at the asked rate, of several classes the largest of
            any: what the objectives of these names rank by.
        by_class: what it does for each class, by name, where classes have SLOs of their own: it then meets the SLO when
            every class reaches its own target; binding_class: the class whose limit `binding` is.
        attainment_low, attainment_high: 95 % interval: by batches of one run, by the seeds where several were run.
        usd_per_hour, usd_per_million_output_tokens: of the GPUs, idle ones too; None without a price.
        meets: whether it meets the SLO at the asked rate; confirmed: whether `attainment_low` reaches the target.
        binding: what stops it from serving more: the limit that breaks first above its goodput, "memory" where
            requests are larger than the KV cache, "rate" where only the queue grows.
        reason: why it won or lost, in a sentence.
        requests, simulations: how many requests each run behind these numbers had, and how many runs there were;
            only candidates in front get long runs.
        seeds: of these runs, each at every rate: the question's, or those that confirmed it.
        confirmed: whether the figures rest on seeds that had no part in choosing the candidate.
        mean_watts: of all GPUs at the asked rate; energy_kind: how watts, joules and grams came about.
        carbon_g_per_million_output_tokens: of the energy, at the intensity and PUE of the question's prices;
        embodied_g_per_million_output_tokens: of making the GPUs, where the prices say what that took.
        idle_joules_per_output_token, prefill_..., decode_...: what `joules_per_output_token` is made of.
    """

    name: str
    deployment: dict[str, Any]
    gpus: int
    goodput_req_s: float
    goodput_low_req_s: float
    goodput_high_req_s: float | None
    goodput_req_s_per_gpu: float
    attainment: float | None
    attainment_low: float | None
    attainment_high: float | None
    ttft_p90_s: float | None
    tpot_p90_s: float | None
    usd_per_hour: float | None
    usd_per_million_output_tokens: float | None
    joules_per_output_token: float | None
    meets: bool
    binding: Binding
    reason: str
    requests: int
    simulations: int
    seeds: tuple[int, ...] = ()
    confirmed: bool = False
    idle_joules_per_output_token: float | None = None
    prefill_joules_per_output_token: float | None = None
    decode_joules_per_output_token: float | None = None
    mean_watts: float | None = None
    energy_kind: EnergyKind | None = None
    carbon_g_per_million_output_tokens: float | None = None
    embodied_g_per_million_output_tokens: float | None = None
    attainment_all_up: float | None = None
    ttft_s: float | None = None
    tpot_s: float | None = None
    by_class: dict[str, ClassShare] = msgspec.field(default_factory=dict)
    binding_class: str = ""

    @property
    def open_ended(self) -> bool:
        """Whether every rate tried met the SLO: its requests are too few to tell what is served at most."""
        return self.goodput_req_s > 0 and self.goodput_high_req_s is None


class Variant(Spec, frozen=True, kw_only=True):
    """The plan's best with one thing changed, in words in `what`.

    Attributes:
        rate_req_s: asked for.
        attainment, attainment_low, attainment_high: at that rate, with the 95 % interval by batches; with the
            question's spare replicas down.
        meets: whether the attainment reaches its target.
        breaks: what breaks first where the rate is higher than what it serves.
        goodput_req_s: the highest rate at which attainment reaches its target, within 3 %; 0 where none does, None
            where the runs are too short to find one.
        gpus: of the deployment; usd_per_hour: of these, None without a price.
    """

    kind: Kind
    what: str
    rate_req_s: float
    attainment: float | None = None
    attainment_low: float | None = None
    attainment_high: float | None = None
    meets: bool = False
    breaks: Binding | None = None
    goodput_req_s: float | None = None
    gpus: int
    usd_per_hour: float | None = None

    @property
    def headroom(self) -> float | None:
        """By which share the rate could grow before the SLO is missed; negative where it is."""
        return None if self.goodput_req_s is None else self.goodput_req_s / self.rate_req_s - 1


class Sensitivity(Spec, frozen=True, kw_only=True):
    """What becomes of a plan's best; the first of `variants` is the plan as it is.

    `coverage`: the share of cases in which the ends of the variants "model" hold the truth between them. `requests` and
    `seed` of each simulation. `planned_req_s`: the plan's own goodput, of all its seeds and more careful where it was
    confirmed; `planned_breaks`: the limit that breaks first above that.
    """

    name: str
    requests: int
    seed: int
    coverage: float
    planned_req_s: float
    planned_breaks: Binding | None = None
    variants: list[Variant]

    @property
    def base(self) -> Variant:
        """The plan as it is."""
        return self.variants[0]

    def of(self, kind: Kind) -> list[Variant]:
        """Return the variants that change this."""
        return [each for each in self.variants if each.kind == kind]

    def buys(self, more: Variant) -> float:
        """Return requests per second that each GPU more (or fewer) than the base's makes, of what is served at most."""
        return ((more.goodput_req_s or 0.0) - (self.base.goodput_req_s or 0.0)) / (more.gpus - self.base.gpus)


class Plan(Spec, frozen=True, kw_only=True):
    """The answer to a `Question`.

    Attributes:
        rate_req_s, requests: the rate planned for and the requests of a long run, chosen where the question left them
            open.
        alone: whether the workload is one request, for which nobody gave a rate: then `rate_req_s` says nothing.
        first_request: place in its trace, from 0 on, of the first request simulated.
        feasible: whether any candidate meets the SLO at the asked rate.
        binding: what stands in the way when none does: "memory" (the model fits no GPUs), a latency limit (missed
            at any rate), "rate" (too high for these GPUs), or None: constraints of the question leave nothing to try.
        message: the answer in a sentence or two.
        interrupted: whether the search was cut short; the plan then holds the candidates known by then.
        enumerated: candidates in the space: `evaluated` + all `discarded` (+ those an interruption left).
        discarded: candidates by the reason they were not evaluated for.
        tolerance: relative width of the bracket around each goodput that rests on runs of full length.
        best: the first of `ranked` when the plan is feasible.
        front: names of the candidates no other beats in all objectives of the question's `front` at once, without
            those that a better ranked one is as good as to within `tolerance` in what is simulated; of the confirmed
            ones if the first of `ranked` is.
        ranked: all evaluated candidates, the best first.
        long_runs, confirmed: how many of these rest on runs of `requests`, and how many on further seeds.
        uncertainty: the cost model's own error in the figures of the first of `ranked`, as factors.
        sensitivity: what becomes of `best` where something is otherwise; None where it was not asked for.
        ratio_error: how far the ratio of two candidates in what the objective is about may be off, in 90 % of cases:
            less than each of them, as errors of one model and GPU are alike.
        ties: names of candidates that the cost model's error does not tell from `best`.
        undecided: names of candidates that would be before `best`, but that all seeds spent on them leave in doubt
            whether they meet the SLO.
        curves: latency against load of the first candidates; course: the run of the first at the asked rate.
    """

    schema: str = SCHEMA
    question: Question
    rate_req_s: float
    requests: int
    alone: bool = False
    first_request: int = 0
    feasible: bool
    binding: Binding | None
    message: str
    interrupted: bool
    enumerated: int
    evaluated: int
    discarded: dict[str, int]
    tolerance: float
    seconds: float
    best: Candidate | None
    front: list[str]
    ranked: list[Candidate]
    long_runs: int = 0
    confirmed: int = 0
    uncertainty: Uncertainty | None = None
    sensitivity: Sensitivity | None = None
    ratio_error: float | None = None
    ties: list[str] = msgspec.field(default_factory=list)
    undecided: list[str] = msgspec.field(default_factory=list)
    curves: list[LoadCurve] = msgspec.field(default_factory=list)
    course: Course | None = None

    def to_mapping(self) -> dict[str, Any]:
        """Return every field as builtins in the order of the schema, nulls included."""
        return to_mapping(self, defaults=True)

    def to_json(self, indent: int = 2) -> str:
        """Return the schema headway.plan/1 as JSON text."""
        return json_text(self.to_mapping(), indent)

    @classmethod
    def from_json(cls, text: str | bytes, where: str = "plan") -> Plan:
        """Return the plan that `to_json` wrote; `where` (a file name) is for error messages.

        Raises:
            BadInput: not JSON, another schema, or a field that is missing, unknown or of a wrong type.
        """
        return from_json(cls, text, SCHEMA, where)
