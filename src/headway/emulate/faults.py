"""Faults to order: which requests they hit is a matter of the seed and the request's id, not of the run."""

from __future__ import annotations

from hashlib import blake2b
from typing import NamedTuple

import msgspec

from headway.errors import BadInput, UnknownName
from headway.specs import Spec
from headway.units import parse_count, parse_seconds

_FIELDS = {  # by kind: what it must have, and what it may have
    "stall": ({"p", "for"}, set()),
    "slow": ({"p", "factor"}, set()),
    "reset": ({"p"}, set()),
    "error": ({"p"}, {"status"}),
    "hang": (set(), {"p", "at", "for", "replica"}),
    "crash": ({"at", "for"}, {"replica"}),
}
_EXAMPLES = {
    "stall": "stall:p=0.01,for=2s",
    "slow": "slow:p=0.05,factor=3",
    "reset": "reset:p=0.01",
    "error": "error:p=0.01,status=503",
    "hang": "hang:p=0.01 or hang:at=10s,for=5s,replica=0",
    "crash": "crash:at=10s,for=5s,replica=0",
}


class Fault(Spec, frozen=True, kw_only=True):
    """One kind of fault: of a share `p` of the requests, or of one replica from `at_s` for `for_s` seconds."""

    kind: str
    p: float = 0.0
    at_s: float | None = None
    for_s: float = 0.0
    factor: float = 1.0
    status: int = 500
    replica: int = 0


class Plan(NamedTuple):
    """What happens to one answer. Tokens are counted from 0; None: never.

    `reset_at` cuts the connection instead of that token; from token `stall_at` on everything leaves `stall_s` later;
    what an answer takes is stretched by `slow`; an answer that `hangs` never begins; `status` replaces it.
    """

    reset_at: int | None = None
    stall_at: int | None = None
    stall_s: float = 0.0
    slow: float = 1.0
    hangs: bool = False
    status: int = 0


def parse_fault(text: str) -> Fault:
    """Return the fault a person writes: ``KIND:NAME=VALUE,...``.

    Raises:
        BadInput: another form, an unknown kind or field, or a value that cannot be.
    """
    kind, _, rest = text.strip().partition(":")
    if kind not in _FIELDS:
        raise UnknownName("fault", kind, _FIELDS)
    example = f"write {_EXAMPLES[kind]}"
    fields: dict[str, str] = {}
    for part in filter(None, rest.split(",")):
        name, equals, value = part.strip().partition("=")
        must, may = _FIELDS[kind]
        if name not in must | may:
            raise BadInput(f"fault {text!r}: {kind} has no {name!r}; {example}")
        if not equals or not value or name in fields:
            raise BadInput(f"fault {text!r}: {name} needs one value; {example}")
        fields[name] = value
    missing = sorted(_FIELDS[kind][0] - set(fields))
    if missing or (kind == "hang" and not _is_hang(fields)):
        wanted = " and ".join(missing) or "p, or at and for (with at, a replica too)"
        raise BadInput(f"fault {text!r}: {wanted} is missing; {example}")
    try:
        return _made(kind, fields)
    except BadInput as error:
        raise BadInput(f"fault {text!r}: {error}; {example}") from None


def _is_hang(fields: dict[str, str]) -> bool:
    return set(fields) == {"p"} or {"at", "for"} <= set(fields) <= {"at", "for", "replica"}


def _made(kind: str, fields: dict[str, str]) -> Fault:
    fault = Fault(
        kind=kind,
        p=_number(fields.get("p", "0"), "p", 0.0, 1.0),
        at_s=parse_seconds(fields["at"]) if "at" in fields else None,
        for_s=parse_seconds(fields.get("for", "0s")),
        factor=_number(fields.get("factor", "1"), "factor", 1.0, 1e6),
        status=int(_number(fields.get("status", "500"), "status", 400, 599)),
        replica=parse_count(fields.get("replica", "0")),
    )
    if "for" in fields and fault.for_s <= 0:
        raise BadInput(f"for={fields['for']} is not above zero")
    return fault


def _number(text: str, name: str, low: float, high: float) -> float:
    try:
        number = float(text)
    except ValueError:
        number = float("nan")
    if not low <= number <= high:
        raise BadInput(f"{name}={text}: expected a number from {low:g} to {high:g}")
    return number


def dice(seed: int, name: str, request: str) -> float:
    """Return a number from 0 to 1 (exclusive) that is this request's own."""
    digest = blake2b(f"{seed}/{name}/{request}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) / 2**53


def plan(faults: tuple[Fault, ...], seed: int, request: str, tokens: int) -> Plan | None:
    """Return what befalls the answer of so many tokens to this request; None when nothing does."""
    hit = [
        (number, fault)
        for number, fault in enumerate(faults)
        if fault.p > 0 and dice(seed, f"{number}/{fault.kind}", request) < fault.p
    ]
    if not hit:
        return None
    changes: dict[str, object] = {}
    for number, fault in hit:
        at = int(dice(seed, f"{number}/{fault.kind}/at", request) * tokens)
        match fault.kind:
            case "stall":
                changes |= {"stall_at": at, "stall_s": fault.for_s}
            case "slow":
                changes["slow"] = fault.factor
            case "reset":
                changes["reset_at"] = at
            case "hang":
                changes["hangs"] = True
            case "error":
                changes["status"] = fault.status
    return Plan(**changes)  # type: ignore[arg-type]


def check_whole(faults: tuple[Fault, ...], members: range) -> None:
    """Refuse a fault that befalls one of these replicas as a whole: their time is common.

    Raises:
        BadInput: naming it.
    """
    for fault in faults:
        if fault.at_s is not None and fault.replica in members:
            raise BadInput(
                f"fault {fault.kind} at {fault.at_s:g} s: a prefill or decode replica cannot stand still or crash by "
                "itself here: expected faults of requests, as in hang:p=0.01, or mixed pools"
            )


def check_replicas(faults: tuple[Fault, ...], replicas: int) -> None:
    """Refuse a fault of a replica that is not there.

    Raises:
        BadInput: naming it.
    """
    for fault in faults:
        if fault.replica >= replicas:
            last = msgspec.structs.asdict(fault)["replica"]
            raise BadInput(f"fault {fault.kind} of replica {last}: there are {replicas}, numbered from 0")
