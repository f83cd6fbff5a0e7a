"""Reads a request as OpenAI's API defines it; what is wrong is said in that API's error shape, never with a 5xx.

Only what a decision needs is looked at. Everything else in the body passes through to the engine, which judges it,
but for what callers may not say (`steering.py`).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from functools import partial
from hashlib import sha256
from typing import Annotated, Any, NamedTuple

import msgspec
import numpy as np

from headway.errors import BadInput, nearest
from headway.gateway.edge_replies import error_body
from headway.gateway.envoy_config import ENDPOINTS
from headway.gateway.events import Arrival
from headway.gateway.menu import Menu, menu_of
from headway.gateway.prefix import chain_of, session_of
from headway.gateway.spec import GatewaySpec, seconds_of_header
from headway.gateway.steering import PRIORITY, RESERVED, SALT, UNCOUNTED
from headway.gateway.tenants import Keys

Body = bytes | None | Callable[[str], bytes | None]  # None: as it came; or what makes it of the chosen model's name
Tokens = Annotated[int, msgspec.Meta(ge=1)]
ID_BYTES = ">u4"  # of a token id
MEDIA_BYTES = 4096  # that an image or other media counts as, about 1000 tokens: its own bytes say nothing of them
TEXT_PARTS = (None, "text", "input_text", "output_text", "refusal", "thinking")  # types of a message's parts
OUTPUT_LIMITS, NULL = ("max_tokens", "max_completion_tokens"), msgspec.Raw(b"null")
BYTES_PER_TOKEN_MOST = 256  # the longest entries of large vocabularies, runs of blanks, have 128
ITEMS_MOST = 10_000  # prompts of a request, or messages and their parts
TOLD_MAX = 40  # characters of a wrong value that are shown to who sent it
IN_WORDS = {
    "float": "a number", "int": "a whole number", "bool": "true or false", "str": "text", "array": "a list",
    "object": "an object",
}  # fmt: skip
OWN_LIMITS = {"deadline_s": "x-headway-deadline", "ttft_s": "x-headway-ttft", "tpot_s": "x-headway-tpot"}


class Reply(msgspec.Struct, frozen=True):
    """An answer that needs no replica: status, JSON body, further headers."""

    status: int
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()

    @property
    def code(self) -> str:
        """The code of the error it tells; "" where it tells none."""
        return str(json.loads(self.body).get("error", {}).get("code", ""))


class Prompt(NamedTuple):
    """What is to be computed: text or token ids as bytes, of one or more prompts.

    `tokens` of all together, where the caller gives them; `longest`: the longest has as many, or more; `media`: images
    and the like, of which the text has digests.
    """

    text: bytes
    tokens: int | None = None
    longest: int = 1
    prompts: int = 1
    media: int = 0


class Head(NamedTuple):
    """What the headers say: tenant and class by number, and the caller's own limits by the field of `Arrival`."""

    tenant: int
    slo_class: int
    own: dict[str, float]


class _Message(msgspec.Struct):
    role: str
    content: str | list[dict[str, Any]] | None = None


class _Sampling(msgspec.Struct, kw_only=True):
    """What is checked for its type alone: its range is the engine's to say."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: float | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None


class _Chat(_Sampling):
    model: str
    messages: list[_Message]
    truncate_prompt_tokens: int | None = None
    max_tokens: Tokens | None = None
    max_completion_tokens: Tokens | None = None
    n: Annotated[int, msgspec.Meta(ge=1, le=128)] | None = None
    stream: bool | None = None


class _ChatText(msgspec.Struct):
    """What templates make prompts of."""

    messages: list[dict[str, Any]]
    tools: msgspec.Raw = msgspec.Raw(b"")
    documents: msgspec.Raw = msgspec.Raw(b"")  # of vLLM and others, as the two below
    chat_template: msgspec.Raw = msgspec.Raw(b"")
    chat_template_kwargs: msgspec.Raw = msgspec.Raw(b"")


class _Completion(_Sampling):
    model: str
    prompt: str | list[Any]
    truncate_prompt_tokens: int | None = None  # vLLM's: a longer prompt is cut
    max_tokens: Tokens | None = None
    n: Annotated[int, msgspec.Meta(ge=1, le=128)] | None = None
    stream: bool | None = None


class _Embedding(msgspec.Struct):
    model: str
    given: str | list[Any] = msgspec.field(name="input")
    truncate_prompt_tokens: int | None = None


_SHAPES: dict[str, Any] = dict(zip(ENDPOINTS, (_Chat, _Completion, _Embedding), strict=True))
_UNSAID = msgspec.Raw(b"")
_Removable: Any = msgspec.defstruct(
    "_Removable", [(name, msgspec.Raw, _UNSAID) for name in (*RESERVED, *UNCOUNTED, SALT, PRIORITY)]
)
_DEFAULT_COMPLETION_TOKENS = 16  # OpenAI's own, for /v1/completions


class Reader:
    """Turns paths, headers and bodies into arrivals, or into replies; `menu` has the names that may be asked for."""

    def __init__(self, spec: GatewaySpec, menu: Menu | None = None) -> None:
        self.spec = spec
        self.keys = Keys(spec.tenants)
        self.menu = menu or menu_of([""], spec.models)
        self.classes = {klass.name: i for i, klass in enumerate(spec.classes)}
        self.contexts = {name: self.menu.context(name) for name in self.menu.names}
        self.salts = [_text(sha256(f"headway/{tenant.name}".encode()).hexdigest()) for tenant in self.keys.tenants]
        models = [{"id": name, "object": "model", "created": 0, "owned_by": "headway"} for name in self.menu.names]
        self.models = json.dumps({"object": "list", "data": models}).encode()

    def head(self, path: str, headers: dict[str, str]) -> Head | Reply:
        """Read all of a POST but its body; `headers` in lower case, absent ones left out."""
        tenant = self.keys.tenant(headers.get("authorization", ""))
        if tenant is None:
            return _wrong_key()
        if path.partition("?")[0] not in _SHAPES:
            return self.plain("POST", path, headers)
        klass = headers.get("x-headway-class") or self.keys.tenants[tenant].slo_class
        if klass and klass not in self.classes:
            said = f"header x-headway-class: {klass[:80]!r} is no class: {', '.join(self.classes)}"
            return _invalid(said, "x-headway-class")
        own: dict[str, float] = {}
        for field, header in OWN_LIMITS.items():
            if header in headers:
                try:
                    own[field] = seconds_of_header(headers[header])
                except BadInput as error:
                    return _invalid(f"header {header}: {error}", header)
        return Head(tenant, self.classes[klass] if klass else 0, own)

    def read(self, id: str, path: str, headers: dict[str, str], body: bytes) -> Arrival | Reply:
        """Read a POST to one of the endpoints; `headers` as in `head`."""
        head = self.head(path, headers)
        if isinstance(head, Reply):
            return head
        tenant = head.tenant
        try:
            asked = msgspec.json.decode(body, type=_SHAPES[path.partition("?")[0]])
            prompt = _prompt(asked, body)
            max_tokens, samples = _most(asked)
        except msgspec.ValidationError as error:
            return _invalid(*_where(str(error), body))
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            return _invalid(f"the body is not JSON: {error}", None)
        except RecursionError:
            return _invalid("the body is nested too deeply", None)
        if asked.model not in self.menu.names:
            return self.unknown_model(asked.model)
        refused = None if asked.truncate_prompt_tokens else self._too_long(asked.model, prompt, max_tokens)
        if refused is not None:
            return refused
        generates, most = not isinstance(asked, _Embedding), self.contexts[asked.model]
        if max_tokens is None and self.keys.tenants[tenant].budgeted and generates:
            max_tokens = self.spec.limits.output_tokens
        return Arrival(
            id=id,
            tenant=tenant,
            slo_class=head.slo_class,
            prompt_bytes=len(prompt.text) + MEDIA_BYTES * prompt.media,
            prompt_tokens=prompt.tokens,
            prompt_most=None if most is None else most * prompt.prompts,
            prompts=prompt.prompts,
            longest=None if asked.truncate_prompt_tokens else prompt.longest,
            chain=chain_of(prompt.text, self.keys.tenants[tenant].name),
            max_tokens=None if max_tokens is None else max_tokens * samples,
            samples=samples,
            generates=generates,
            streams=generates and bool(asked.stream),
            ttft_s=head.own.get("ttft_s"),
            tpot_s=head.own.get("tpot_s"),
            deadline_s=head.own.get("deadline_s"),
            model=asked.model,
            session=session_of(headers.get("x-headway-session", ""), self.keys.tenants[tenant].name),
        )

    def sent_on(self, arrival: Arrival, body: bytes) -> Body:
        """Return the body as it is to be sent on: known now, or when the model is chosen that an alias stands for."""
        if arrival.model in self.menu.aliases:
            return partial(self.rewritten, arrival, body)
        return self.rewritten(arrival, body)

    def rewritten(self, arrival: Arrival, body: bytes, model: str = "") -> bytes | None:
        """Return the body as the engine shall have it; None where it stays as it is.

        `model`: the name that takes the place of the one it says; "" leaves that.
        The salt is the tenant's, the priority that of the class, and where a tenant has a budget the output is bounded;
        what the caller says of the first two is removed, so is `RESERVED`, and with a budget `UNCOUNTED`.
        """
        spec, tenant = self.spec, self.keys.tenants[arrival.tenant]
        own: dict[str, bytes] = {"model": _text(model)} if model else {}
        if spec.salts:
            own[SALT] = self.salts[arrival.tenant]
        if spec.engine_priority in ("low-first", "high-first"):
            sign = 1 if spec.engine_priority == "low-first" else -1
            own[PRIORITY] = b"%d" % (sign * spec.classes[arrival.slo_class].priority)
        removed = [SALT, *(name for name in RESERVED if name not in spec.caller_fields)]
        removed += () if spec.engine_priority == "caller" else (PRIORITY,)
        removed += UNCOUNTED if tenant.budgeted else ()
        limited = not tenant.budgeted or not arrival.generates
        if limited and not model and not _says(body, removed):
            return _with_more(body, own) if own else None
        fields = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
        if not limited and not any(fields.get(name, NULL) != NULL for name in OUTPUT_LIMITS):
            own[OUTPUT_LIMITS[0]] = b"%d" % ((arrival.max_tokens or spec.limits.output_tokens) // arrival.samples)
        without = [fields.pop(name, None) for name in removed]
        fields |= {name: msgspec.Raw(value) for name, value in own.items()}
        return msgspec.json.encode(fields) if own or any(each is not None for each in without) else None

    def _too_long(self, model: str, prompt: Prompt, max_tokens: int | None) -> Reply | None:
        """Refuse what cannot fit. How many tokens a text is only its engine knows, which refuses what does not."""
        most = self.contexts[model]
        if most is None or prompt.longest + (max_tokens or 0) <= most:
            return None
        least = "" if prompt.tokens is not None else "at least "
        what = f"{least}{prompt.longest} prompt tokens and {max_tokens or 0} to generate"
        said = f"{what} exceed the model's context of {most} tokens"
        body = error_body(said, "invalid_request_error", "context_length_exceeded", "max_tokens")
        return Reply(400, json.dumps(body).encode())

    def plain(self, method: str, path: str, headers: dict[str, str]) -> Reply:
        """Answer what has no body: the list of models, or what else there is."""
        path = path.partition("?")[0]
        known = path == "/v1/models" or path.startswith("/v1/models/")
        takes = ("GET", "HEAD") if known else ("POST",)
        if path in ENDPOINTS or (known and method not in takes):
            said = f"{path[:200]} takes {takes[0]}, came {method[:16]}"
            body = error_body(said, "invalid_request_error", "method_not_allowed")
            return Reply(405, json.dumps(body).encode(), (("allow", ", ".join(takes)),))
        if not known:
            offered = ", ".join(("GET /v1/models", *(f"POST {each}" for each in ENDPOINTS)))
            body = error_body(f"unknown URL: there are {offered}", "invalid_request_error", "unknown_url")
            return Reply(404, json.dumps(body).encode())
        if self.keys.tenant(headers.get("authorization", "")) is None:
            return _wrong_key()
        if path == "/v1/models":
            return Reply(200, self.models)
        name = path.removeprefix("/v1/models/")
        if name not in self.menu.names:
            return self.unknown_model(name)
        return Reply(200, json.dumps({"id": name, "object": "model", "created": 0, "owned_by": "headway"}).encode())

    def unknown_model(self, came: str) -> Reply:
        """The reply to a model that is not served: which ones are."""
        near = nearest(came[:200], self.menu.names)
        hint = f"did you mean {near[0]!r}? " if near else ""
        said = f"the model {came[:200]!r} is not served: {hint}served: {', '.join(self.menu.names)}"
        return Reply(404, json.dumps(error_body(said, "invalid_request_error", "model_not_found", "model")).encode())


def _text(value: str) -> bytes:
    return msgspec.json.encode(value)


def _says(body: bytes, fields: list[str]) -> bool:
    """Whether a body has one of these fields."""
    said = msgspec.json.decode(body, type=_Removable)
    return any(getattr(said, name) for name in fields)


def _with_more(body: bytes, fields: dict[str, bytes]) -> bytes:
    """Return a JSON object, which has one field at least, with these fields more at its end."""
    more = b"".join(b',"%b":%b' % (name.encode(), value) for name, value in fields.items())
    return body[: body.rindex(b"}")] + more + b"}"


def _most(asked: Any) -> tuple[int | None, int]:
    """The most tokens to generate in one answer, and how many answers."""
    if isinstance(asked, _Chat):
        limits = [limit for limit in (asked.max_completion_tokens, asked.max_tokens) if limit is not None]
        return max(limits, default=None), asked.n or 1
    if isinstance(asked, _Completion):
        several = isinstance(asked.prompt, list) and bool(asked.prompt) and not isinstance(asked.prompt[0], int)
        return asked.max_tokens or _DEFAULT_COMPLETION_TOKENS, (asked.n or 1) * (len(asked.prompt) if several else 1)
    return None, 1


def _prompt(asked: Any, body: bytes) -> Prompt:
    """Read what is to be computed. Nothing here may take long for a body of the longest: all others wait meanwhile."""
    if isinstance(asked, _Chat):
        parts = sum(len(message.content) for message in asked.messages if isinstance(message.content, list))
        _few(len(asked.messages) + parts, "messages", "messages and parts of these")
        raw = msgspec.json.decode(body, type=_ChatText)
        said = [part for message in asked.messages for part in _said(message.content)]
        media = sum(_without_media(message) for message in raw.messages)
        before = raw.chat_template, raw.chat_template_kwargs, raw.tools, raw.documents
        text = b"".join(map(bytes, before)) + msgspec.json.encode(raw.messages)
        return Prompt(text, longest=_least_tokens(sum(map(len, said))), media=media)
    generates = isinstance(asked, _Completion)
    given = asked.prompt if generates else asked.given
    several = given if isinstance(given, list) and given and not isinstance(given[0], int) else [given]
    _few(len(several), "prompt" if generates else "input", "prompts")
    if all(isinstance(each, str) for each in several):
        # What embeds may take a word of any length for one token that it does not know.
        longest = _least_tokens(max(map(len, several))) if generates else 1
        return Prompt("\n".join(several).encode(), longest=longest, prompts=len(several))
    if all(isinstance(each, list) for each in several):
        flat = several[0] if len(several) == 1 else [item for each in several for item in each]
        ids = _packed(flat)
        if ids is not None:
            return Prompt(ids, max(len(flat), 1), max(1, *map(len, several)), len(several))
    name = "prompt" if generates else "input"
    raise msgspec.ValidationError(f"Expected text, a list of texts, of token ids or of lists of those - at `$.{name}`")


def _few(count: int, field: str, what: str) -> None:
    if count > ITEMS_MOST:
        raise msgspec.ValidationError(f"Expected at most {ITEMS_MOST} {what}, got {count} - at `$.{field}`")


def _packed(ids: list[Any]) -> bytes | None:
    """Token ids as bytes; None where they are none. No loop: others wait for the decision meanwhile."""
    if not set(map(type, ids)) <= {int}:
        return None
    try:
        return np.array(ids, dtype=np.int64).astype(ID_BYTES).tobytes()
    except OverflowError:
        return None


def _said(content: str | list[dict[str, Any]] | None) -> Iterator[str]:
    """The texts of a message; images and other media count as nothing."""
    parts = [{"text": content}] if isinstance(content, str) else content or []
    return (part["text"] for part in parts if isinstance(part.get("text"), str))


def _without_media(message: dict[str, Any]) -> int:
    """Put digests in the place of a message's images and other media, which may be large; return how many they are."""
    content, media = message.get("content"), 0
    parts: list[Any] = content if isinstance(content, list) else []
    for i, part in enumerate(parts):
        if part.get("type") not in TEXT_PARTS or not any(isinstance(part.get(each), str) for each in TEXT_PARTS[1:]):
            parts[i], media = sha256(msgspec.json.encode(part)).hexdigest(), media + 1
    return media


def _least_tokens(characters: int) -> int:
    return max(-(-characters // BYTES_PER_TOKEN_MOST), 1)


def _where(message: str, body: bytes) -> tuple[str, str | None]:
    """Which field is wrong, what came and what is allowed, from what msgspec says."""
    said, _, at = message.partition(" - at ")
    field = re.sub(r"^`?\$\.?|`$", "", at)
    text = said.replace("`", "")
    missing = re.search(r"missing required field (\w+)", text)
    if missing:
        return f"the field {missing[1]!r} is missing", missing[1]
    wanted, _, kind = text.replace("Number out of range", "float").partition(", got ")
    allowed = " or ".join(IN_WORDS.get(each, each) for each in wanted.removeprefix("Expected ").split(" | "))
    for name, words in IN_WORDS.items():
        allowed = re.sub(rf"^{name}(?= [<>])", words, allowed)
    came = _came(body, field) or IN_WORDS.get(kind, kind)
    return f"{field or 'the body'}: came {came}, expected {allowed}", field or None


def _came(body: bytes, field: str) -> str:
    """A value of the body that is no list and no object, short; "" where there is no such one."""
    try:
        value = msgspec.json.decode(body, type=dict[str, msgspec.Raw]).get(field, b"")
    except (msgspec.MsgspecError, RecursionError):
        return ""
    text = bytes(value).decode("utf-8", "replace")
    return "" if text[:1] in "[{" else text if len(text) <= TOLD_MAX else f"{text[:TOLD_MAX]}..."


def _invalid(message: str, param: str | None) -> Reply:
    return Reply(400, json.dumps(error_body(message, "invalid_request_error", "invalid_value", param)).encode())


def _wrong_key() -> Reply:
    said = "no valid API key: send the header `Authorization: Bearer KEY`"
    return Reply(401, json.dumps(error_body(said, "invalid_request_error", "invalid_api_key")).encode())


def refusal(status: int, code: str, message: str, retry_after_s: float | None) -> Reply:
    """The reply to a request that the brain refused; `Retry-After` in whole seconds, at least one."""
    kind = "server_error" if status >= 500 else "rate_limit_error" if status == 429 else "invalid_request_error"
    headers = () if retry_after_s is None else (("retry-after", str(max(math.ceil(retry_after_s), 1))),)
    return Reply(status, json.dumps(error_body(message, kind, code)).encode(), headers)
