"""What is driven: an endpoint, the form of its prompts, and the bytes of a request."""

from __future__ import annotations

import json
from typing import Any, Literal, NamedTuple
from urllib.parse import urlsplit

import msgspec

from headway.errors import BadInput
from headway.specs import Spec

__all__ = ["Address", "Target", "redacted", "request_parts"]

PATHS = {"chat": "/v1/chat/completions", "completions": "/v1/completions"}
WORD_CHARS = 5.0  # of our texts: a word of four letters and a space, in most vocabularies one token


class Address(NamedTuple):
    """Where the connections go."""

    tls: bool
    host: str
    port: int
    base: str  # the path before /v1

    @property
    def header(self) -> str:
        """The value of the header `Host`."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.tls else 80) else f"{host}:{self.port}"


class Target(Spec, frozen=True, kw_only=True):
    """An endpoint and how it is asked. The API key is no part of it: specs are printed and kept.

    prompts: "ids" sends token ids, a prompt of exactly as many tokens as asked; "words" sends text cut to
    `chars_per_token` characters per token. `overhead_tokens` are those the engine adds to every prompt (a chat
    template, a first token), and are taken off. `body` overrides fields of the request; None leaves one out.
    """

    url: str
    endpoint: Literal["chat", "completions"] = "completions"
    model: str = ""
    prompts: Literal["ids", "words"] = "ids"
    chars_per_token: float = WORD_CHARS
    overhead_tokens: float = 0.0
    body: dict[str, Any] = msgspec.field(default_factory=dict)
    timeout_s: float = 600.0

    def __post_init__(self) -> None:
        """Raise `BadInput` for what cannot be asked for."""
        _ = self.address
        if self.endpoint == "chat" and self.prompts == "ids":
            raise BadInput("a chat takes no token ids: prompts of --endpoint chat are words")
        if not 0.5 <= self.chars_per_token <= 100:
            raise BadInput(f"{self.chars_per_token:g} characters per token: expected 0.5 to 100, as in 5")
        if self.timeout_s <= 0:
            raise BadInput(f"timeout {self.timeout_s:g} s: give a time above zero")

    @property
    def address(self) -> Address:
        """Where `url` points.

        Raises:
            BadInput: it is no http(s) URL, or carries a password or a query.
        """
        expected = "expected one like http://localhost:8000 or https://llm.example.org/path"
        try:
            parts = urlsplit(self.url)
            port = parts.port
        except ValueError as error:
            raise BadInput(f"the URL {self.url!r} is not understood ({error}); {expected}") from None
        if parts.username or parts.password:
            raise BadInput("the URL carries a user or a password: --key-env and --key-file take secrets")
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise BadInput(f"the URL {self.url!r} is not understood; {expected}")
        if port == 0:
            raise BadInput(f"the URL {self.url!r} names port 0; {expected}")
        base = parts.path.rstrip("/")
        for ending in (*PATHS.values(), "/v1"):
            base = base.removesuffix(ending)
        tls = parts.scheme == "https"
        return Address(tls, parts.hostname, port or (443 if tls else 80), base)

    @property
    def path(self) -> str:
        """The path requests are posted to."""
        return self.address.base + PATHS[self.endpoint]


def request_parts(target: Target, key: str | None) -> tuple[bytes, bytes, bytes, bytes]:
    """Return what frames a request: head (before the length), fields of the body, before and after the prompt.

    A request is ``head + length + blank line + fields + max_tokens + before + prompt + after``.
    """
    address = target.address
    lines = [
        f"POST {target.path} HTTP/1.1", f"Host: {address.header}", "Accept: text/event-stream",
        "Content-Type: application/json", "User-Agent: headway-bench",
    ]  # fmt: skip
    if key:
        lines.append(f"Authorization: Bearer {key}")
    head = "\r\n".join([*lines, "Content-Length: "]).encode("latin-1")
    fields: dict[str, Any] = {
        "model": target.model, "stream": True, "stream_options": {"include_usage": True}, "ignore_eos": True,
    }  # fmt: skip
    fields = {name: value for name, value in (fields | target.body).items() if value is not None}
    opened = json.dumps(fields, separators=(",", ":"))[:-1].encode() + b',"max_tokens":'
    if target.endpoint == "chat":
        return head, opened, b',"messages":[{"role":"user","content":', b"}]}"
    return head, opened, b',"prompt":', b"}"


def redacted(text: str, key: str | None) -> str:
    """Return the text without the key, should a server have sent it back."""
    return text.replace(key, "***") if key else text
