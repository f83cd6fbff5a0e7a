"""What the words of a table mean: model and GPU keys, precisions, settings that a source leaves unsaid."""

from __future__ import annotations

import math
import re
from functools import cache
from pathlib import Path

from headway.accuracy.naming import gguf_format, named_format, named_model, named_size, slug
from headway.accuracy.rows import Row
from headway.cost.engines import engine_names
from headway.cost.speculation import Speculation
from headway.errors import BadInput
from headway.hardware import Gpu, gpu, gpu_keys
from headway.model import model, model_keys
from headway.specs import Spec, from_mapping, read_yaml

__all__ = [
    "Inexpressible",
    "Mlperf",
    "alignment",
    "cap_watts",
    "exclusion",
    "gpu_total",
    "is_mlperf",
    "is_sweep",
    "precisions",
    "read_engine",
    "read_gpu",
    "read_model",
    "reading",
    "served_model",
    "speculation",
    "suspicion",
    "sweep",
    "token_budget",
]

_DATA = Path(__file__).parent / "data" / "reading.yaml"
_SPECULATION = {
    name: re.compile(rf"{said}=([^\s;,]+)")
    for name, said in (("tokens", "speculative_tokens"), ("draft", "draft"), ("acceptance", "acceptance"))
}


class Inexpressible(Exception):
    """A row that is no deployment and workload of ours; its text is the reason it is counted by."""


class Limits(Spec):
    """99th percentiles a load must keep."""

    ttft_s: float
    tpot_s: float


class Mlperf(Spec):
    """A data set's mean lengths in tokens, and the limits of its latency-bound scenarios."""

    prompt: int
    output: int
    Server: Limits | None = None
    Interactive: Limits | None = None


class Unstated(Spec):
    """Precision of a benchmark's rows that do not give one: the first of these that the hardware computes in."""

    workload: str
    first_of: tuple[str, ...]


class Version(Spec):
    """The version of an engine that a source leaves out, or names in its own way in the notes."""

    engine: str
    version: str
    source: str = ""
    notes: str = ""


class Budget(Spec):
    """Tokens in a step: of InferenceX rows, and of vendors' own sweeps."""

    measured: int
    sweep: int


class Recipe(Spec):
    """Tokens in a step of InferenceX's rows with this text in their notes, where not those of `Budget`.

    With `of_load` they are the requests in flight, a nominal prompt and 64 more, in full 64s, and `tokens` the least.
    """

    engine: str
    tokens: int
    model_key: str = ""
    precision_weights: str = ""
    notes: str = ""
    of_load: bool = False


class Sweep(Spec):
    """How a vendor's sweep of a release was run.

    Outputs vary by `output_share` of their nominal length either way; the engine took `users_waiting` sequences fewer
    than there were users; with `prompt_a_step` the tokens in a step are those of one prompt.
    """

    engine: str
    engine_version: str
    model_key: str = ""
    output_share: float = 0.0
    users_waiting: int = 0
    prompt_a_step: bool = False


class Suspect(Spec):
    """Rows that look wrong and why: those with one of the values in every column of `where`.

    Of `notes` at least one must occur in the row's notes, `gpu` in the GPU's full name without its marks, and the power
    must be below `power_below_watts`, where given.
    """

    why: str
    where: dict[str, tuple[str, ...]]
    notes: tuple[str, ...] = ()
    gpu: str = ""
    power_below_watts: float | None = None

    def names(self, row: Row) -> bool:
        """Whether the row is one of them."""
        if any(str(getattr(row, column)) not in values for column, values in self.where.items()):
            return False
        if self.notes and not any(word in row.notes for word in self.notes):
            return False
        if self.gpu not in unmarked(row.gpu):
            return False
        return self.power_below_watts is None or row.measured.get("power", math.inf) < self.power_below_watts


class Poll(Spec):
    """Recipes that let a busy engine look for requests every `few` steps, from `many_from` in flight every `many`."""

    engine: str
    gpu_keys: tuple[str, ...]
    few: int
    many: int
    many_from: int


class Alignment(Spec):
    """Recipes whose data-parallel ranks withhold prompts: `align_steps` and `gather_steps` of `EngineSettings`."""

    engine: str
    source: str
    model_key: str
    align_steps: int
    gather_steps: int


class Reading(Spec):
    """The data file; see its comments."""

    models: dict[str, str]
    model_names: tuple[tuple[str, str], ...]
    gpus: dict[str, str]
    gpu_names: tuple[tuple[str, str], ...]
    gpu_words: tuple[str, ...]
    cards_of_two: tuple[str, ...]
    cpus: tuple[tuple[str, str], ...]
    power_caps_watts: dict[str, float]
    precisions: dict[str, str]
    name_precisions: tuple[tuple[str, str], ...]
    engine_precisions: dict[str, str]
    mxfp4_models: tuple[str, ...]
    engines: tuple[tuple[str, str], ...]
    engine_default: str
    mlperf_engines: dict[str, str]
    engine_versions: tuple[Version, ...]
    unstated_precision: Unstated
    token_budget: dict[str, Budget]
    token_budget_default: int
    recipes: tuple[Recipe, ...]
    sweeps: tuple[Sweep, ...]
    polls: tuple[Poll, ...]
    alignments: tuple[Alignment, ...]
    acceptances: dict[str, float]
    media: dict[str, str]
    prompts: dict[str, int]
    mlperf: dict[str, Mlperf]
    excluded: tuple[Suspect, ...]
    suspects: tuple[Suspect, ...]


@cache
def reading() -> Reading:
    """Return how measurements are read."""
    return from_mapping(Reading, read_yaml(_DATA), str(_DATA))


@cache
def _known() -> tuple[frozenset[str], frozenset[str]]:
    return frozenset(model_keys()), frozenset(gpu_keys())


def read_model(row: Row) -> str:
    """Return the catalogue's key of the row's model, or that of a typical one of the size its name says.

    Raises:
        Inexpressible: neither is known.
    """
    key = reading().models.get(row.model_key, row.model_key.lower())
    if key in _known()[0] and _agrees(key, row.model):
        return key
    found = _named(row.model or row.model_key)
    if found is None:
        raise Inexpressible("model not in the catalogue, and its name says no size")
    return found


@cache
def _agrees(key: str, name: str) -> bool:
    """Whether a size in the name is the model's, all of it or active: distillations go under the large one's key."""
    size, spec = named_size(name), model(key)
    return size is None or any(0.6 < size / count < 1.6 for count in (spec.total_params(), spec.active_params()))


@cache
def _named(name: str) -> str | None:
    return named_model(name, reading().model_names)


def read_gpu(row: Row) -> Gpu:
    """Return the catalogue's GPU; a CPU without one counts as a socket.

    Raises:
        Inexpressible: it is not in the catalogue, or several kinds are mixed.
    """
    if " and " in row.gpu:
        raise Inexpressible("several kinds of GPU in one deployment")
    key = _gpu_key(row)
    if key is None:
        raise Inexpressible("no GPU" if row.gpu_count == 0 else "GPU not in the catalogue")
    return gpu(key)


def _gpu_key(row: Row) -> str | None:
    named = unmarked(row.gpu)
    if row.gpu_count == 0:
        return next((key for part, key in reading().cpus if part in named), None)
    for part, key in reading().gpu_names:
        if part in named:
            return key
    words = reading().gpu_words
    tried = (reading().gpus.get(row.gpu_key, row.gpu_key.lower()), slug(row.gpu, words), slug(row.gpu_key, words))
    plain = [name.replace("-", "") for name in tried]
    return next((_joined()[name] for name in (*plain, *(f"radeon{name}" for name in plain)) if name in _joined()), None)


@cache
def _joined() -> dict[str, str]:
    return {key.replace("-", ""): key for key in _known()[1]}


def unmarked(name: str) -> str:
    """Return a name without the marks of registered names and trade marks."""
    return name.replace("(R)", "").replace("(TM)", "")


def gpu_total(row: Row) -> int:
    """Return how many GPUs the figures are of: cards with two count twice, and without a GPU the sockets the notes say.

    Raises:
        Inexpressible: it is not stated.
    """
    if row.gpu_count == 0:
        sockets, nodes = re.search(r"(\d)S[-_ ]", row.notes), re.search(r"nodes=(\d+)", row.notes)
        if sockets is None:
            raise Inexpressible("number of CPU sockets not stated")
        return int(sockets[1]) * (int(nodes[1]) if nodes else 1)
    if not row.gpu_count:
        raise Inexpressible("number of GPUs not stated")
    return row.gpu_count * (2 if any(name in unmarked(row.gpu) for name in reading().cards_of_two) else 1)


def cap_watts(row: Row) -> float | None:
    """Return the power limit of each GPU that its name says, or None."""
    said = re.search(r"Power Cap (\d+) ?W", row.gpu)
    if said:
        return float(said[1])
    return next((watts for part, watts in reading().power_caps_watts.items() if part in row.gpu), None)


def read_engine(row: Row, card: Gpu) -> tuple[str, str]:
    """Return the name and the version of the engine, as the cost model knows them; "" is the newest version."""
    said = row.engine.lower()
    found = [name for part, name in reading().engines if part.lower() in said]
    if not said and is_mlperf(row):
        found = [reading().mlperf_engines.get(card.vendor, reading().engine_default)]
    name = next((name for name in found if name in engine_names()), reading().engine_default)
    for rule in reading().engine_versions:
        if rule.engine == name and rule.source in ("", row.source) and rule.notes in row.notes:
            return name, rule.version
    of_software = re.search(rf"{name}[ -]v?(\d+(?:\.\d+)+)", said)  # MLPerf's strings: "vLLM v0.9.2, ROCm ..."
    version = re.search(r"\d+(?:\.\d+)+", row.engine_version) or of_software
    return name, version[version.re.groups] if version else ""


def token_budget(row: Row, engine: str) -> int:
    """Return the tokens in a step where a row does not say."""
    budget = reading().token_budget.get(engine)
    if budget is None:
        return reading().token_budget_default
    if is_sweep(row):
        return round(row.isl_mean) if row.isl_mean and sweep(row).prompt_a_step else budget.sweep
    for rule in reading().recipes:
        words = {rule.engine: engine, rule.model_key: row.model_key, rule.precision_weights: row.precision_weights}
        if all(word in ("", came) for word, came in words.items()) and rule.notes in row.notes:
            load = round(row.concurrency or 1) + round(row.isl_mean or 0) + 64
            return max(rule.tokens, -(-load // 64) * 64 if rule.of_load else 0)
    return budget.measured


def sweep(row: Row) -> Sweep:
    """Return how the row's sweep was run: as the first that names its release and model; else, or in none, plainly."""
    plain = Sweep(engine=row.engine, engine_version=row.engine_version)
    known = (one for one in reading().sweeps if is_sweep(row) and one.model_key in ("", row.model_key))
    return next((one for one in known if (one.engine, one.engine_version) == (row.engine, row.engine_version)), plain)


def poll_steps(row: Row, engine: str) -> int:
    """Return the decode steps between two looks for requests."""
    for poll in reading().polls:
        if poll.engine == engine and row.gpu_key in poll.gpu_keys and not is_sweep(row):
            return poll.many if (row.concurrency or 0) >= poll.many_from else poll.few
    return 1


def speculation(row: Row) -> Speculation | None:
    """Return the speculative decoding that the row's notes declare, or None.

    They do by `speculative_tokens=3 draft=mtp acceptance=0.8`; an acceptance left out is the default of what drafts.

    Raises:
        Inexpressible: what drafts, or how much of it is accepted, is not stated, or is no such thing.
    """
    found = {name: form.search(row.notes) for name, form in _SPECULATION.items()}
    said = {name: match[1] for name, match in found.items() if match}
    if "tokens" not in said:
        return None
    if "draft" not in said:
        raise Inexpressible("speculative decoding: what drafts is not stated")
    if said["draft"] not in reading().acceptances and "acceptance" not in said:
        raise Inexpressible("speculative decoding: acceptance not stated")
    try:
        return from_mapping(Speculation, {"acceptance": reading().acceptances.get(said["draft"]), **said}, "notes")
    except BadInput:
        raise Inexpressible("speculative decoding: notes not understood") from None


def alignment(row: Row, engine: str) -> tuple[int, int]:
    """Return the steps that prompts wait for one in all data-parallel ranks, and then for more of them; 0 is none."""
    for rule in reading().alignments:
        if (rule.engine, rule.source, rule.model_key) == (engine, row.source, row.model_key) and (row.dp or 1) > 1:
            return rule.align_steps, rule.gather_steps
    return 0, 0


def precisions(row: Row, model_key: str, card: Gpu) -> tuple[str, str]:
    """Return the precisions of weights and KV cache.

    What is not stated is read from the model's name, else it is what the engine or the rules of the benchmark use.

    Raises:
        Inexpressible: one that the cost model does not know.
    """
    said = row.precision_weights.lower()
    weights = reading().precisions.get(said) or gguf_format(said)
    if said in ("", "unset"):
        weights = _unstated(row, card) or weights
    if model_key in reading().mxfp4_models:
        weights = "mxfp4"
    elif weights == "mxfp4":  # of a model published otherwise: four bits for all its matrices
        weights = "fp4"
    if weights is None:
        raise Inexpressible("precision of the weights not modelled")
    return weights, _kv(row, weights, card)


def _unstated(row: Row, card: Gpu) -> str | None:
    rule = reading().unstated_precision
    if row.workload.startswith(rule.workload):
        return next((dtype for dtype in rule.first_of if dtype in card.peak_flops), None)
    named = named_format(row.model, reading().name_precisions)
    return named or reading().engine_precisions.get(row.engine)


def _kv(row: Row, weights: str, card: Gpu) -> str:
    """As stated; else fp8 where recipes of this kind use it: beside quantised weights, vLLM's own sweeps excepted."""
    stated = row.precision_kv.lower()
    quantised = weights in ("fp8", "fp4", "mxfp4")
    recipe = "measured=" in row.notes or is_mlperf(row) or row.engine == "trtllm"
    wants = "fp8" if stated == "fp8" or (not stated and quantised and recipe) else "bf16"
    return wants if "fp8" in card.peak_flops else "bf16"


def served_model(key: str, weights: str, card: Gpu) -> str:
    """Return the key with the format of its copy, where the GPU does not compute in it: weights are then widened."""
    known = weights in card.peak_flops or weights == model(key).native_dtype
    return key if known else f"{key}:{weights}"


def is_mlperf(row: Row) -> bool:
    """Whether the load is one of MLPerf's scenarios."""
    return row.workload.startswith("mlperf")


def is_sweep(row: Row) -> bool:
    """Whether it is of a vendor's own sweep, with fixed lengths, and not of InferenceX."""
    return "measured=" not in row.notes


def exclusion(row: Row) -> str:
    """Return why a row's figures are not what their columns say, or ""; such rows are not used."""
    return next((rule.why for rule in reading().excluded if rule.names(row)), "")


def suspicion(row: Row) -> str:
    """Return why a row looks wrong, or ""; such rows are used, and the errors given without them as well."""
    return next((suspect.why for suspect in reading().suspects if suspect.names(row)), "")
