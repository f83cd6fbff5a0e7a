"""What the brain is told and what it answers: plain values, no sockets, no clock."""

from __future__ import annotations

import msgspec

INFINITY = float("inf")


class Arrival(msgspec.Struct, frozen=True, kw_only=True):
    """A request that has been read and is well formed. `id` is the host's own, never the caller's."""

    id: str
    tenant: int
    slo_class: int
    prompt_bytes: int
    prompt_tokens: int | None = None  # where the caller gave token ids: exact
    prompt_most: int | None = None  # tokens that the model's context has room for; a longer prompt its engine refuses
    prompts: int = 1
    longest: int | None = None  # tokens that the longest prompt has at least; None where it is cut to fit
    chain: tuple[int, ...] = ()
    max_tokens: int | None = None  # of all answers together
    samples: int = 1  # answers
    generates: bool = True  # an embedding does not
    streams: bool = False
    deadline_s: float | None = None  # from arrival
    ttft_s: float | None = None  # the caller's own limits, beside those of the class
    tpot_s: float | None = None
    model: str = ""  # the name that it asks for
    session: int = -1  # that the caller says it belongs to; -1: none
    only: tuple[int, ...] | None = None  # replicas that it may go to; all, where the host says nothing


class EndRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The figures of a request that has ended, as the proxy measured them; None where they are not known."""

    id: str
    status: int
    replica: int | None = None  # who answered
    attempts: int = 0
    upstream_failed: bool = False  # reset, refused or cut by the upstream; an answer of 5xx is none of these
    caller_left: bool = False
    sent_s: float | None = None  # from the request's start to when it was passed on
    first_s: float | None = None  # from its start to the first event of its stream
    duration_s: float = 0.0
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    output_tokens: int | None = None
    counted_tokens: int | None = None  # events with text: of several answers an engine may tell those of one alone


class EngineSample(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine says of itself; None where it does not."""

    running: int | None = None
    waiting: int | None = None
    kv_share: float | None = None


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """A request that is over, as whoever watches is told of it: names instead of numbers, and no word of the caller's.

    `code` says why it was refused ("": it was not), `reason` why it went where it did, or the refusal in words. Times
    are seconds on the brain's clock, `ttft_s`, `tpot_s` and `e2e_s` durations of a request that was served.
    """

    id: str
    tenant: str
    slo_class: str
    status: int
    model: str = ""  # chosen for it, or the first of those that might have been
    code: str = ""
    reason: str = ""
    arrived_s: float
    sent_s: float | None = None
    upstream_s: float | None = None  # from arrival to when the proxy passed it on
    duration_s: float = 0.0
    replica: int | None = None  # who answered; where nobody did, who was to
    prefill: int | None = None  # who computed its prompt, where that is another one
    attempts: int = 0
    attained: bool = False
    ttft_s: float | None = None
    tpot_s: float | None = None
    e2e_s: float | None = None
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    output_tokens: int | None = None


class Routed(msgspec.Struct, frozen=True):
    """Pass the request on to the first of `hosts`; to the second if it cannot be reached.

    `model` takes the place of the name that the request says; "" leaves that as it is. `prefill` computes its prompt,
    where that is another replica: the host is told by a header. `hedge_s`: seconds after which the second host is sent
    the request as well where no first byte has come; None: never. `keep_s`: so long after its end the KV of its prefix
    is to be kept; None: no policy was asked.
    """

    id: str
    hosts: tuple[int, ...]
    reason: str
    model: str = ""
    prefill: int | None = None
    hedge_s: float | None = None
    keep_s: float | None = None


class Held(msgspec.Struct, frozen=True):
    """The request waits in Headway's queue, at most until then; another answer follows."""

    id: str
    until_s: float


class Refused(msgspec.Struct, frozen=True):
    """The request is not served."""

    id: str
    status: int
    code: str
    message: str
    retry_after_s: float | None = None


class Left(msgspec.Struct, frozen=True):
    """The caller had left before the request was known: nobody hears an answer."""

    id: str


Answer = Routed | Held | Refused | Left
