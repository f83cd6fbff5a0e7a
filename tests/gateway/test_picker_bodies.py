"""What a picker keeps of bodies that are on their way to it, and counts of those that go back."""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import AsyncIterator

import pytest
from brain_cases import ADDRESSES, brain

from headway.gateway import picker
from headway.gateway.messages import message_types
from headway.gateway.reading import Reader
from headway.gateway.spec import Limits

pytestmark = pytest.mark.skipif(importlib.util.find_spec("google") is None, reason="no protobuf")


class Coming:
    """A picker, and requests to it whose bodies begin and do not end."""

    def __init__(self, **limits: object) -> None:
        b = brain(limits=Limits(**limits))
        self.picker = picker.Picker(b, Reader(b.spec), list(ADDRESSES[:2]))
        self.types = message_types()

    async def body(self, size: int) -> AsyncIterator[bytes]:
        message = self.types["ProcessingRequest"]()
        message.request_body.body = b" " * size
        yield bytes(message.SerializeToString())
        await asyncio.Event().wait()

    async def status(self, size: int) -> int:
        async for text in self.picker.process(self.body(size), None):
            return int(self.types["ProcessingResponse"].FromString(text).immediate_response.status.code)
        return 0

    def statuses(self, *sizes: int) -> list[int]:
        """The statuses of the answers to bodies of which so many bytes have come."""

        async def all_at_once() -> list[int]:
            return await asyncio.gather(*map(self.status, sizes))

        return asyncio.run(all_at_once())


def test_bodies_are_bounded_each_and_together_and_given_up_when_they_do_not_come(monkeypatch):
    monkeypatch.setattr(picker, "BODIES_BYTES", 1000)
    coming = Coming(body_bytes=800, upload_s=0.1)
    assert coming.statuses(500, 500, 500) == [408, 408, 503]
    assert coming.statuses(801) == [413]
    assert coming.statuses(800) == [408], "what was given up is not kept"
    assert coming.picker.kept_bytes == 0


@pytest.mark.parametrize("size", [1, 7, 50, 10_000])
def test_an_answer_is_counted_alike_wherever_it_is_cut(size):
    events = [b'data: {"choices":[{"delta":{"content":"%d"}}]}\n\n' % i for i in range(9)]
    whole = b"".join(events) + b'data: {"usage":{"completion_tokens":12}}\n\ndata: [DONE]'
    passing = picker.Passing(0.0)
    for at in range(0, len(whole), size):
        passing.count(whole[at : at + size], 1.0 + at, at + size >= len(whole))
    assert (passing.events, passing.tokens, passing.usage("completion_tokens")) == (11, 9, 12)
    assert 1.0 <= passing.first_s <= 1.0 + len(events[0]) + size
