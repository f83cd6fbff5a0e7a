"""`python -m sglang.launch_server`."""

from __future__ import annotations

from typing import Any

from headway.cost import memory_fit
from headway.errors import BadInput
from headway.export import engine as e
from headway.export.recorded import parse

KV = {"bf16": "bf16", "fp8": "fp8_e4m3"}
DRAFTS = {"mtp": "NEXTN", "ngram": "NGRAM"}
STANDALONE = "STANDALONE"  # another model drafts
BOOTSTRAP_PORT = 8998
INIT_ABOVE = 12_000  # its server: replicas whose stages share hosts meet on a port of their own


def command(ask: e.Ask) -> e.Command:
    """Return the command of one replica, or of its part on one host.

    Raises:
        BadInput: see `online_quantization`; steps of no whole number of blocks.

    With attention data parallel, SGLang divides `--chunked-prefill-size` and `--max-running-requests` among the ranks
    (arg_groups/parallel_hook.py, model_executor/pool_configurator.py of 0.5.23), so they are given as sums.
    """
    replica, engine = ask.replica, ask.replica.engine
    words = ["python3", "-m", "sglang.launch_server", "--model-path", ask.model_path, "--served-model-name", ask.name]
    words += ["--host", "0.0.0.0", "--port", str(ask.port), "--enable-metrics"]
    words += ["--tp-size", str(replica.tp * replica.dp), "--pp-size", str(replica.pp)]
    words += ["--attn-dp-size", str(replica.dp)] if replica.dp > 1 else []
    words += ["--ep-size", str(replica.ep)] if replica.ep > 1 else []
    if ask.hosts > 1:
        words += [
            "--nnodes",
            str(ask.hosts),
            "--node-rank",
            str(ask.host),
            "--dist-init-addr",
            f"{ask.head}:{INIT_ABOVE + ask.port}",
        ]
    page, chunk = e.page_tokens(replica, ask.gpus), engine.max_batched_tokens * replica.dp
    if chunk % page and ask.role != "decode":
        raise BadInput(
            f"{ask.where}.replica.engine.max_batched_tokens={engine.max_batched_tokens}: SGLang computes prompts in "
            f"whole blocks, here of {page}; set a multiple of that"
        )
    quantization = e.online_quantization(ask, ("fp8",))
    words += ["--quantization", quantization] if quantization else []
    words += [*e.precision_words(ask, KV), "--page-size", str(page)]
    fit = memory_fit(replica)
    words += ["--mem-fraction-static", f"{(fit.weight_bytes + fit.kv_bytes) / fit.memory_bytes:.3f}"]
    words += ["--chunked-prefill-size", str(chunk)]
    words += ["--max-prefill-tokens", str(engine.max_batched_tokens)]
    words += ["--max-running-requests", str(engine.max_seqs * replica.dp)]
    words += [] if engine.prefix_cache else ["--disable-radix-cache"]
    words += ["--disable-overlap-schedule"] if engine.ahead is False else []
    words += ["--scheduler-recv-interval", str(engine.poll_steps)] if engine.poll_steps > 1 else []
    context = ask.context
    words += ["--context-length", str(context)] if context else []
    words += ["--schedule-policy", "fcfs"]
    if ask.order == "priority":  # in Headway lower values go first, in SGLang higher ones unless told
        words += ["--enable-priority-scheduling", "--schedule-low-priority-values-first"]
    words += _speculation(ask)
    if ask.role != "mixed":
        words += ["--disaggregation-mode", ask.role, "--disaggregation-transfer-backend", "nixl"]
        words += ["--disaggregation-bootstrap-port", str(bootstrap_port(ask.port))] if ask.role == "prefill" else []
    return e.Command(engine="sglang", words=tuple(words), notes=tuple(_notes(ask)))


def bootstrap_port(port: int) -> int:
    """Return where the prefill server on `port` meets decode servers: 8998, and the next for each more on a host."""
    return BOOTSTRAP_PORT + port - 8000


def read(built: e.Command) -> dict[str, Any]:
    """Return the settings of a command, named as `engine.settings` has them; raises BadInput, see `parse`."""
    flags = parse("sglang", list(built.words[3:]))
    dp = flags.get("--attn-dp-size") or (flags["--dp-size"] if "--enable-dp-attention" in flags else 1)
    algorithm = flags.get("--speculative-algorithm", "")
    draft = {value: key for key, value in DRAFTS.items()}.get(algorithm, flags.get("--speculative-draft-model-path"))
    return {
        "hands_over": "--disaggregation-mode" in flags,
        "tp": flags["--tp-size"] // dp,
        "pp": flags["--pp-size"],
        "dp": dp,
        "ep": flags.get("--ep-size", 1),
        "kv": e.kv_of(flags["--kv-cache-dtype"], KV),
        "weights": flags.get("--quantization", ""),
        "max_batched_tokens": flags["--chunked-prefill-size"] // dp,
        "max_seqs": flags["--max-running-requests"] // dp,
        "block_tokens": flags["--page-size"],
        "prefix_cache": "--disable-radix-cache" not in flags,
        "ahead": False if "--disable-overlap-schedule" in flags else None,
        "drafted": (draft, flags["--speculative-num-draft-tokens"] - 1) if algorithm else None,
    }


def _speculation(ask: e.Ask) -> list[str]:
    """Tokens in a chain: the number to verify is one more than are drafted."""
    speculation = ask.replica.engine.speculation
    if speculation is None:
        return []
    verified = ["--speculative-num-draft-tokens", str(speculation.verified)]
    words = ["--speculative-algorithm", DRAFTS.get(speculation.draft, STANDALONE)]
    if speculation.draft == "ngram":
        return words + verified
    words += ["--speculative-num-steps", str(speculation.tokens), "--speculative-eagle-topk", "1", *verified]
    return words if speculation.draft == "mtp" else [*words, "--speculative-draft-model-path", e.draft_path(ask)]


def _notes(ask: e.Ask) -> list[str]:
    engine: Any = ask.replica.engine
    said = [
        f"engine.memory_utilization={engine.memory_utilization:g}: SGLang is told the share of weights and KV, as the "
        "memory model has them; lower --mem-fraction-static where it runs out of memory at the start",
        *e.page_notes(ask),
    ]
    if engine.ahead:
        said.append("engine.ahead: SGLang composes steps ahead by itself, unless it is told not to")
    if ask.order not in ("fcfs", "priority"):
        said.append(
            f"policies.order={ask.order}: SGLang's queue knows fcfs and priority; headway serve orders before it"
        )
    if engine.align_steps:
        said.append("engine.align_steps, gather_steps: SGLang has no such flags")
    return said
