"""From the JSON of a request to what is asked of the engine, or to an error in OpenAI's shape."""

from __future__ import annotations

import math
from typing import Any

import msgspec

from headway.emulate import prompts
from headway.errors import nearest

KEEP_HINT = "x-headway-keep-s"  # the header by which a gateway passes on what the policy `retain` decides
INPUTS_MAX = 256  # of one request for embeddings


class ApiError(Exception):
    """An answer with a 4xx or 5xx status and OpenAI's error object."""

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code

    def body(self) -> bytes:
        """Return the error object as JSON."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        error = {"message": str(self), "type": kind, "param": self.param, "code": self.code}
        return msgspec.json.encode({"error": error})


class StreamOptions(msgspec.Struct):
    """What a stream carries beside the tokens."""

    include_usage: bool = False


class _Sampling(msgspec.Struct, kw_only=True):
    model: str | None = None
    max_tokens: int | None = None
    min_tokens: int = 0
    ignore_eos: bool = False
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: int | None = 1
    priority: int = 0
    cache_salt: str = ""


class _Message(msgspec.Struct):
    role: str
    content: str | list[Any] | None = None
    tool_calls: list[Any] | None = None


class ChatBody(_Sampling, kw_only=True):
    """POST /v1/chat/completions; fields that do not change the timing are ignored."""

    messages: list[_Message]
    max_completion_tokens: int | None = None
    tools: list[Any] | None = None


class CompletionBody(_Sampling, kw_only=True):
    """POST /v1/completions."""

    prompt: str | list[Any]
    echo: bool = False


class EmbeddingBody(msgspec.Struct, kw_only=True):
    """POST /v1/embeddings."""

    texts: str | list[Any] = msgspec.field(name="input")
    model: str | None = None
    encoding_format: str = "float"
    dimensions: int | None = None
    priority: int = 0


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked of the engine: prompts, and how long the answer may be (`limit`: None when not said)."""

    kind: str
    prompts: tuple[bytes, ...]
    limit: int | None = 1
    least: int = 1
    ignore_eos: bool = False
    stream: bool = False
    usage: bool = False
    priority: int = 0
    salt: str = ""
    base64: bool = False
    dimensions: int | None = None


_TYPES: dict[str, type[ChatBody | CompletionBody | EmbeddingBody]] = {
    "chat": ChatBody,
    "completion": CompletionBody,
    "embedding": EmbeddingBody,
}


def read_ask(kind: str, body: bytes, served: tuple[str, ...], vocabulary: int) -> Ask:
    """Return what a request body asks for.

    Raises:
        ApiError: it is no JSON, a field has the wrong type, the model is not served, or what is asked cannot be had.
    """
    try:
        read = msgspec.json.decode(body, type=_TYPES[kind])
    except msgspec.ValidationError as error:
        what, _, where = str(error).partition(" - at `")
        field = where.strip("`").removeprefix("$").removeprefix(".")
        at = f" at {field}" if field else ""
        raise ApiError(400, f"{what}{at}", param=field or None) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ApiError(400, f"the body is not JSON: {error}") from None
    if read.model is not None and read.model not in served:
        near = nearest(read.model, served)
        hint = f"did you mean {near[0]}? " if near else ""
        message = f"the model {read.model[:200]!r} does not exist: {hint}served here: {', '.join(served)}"
        raise ApiError(404, message, param="model", code="model_not_found")
    if isinstance(read, EmbeddingBody):
        return _embedding(read, vocabulary)
    if isinstance(read, ChatBody):
        return _generation(kind, read, _chat(read), read.max_completion_tokens)
    if read.echo:
        raise ApiError(400, "echo is not supported: leave it out", param="echo")
    inputs = _inputs(read.prompt, "prompt", vocabulary)
    if len(inputs) > 1:
        raise ApiError(400, f"{len(inputs)} prompts in one request: send one each", param="prompt")
    return _generation(kind, read, inputs[0], None)


def read_keep_s(headers: dict[str, str]) -> float:
    """Return for how many seconds after its end the KV of a request's prefix is to be kept; 0 where nothing is said.

    Raises:
        ApiError: it is no number of seconds.
    """
    text = headers.get(KEEP_HINT, "0")
    try:
        keep_s = float(text)
    except ValueError:
        keep_s = math.nan
    if not 0 <= keep_s < math.inf:
        raise ApiError(400, f"header {KEEP_HINT}: came {text[:40]!r}, expected seconds, as in 60", param=KEEP_HINT)
    return keep_s


def _generation(kind: str, read: _Sampling, prompt: bytes, newer_limit: int | None) -> Ask:
    limit = read.max_tokens if newer_limit is None else newer_limit
    name = "max_tokens" if newer_limit is None else "max_completion_tokens"
    if read.n not in (None, 1):
        raise ApiError(400, f"n={read.n}: only one answer per request is emulated", param="n")
    if limit is not None and limit < 1:
        raise ApiError(400, f"{name}={limit}: expected at least 1", param=name)
    if read.min_tokens < 0 or (limit is not None and read.min_tokens > limit):
        raise ApiError(400, f"min_tokens={read.min_tokens}: expected 0 to {name}={limit}", param="min_tokens")
    if read.stream_options is not None and not read.stream:
        raise ApiError(400, "stream_options without stream=true", param="stream_options")
    if not -(2**31) <= read.priority < 2**31:
        raise ApiError(400, f"priority={read.priority}: expected a number of 32 bits", param="priority")
    if not prompt:
        raise ApiError(400, "the prompt is empty", param="prompt")
    return Ask(
        kind=kind,
        prompts=(prompt,),
        limit=limit,
        least=max(read.min_tokens, 1),
        ignore_eos=read.ignore_eos,
        stream=read.stream,
        usage=read.stream_options is not None and read.stream_options.include_usage,
        priority=read.priority,
        salt=read.cache_salt,
    )


def _chat(read: ChatBody) -> bytes:
    if not read.messages:
        raise ApiError(400, "messages is empty", param="messages")
    said = [("tools", _json(read.tools))] if read.tools else []
    for at, message in enumerate(read.messages):
        text = message.content if isinstance(message.content, str) else _parts(message.content or [], at)
        said.append((message.role, text + (_json(message.tool_calls) if message.tool_calls else "")))
    return prompts.of_chat(said)


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def _parts(parts: list[Any], at: int) -> str:
    texts = []
    for number, part in enumerate(parts):
        text = part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None
        if not isinstance(text, str):
            where = f"messages[{at}].content[{number}]"
            raise ApiError(400, f"{where}: only parts of type text are emulated", param=where)
        texts.append(text)
    return "".join(texts)


def _embedding(read: EmbeddingBody, vocabulary: int) -> Ask:
    inputs = _inputs(read.texts, "input", vocabulary)
    if read.encoding_format not in ("float", "base64"):
        message = f"encoding_format={read.encoding_format!r}: expected float or base64"
        raise ApiError(400, message, param="encoding_format")
    if read.dimensions is not None and not 1 <= read.dimensions <= 65_536:
        raise ApiError(400, f"dimensions={read.dimensions}: expected 1 to 65536", param="dimensions")
    if not all(inputs):
        raise ApiError(400, "an input is empty", param="input")
    return Ask(
        kind="embedding",
        prompts=tuple(inputs),
        priority=read.priority,
        base64=read.encoding_format == "base64",
        dimensions=read.dimensions,
    )


def _inputs(came: str | list[Any], name: str, vocabulary: int) -> list[bytes]:
    """Text, token ids, or a list of either."""
    if isinstance(came, str):
        return [prompts.of_text(came)]
    several = bool(came) and isinstance(came[0], (str, list))
    inputs = came if several else [came]
    if len(inputs) > INPUTS_MAX:
        raise ApiError(400, f"{name}: {len(inputs)} in one request; at most {INPUTS_MAX}", param=name)
    read = []
    for one in inputs:
        if isinstance(one, str):
            read.append(prompts.of_text(one))
        elif isinstance(one, list) and all(type(i) is int and 0 <= i < vocabulary for i in one):
            read.append(prompts.of_ids(one))
        else:
            expected = f"text, or token ids from 0 to {vocabulary - 1}, or a list of either"
            raise ApiError(400, f"{name}: expected {expected}", param=name)
    return read
