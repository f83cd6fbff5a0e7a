"""`Workload`: what everything above asks for requests, and `workload()`, which finds one by name or file."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from functools import cache, cached_property, partial
from pathlib import Path

import msgspec

from headway.errors import BadInput, UnknownName
from headway.specs import from_mapping, read_yaml
from headway.units import parse_count, parse_rate
from headway.workload.arrivals import Arrival, Closed, Diurnal, Poisson, Replay, at_rate, parse_arrival
from headway.workload.batch import Batch, stream
from headway.workload.files import Header, write_batches
from headway.workload.generate import arrival_times, independent, traced
from headway.workload.lengths import expected_tokens
from headway.workload.mixture import merged, seed_of
from headway.workload.readers import read_trace
from headway.workload.sessions import session_batches, session_means
from headway.workload.spec import WorkloadSpec
from headway.workload.trace import Trace

_PRESETS = Path(__file__).parent / "data"
_REQUESTS = 10_000  # where neither spec nor trace says how many
_LONGEST_S = 2.0**32  # a float64 of that size still tells microseconds apart
_CHUNK = 65_536  # requests per batch: 5 MB of columns


class Workload:
    """Requests over time, in batches: the same bytes for the same spec and seed, however they are cut.

    A synthetic workload streams, its memory independent of the number of requests; a trace is held in
    columns. `spec` says what it is made of, its arrival included.
    """

    def __init__(
        self,
        spec: WorkloadSpec,
        trace: Trace | None = None,
        recorded: Trace | None = None,
        parts: tuple[Workload, ...] = (),
    ) -> None:
        """Take the requests of `spec.trace`, the file whose times are replayed, and the workloads of its classes."""
        self._trace, self._recorded, self._parts = trace, recorded, parts
        if trace is not None and spec.first:
            self._trace = trace.part(spec.first, spec.requests or len(trace.requests))
            self._recorded = self._trace if recorded is trace else recorded
        if (spec.trace and trace is None) or (isinstance(spec.process, Replay) and recorded is None):
            raise BadInput(f"workload {spec.name} needs its trace: make it with workload(spec)")
        if parts:
            spec = _with_rates(spec, parts)
            have = _least_finite(parts)
        else:
            have = min((len(file.requests) for file in self._files()), default=None)
        self.requests: int = spec.requests or have or _REQUESTS
        if have is not None and self.requests > have:
            raise BadInput(
                f"requests {self.requests}: the trace of {spec.name} holds {have}; ask for no more"
            )
        self.spec = spec if parts else msgspec.structs.replace(spec, arrival=spec.process)
        self.name = spec.name
        rate_req_s = self.rate_req_s
        if rate_req_s is not None and self.requests > rate_req_s * _LONGEST_S:
            raise BadInput(
                f"{self.requests:,} requests at {rate_req_s:g} req/s take longer than 136 years, in which a number "
                "cannot tell microseconds apart: raise the rate, or ask for fewer requests"
            )

    def batches(self, seed: int, rate_req_s: float | None = None, chunk: int = _CHUNK) -> Iterator[Batch]:
        """Return the requests in order of arrival, at most `chunk` at a time; `rate_req_s` as in `at_rate`.

        Raises:
            BadInput: a negative seed, an impossible rate, a chunk below 1.
        """
        if chunk < 1 or seed < 0:
            raise BadInput(
                f"chunk {chunk}, seed {seed}: expected a chunk of at least 1 request and a seed of at least 0"
            )
        if self._parts:
            return self._mixed(seed, rate_req_s, chunk)
        spec = self.spec if rate_req_s is None else self.at_rate(rate_req_s).spec
        if spec.sessions is not None:
            return session_batches(spec, self.requests, seed, chunk)
        arrivals = arrival_times(spec.process, seed, self._recorded)
        if self._trace is not None:
            return traced(spec, self._trace.requests.rows(0, self.requests), seed, chunk, arrivals)
        return independent(spec, self.requests, seed, chunk, arrivals)

    def folded(self, seed: int) -> Iterator[Batch]:
        """Return the requests as `batches` does, where the calls of a session have one chain together: see `Batch`."""
        if self.spec.sessions is None:
            return self.batches(seed)
        return session_batches(self.spec, self.requests, seed, _CHUNK, folded=True)

    def at_rate(self, rate_req_s: float) -> Workload:
        """Return the same requests at another mean rate, with common random numbers.

        Lengths, chains and classes stay; gaps keep their random numbers and are scaled; recorded times are
        stretched by the mean rate of the whole trace, but a single one. Of sessions the starts are scaled, not
        the gaps inside, so other calls come first.

        Raises:
            BadInput: the rate is not positive and finite, or the workload is a closed loop.
        """
        if self._parts:
            return self._mixed_at(rate_req_s)
        spec = msgspec.structs.replace(self.spec, arrival=at_rate(self.spec.process, rate_req_s))
        return Workload(spec, self._trace, self._recorded)

    def _mixed(self, seed: int, rate_req_s: float | None, chunk: int) -> Iterator[Batch]:
        made = self if rate_req_s is None else self.at_rate(rate_req_s)
        streams = [
            partial(part.cut(made.requests)._chunks, seed_of(seed, part.name)) for part in made._parts
        ]
        shares = [(part.rate_req_s or 0.0) / (made.rate_req_s or 1.0) for part in made._parts]
        return merged(streams, shares, made.requests, chunk, made.block_tokens > 0)

    def _chunks(self, seed: int, chunk: int) -> Iterator[Batch]:
        return self.batches(seed, chunk=chunk)

    def _mixed_at(self, rate_req_s: float) -> Workload:
        """All classes at as many times their rates."""
        if not 0 < rate_req_s < math.inf:
            raise BadInput(f"rate {rate_req_s:g} req/s: expected a positive, finite rate")
        times = rate_req_s / sum(part.rate_req_s or 0.0 for part in self._parts)
        parts = tuple(part.at_rate(times * (part.rate_req_s or 0.0)) for part in self._parts)
        return Workload(self.spec, parts=parts)

    def check_classes(self, named: Iterable[str]) -> None:
        """Refuse an SLO of a class that there is not.

        Raises:
            BadInput: there are no classes at all. UnknownName: none of this name.
        """
        names = [each.name for each in self.spec.classes]
        for name in named:
            if not names:
                raise BadInput(
                    f"an SLO of class {name}, and workload {self.name} has no classes: give one for all requests "
                    "(--ttft, --tpot, --e2e), or a YAML file of a workload with classes, as in classes: "
                    f"[{{name: {name}, workload: chat, rate_req_s: 5}}]"
                )
            if name not in names:
                raise UnknownName(f"class of the workload {self.name}", name, names)

    def part(self, slo_class: int) -> Workload:
        """The workload of a class that has one of its own, by its number."""
        return self._parts[slo_class]

    def steady(self) -> Workload:
        """The same requests at a rate that stays: in place of a day's arrivals, or recorded ones, Poisson ones."""
        if self._parts:
            return Workload(self.spec, parts=tuple(part.steady() for part in self._parts))
        if not isinstance(self.spec.process, (Diurnal, Replay)):
            return self
        steady = Poisson(rate_req_s=self.rate_req_s or 1.0)
        return Workload(msgspec.structs.replace(self.spec, arrival=steady), self._trace)

    def cut(self, requests: int) -> Workload:
        """Return its first so many requests; of a synthetic workload there may be more than it has now."""
        most = min(requests, self.requests) if self.ends else requests
        spec = msgspec.structs.replace(self.spec, requests=most)
        return Workload(spec, self._trace, self._recorded, self._parts)

    def densest(self, requests: int) -> Workload:
        """Return so many requests in a row of a trace replayed as recorded, those that bring the most tokens a second.

        Its rate stays the mean of the whole trace. The workload itself where it has no more, or no recorded times.
        """
        if self._trace is None or self._recorded is not self._trace or requests >= self.requests:
            return self
        first = self._trace.densest(requests, self.requests)
        part = self._trace.part(first, requests)
        return Workload(msgspec.structs.replace(self.spec, first=first, requests=requests), part, part)

    @property
    def rate_req_s(self) -> float | None:
        """The mean arrival rate; None in a closed loop and where a trace's requests all come at once."""
        if self._parts:
            return sum(each.rate_req_s or 0.0 for each in self.spec.classes)
        arrival = self.spec.process
        if isinstance(arrival, Closed):
            return None
        if isinstance(arrival, Replay) and arrival.rate_req_s is None:
            return self._recorded.rate_req_s if self._recorded else None
        return arrival.rate_req_s

    @property
    def concurrency(self) -> int | None:
        """The users of a closed loop; None in an open one."""
        arrival = self.spec.process
        return arrival.concurrency if isinstance(arrival, Closed) else None

    @property
    def think_s(self) -> float:
        """How long a user of a closed loop waits between an answer and the next request."""
        arrival = self.spec.process
        return arrival.think_s if isinstance(arrival, Closed) else 0.0

    @property
    def models(self) -> tuple[str, ...]:
        """The name of a model that requests of each SLO class ask for; none where none does."""
        given = tuple(each.model for each in self.spec.classes)
        return given or (self._trace.models if self._trace is not None else ())

    @property
    def block_tokens(self) -> int:
        """Tokens that one id of a chain stands for; 0 without prefix identity."""
        if self._parts:
            return max(part.block_tokens for part in self._parts)
        source = self._trace or self.spec.sessions or self.spec.shared_prefix
        return source.block_tokens if source else 0

    @cached_property
    def mean_prompt_tokens(self) -> float:
        """The mean prompt: measured of a trace, expected of a model, of sessions over a fixed sample."""
        spec = self.spec
        if self._parts:
            return self._mean("mean_prompt_tokens")
        if self._trace is not None:
            return float(self._trace.requests.prompt_tokens[: self.requests].mean())
        if spec.sessions is not None:
            return session_means(spec.prompt, spec.output, spec.sessions).prompt_tokens
        assert spec.prompt is not None
        return spec.prompt.expected_tokens

    @cached_property
    def mean_output_tokens(self) -> float:
        """The mean output, known like the mean prompt; where it depends on it, over a fixed sample."""
        spec = self.spec
        if self._parts:
            return self._mean("mean_output_tokens")
        if self._trace is not None:
            return float(self._trace.requests.output_tokens[: self.requests].mean())
        if spec.sessions is not None:
            return session_means(spec.prompt, spec.output, spec.sessions).output_tokens
        assert spec.prompt is not None and spec.output is not None
        return expected_tokens(spec.output, spec.prompt.draw(stream(0, "means"), _CHUNK))

    def _mean(self, name: str) -> float:
        """A mean over its classes, by their rates."""
        rates = [part.rate_req_s or 0.0 for part in self._parts]
        means: list[float] = [getattr(part, name) for part in self._parts]
        return sum(rate * mean for rate, mean in zip(rates, means, strict=True)) / sum(rates)

    @property
    def ends(self) -> bool:
        """Whether it has no more requests than it says, as a trace."""
        return bool(self._files())

    @property
    def recorded(self) -> bool:
        """Whether its requests are a trace's as recorded, the same with any seed."""
        if self._parts:
            return all(part.recorded for part in self._parts)
        return self.spec.trace is not None and isinstance(self.spec.process, Replay)

    @property
    def skipped(self) -> int:
        """Broken records that were left out on reading."""
        return sum(trace.skipped for trace in self._files())

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of results should know about how the requests were made from a file."""
        return tuple(note for trace in self._files() for note in trace.notes)

    def _files(self) -> list[Trace]:
        """The traces behind it, each once."""
        if self._parts:
            return [trace for part in self._parts for trace in part._files()]
        again = self._recorded is self._trace
        return [trace for trace in (self._trace, None if again else self._recorded) if trace is not None]


def workload(
    source: str | Path | WorkloadSpec,
    *,
    rate: float | str | None = None,
    requests: int | str | None = None,
    arrival: str | Arrival | None = None,
    skip_bad: bool = False,
    spread_steps: bool = True,
) -> Workload:
    """Return a workload: a preset's name, a trace file, a YAML file of a `WorkloadSpec`, or such a spec.

    `rate`, `requests` and `arrival` change it; an arrival model that names no rate takes over the one there
    was. A trace without arrival times comes as Poisson at 1 request/s. `skip_bad` leaves broken records out
    (`.skipped` counts them); `spread_steps` spreads times recorded in steps within them.

    Raises:
        UnknownName: no such preset.
        BadInput: no such file, a broken one, or a value that is out of range.
    """
    traces: dict[str, Trace] = {}

    def load(path: str) -> Trace:
        if path not in traces:
            traces[path] = read_trace(path, skip_bad=skip_bad, spread_steps=spread_steps)
        return traces[path]

    spec = _spec(source, load)
    if spec.mixed:
        if arrival is not None:
            raise BadInput(f"arrival {arrival} against the classes of {spec.name}: each has a workload with its own")
        return _mixture(spec, rate, requests, skip_bad, spread_steps)
    if arrival is not None:
        spec = _with_arrival(spec, arrival, load)
    recorded = load(spec.process.path) if isinstance(spec.process, Replay) else None
    if recorded is not None and not recorded.timed:
        raise BadInput(f"{spec.name}: the trace has no arrival times; choose an arrival such as poisson")
    if requests is not None:
        spec = msgspec.structs.replace(spec, requests=parse_count(requests))
    made = Workload(spec, load(spec.trace) if spec.trace else None, recorded)
    return made if rate is None else made.at_rate(parse_rate(rate))


def _mixture(
    spec: WorkloadSpec, rate: float | str | None, requests: int | str | None, skip_bad: bool, spread_steps: bool
) -> Workload:
    """The workloads of all classes side by side."""
    parts = []
    for each in spec.classes:
        assert each.workload is not None
        own = workload(each.workload, skip_bad=skip_bad, spread_steps=spread_steps)
        if own.spec.classes or own.rate_req_s is None:
            what = "classes of its own" if own.spec.classes else "no rate of its own, as a closed loop has none"
            raise BadInput(f"class {each.name} of {spec.name}: workload {own.name} has {what}; give another")
        label = msgspec.structs.replace(each, workload=None, rate_req_s=None)
        named = msgspec.structs.replace(own.spec, name=each.name, classes=(label,))
        part = Workload(named, own._trace, own._recorded)
        parts.append(part if each.rate_req_s is None else part.at_rate(each.rate_req_s))
    if requests is not None:
        spec = msgspec.structs.replace(spec, requests=parse_count(requests))
    made = Workload(spec, parts=tuple(parts))
    return made if rate is None else made.at_rate(parse_rate(rate))


def _with_rates(spec: WorkloadSpec, parts: tuple[Workload, ...]) -> WorkloadSpec:
    """The spec with the rate of every class, and the blocks of those that have prefixes compared.

    Raises:
        BadInput: blocks of two sizes.
    """
    sizes = {part.block_tokens: part.name for part in parts if part.block_tokens}
    if len(sizes) > 1:
        (one, first), (other, second), *_ = sizes.items()
        raise BadInput(
            f"class {first} names prefixes in blocks of {one} tokens, class {second} in blocks of {other}: side by "
            "side they need one size"
        )
    classes = []
    for each, part in zip(spec.classes, parts, strict=True):
        rate_req_s, asked = part.rate_req_s or 0.0, each.rate_req_s or 0.0
        kept = asked if math.isclose(asked, rate_req_s) else rate_req_s  # without what arrivals round
        classes.append(msgspec.structs.replace(each, rate_req_s=kept))
    return msgspec.structs.replace(spec, classes=tuple(classes))


def _least_finite(parts: tuple[Workload, ...]) -> int | None:
    """Requests of all classes until the first of their traces ends; None where none is a trace."""
    total = sum(part.rate_req_s or 0.0 for part in parts)
    ending = [part for part in parts if part.ends]
    return min((int(part.requests * total / (part.rate_req_s or total)) for part in ending), default=None)


def workload_names() -> list[str]:
    """Return the names of the presets."""
    return sorted(path.stem for path in _PRESETS.glob("*.yaml"))


def write(workload: Workload, path: str | Path, *, seed: int = 0) -> None:
    """Write a workload as a trace in Headway's own form: ``.jsonl``, ``.jsonl.gz`` or ``.parquet``.

    Raises:
        BadInput: another suffix, or the file cannot be written.
        MissingExtra: Parquet without pyarrow.
    """
    header = Header(
        block_tokens=workload.block_tokens, concurrency=workload.concurrency, think_s=workload.think_s,
        models=workload.models if any(workload.models) else (),
    )  # fmt: skip
    write_batches(workload.batches(seed), Path(path), header)


def _spec(source: str | Path | WorkloadSpec, load: Callable[[str], Trace]) -> WorkloadSpec:
    if isinstance(source, WorkloadSpec):
        return source
    path, names = Path(source), workload_names()
    if str(source) in names:
        return _preset(str(source))
    if path.suffix in (".yaml", ".yml"):
        return from_mapping(WorkloadSpec, read_yaml(path), str(path))
    if not path.suffix and len(path.parts) == 1 and not path.is_file():
        raise UnknownName("workload", source, names)
    trace = load(str(path))
    arrival: Arrival = Poisson()
    if trace.concurrency is not None:
        arrival = Closed(concurrency=trace.concurrency, think_s=trace.think_s)
    elif trace.timed:
        arrival = Replay(path=str(path))
    return WorkloadSpec(name=path.name, trace=str(path), arrival=arrival)


@cache
def _preset(name: str) -> WorkloadSpec:
    return from_mapping(WorkloadSpec, read_yaml(_PRESETS / f"{name}.yaml"), name)


def _with_arrival(spec: WorkloadSpec, arrival: str | Arrival, load: Callable[[str], Trace]) -> WorkloadSpec:
    """The spec with another arrival model, at the rate it had where the model's text names none."""
    new = parse_arrival(arrival) if isinstance(arrival, str) else arrival
    old = spec.process
    if isinstance(arrival, str) and "rate" not in arrival and not isinstance(new, Closed | Replay):
        kept = None if isinstance(old, Closed) else old.rate_req_s
        if kept is None and isinstance(old, Replay):
            kept = load(old.path).rate_req_s
        new = new if kept is None else at_rate(new, kept)
    return msgspec.structs.replace(spec, arrival=new)
