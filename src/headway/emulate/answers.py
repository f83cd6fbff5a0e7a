"""What goes back: HTTP heads, JSON bodies, and the events of a stream, mostly encoded before they are due."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

import msgspec
import numpy as np

from headway.emulate import prompts

JSON = b"application/json"
_encode = msgspec.json.encode
_WORDS = tuple(word.encode() for word in prompts.WORDS)
_MASK = len(_WORDS) - 1
_MARK = " the"  # stands for a token's text while the frame around it is made


def response(status: int, body: bytes, kind: bytes = JSON, extra: bytes = b"", keep: bool = True) -> bytes:
    """Return a whole HTTP response."""
    phrase = HTTPStatus(status).phrase if status in _STATUSES else "Unknown"
    close = b"" if keep else b"connection: close\r\n"
    head = f"HTTP/1.1 {status} {phrase}\r\ncontent-length: {len(body)}\r\ncontent-type: ".encode()
    return b"".join((head, kind, b"\r\n", extra, close, b"\r\n", body))


def stream_head(extra: bytes) -> bytes:
    """Return the head of a response that is a stream of events."""
    return (
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ncache-control: no-cache\r\n"
        b"transfer-encoding: chunked\r\n" + extra + b"\r\n"
    )


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def _event(value: Any) -> bytes:
    return _chunk(b"data: " + _encode(value) + b"\n\n")


class Frames:
    """The events of one streamed answer, whose words begin with number `first`.

    All words have the same length, so a token's event is a head, the word and a tail that are made once.
    """

    def __init__(self, kind: str, id: str, model: str, created: int, first: int) -> None:
        self.chat = kind == "chat"
        self.first = first
        self.frame: dict[str, Any] = {
            "id": id,
            "object": "chat.completion.chunk" if self.chat else "text_completion",
            "created": created,
            "model": model,
        }
        head, _, tail = _event(self._with(_MARK, None)).rpartition(_MARK.encode())
        self.head, self.tail = head, tail
        opening = self.frame | {"choices": [_delta({"role": "assistant", "content": ""}, None)]}
        self.opening = _event(opening) if self.chat else b""

    def _with(self, text: str, reason: str | None) -> dict[str, Any]:
        if self.chat:
            return self.frame | {"choices": [_delta({"content": text}, reason)]}
        return self.frame | {"choices": [{"index": 0, "text": text, "logprobs": None, "finish_reason": reason}]}

    def token(self, number: int) -> bytes:
        """Return the event of the token with this number, counted from 0, when it is not the last."""
        data = self.head + _WORDS[(self.first + number) & _MASK] + self.tail
        return self.opening + data if number == 0 else data

    def last(self, number: int, reason: str, usage: dict[str, Any] | None) -> bytes:
        """Return the event of the last token, and all that follows it."""
        data = _event(self._with(prompts.WORDS[(self.first + number) & _MASK], reason))
        if number == 0:
            data = self.opening + data
        if usage is not None:
            data += _event(self.frame | {"choices": [], "usage": usage})
        return data + _chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"


def _delta(delta: dict[str, str], reason: str | None) -> dict[str, Any]:
    return {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}


def usage(prompt_tokens: int, output_tokens: int, cached_tokens: int) -> dict[str, Any]:
    """Return the usage object of an answer."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": output_tokens,
        "total_tokens": prompt_tokens + output_tokens,
        "prompt_tokens_details": {"cached_tokens": cached_tokens},
    }


def whole(frames: Frames, tokens: int, reason: str, used: dict[str, Any]) -> bytes:
    """Return the body of an answer that is not streamed."""
    text = prompts.words(frames.first, tokens)
    choice: dict[str, Any] = {"index": 0, "logprobs": None, "finish_reason": reason}
    choice |= {"message": {"role": "assistant", "content": text}} if frames.chat else {"text": text}
    name = "chat.completion" if frames.chat else "text_completion"
    return _encode(frames.frame | {"object": name, "choices": [choice], "usage": used})


def embeddings(model: str, inputs: Sequence[bytes], dimensions: int, as_base64: bool) -> bytes:
    """Return unit vectors that depend on nothing but the inputs, float32."""
    data = []
    for index, tokens in enumerate(inputs):
        seed = int.from_bytes(prompts.units(tokens, prompts.count(tokens), b"").tobytes(), "little")
        vector = np.random.default_rng(seed).standard_normal(dimensions).astype(np.float32)
        vector /= max(float(np.linalg.norm(vector)), 1e-9)
        value: Any = base64.b64encode(vector.tobytes()).decode() if as_base64 else vector.tolist()
        data.append({"object": "embedding", "index": index, "embedding": value})
    tokens_in = sum(prompts.count(tokens) for tokens in inputs)
    used = {"prompt_tokens": tokens_in, "total_tokens": tokens_in}
    return _encode({"object": "list", "data": data, "model": model, "usage": used})


def models(names: Sequence[str], created: int, max_context: int) -> bytes:
    """Return the list of what is served."""
    rows = [
        {"id": name, "object": "model", "created": created, "owned_by": "headway", "max_model_len": max_context}
        for name in names
    ]
    return _encode({"object": "list", "data": rows})


_STATUSES = {status.value for status in HTTPStatus}
