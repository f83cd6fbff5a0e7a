"""Container images of the engines, of the versions whose parsers are recorded, and where an engine says it is well."""

from headway.export.recorded import recorded

HEALTH = "/health"  # of all three


def image(engine: str) -> str:
    """Return the vendor's image of the recorded version."""
    version = recorded(engine).version
    return {
        "vllm": f"vllm/vllm-openai:v{version}",
        "sglang": f"lmsysorg/sglang:v{version}",
        "trtllm": f"nvcr.io/nvidia/tensorrt-llm/release:{version}.0",
    }[engine]
