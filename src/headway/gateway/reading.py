"""Reads a request as OpenAI's API defines it; what is wrong is said in that API's error shape, never with a 5xx.

Only what a decision needs is looked at. Everything else in the body passes through to the engine, which judges it.
"""

from __future__ import annotations

import json
import math
import re
from hashlib import sha256
from typing import Annotated, Any

import msgspec

from headway.errors import BadInput, nearest
from headway.gateway.envoy_config import ENDPOINTS, error_body
from headway.gateway.events import Arrival
from headway.gateway.prefix import chain_of
from headway.gateway.spec import GatewaySpec, seconds_of_header
from headway.gateway.tenants import Keys

Tokens = Annotated[int, msgspec.Meta(ge=1)]
BYTES_PER_TOKEN_ID = 4
SALT = "cache_salt"


class Reply(msgspec.Struct, frozen=True):
    """An answer that needs no replica: status, JSON body, further headers."""

    status: int
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()

    @property
    def code(self) -> str:
        """The code of the error it tells; "" where it tells none."""
        return str(json.loads(self.body).get("error", {}).get("code", ""))


class _Message(msgspec.Struct):
    role: str
    content: str | list[dict[str, Any]] | None = None


class _Chat(msgspec.Struct):
    model: str
    messages: list[_Message]
    max_tokens: Tokens | None = None
    max_completion_tokens: Tokens | None = None
    n: Annotated[int, msgspec.Meta(ge=1, le=128)] | None = None
    stream: bool | None = None


class _ChatText(msgspec.Struct):
    messages: msgspec.Raw
    tools: msgspec.Raw = msgspec.Raw(b"")


class _Completion(msgspec.Struct):
    model: str
    prompt: str | list[Any]
    max_tokens: Tokens | None = None
    n: Annotated[int, msgspec.Meta(ge=1, le=128)] | None = None
    stream: bool | None = None


class _Embedding(msgspec.Struct):
    model: str
    given: str | list[Any] = msgspec.field(name="input")


_SHAPES: dict[str, Any] = dict(zip(ENDPOINTS, (_Chat, _Completion, _Embedding), strict=True))
_DEFAULT_COMPLETION_TOKENS = 16  # OpenAI's own, for /v1/completions


class Reader:
    """Turns paths, headers and bodies into arrivals, or into replies."""

    def __init__(self, spec: GatewaySpec, max_context: int | None = None) -> None:
        self.spec = spec
        self.keys = Keys(spec.tenants)
        self.max_context = max_context
        models = [{"id": name, "object": "model", "created": 0, "owned_by": "headway"} for name in spec.models]
        self.models = json.dumps({"object": "list", "data": models}).encode()

    def read(self, id: str, path: str, headers: dict[str, str], body: bytes) -> Arrival | Reply:
        """Read a POST to one of the endpoints; `headers` in lower case, absent ones left out."""
        tenant = self.keys.tenant(headers.get("authorization", ""))
        if tenant is None:
            return _wrong_key()
        path = path.partition("?")[0]
        try:
            asked = msgspec.json.decode(body, type=_SHAPES[path])
            text, exact, max_tokens = _prompt(asked, body)
        except msgspec.ValidationError as error:
            return _invalid(*_where(str(error)))
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            return _invalid(f"the body is not JSON: {error}", None)
        except RecursionError:
            return _invalid("the body is nested too deeply", None)
        if asked.model not in self.spec.models:
            return self.unknown_model(asked.model)
        klass = headers.get("x-headway-class") or self.keys.tenants[tenant].slo_class
        names = [each.name for each in self.spec.classes]
        if klass and klass not in names:
            return _invalid(
                f"header x-headway-class: {klass[:80]!r} is no class: {', '.join(names)}", "x-headway-class"
            )
        try:
            deadline_s = seconds_of_header(headers["x-headway-deadline"]) if "x-headway-deadline" in headers else None
        except BadInput as error:
            return _invalid(f"header x-headway-deadline: {error}", "x-headway-deadline")
        refused = self._too_long(exact, max_tokens)
        if refused is not None:
            return refused
        return Arrival(
            id=id,
            tenant=tenant,
            slo_class=names.index(klass) if klass else 0,
            prompt_bytes=len(text),
            prompt_tokens=exact,
            chain=chain_of(text, self.keys.tenants[tenant].name),
            max_tokens=max_tokens,
            generates=not isinstance(asked, _Embedding),
            deadline_s=deadline_s,
        )

    def rewritten(self, arrival: Arrival, body: bytes) -> bytes | None:
        """Return the body with the tenant's salt and without the caller's; None where it stays as it is."""
        if not self.spec.salt_prefixes and SALT.encode() not in body:
            return None
        fields = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
        fields.pop(SALT, None)
        if self.spec.salt_prefixes:
            name = self.keys.tenants[arrival.tenant].name
            fields[SALT] = msgspec.Raw(msgspec.json.encode(sha256(f"headway/{name}".encode()).hexdigest()))
        return msgspec.json.encode(fields)

    def _too_long(self, prompt_tokens: int | None, max_tokens: int | None) -> Reply | None:
        needed = (prompt_tokens or 1) + (max_tokens or 0)
        if self.max_context is None or needed <= self.max_context:
            return None
        what = f"{prompt_tokens or 'at least 1'} prompt tokens and {max_tokens or 0} to generate"
        return _invalid(f"{what} exceed the model's context of {self.max_context} tokens", "max_tokens")

    def plain(self, method: str, path: str, headers: dict[str, str]) -> Reply:
        """Answer what has no body: the list of models, or what else there is."""
        path = path.partition("?")[0]
        if path in ENDPOINTS:
            body = error_body(f"{path} takes POST, came {method[:16]}", "invalid_request_error", "method_not_allowed")
            return Reply(405, json.dumps(body).encode(), (("allow", "POST"),))
        known = path == "/v1/models" or path.startswith("/v1/models/")
        if not known or method != "GET":
            offered = ", ".join(("GET /v1/models", *(f"POST {each}" for each in ENDPOINTS)))
            body = error_body(f"unknown URL: there are {offered}", "invalid_request_error", "unknown_url")
            return Reply(404, json.dumps(body).encode())
        if self.keys.tenant(headers.get("authorization", "")) is None:
            return _wrong_key()
        if path == "/v1/models":
            return Reply(200, self.models)
        name = path.removeprefix("/v1/models/")
        if name not in self.spec.models:
            return self.unknown_model(name)
        return Reply(200, json.dumps({"id": name, "object": "model", "created": 0, "owned_by": "headway"}).encode())

    def unknown_model(self, came: str) -> Reply:
        """The reply to a model that is not served: which ones are."""
        near = nearest(came[:200], self.spec.models)
        hint = f"did you mean {near[0]!r}? " if near else ""
        said = f"the model {came[:200]!r} is not served: {hint}served: {', '.join(self.spec.models)}"
        return Reply(404, json.dumps(error_body(said, "invalid_request_error", "model_not_found", "model")).encode())


def _prompt(asked: Any, body: bytes) -> tuple[bytes, int | None, int | None]:
    """The prompt's text, its tokens where they are given, and the most to generate."""
    if isinstance(asked, _Chat):
        raw = msgspec.json.decode(body, type=_ChatText)
        limits = [limit for limit in (asked.max_completion_tokens, asked.max_tokens) if limit is not None]
        return bytes(raw.tools) + bytes(raw.messages), None, min(limits) * (asked.n or 1) if limits else None
    most = None
    if isinstance(asked, _Completion):
        most = (asked.max_tokens or _DEFAULT_COMPLETION_TOKENS) * (asked.n or 1)
    given = asked.prompt if isinstance(asked, _Completion) else asked.given
    if isinstance(given, str):
        return given.encode(), None, most
    flat = [item for part in given for item in (part if isinstance(part, list) else [part])]
    if all(isinstance(item, int) and not isinstance(item, bool) for item in flat):
        ids = b"".join((token & 0xFFFFFFFF).to_bytes(BYTES_PER_TOKEN_ID, "big") for token in flat)
        return ids, max(len(flat), 1), most
    if all(isinstance(item, str) for item in given):
        return "\n".join(given).encode(), None, most
    name = "prompt" if isinstance(asked, _Completion) else "input"
    raise msgspec.ValidationError(f"Expected text, a list of texts, of token ids or of lists of those - at `$.{name}`")


def _where(message: str) -> tuple[str, str | None]:
    """What msgspec says, and the field it is about."""
    said, _, at = message.partition(" - at ")
    field = re.sub(r"^`?\$\.?|`$", "", at)
    text = said.replace("`", "")
    missing = re.search(r"missing required field (\w+)", text)
    if missing:
        return f"the field {missing[1]!r} is missing", missing[1]
    return (f"{field}: {text}" if field else text), field or None


def _invalid(message: str, param: str | None) -> Reply:
    return Reply(400, json.dumps(error_body(message, "invalid_request_error", "invalid_value", param)).encode())


def _wrong_key() -> Reply:
    said = "no valid API key: send the header `Authorization: Bearer KEY`"
    return Reply(401, json.dumps(error_body(said, "invalid_request_error", "invalid_api_key")).encode())


def refusal(status: int, code: str, message: str, retry_after_s: float | None) -> Reply:
    """The reply to a request that the brain refused; `Retry-After` in whole seconds, at least one."""
    kind = "server_error" if status >= 500 else "rate_limit_error"
    headers = () if retry_after_s is None else (("retry-after", str(max(math.ceil(retry_after_s), 1))),)
    return Reply(status, json.dumps(error_body(message, kind, code)).encode(), headers)
