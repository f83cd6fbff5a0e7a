"""The few messages of Envoy's API that we exchange, by field number; what is not named here is skipped when read.

Envoy publishes its API as some five hundred `.proto` files. A process that takes one decision and reads one record
needs two dozen messages of them, so they are declared here as a table and built in a pool of their own: a program that
also has Envoy's published classes loaded meets no clash. Numbers and types are those of the v3 API
(`envoy/service/ext_proc/v3/external_processor.proto`, `envoy/data/accesslog/v3/accesslog.proto`), whose field numbers
never change. protobuf itself is imported when the classes are first asked for.
"""

from __future__ import annotations

import functools
import re
from typing import Any

from headway.errors import MissingExtra

PACKAGE = "headway.envoy"

# message: fields as "name number type"; [] repeated, {} a map from text, capitals another message
TABLE = {
    "NullableValue": (
        "number_value 2 double, string_value 3 string, bool_value 4 bool, struct_value 5 Fields, list_value 6 Values"
    ),
    "Values": "values 1 []NullableValue",
    "Fields": "fields 1 {NullableValue}",
    "Duration": "seconds 1 int64, nanos 2 int32",
    "UInt32": "value 1 uint32",
    "HeaderValue": "key 1 string, value 2 string, raw_value 3 bytes",
    "HeaderValueOption": "header 1 HeaderValue, append_action 3 int32",
    "HeaderMap": "headers 1 []HeaderValue",
    "HeaderMutation": "set_headers 1 []HeaderValueOption, remove_headers 2 []string",
    "HttpHeaders": "headers 1 HeaderMap, end_of_stream 3 bool",
    "HttpBody": "body 1 bytes, end_of_stream 2 bool",
    "StreamedBodyResponse": "body 1 bytes, end_of_stream 2 bool",
    "BodyMutation": "body 1 bytes, streamed_response 3 StreamedBodyResponse",
    "CommonResponse": "header_mutation 2 HeaderMutation, body_mutation 3 BodyMutation, clear_route_cache 5 bool",
    "HeadersResponse": "response 1 CommonResponse",
    "BodyResponse": "response 1 CommonResponse",
    "TrailersResponse": "header_mutation 1 HeaderMutation",
    "HttpTrailers": "trailers 1 HeaderMap",
    "HttpStatus": "code 1 int32",
    "ImmediateResponse": "status 1 HttpStatus, headers 2 HeaderMutation, body 3 bytes, details 5 string",
    "ProcessingRequest": (
        "request_headers 2 HttpHeaders, response_headers 3 HttpHeaders, request_body 4 HttpBody, "
        "response_body 5 HttpBody, request_trailers 6 HttpTrailers, response_trailers 7 HttpTrailers, "
        "metadata_context 8 Metadata, attributes 9 {Fields}"
    ),
    "ProcessingResponse": (
        "request_headers 1 HeadersResponse, response_headers 2 HeadersResponse, request_body 3 BodyResponse, "
        "response_body 4 BodyResponse, request_trailers 5 TrailersResponse, response_trailers 6 TrailersResponse, "
        "immediate_response 7 ImmediateResponse, dynamic_metadata 8 Fields, override_message_timeout 10 Duration"
    ),
    "SocketAddress": "address 2 string, port_value 3 uint32",
    "Pipe": "path 1 string",
    "Address": "socket_address 1 SocketAddress, pipe 2 Pipe",
    "Metadata": "filter_metadata 1 {Fields}",
    "ResponseFlags": (
        "upstream_request_timeout 3 bool, upstream_remote_reset 5 bool, upstream_connection_failure 6 bool, "
        "upstream_connection_termination 7 bool, downstream_connection_termination 15 bool, "
        "stream_idle_timeout 17 bool, upstream_protocol_error 24 bool, downstream_remote_reset 28 bool"
    ),
    "AccessLogCommon": (
        "start_time 5 Duration, time_to_first_upstream_tx_byte 7 Duration, time_to_first_upstream_rx_byte 9 Duration, "
        "upstream_remote_address 13 Address, response_flags 16 ResponseFlags, metadata 17 Metadata, "
        "duration 23 Duration, upstream_request_attempt_count 24 uint32, stream_id 26 string, "
        "access_log_type 33 int32"
    ),
    "ResponseProperties": "response_code 1 UInt32, response_body_bytes 3 uint64, response_code_details 6 string",
    "RequestProperties": "request_id 9 string",
    "LogEntry": "common_properties 1 AccessLogCommon, request 3 RequestProperties, response 4 ResponseProperties",
    "LogEntries": "log_entry 1 []LogEntry",
    "AccessLogs": "http_logs 2 LogEntries",
    "Empty": "",
}


@functools.cache
def message_types() -> dict[str, Any]:
    """Return the message classes by name.

    Raises:
        MissingExtra: protobuf is not installed.
    """
    try:
        from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
    except ImportError:
        raise MissingExtra("the gateway speaks to Envoy through protobuf, which is not installed", "serve") from None
    file: Any = descriptor_pb2.FileDescriptorProto(name="headway/envoy.proto", package=PACKAGE, syntax="proto3")
    for name, fields in TABLE.items():
        message = file.message_type.add(name=name)
        for field in filter(None, fields.split(", ")):
            _add_field(message, *field.split())
    pool: Any = descriptor_pool.DescriptorPool()
    pool.Add(file) if hasattr(pool, "Add") else pool.AddSerializedFile(file.SerializeToString())
    found = {name: pool.FindMessageTypeByName(f"{PACKAGE}.{name}") for name in TABLE}
    return {name: message_factory.GetMessageClass(descriptor) for name, descriptor in found.items()}


def _add_field(message: Any, name: str, number: str, kind: str) -> None:
    """Add one field of the table to a message's descriptor."""
    shape, inner = re.fullmatch(r"(\[\]|\{)?(\w+)\}?", kind).groups()  # type: ignore[union-attr]
    field = message.field.add(name=name, number=int(number), label=3 if shape else 1)
    if shape == "{":
        entry = message.nested_type.add(name="".join(part.title() for part in name.split("_")) + "Entry")
        entry.options.map_entry = True
        _add_field(entry, "key", "1", "string")
        _add_field(entry, "value", "2", inner)
        field.type, field.type_name = 11, f".{PACKAGE}.{message.name}.{entry.name}"
    elif inner[0].isupper():
        field.type, field.type_name = 11, f".{PACKAGE}.{inner}"
    else:
        field.type = {
            "double": 1,
            "int64": 3,
            "uint64": 4,
            "int32": 5,
            "bool": 8,
            "string": 9,
            "bytes": 12,
            "uint32": 13,
        }[inner]


# The `access_log_type` of one attempt at a replica: UpstreamPoolReady, when it is sent, and UpstreamEnd.
ATTEMPT_SENT, ATTEMPT_ENDED = 7, 9


def place_of(address: Any) -> str:
    """Return an Address message as IP:port, or as the path of a socket; "" where it is neither."""
    socket = address.socket_address
    if not socket.port_value:
        return str(address.pipe.path)
    host = f"[{socket.address}]" if ":" in socket.address else socket.address
    return f"{host}:{socket.port_value}"


def seconds_of(duration: Any) -> float:
    """Return a Duration message as seconds."""
    return float(duration.seconds + duration.nanos * 1e-9)
