"""Headers that engines, and sidecars beside them, obey: those that we send, and those that no caller may.

The names of sidecars' are those of `pkg/common/routing` of llm-d/llm-d-router, which renamed them in 2026: its sidecars
before that know the older name alone, those after it prefer the older one, so its own picker writes both.
"""

PREFILLER = ("x-prefiller-host-port", "x-llm-d-prefiller-host-port")  # who computes the prompt, of one value
KEEP_HINT = "x-headway-keep-s"  # how long the prefix is kept after the end, for engines that take it
STEERING = (  # what else names a place that prompts are sent to, or taken from
    "x-prefiller-url", "x-encoder-hosts-ports", "x-llm-d-encoder-hosts-ports", "x-kv-cache-source-host-port",
    "x-llm-d-kv-cache-source-host-port", "x-data-parallel-host-port",
)  # fmt: skip
