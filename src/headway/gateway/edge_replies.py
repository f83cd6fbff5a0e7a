"""What Envoy answers by itself: in the shape of OpenAI's errors, as what the decision process answers is."""

from __future__ import annotations

import json
from typing import Any

POLICY_DETAILS = "headway"  # marks replies whose body is ours already


def error_body(message: str, kind: str, code: str, param: str | None = None) -> dict[str, Any]:
    """Return an error as OpenAI's API writes it."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def local_replies(body_bytes: int) -> list[dict[str, Any]]:
    """Envoy's own replies in the shape of OpenAI's errors; those that carry a body of ours stay as they are."""
    said = {
        404: (
            "invalid_request_error",
            "unknown_url",
            "unknown URL: POST /v1/chat/completions, /v1/completions or /v1/embeddings",
        ),
        408: ("invalid_request_error", "request_timeout", "the request did not arrive in time: send it without pauses"),
        403: ("invalid_request_error", "bad_request", "no other protocol is spoken here: send no Upgrade"),
        413: (
            "invalid_request_error",
            "request_too_large",
            f"the request's body exceeds the limit of {body_bytes:,} bytes",
        ),
        426: ("invalid_request_error", "bad_request", "HTTP/1.0 is not served: send the request as HTTP/1.1"),
        431: ("invalid_request_error", "headers_too_large", "the request's headers exceed the limit"),
        503: ("server_error", "unavailable", "no decision or no replica is available: try again in a second"),
        504: ("server_error", "timeout", "no answer came in time: try again"),
    }
    bodiless = "invalid_request_error", "empty_body", "the request has no body: expected a JSON object"
    failed = "server_error", "upstream_failed", "the replica failed to answer: try again"
    unavailable = {"comparison": _equals(503, "EQ")}
    mappers = [
        {**_mapper(unavailable, *bodiless, also="request.size == 0"), "status_code": 400},
        _mapper(unavailable, *failed, also="response.code_details.startsWith('upstream_')"),
        *(_mapper({"comparison": _equals(status, "EQ")}, *words) for status, words in said.items()),
        _mapper({"comparison": _equals(500, "GE")}, *failed),
    ]
    invalid = {"comparison": _equals(400, "GE")}
    odd = "invalid_request_error", "bad_request", "a header's name has an underscore: write a hyphen"
    malformed = "invalid_request_error", "bad_request", "the request is not valid HTTP"
    underscored = _mapper(invalid, *odd, also="response.code_details.contains('underscore')")
    return [*mappers, underscored, _mapper(invalid, *malformed)]


def _equals(status: int, op: str) -> dict[str, Any]:
    return {"op": op, "value": {"default_value": status, "runtime_key": f"headway.none.{op}.{status}"}}


def _mapper(status: dict[str, Any], kind: str, code: str, message: str, also: str = "true") -> dict[str, Any]:
    """Words for a status of Envoy's own, where this holds as well."""
    foreign = f"response.code_details != '{POLICY_DETAILS}' && response.code_details != 'direct_response'"
    condition = {
        "name": "envoy.access_loggers.extension_filters.cel",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.access_loggers.filters.cel.v3.ExpressionFilter",
            "expression": f"{foreign} && {also}",
        },
    }
    return {
        "filter": {"and_filter": {"filters": [{"status_code_filter": status}, {"extension_filter": condition}]}},
        "body_format_override": {
            "text_format_source": {
                "inline_string": json.dumps(error_body(message, kind, code)).replace("%", "%%") + "\n"
            },
            "content_type": "application/json",
        },
    }
