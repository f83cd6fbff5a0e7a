"""`Batch`: a run of requests as columns, and the named random streams they are drawn from."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from headway.errors import BadInput

Ints = NDArray[np.int64]
SmallInts = NDArray[np.int32]
Floats = NDArray[np.float64]

COLUMNS = (
    "id", "arrival_s", "prompt_tokens", "output_tokens", "priority", "slo_class", "tenant", "deadline_s",
    "predicted_output_tokens", "session",
)  # fmt: skip
_BLOCK_BITS = 20  # an owner (a session, a request, a shared prompt) names up to 2**20 blocks


class Batch(msgspec.Struct, frozen=True, eq=False):
    """Consecutive requests in order of arrival, one array of `n` entries per property.

    Request `i` has the chain ``hashes[hash_offsets[i]:hash_offsets[i + 1]]``: one id per full block of
    `Workload.block_tokens` tokens, from the first token on. Equal ids mean equal tokens in this block and in
    all before it, so the shared prefix of two requests is the run of equal leading ids. Ids beyond the prompt
    name blocks that hold generated tokens too. Without prefix identity both arrays are None.

    With `hash_counts` the chain is ``hashes[hash_offsets[i]:hash_offsets[i] + hash_counts[i]]`` instead, and chains may
    overlap: so the calls of a session need one chain together. Only `folded` batches of a workload are like that, for
    who reads them as they are: `rows`, `take` and `join` want them apart.
    """

    id: Ints
    arrival_s: Floats  # from the start of the workload, never falling; 0 in a closed loop
    prompt_tokens: Ints  # at least 1
    output_tokens: Ints  # at least 1
    priority: SmallInts  # lower is more urgent
    slo_class: SmallInts
    tenant: SmallInts
    deadline_s: Floats  # absolute; inf when there is none
    predicted_output_tokens: Floats
    session: Ints  # -1 when in none
    hash_offsets: Ints | None = None  # n + 1 entries, the first 0
    hashes: Ints | None = None
    hash_counts: Ints | None = None

    def __len__(self) -> int:
        return len(self.id)

    @property
    def has_chains(self) -> bool:
        """Whether requests carry prefix identity."""
        return self.hash_offsets is not None

    def rows(self, start: int, stop: int) -> Batch:
        """Return requests `start` to `stop` (exclusive): views of the same memory, except `hash_offsets`."""
        columns = {name: getattr(self, name)[start:stop] for name in COLUMNS}
        if self.hash_offsets is None or self.hashes is None:
            return Batch(**columns)
        offsets = self.hash_offsets[start : stop + 1]
        first, last = int(offsets[0]), int(offsets[-1])
        return Batch(**columns, hash_offsets=offsets - first, hashes=self.hashes[first:last])

    def take(self, which: Ints) -> Batch:
        """Return the requests at these places, in this order."""
        columns = {name: getattr(self, name)[which] for name in COLUMNS}
        if self.hash_offsets is None or self.hashes is None:
            return Batch(**columns)
        lengths = np.diff(self.hash_offsets)[which]
        offsets = offsets_of(lengths)
        places = np.arange(offsets[-1]) + np.repeat(self.hash_offsets[which] - offsets[:-1], lengths)
        return Batch(**columns, hash_offsets=offsets, hashes=self.hashes[places])

    def lengthened(self, prompts: float, outputs: float) -> Batch:
        """Return the requests with prompts and outputs so many times as long, at least a token; chains stay."""
        prompt_tokens, output_tokens = (
            np.maximum(1, np.rint(tokens * factor)).astype(np.int64)
            for tokens, factor in ((self.prompt_tokens, prompts), (self.output_tokens, outputs))
        )
        return msgspec.structs.replace(
            self, prompt_tokens=prompt_tokens, output_tokens=output_tokens,
            predicted_output_tokens=self.predicted_output_tokens * outputs,
        )  # fmt: skip


def make_batch(arrival_s: Floats, prompt_tokens: Ints, output_tokens: Ints, first_id: int = 0) -> Batch:
    """Return a batch of requests that belong to nobody, with perfectly known output lengths and no chains."""
    n = len(arrival_s)
    return Batch(
        id=np.arange(first_id, first_id + n),
        arrival_s=arrival_s,
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        priority=np.zeros(n, np.int32),
        slo_class=np.zeros(n, np.int32),
        tenant=np.zeros(n, np.int32),
        deadline_s=np.full(n, np.inf),
        predicted_output_tokens=output_tokens.astype(np.float64),
        session=np.full(n, -1),
    )


def join(batches: Sequence[Batch]) -> Batch:
    """Return all requests of the batches (at least one) in one."""
    columns = {name: np.concatenate([getattr(b, name) for b in batches]) for name in COLUMNS}
    lengths = [np.diff(b.hash_offsets) for b in batches if b.hash_offsets is not None]
    hashes = [b.hashes for b in batches if b.hashes is not None]
    if not lengths:
        return Batch(**columns)
    return Batch(**columns, hash_offsets=offsets_of(np.concatenate(lengths)), hashes=np.concatenate(hashes))


def stream(seed: int, name: str) -> np.random.Generator:
    """Return the random stream of one subsystem: a new draw in one leaves all others as they were."""
    return np.random.default_rng([seed, zlib.crc32(name.encode())])


def offsets_of(lengths: Ints) -> Ints:
    """Return n + 1 offsets of runs of the given lengths laid end to end."""
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def chains(owner: Ints, blocks: Ints, shared_owner: Ints, shared_blocks: Ints) -> tuple[Ints, Ints]:
    """Return (offsets, ids) of chains: the first `shared_blocks` ids name a shared owner, the rest their own.

    All four arrays have one entry per request. An id is the owner and the block's place, so equal ids at one
    place have equal ids at all places before it as long as an owner always comes with the same shared part.

    Raises:
        BadInput: a chain has more than 2**20 blocks.
    """
    if len(blocks) and blocks.max() >> _BLOCK_BITS:
        raise BadInput(
            f"a chain of {blocks.max()} blocks: at most {2**_BLOCK_BITS} have names; use larger blocks"
        )
    offsets = offsets_of(blocks)
    place = np.arange(offsets[-1]) - np.repeat(offsets[:-1], blocks)
    named = np.where(
        place < np.repeat(shared_blocks, blocks), np.repeat(shared_owner, blocks), np.repeat(owner, blocks)
    )
    return offsets, (named << _BLOCK_BITS) + place
