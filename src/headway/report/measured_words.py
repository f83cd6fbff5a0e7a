"""What a measured result says of how it was measured: the endpoint, its prompts, and the client's own error."""

from __future__ import annotations

from typing import Any

from headway.metrics import Result
from headway.report import words as w
from headway.units import counted, format_seconds

MEASURED = "measured"  # its place in a result's provenance


def measured_rows(result: Result) -> list[tuple[str, str]]:
    """Return the facts of a measured run; none of a simulated one."""
    told = result.provenance.get(MEASURED)
    if told is None:
        return []
    client = told["client"]
    asked = [each.get("model", "") for each in (result.workload or {}).get("classes", [])] or [""]
    models = ", ".join(dict.fromkeys(name or told["model"] or "unnamed" for name in asked))
    rows = [
        ("Measured at", f"{told['url']} ({told['endpoint']}), model {models}"),
        ("Prompts", _prompts(told)),
        ("Client", _client(client)),
        ("Client's error", _error(client["error"])),
    ]
    if told["refused"]:
        rows.append(("Refused", f"{told['refused']:,} by the service"))
    if told["answers_of_other_length"]:
        count = counted(told["answers_of_other_length"], "answer")
        rows.append(("Answers", f"{count} of another length than asked"))
    rows += [(f"Example: {reason}"[:40], example) for reason, example in told["examples"].items()]
    return [*rows, *(("Warning", warning) for warning in client["warnings"])]


def _prompts(told: dict[str, Any]) -> str:
    off = told["prompt_length_error"]
    return str(told["prompts"]) + ("" if off is None else f"; lengths off by {w.share(off)} on average")


def _client(client: dict[str, Any]) -> str:
    words = "1 process" if client["processes"] == 1 else f"{client['processes']} processes"
    late = client["send_lateness_s"]
    sent = f", requests sent {_both(late)} late" if late else ""
    return f"{words}, up to {client['peak_in_flight']:,} in flight{sent}"


def _error(error: dict[str, Any] | None) -> str:
    if error is None:
        return "not measured"
    pace = error["pace"]
    return (
        f"TTFT {_both(error['ttft_s'])}, ITL {_both(error['itl_s'])}, read from {pace['streams']:,} streams of a token "
        f"per {format_seconds(pace['gap_s'])}"
    )


def _both(quantiles: dict[str, float]) -> str:
    return f"{format_seconds(quantiles['p50'])} (p99 {format_seconds(quantiles['p99'])})"
