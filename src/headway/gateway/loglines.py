"""The log as JSON lines, one for each request that is over.

No line holds a key, a header or a word of a prompt: what is written is named here, field by field. Where whoever reads
lines is too slow, lines are lost and counted, and no decision waits.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import msgspec

from headway.gateway.behind import Behind
from headway.gateway.events import Outcome

LINES_MAX = 10_000
TOGETHER_MAX = 500  # lines in one write
CLOSE_S = 1.0  # what the last lines are given
ENVOY_FORMAT = '{"time":"%Y-%m-%dT%T.%eZ","level":"%l","event":"envoy","message":"%j"}'  # for its --log-format


def line_of(fields: dict[str, Any]) -> bytes:
    """One line, with the time before it and without its end."""
    now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return msgspec.json.encode({"time": now, "level": "info", **fields})


class LogLines:
    """Writes lines through `write`, which is called in a thread of its own and may block."""

    def __init__(self, write: Callable[[str], object]) -> None:
        self.write = write
        self.behind = Behind("log", self._take, LINES_MAX, TOGETHER_MAX)

    def over(self, outcome: Outcome, replica: str | None, prefill: str | None, trace_id: str | None) -> None:
        """Write down a request that is over, with who answered it, and who computed its prompt if that was another."""
        queue_s = None if outcome.sent_s is None else outcome.sent_s - outcome.arrived_s
        self._put(
            {
                "event": "request",
                "id": outcome.id,
                "tenant": outcome.tenant,
                "slo_class": outcome.slo_class,
                "model": outcome.model,
                "status": outcome.status,
                "code": outcome.code,
                "replica": replica,
                "prefill": prefill,
                "reason": outcome.reason,
                "queue_s": queue_s,
                "ttft_s": outcome.ttft_s,
                "tpot_s": outcome.tpot_s,
                "e2e_s": outcome.e2e_s,
                "prompt_tokens": outcome.prompt_tokens,
                "cached_tokens": outcome.cached_tokens,
                "output_tokens": outcome.output_tokens,
                "attempts": outcome.attempts,
                "attained": outcome.attained,
                "trace_id": trace_id,
            }
        )

    def turned_away(self, id: str, status: int, code: str) -> None:
        """Write down a request that was answered before it was one that could be decided on, or by Envoy itself."""
        self._put({"event": "request", "id": id, "status": status, "code": code})

    @property
    def dropped(self) -> int:
        """Lines that were lost."""
        return self.behind.dropped

    def close(self) -> None:
        """Write what waits, as far as that goes within a second."""
        self.behind.close(CLOSE_S)

    def _put(self, fields: dict[str, Any]) -> None:
        self.behind.put(line_of(fields))

    def _take(self, lines: list[bytes]) -> int:
        try:
            self.write(b"".join(line + b"\n" for line in lines).decode())
        except (OSError, ValueError):  # nobody reads any more
            return len(lines)
        return 0
