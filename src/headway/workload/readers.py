"""Readers of public trace formats: a table of forms; the first record of a file decides which one it has.

What a file is follows from its bytes, not from its name. One pass fills columns of numbers, some thousands of
requests at a time; those of a long file lie on disk (`spool.py`). Only a JSON list is read whole.
"""

from __future__ import annotations

import csv
import gzip
import io
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from itertools import chain, islice, pairwise
from pathlib import Path
from typing import IO, Annotated, Any, NamedTuple

import msgspec
import numpy as np

from headway.errors import BadInput
from headway.workload.batch import Batch, make_batch, offsets_of
from headway.workload.files import Tokens, is_own, no_rows, read_own_lines, read_parquet
from headway.workload.lengths import TOKENS_MAX
from headway.workload.spool import gather, in_order, release
from headway.workload.trace import ROWS, Broken, Facts, Lines, Trace, open_bytes, reading_errors, said, take

_CHARS_PER_TOKEN = 4  # of English text, roughly; the trace's notes say when it was used
_ID_MAX = 2**63
_LOOKED_AT = 1 << 18  # requests that tell how long the steps of recorded times are
_NOTE_CHARS = f"first question and answer of each; tokens estimated as characters / {_CHARS_PER_TOKEN}"


class Form(NamedTuple):
    """The fields of a record that matter. Extra fields are ignored."""

    name: str
    time: str | None
    time_unit_s: float  # 0: a date and time of day as text
    prompt: str
    output: str
    block_tokens: int = 0  # of the blocks whose ids `hash_ids` lists, when the records have it
    stepped: bool = False  # times are rounded to steps


FORMS = (
    Form("Azure 2023 as published", "TIMESTAMP", 0, "ContextTokens", "GeneratedTokens"),
    Form("lengths with arrivals", "arrival_s", 1, "input_tokens", "output_tokens"),
    Form("Mooncake", "timestamp", 1e-3, "input_length", "output_length", 512, stepped=True),
    Form("LLMServingSim", "timestamp_ms", 1e-3, "input_length", "output_length", 16),
    Form("lengths", None, 1, "input_tokens", "output_tokens"),
    Form("lengths", None, 1, "input_length", "output_length"),
    Form("lengths", None, 1, "prompt_len", "output_len"),
)
_CONVERSATIONS = Form("conversations", None, 1, "conversations", "conversations")
_OTHERS = "prompt_tokens,output_tokens (Headway's own) or conversations"

Request = tuple[float, int, int, list[int]]  # arrival_s, prompt and output tokens, chain of block ids


def read_trace(path: str | Path, *, skip_bad: bool = False, spread_steps: bool = True) -> Trace:
    """Return the requests of a trace file: CSV, JSON lines or a JSON list, each also gzipped, or Parquet.

    Times that were rounded to steps (Mooncake's come every 3 s) are spread within them unless `spread_steps`
    is false. Only full blocks of a prompt count as prefix identity.

    Raises:
        BadInput: no such file, an unknown form, an empty file, or a broken line (``file:line: came ...;
            expected ...``, of a JSON list the entry's number) unless `skip_bad`, which counts them.
    """
    path = Path(path)
    lines = Lines(path, skip_bad)
    with open_bytes(path) as file, ExitStack() as opened:
        try:
            facts, batches = _read(file, lines, opened)
            requests = gather(batches)
        except reading_errors() as error:
            raise BadInput(f"{path}: damaged or not a text file: {error}") from None
    if requests is None:
        raise no_rows(lines)
    notes, ordered = [*facts.notes], in_order(requests.arrival_s)
    release(requests)
    if not ordered:
        requests = take(requests, np.argsort(requests.arrival_s, kind="stable"))
        notes.append("arrivals were out of order; sorted")
    if facts.dated and requests.arrival_s[0] < 0:  # an earlier date than the first in the file
        requests = msgspec.structs.replace(requests, arrival_s=requests.arrival_s - requests.arrival_s[0])
    steps = np.diff(np.unique(requests.arrival_s[:_LOOKED_AT])) if facts.stepped and spread_steps else np.zeros(0)
    step_s = float(np.median(steps)) if len(steps) else 0.0
    if step_s:
        notes.append(f"arrivals are recorded in steps of {step_s:g} s; spread evenly at random within them")
    return Trace(
        requests=requests,
        block_tokens=facts.block_tokens if requests.has_chains else 0,
        timed=facts.timed,
        step_s=step_s,
        concurrency=facts.concurrency,
        think_s=facts.think_s,
        models=facts.models,
        skipped=lines.skipped,
        notes=tuple(notes),
    )


def _read(
    file: io.BufferedReader | gzip.GzipFile, lines: Lines, opened: ExitStack
) -> tuple[Facts, Iterator[Batch]]:
    head = file.peek(4096).lstrip(b"\xef\xbb\xbf \t\r\n")
    if head.startswith(b"PAR1"):
        return read_parquet(lines)
    if lines.path.suffix.lower() == ".parquet":
        raise BadInput(f"{lines.path} is no Parquet file, or a damaged one: it does not begin with PAR1")
    if not head.startswith((b"{", b"[")):
        return _read_csv(opened.enter_context(io.TextIOWrapper(file, "utf-8-sig", newline="")), lines)
    records = _list_records(file.read(), lines.path) if head.startswith(b"[") else _line_records(file)
    for first in records:
        fields = next(lines.parse([first], _json_object), None)
        if fields is not None:
            break
    else:
        raise lines.none_left()
    records = chain([first], records)
    if is_own(fields):
        return read_own_lines(records, fields, lines)
    if "conversations" in fields:
        return _facts(_CONVERSATIONS), _collected(lines.parse(records, _conversation), _CONVERSATIONS)
    form = _form_of(fields, f"{lines.path}:{first[0]}")
    has_ids = form.block_tokens > 0 and "hash_ids" in fields
    return _facts(form), _collected(lines.parse(records, _json_parser(form, has_ids)), form, chains=has_ids)


def _facts(form: Form) -> Facts:
    return Facts(
        block_tokens=form.block_tokens, timed=form.time is not None, stepped=form.stepped,
        dated=form.time is not None and form.time_unit_s == 0, notes=(_NOTE_CHARS,) if form is _CONVERSATIONS else (),
    )  # fmt: skip


def _form_of(fields: Iterable[str], place: str) -> Form:
    fields = list(fields)
    for form in FORMS:
        if {form.time or form.prompt, form.prompt, form.output} <= set(fields):
            return form
    known = "; ".join(f"{form.time + ',' if form.time else ''}{form.prompt},{form.output}" for form in FORMS)
    raise BadInput(
        f"{place}: came the fields {','.join(fields)[:200]}; expected those of one form: {known}; {_OTHERS}"
    )


def _collected(requests: Iterable[Request], form: Form, *, chains: bool = False) -> Iterator[Batch]:
    """The requests in batches; times of dates count from the first of them."""
    requests, base_s = iter(requests), None
    while part := list(islice(requests, ROWS)):
        times, prompts, outputs, ids = zip(*part, strict=True)
        arrival_s = np.array(times)
        if form.time_unit_s == 0:
            base_s = arrival_s[0] if base_s is None else base_s
            arrival_s -= base_s
        batch = make_batch(arrival_s, np.array(prompts), np.array(outputs))
        if chains:
            hashes = np.array([each for chain in ids for each in chain], np.int64)
            batch = msgspec.structs.replace(
                batch, hash_offsets=offsets_of(np.array([len(each) for each in ids])), hashes=hashes
            )
        yield batch


# --- JSON ---


def _line_records(file: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    for line, raw in enumerate(file, start=1):
        raw = raw.strip(b"\xef\xbb\xbf \t\r\n")
        if raw:
            yield line, raw


def _list_records(content: bytes, path: Path) -> Iterator[tuple[int, bytes]]:
    """The entries of a JSON list; the place of an entry is its number in the list."""
    try:
        entries = msgspec.json.decode(content.lstrip(b"\xef\xbb\xbf"), type=list[msgspec.Raw])
    except msgspec.DecodeError as error:
        raise BadInput(f"{path}: not a JSON list: {error}") from None
    return ((number, bytes(entry)) for number, entry in enumerate(entries, start=1))


def _json_object(raw: bytes) -> dict[str, Any]:
    try:
        return msgspec.json.decode(raw, type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise Broken(raw, f"a JSON object ({said(error)})") from None


def _json_parser(form: Form, has_ids: bool) -> Callable[[bytes], Request]:
    time = str if form.time_unit_s == 0 else Annotated[float, msgspec.Meta(ge=0)]
    fields: list[tuple[str, Any]] = [("prompt", Tokens), ("output", Tokens)]
    fields += [("time", time)] * (form.time is not None) + [("ids", list[int])] * has_ids
    names = {"time": form.time or "", "prompt": form.prompt, "output": form.output, "ids": "hash_ids"}
    record = msgspec.defstruct("Record", fields, rename=names)
    decode = msgspec.json.Decoder(record).decode

    def parse(raw: bytes) -> Request:
        try:
            found: Any = decode(raw)
        except msgspec.DecodeError as error:
            raise Broken(raw, said(error)) from None
        arrival_s = found.time * form.time_unit_s if form.time else 0.0
        return arrival_s, found.prompt, found.output, _full_blocks(raw, found, form) if has_ids else []

    return parse


def _full_blocks(raw: bytes, found: Any, form: Form) -> list[int]:
    full = found.prompt // form.block_tokens
    ids: list[int] = found.ids[:full]
    if len(ids) < full:
        raise Broken(
            raw, f"{full} hash_ids, one per full block of {form.block_tokens} tokens, not {len(ids)}"
        )
    if ids and not -_ID_MAX <= min(ids) <= max(ids) < _ID_MAX:
        raise Broken(raw, "hash_ids that fit 64 bits with sign")
    return ids


class _Turn(msgspec.Struct):
    who: str = msgspec.field(default="", name="from")
    role: str = ""
    value: str = ""
    content: str = ""
    tokens: Annotated[int, msgspec.Meta(ge=0, le=TOKENS_MAX)] | None = None

    def count(self) -> int:
        text = self.value or self.content
        return -(-len(text) // _CHARS_PER_TOKEN) if self.tokens is None else self.tokens


class _Conversation(msgspec.Struct):
    conversations: list[_Turn]


_conversation_decoder = msgspec.json.Decoder(_Conversation)


def _conversation(raw: bytes) -> Request:
    """The first question with the answer that follows it, as the usual serving benchmarks take it."""
    try:
        turns = _conversation_decoder.decode(raw).conversations
    except msgspec.DecodeError as error:
        raise Broken(raw, said(error)) from None
    people = [turn.who or turn.role for turn in turns]
    for asked, (who, answerer) in enumerate(pairwise(people)):
        if who in ("human", "user") and answerer in ("gpt", "assistant", "chatgpt", "bing", "bard"):
            prompt, output = turns[asked].count(), turns[asked + 1].count()
            if prompt >= 1 and output >= 1:
                return 0.0, prompt, output, []
            raise Broken(raw, "a question and an answer of at least one token each")
    raise Broken(raw, "a turn from human (or user) followed by one from gpt (or assistant)")


# --- CSV ---


def _read_csv(file: IO[str], lines: Lines) -> tuple[Facts, Iterator[Batch]]:
    rows = csv.reader(file)
    with _csv_errors(rows, lines):
        header = [name.strip() for name in next(rows, [])]
    if not header:
        raise lines.none_left()
    form = _form_of(header, f"{lines.path}:1")
    return _facts(form), _csv_batches(rows, lines, form, header)


def _csv_batches(rows: Any, lines: Lines, form: Form, header: list[str]) -> Iterator[Batch]:
    numbered = ((rows.line_num, row) for row in rows if row)
    with _csv_errors(rows, lines):
        yield from _collected(lines.parse(numbered, _csv_parser(form, header)), form)


@contextmanager
def _csv_errors(rows: Any, lines: Lines) -> Iterator[None]:
    try:
        yield
    except csv.Error as error:
        raise BadInput(f"{lines.path}:{rows.line_num}: not CSV: {error}") from None


def _csv_parser(form: Form, header: list[str]) -> Callable[[list[str]], Request]:
    places = [header.index(name) for name in (form.time or form.prompt, form.prompt, form.output)]
    read_time = _date_reader() if form.time_unit_s == 0 else _seconds

    def parse(row: list[str]) -> Request:
        if len(row) > len(header):
            raise Broken(",".join(row), f"{len(header)} columns ({','.join(header)}), not {len(row)}")
        try:
            time, prompt, output = (row[place] for place in places)
            arrival_s = read_time(time) * (form.time_unit_s or 1.0) if form.time else 0.0
            prompt_tokens, output_tokens = int(prompt), int(output)
        except (ValueError, IndexError):
            prompt_tokens = output_tokens = 0
        if not (1 <= prompt_tokens <= TOKENS_MAX and 1 <= output_tokens <= TOKENS_MAX):
            raise Broken(",".join(row), f"{','.join(header)} with {_csv_expected(form)}")
        return arrival_s, prompt_tokens, output_tokens, []

    return parse


def _csv_expected(form: Form) -> str:
    counts = f"whole numbers of at least 1 as {form.prompt} and {form.output}"
    if form.time is None:
        return counts
    time = "seconds, 0 or more" if form.time_unit_s else "a date and time such as 2023-11-16 18:15:46.6805900"
    return f"{time}, as {form.time} and {counts}"


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 <= seconds < math.inf:
        raise ValueError(text)
    return seconds


def _date_reader() -> Callable[[str], float]:
    """Seconds from the whole second of the first date: small enough to keep the 100 ns of a date."""
    base: list[float] = []

    def read(text: str) -> float:
        whole, _, rest = text.strip().partition(".")
        digits = rest[: len(rest) - len(rest.lstrip("0123456789"))]
        moment = datetime.fromisoformat(whole + rest[len(digits) :])
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        if not base:
            base.append(moment.timestamp())
        return moment.timestamp() - base[0] + (float(f"0.{digits}") if digits else 0.0)

    return read
