"""What engines, and sidecars beside them, obey: headers that we send, headers and fields of bodies that no caller may.

The rule: a caller says what is to be computed and how, of a model that is served here. It does not say where, as whose
and from whose KV: that is decided here, and those who ask may be strangers to each other. What engines have for it is
removed, not refused, so that callers who send it out of habit are served. All else passes.

The names of fields and headers are those of the engines' sources in 2026: vLLM's and TensorRT-LLM's `protocol.py`,
SGLang's `protocol.py` and its handling of headers, llama.cpp's `server`. Those of sidecars are the names of
`pkg/common/routing` of llm-d/llm-d-router, which renamed them in 2026: its sidecars before that know the older name
alone, those after it prefer the older one, so its own picker writes both.
"""

PREFILLER = ("x-prefiller-host-port", "x-llm-d-prefiller-host-port")  # who computes the prompt, of one value
KEEP_HINT = "x-headway-keep-s"  # how long the prefix is kept after the end, for engines that take it
STEERING = (  # what else names a place that prompts are sent to, or taken from
    "x-prefiller-url", "x-encoder-hosts-ports", "x-llm-d-encoder-hosts-ports", "x-kv-cache-source-host-port",
    "x-llm-d-kv-cache-source-host-port", "x-data-parallel-host-port",
    "x-data-parallel-rank", "x-smg-routing-key",  # the first vLLM and SGLang obey unasked, the others SGLang if told to
    *(f"x-override-{name}" for name in (
        "rid", "bootstrap-host", "bootstrap-port", "bootstrap-room", "conversation-id", "routed-dp-rank",
        "disagg-prefill-dp-rank", "priority",
    )),
    "x-enable-local-updates", *(f"x-{prefix}{name}" for prefix in ("", "dynamo-") for name in (  # Dynamo
        "worker-instance-id", "prefill-instance-id", "dp-rank", "prefill-dp-rank",
    )),
    "x-dynamo-request-priority", "x-dynamo-request-strict-priority", "x-dynamo-routing-mode", "x-dynamo-token-data",
)  # fmt: skip
SALT, PRIORITY = "cache_salt", "priority"  # ours, where the file says so; a caller's only as `engine_priority` has it
RESERVED = (  # unless `caller_fields` has it
    "kv_transfer_params", "ec_transfer_params",  # where KV is: of any host, or anyone's; vLLM, then others
    "bootstrap_host", "bootstrap_port", "bootstrap_room", "bootstrap_pair_key", "disaggregated_params",
    "vllm_xargs",  # becomes what the first two become: a connector finds them in it
    "nvext",  # Dynamo's: workers, ranks, a salt and a prompt as token ids, all in one
    "extra_key",  # a second salt
    "session_params", "session_id", "conversation_params", "agent_hierarchy",  # KV and routes, by anyone's name
    "rid", "request_id",  # of another's request, whose answer or end it would be
    "data_parallel_rank", "routed_dp_rank", "disagg_prefill_dp_rank", "id_slot",  # which rank; which slot of llama.cpp
    "lora_path", "lora_request", "lora",  # weights, by a path, too: adapters are served by names in `models`
    "input_ids", "prompt_embeds",  # another prompt than the one that was read, counted and predicted; so are these:
    "prompt_token_ids", "prompt_token_ids_b64",
    "custom_logit_processor",  # code
)  # fmt: skip
UNCOUNTED = ("n_predict", "max_new_tokens", "best_of")  # engines' own ways to ask for more tokens than are counted
