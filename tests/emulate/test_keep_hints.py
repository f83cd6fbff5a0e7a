"""The header by which a gateway says how long KV is to be kept: obeyed as in the simulator, or refused."""

import pytest

from tests.emulate.http_cases import one, serve

TEXT = "/v1/completions"
TABLE = {"kv_blocks": 13}  # room for three prompts of four pages, and the page of a token more


def prompt(first: int) -> dict:
    return {"prompt": [first] * 65, "max_tokens": 1, "ignore_eos": True}


@pytest.mark.parametrize(("header", "cached"), [({}, 0), ({"x_headway_keep_s": "600.0"}, 64)])
def test_a_prompt_is_kept_for_as_long_as_the_header_says(header, cached):
    async def asked(emulator):
        port = emulator.ports[0]
        await one(port, TEXT, prompt(1), **header)
        for other in range(2, 8):
            await one(port, TEXT, prompt(other))
        return await one(port, TEXT, prompt(1))

    usage = serve(asked, table=TABLE).json["usage"]
    assert usage["prompt_tokens_details"]["cached_tokens"] == cached


@pytest.mark.parametrize("text", ["soon", "-1", "inf", "nan", ""])
def test_what_is_no_time_is_refused(text):
    async def asked(emulator):
        return await one(emulator.ports[0], TEXT, prompt(1), x_headway_keep_s=text)

    reply = serve(asked)
    assert reply.status == 400
    assert reply.json["error"]["param"] == "x-headway-keep-s"
    assert "expected seconds, as in 60" in reply.json["error"]["message"]
