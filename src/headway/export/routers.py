"""The engines' own routers: they send a request to a prefill replica, then to a decode replica that fetches its KV.

vLLM's is a package of its own, vLLM Router; its flags were recorded from it (`data/vllm-router.json`).
"""

from __future__ import annotations

from headway.export.recorded import parse, recorded
from headway.export.sglang import bootstrap_port
from headway.specs import write_yaml

__all__ = ["ROUTER_PORT", "VLLM_POLICIES", "router_command", "router_image", "router_notes", "vllm_router"]

ROUTER_PORT = 7000  # below the engines' own ports, from 8000 up
STARTUP_S = 2400  # as long as an engine may take to load its weights
VLLM_POLICIES = {  # by policies.route: what vLLM Router takes for both roles, and what is not the same
    "least-requests": ("power_of_two", "vLLM Router takes the less loaded of two replicas that it draws"),
    "least-tokens": ("power_of_two", "vLLM Router counts requests, and of two replicas that it draws"),
    "power-of-two": ("power_of_two", ""),
    "round-robin": ("round_robin", ""),
    "prefix-affinity": ("cache_aware", "vLLM Router keeps its own tree of prompts as text"),
}


def router_command(
    engine: str, urls: dict[str, list[str]], route: str, config_path: str
) -> tuple[tuple[str, ...], str]:
    """Return the words that start an engine's router before these replicas, and the file it reads at `config_path`.

    `urls`: host and port of each replica, by role. The file is "" where the words say it all.
    """
    if engine == "trtllm":
        return ("trtllm-serve", "disaggregated", "-c", config_path), write_yaml(_trtllm(urls))
    if engine == "sglang":
        return _sglang(urls), ""
    replicas = [word for role, at in urls.items() for url in at for word in (f"--{role}", f"http://{url}")]
    return vllm_router(route, replicas), ""


def vllm_router(route: str, replicas: list[str]) -> tuple[str, ...]:
    """Return the command of vLLM Router; `replicas` are the flags that say where they are.

    Raises:
        BadInput: a flag that the recorded version does not have.
    """
    policy, _ = VLLM_POLICIES.get(route, VLLM_POLICIES["least-requests"])
    flags = ["--vllm-pd-disaggregation", "--policy", policy, *replicas, "--host", "0.0.0.0", "--port", str(ROUTER_PORT)]
    flags += ["--worker-startup-timeout-secs", str(STARTUP_S)]
    parse("vllm-router", flags)
    return ("vllm-router", *flags)


def router_notes(engine: str, route: str) -> list[str]:
    """Return where vLLM Router is from and what it does otherwise than the policy; other engines bring their router."""
    if engine != "vllm":
        return []
    version = recorded("vllm-router").version
    known = VLLM_POLICIES.get(route)
    other = known[1] if known else "vLLM Router has no such policy and takes the less loaded of two replicas"
    said = [f"router: vLLM Router {version} hands over (pip install vllm-router=={version})"]
    return [*said, f"policies.route={route}: {other}"] if other else said


def router_image(engine: str, engine_image: str) -> str:
    """Return the image that an engine's router is in."""
    return f"vllm/vllm-router:v{recorded('vllm-router').version}" if engine == "vllm" else engine_image


def _sglang(urls: dict[str, list[str]]) -> tuple[str, ...]:
    """The command of SGLang's router (docs.sglang.io, advanced_features/pd_disaggregation)."""
    words = ["python3", "-m", "sglang_router.launch_router", "--pd-disaggregation"]
    for url in urls["prefill"]:
        words += ["--prefill", f"http://{url}", str(bootstrap_port(int(url.rpartition(":")[2])))]
    for url in urls["decode"]:
        words += ["--decode", f"http://{url}"]
    return (*words, "--host", "0.0.0.0", "--port", str(ROUTER_PORT))


def _trtllm(urls: dict[str, list[str]]) -> dict[str, object]:
    """The file of `trtllm-serve disaggregated` (examples/disaggregated of TensorRT-LLM)."""
    return {
        "hostname": "0.0.0.0",
        "port": ROUTER_PORT,
        "backend": "pytorch",
        "context_servers": {"num_instances": len(urls["prefill"]), "urls": urls["prefill"]},
        "generation_servers": {"num_instances": len(urls["decode"]), "urls": urls["decode"]},
    }
