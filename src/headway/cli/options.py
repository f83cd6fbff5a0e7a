"""Every option of the verbs, once: its name, its reader, its section of the help."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import click

from headway.errors import BadInput
from headway.units import parse_count, parse_rate, parse_seconds, parse_watts

OTHER = "Other"  # the help's last section

F = TypeVar("F", bound=Callable[..., Any])
Options = dict[str, Any]  # what click parsed, by name
Reader = Callable[[click.Context, click.Parameter, Any], Any]


class Section(click.Option):
    """An option that the help lists under a heading."""

    def __init__(self, *declarations: Any, section: str, **settings: Any) -> None:
        super().__init__(*declarations, **settings)
        self.section = section


class Verb(click.Command):
    """A command whose help groups its options."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write one definition list per section, in the order the options were declared."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx) if isinstance(parameter, click.Option) else None
            if record is not None:
                sections.setdefault(getattr(parameter, "section", OTHER), []).append(record)
        for section, records in sorted(sections.items(), key=lambda item: item[0] == OTHER):
            with formatter.section(section):
                formatter.write_dl(records)


def options(*groups: tuple[Callable[[Any], Any], ...]) -> Callable[[F], F]:
    """Return a decorator that adds groups of options to a verb, in this order."""

    def add(function: F) -> F:
        for group in reversed(groups):
            for one in reversed(group):
                function = one(function)
        return function

    return add


def read_with(parse: Callable[[str], Any]) -> Reader:
    """Return a click callback that parses the text of an option, where it was given, to name it in errors."""

    def read(ctx: click.Context, parameter: click.Parameter, text: str | None) -> Any:
        try:
            return None if text is None else parse(text)
        except BadInput as error:
            raise click.BadParameter(str(error), ctx, parameter) from None

    return read


def above_zero(parse: Callable[[str], float]) -> Callable[[str], float]:
    """Return a parser that refuses zero too."""

    def positive(text: str) -> float:
        number = parse(text)
        if number <= 0:
            raise BadInput(f"{text!r} is not above zero")
        return number

    return positive


def _length(text: str) -> Any:
    from headway.workload import parse_length

    return parse_length(text)


def _numbers(text: str) -> tuple[float, ...]:
    """One or several numbers above zero, with commas between them."""
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise BadInput(f"{text!r}: give one number or several, as in 400 or 300,400,700") from None
    if not all(0 < number < math.inf for number in numbers):
        raise BadInput(f"{text!r}: give numbers above zero")
    return numbers


def _kinds(text: str) -> dict[str, int | None]:
    """GPUs by name, with how many there are of each where that is said: ``h100-sxm:8,a100-80gb-sxm:16``."""
    kinds: dict[str, int | None] = {}
    for part in text.split(","):
        name, colon, count = part.strip().rpartition(":")
        name = name if colon else count
        listed = name.endswith((".yaml", ".yml")) or not set(name) & set(" +")  # a path may have them, no name does
        if not name or name in kinds or not listed:
            raise BadInput(f"{text!r}: name each GPU once, with how many there are, as in h100-sxm:8,a100-80gb-sxm:16")
        kinds[name] = parse_count(count) if colon else None
        if kinds[name] == 0:
            raise BadInput(f"{part.strip()!r}: none of it is there; leave it out, or give a number from 1")
    return kinds


def _prices(text: str) -> dict[str, float]:
    """Dollars by name: ``h100-sxm=2.5,l4=0.3``."""
    prices = {}
    for part in text.split(","):
        name, _, usd = part.strip().partition("=")
        try:
            prices[name] = float(usd)
        except ValueError:
            raise BadInput(f"{part!r}: write GPU=USD, as in h100-sxm=2.5") from None
    return prices


def _engines(text: str) -> tuple[tuple[str, str], ...]:
    """Engines with their releases, "" where none is said: ``vllm,sglang:0.5``."""
    named = (part.strip().partition(":") for part in text.split(","))
    return tuple((name, version) for name, _, version in named)


def _objectives(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(","))


def _option(section: str, *declarations: str, **settings: Any) -> Callable[[F], F]:
    return click.option(*declarations, cls=Section, section=section, **settings)


_COUNT = read_with(above_zero(parse_count))
_RATE = read_with(above_zero(parse_rate))
_SECONDS = read_with(above_zero(parse_seconds))
_LENGTH = read_with(_length)
_NUMBERS = read_with(_numbers)
_KINDS = read_with(_kinds)
_PRICES = read_with(_prices)
_ENGINES = read_with(_engines)
_FRONT = read_with(_objectives)
_WATTS = read_with(above_zero(parse_watts))
_RAY = "A Ray cluster instead: HOST:PORT, ray://HOST:PORT or auto. It must be trusted."
OBJECTIVES = ["cost", "gpus", "energy", "carbon", "goodput", "rate", "ttft", "tpot"]

# fmt: off
MODEL = (
    _option("Deployment", "--model", metavar="NAME|PATH", help="From the catalogue, or the path of a config.json."),
    _option("Deployment", "--gpu", metavar="NAME", help="From the catalogue."),
)
KINDS = (
    MODEL[0],
    _option("Deployment", "--gpu", callback=_KINDS, metavar="NAME[:N][,...]",
            help="From the catalogue; several kinds, each with how many there are: h100-sxm:8,a100-80gb-sxm:16."),
    _option("Deployment", "--gpus", callback=_COUNT, metavar="N",
            help="How many there are, of all kinds; fewer are tried too.  [default: the sum of those of --gpu]"),
    _option("Deployment", "--engine", callback=_ENGINES, metavar="NAME[:VERSION][,...]",
            help="Whose step times and batching; of several each is tried.  [default: vllm]"),
    _option("Deployment", "--price", "prices", callback=_PRICES, metavar="GPU=USD[,...]",
            help="Dollars per hour of one GPU, in place of the catalogue's."),
)
REPLICAS = (
    _option("Deployment", "--replicas", callback=_COUNT, metavar="N", help="Copies of the model.  [default: 1]"),
    _option("Deployment", "--tp", callback=_COUNT, metavar="N", help="GPUs that share each layer.  [default: 1]"),
    _option("Deployment", "--pp", callback=_COUNT, metavar="N", help="Stages of the layers.  [default: 1]"),
    _option("Deployment", "--weights", metavar="DTYPE", help="bf16, fp8, ...  [default: as the model is published]"),
    _option("Deployment", "--kv", metavar="DTYPE", help="Of the KV cache: bf16 or fp8.  [default: bf16]"),
    _option("Deployment", "--policy", "policies", multiple=True, metavar="KIND=NAME",
            help="route=, order=, admit=, choose_model=, retain= or scale= and a name or module:Class. Repeatable."),
    _option("Deployment", "--set", "assignments", multiple=True, metavar="PATH=VALUE",
            help="Any field: pools.0.replica.kv=fp8, workload.arrival.cv=3, slo.itl_s=80ms. Repeatable."),
)
WORKLOAD = (
    _option("Workload", "--workload", metavar="NAME|FILE", help="A preset, a trace or a YAML file.  [default: chat]"),
    _option("Workload", "--input", callback=_LENGTH, metavar="DIST", help="Prompt tokens: 512, exp:512, ..."),
    _option("Workload", "--output", callback=_LENGTH, metavar="DIST", help="Output tokens, in the same forms."),
    _option("Workload", "--rate", callback=_RATE, metavar="RATE", help="Requests/s.  [default: the workload's]"),
)
ARRIVALS = (
    _option("Workload", "--arrival", metavar="PROCESS", help="poisson, constant, gamma:cv=3, closed:64, ..."),
    _option("Workload", "--requests", callback=_COUNT, metavar="N", help="How many.  [default: the workload's]"),
)
OTHERWISE = (
    _option("What if", "--rate", "rates", multiple=True, metavar="RATE|FACTOR",
            help="2x, 0.5x or +50%: what becomes of the rate. A plain rate, 20, is that of today."),
    _option("What if", "--replicas", "copies", multiple=True, metavar="[POOL=]N",
            help="4, +1 or -1; of prefill, decode, mixed.1 where there are several pools. Repeatable."),
    _option("What if", "--gpu", metavar="NAME", help="Of all replicas, from the catalogue."),
    _option("What if", "--tp", callback=_COUNT, metavar="N", help="GPUs that share each layer, of all replicas."),
    _option("What if", "--pp", callback=_COUNT, metavar="N", help="Stages of the layers, of all replicas."),
    _option("What if", "--weights", metavar="DTYPE", help="Of all replicas."),
    _option("What if", "--kv", metavar="DTYPE", help="Of the KV cache, of all replicas."),
    _option("What if", "--policy", "policies", multiple=True, metavar="KIND=NAME",
            help="route=, order=, admit=, choose_model=, retain= or scale= and a name or module:Class. Repeatable."),
    _option("What if", "--slo", "limits", multiple=True, metavar="[CLASS:]LIMIT=VALUE[,...]",
            help="ttft=, tpot=, itl= or e2e= and a time, attainment= and a share; of all or a class. Repeatable."),
    _option("What if", "--set", "assignments", multiple=True, metavar="PATH=VALUE",
            help="Any field: pools.0.replica.engine.max_seqs=64, workload.arrival.cv=3. Repeatable."),
)
RUN_OF_LOG = (
    _option("Log", "--run", "run_named", metavar="NAME", help="Of a log with several.  [default: the newest]"),
)
RESULTS = (
    _option("Output", "--out", "out_to", metavar="DIR",
            help="The results with their rows, as headway compare takes them; of a log its traffic too."),
)
FIELDS = (
    _option("Workload", "--set", "assignments", multiple=True, metavar="PATH=VALUE",
            help="A field: workload.arrival.cv=3, slo.itl_s=80ms. Repeatable."),
)
ENDPOINT = (
    _option("Endpoint", "--model", metavar="NAME", help="As served.  [default: the first of /v1/models]"),
    _option("Endpoint", "--endpoint", type=click.Choice(["completions", "chat"]),
            help="[default: what the URL says, else the first that works]"),
    _option("Endpoint", "--prompts", type=click.Choice(["ids", "words"]),
            help="Token ids of exact number, or text.  [default: ids where the engine takes them]"),
    _option("Endpoint", "--chars-per-token", type=click.FloatRange(0.5, 100), metavar="N",
            help="Of text, where the engine does not count its tokens.  [default: 5]"),
    _option("Endpoint", "--body", metavar="JSON", help="More fields of each request; null leaves one out."),
    _option("Endpoint", "--key-env", metavar="NAME", help="The variable with the API key.  [default: HEADWAY_API_KEY]"),
    _option("Endpoint", "--key-file", metavar="FILE", help="The file with the API key."),
    _option("Endpoint", "--timeout", callback=_SECONDS, metavar="TIME", help="Of one answer.  [default: 10min]"),
    _option("Endpoint", "--deployment", "deployment_file", metavar="FILE",
            help="What serves there, as headway simulate takes it: for GPUs and prices."),
)
LOAD = (
    _option("Run", "--processes", callback=_COUNT, default="1", show_default=True, metavar="N",
            help="That share the load."),
    _option("Run", "--salt", type=click.IntRange(min=0), metavar="N",
            help="Of the texts: the same again may be cached by the engine.  [default: a new one]"),
    _option("Run", "--no-check", is_flag=True, help="Do not measure this client's own error."),
)
COMPARED = (
    _option("Comparison", "--records", "records_from", multiple=True, metavar="FILE",
            help="Rows of A, and given again of B.  [default: FILE.csv, .jsonl or .parquet beside FILE.json]"),
)
TRACES = (
    _option("Workload", "--skip-bad", is_flag=True, help="Leave broken lines of a trace out, and count them."),
)
DAY = (
    _option("Workload", "--curve", metavar="RATES|FILE",
            help="Rates of a day's slots, 20,12,8,90, or a file of them: CSV with rate_req_s, or one a line."),
    _option("Workload", "--slot", callback=_SECONDS, metavar="TIME",
            help="Length of a slot: 30min.  [default: a 24th of the day]"),
)
SLO = (
    _option("SLO", "--ttft", callback=_SECONDS, metavar="TIME", help="Limit on the time to first token: 500ms."),
    _option("SLO", "--tpot", callback=_SECONDS, metavar="TIME", help="Limit on the time per token after it."),
    _option("SLO", "--e2e", callback=_SECONDS, metavar="TIME", help="Limit on the time to the last token."),
    _option("SLO", "--attainment", default="0.9", show_default=True, metavar="SHARE",
            help="Share of all requests that must meet every limit."),
)
CLASSES = (
    _option("SLO", "--slo", "by_class", multiple=True, metavar="CLASS:LIMIT=VALUE[,...]",
            help="Of a class of the workload, in place of the above: chat:ttft=300ms,tpot=30ms,attainment=95%. "
            "Repeatable."),
)
SHARING = (
    _option("Search", "--together", is_flag=True,
            help="All classes share every replica: no pools of their own are compared."),
)
SEARCH = (
    _option("Search", "--objective", type=click.Choice(OBJECTIVES), default="cost", show_default=True,
            help="What those that meet the SLO are ranked by: goodput is per GPU, rate is goodput of all."),
    _option("Search", "--front", callback=_FRONT, metavar="A,B[,C]",
            help="Two or three objectives: what no other plan beats in all of them is the front. "
            "[default: cost,energy,goodput, of which --objective replaces one]"),
    _option("Search", "--max-usd-per-hour", type=float, metavar="USD", help="No plan costs more."),
    _option("Search", "--max-tp", callback=_COUNT, metavar="N", help="No replica is cut wider."),
    _option("Search", "--spare", type=click.IntRange(min=0), default=0, show_default=True, metavar="N",
            help="So many replicas of every pool may be down, and the SLO is still met."),
    _option("Search", "--cap-watts", callback=_NUMBERS, metavar="W[,W]", help="Power limits of a GPU to try: 400,700."),
    _option("Search", "--clock-mhz", callback=_NUMBERS, metavar="MHZ[,MHZ]", help="Locked SM clocks of a GPU to try."),
    _option("Search", "--max-watts", callback=_WATTS, metavar="W", help="The GPUs of no plan can draw more: 20kW."),
    _option("Search", "--watts-per-rack", callback=_WATTS, metavar="W", help="Power of a rack; with --gpus-per-rack."),
    _option("Search", "--gpus-per-rack", callback=_COUNT, metavar="N", help="GPUs that a rack has places for."),
    _option("Search", "--policy", "policies", multiple=True, metavar="KIND=NAME[,...]",
            help="route=, order= or admit= and a name or module:Class; of several each is tried. Repeatable."),
    _option("Search", "--set", "assignments", multiple=True, metavar="PATH=VALUE",
            help="Any field: tp=[2,4], dp=[1,8], max_seqs=[128,512], layouts=[mixed], requests=8000. Repeatable."),
    _option("Search", "--workers", callback=_COUNT, metavar="N", help="Processes.  [default: one per core]"),
    _option("Search", "--ray", "ray", metavar="ADDRESS", help=_RAY),
)
WORKERS = (
    _option("Run", "--workers", callback=_COUNT, metavar="N", help="Processes.  [default: one per core]"),
    _option("Run", "--ray", "ray", metavar="ADDRESS", help=_RAY),
)
SEED = (
    _option("Run", "--seed", type=click.IntRange(min=0), default=0, show_default=True, metavar="N",
            help="Of every random stream."),
)
OUTPUT = (
    _option("Output", "--json", "json_to", metavar="FILE|-", help="The answer as JSON; - is stdout, alone there."),
    _option("Output", "--html", "html_to", metavar="FILE", help="A report: one page that needs no network."),
)
TEXT = (
    _option("Output", "--text", "in_full", is_flag=True,
            help="All of the report on the terminal: every candidate, curve and assumption."),
)
CSV = (
    _option("Output", "--csv", "csv_to", metavar="FILE|-", help="A row per slot."),
)
RECORDS = (
    _option("Output", "--records", "records_to", metavar="FILE",
            help="A row per request: .parquet, .csv, .json or .jsonl."),
    _option("Output", "--no-records", is_flag=True, help="Keep none: memory does not grow with the requests."),
)
BEST = (
    _option("Output", "--yaml", "yaml_to", metavar="FILE|-", help="The best, as headway simulate takes it."),
    _option("Output", "--why", is_flag=True,
            help="How far the best holds: other rates and lengths, the cost model's error, a replica more or fewer; "
                 "and which part holds it back."),
)
TOP = (
    _option("Output", "--top", callback=_COUNT, default="10", show_default=True, metavar="N", help="Rows shown."),
)
VALIDATION = (
    _option("Measurements", "--requests", "requests_from", metavar="DIR",
            help="Replay recorded runs instead: NAME.meta.json beside NAME.requests.csv.gz."),
    _option("Measurements", "--trace", metavar="FILE", help="The requests of those runs.  [default: found beside]"),
    _option("Measurements", "--sample", callback=_COUNT, metavar="N", help="Only N rows, spread over the table."),
    _option("Measurements", "--workers", callback=_COUNT, metavar="N", help="Processes.  [default: one per core]"),
)
JSON = OUTPUT[:1]
CALIBRATION = (
    _option("Cost model", "--calibration", "calibration_from", metavar="FILE|published",
            help="Step times by own measurements, as headway calibrate writes them, or by published ones."),
    _option("Cost model", "--fingerprint", "fingerprint_from", metavar="FILE",
            help="Of the machine asked about, as headway profile writes it: compared with the calibration's."),
)
CHOICE = (
    _option("Measurements", "--where", "where", multiple=True, metavar="COLUMN=VALUE",
            help="Only rows with it: gpu_key=H100, engine=vllm. Repeatable."),
    _option("Measurements", "--fingerprint", "fingerprint_from", metavar="FILE",
            help="Of the machine, as headway profile writes it: kept with the calibration."),
)
PROFILE = (
    _option("Measurement", "--out", "out_to", metavar="DIR", help="Where ops_*.csv.gz and fingerprint.json go."),
    _option("Measurement", "--compare", is_flag=True, help="Show our law's times beside the measured ones."),
    _option("Measurement", "--gpu", metavar="NAME", help="The catalogue's name of this GPU.  [default: by its name]"),
    _option("Measurement", "--full", is_flag=True, help="A fine grid of shapes: minutes instead of seconds."),
)
WRITTEN = (
    _option("Output", "--out", "out_to", metavar="FILE|-", help="The calibration, for --calibration of other verbs."),
)
POINTS = (
    _option("Output", "--points", "points_to", metavar="FILE|-", help="A CSV of every figure, measured and predicted."),
)
QUIET = (
    _option("Output", "--quiet", "-q", is_flag=True, help="No table, no progress, no notes."),
)
# fmt: on
