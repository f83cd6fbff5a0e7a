"""Before a run: what an endpoint serves, which prompts it takes, and how many tokens it makes of them."""

from __future__ import annotations

import http.client
import json
import secrets
from typing import Any, NamedTuple

import msgspec

from headway.bench.answer import Answer
from headway.bench.prompts import Prompts
from headway.bench.target import Target, redacted, request_parts
from headway.errors import BadInput

__all__ = ["probe"]

SHORT, LONG = 64, 576  # tokens of the two prompts that tell characters per token
FEW = 2  # tokens of their answers
STRANGE = 8  # tokens: an engine that adds more to an array of ids has taken it for something else
PROBE_S = 120.0
UNAUTHORIZED = (401, 403)
OK = 200


class Reply(NamedTuple):
    """How a trial went."""

    status: int
    problem: str
    said: str
    prompt_tokens: int  # -1: not told


def probe(target: Target, key: str | None, choices: list[tuple[str, str]]) -> tuple[Target, str]:
    """Return the target with its model, the first of the (endpoint, prompts) that works, and lengths put right.

    The second value says in words how prompts are made.

    Raises:
        BadInput: nobody answers there, no model is named, or none of the choices works.
    """
    if not target.model:
        target = msgspec.structs.replace(target, model=_first_model(target, key))
    last = Reply(0, "", "", -1)
    for endpoint, prompts in choices:
        trial = msgspec.structs.replace(target, endpoint=endpoint, prompts=prompts)
        last = _ask(trial, key, SHORT)
        if last.status in UNAUTHORIZED:
            raise BadInput(f"{target.url} answers {last.status}: --key-env or --key-file name an API key; {last.said}")
        if last.problem:
            continue
        if prompts == "ids":
            extra = last.prompt_tokens - SHORT
            if last.prompt_tokens >= 0 and not 0 <= extra <= STRANGE:
                continue
            return _with_ids(trial, last.prompt_tokens, extra)
        return _with_words(trial, key, last.prompt_tokens)
    tried = ", ".join(f"{endpoint} with {prompts}" for endpoint, prompts in choices)
    hint = "--body '{\"ignore_eos\": null}' leaves out a field that is refused"
    raise BadInput(f"{target.url} takes none of: {tried}; the last said {last.problem} {last.said}; {hint}")


def _with_ids(target: Target, counted: int, extra: int) -> tuple[Target, str]:
    if counted < 0:
        return target, "token ids, as many as asked; the engine does not say how many it saw"
    added = f", with {extra} that the engine adds" if extra else ""
    return msgspec.structs.replace(target, overhead_tokens=float(extra)), f"token ids, as many as asked{added}"


def _with_words(target: Target, key: str | None, short: int) -> tuple[Target, str]:
    rule = f"words, cut to {target.chars_per_token:g} characters per token"
    if short < 0:
        return target, f"{rule}; the engine does not say how many tokens it saw, so lengths are not checked"
    long = _ask(target, key, LONG).prompt_tokens
    if long <= short:
        return target, f"{rule}; the engine's counts ({short} and {long}) make no sense, so lengths are not checked"
    chars = (LONG - SHORT) * target.chars_per_token / (long - short)
    overhead = short - SHORT * target.chars_per_token / chars
    fitted = msgspec.structs.replace(target, chars_per_token=chars, overhead_tokens=round(overhead, 1))
    return (
        fitted,
        f"words, {chars:.3g} characters per token after {overhead:.0f} the engine adds (both measured)",
    )


def _ask(target: Target, key: str | None, tokens: int) -> Reply:
    head, opened, before, after = request_parts(target, key)
    prompt = Prompts(target, secrets.randbits(63)).make(0, tokens, [], 0)
    body = opened + b"%d" % FEW + before + prompt + after
    headers = dict(line.split(": ", 1) for line in head.decode("latin-1").split("\r\n")[1:-1])
    status, said = _exchange(target, "POST", target.path, headers, body)
    answer = Answer()
    answer.feed(b"HTTP/1.1 %d x\r\ncontent-length: %d\r\n\r\n" % (status, len(said)) + said, 0.0)
    answer.closed()
    text = redacted(said[:300].decode("utf-8", "replace").strip(), key)
    return Reply(status, answer.problem, text, answer.prompt_tokens)


def _first_model(target: Target, key: str | None) -> str:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    status, said = _exchange(target, "GET", target.address.base + "/v1/models", headers, None)
    if status in UNAUTHORIZED:
        raise BadInput(f"{target.url} answers {status}: --key-env or --key-file name an API key")
    try:
        return str(json.loads(said)["data"][0]["id"])
    except (ValueError, LookupError, TypeError):
        raise BadInput(f"{target.url}/v1/models lists no model (it answers {status}): name one with --model") from None


def _exchange(target: Target, verb: str, path: str, headers: dict[str, str], body: bytes | None) -> tuple[int, bytes]:
    address = target.address
    made: Any = http.client.HTTPSConnection if address.tls else http.client.HTTPConnection
    connection = made(address.host, address.port, timeout=min(target.timeout_s, PROBE_S))
    try:
        connection.request(verb, path, body, headers)
        response = connection.getresponse()
        return int(response.status), response.read()
    except (OSError, http.client.HTTPException) as error:
        why = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise BadInput(f"{target.url} cannot be reached: {why}; is it up, and is this its address?") from None
    finally:
        connection.close()
