"""Tokens without a tokenizer: what counts as one, what identifies it, and the filler words that answers are made of.

A token of text is four characters, the last of a text perhaps fewer; of token ids each is one. A message of a chat is
a token for its role, its text, and a token that ends it; the prompt ends with the role of the answer. An answer's words
have four characters, the space included, so that an answer sent back in the next turn is the same tokens again, and its
KV is found.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from hashlib import blake2b
from typing import Any

import numpy as np

CHARACTERS = 4  # a rule of thumb for English text
TOKEN_BYTES = 4 * CHARACTERS  # as UTF-32
_ID, _MARK = -1, -2  # in the second half of a token that is no text, where no character can have these bits

# fmt: off
WORDS = tuple(" " + word for word in (
    "the", "and", "for", "are", "but", "not", "you", "all", "any", "can", "had", "her", "was", "one", "our", "out",
    "day", "get", "has", "him", "his", "how", "man", "new", "now", "old", "see", "two", "way", "who", "boy", "did",
    "its", "let", "put", "say", "she", "too", "use", "dad", "mom", "act", "add", "age", "ago", "air", "arm", "art",
    "ask", "bad", "bag", "bed", "big", "bit", "box", "bus", "buy", "car", "cup", "cut", "dog", "dry", "ear", "eat",
))
# fmt: on


def of_text(text: str) -> bytes:
    """Return a text's tokens, `TOKEN_BYTES` each."""
    raw = text.encode("utf-32-le", "surrogatepass")
    return raw + bytes(-len(raw) % TOKEN_BYTES)


def of_ids(ids: Iterable[int]) -> bytes:
    """Return the tokens that have these ids."""
    return _special(np.fromiter(ids, np.int64), _ID)


def of_chat(messages: Iterable[tuple[str, str]]) -> bytes:
    """Return the tokens of a conversation, (role, text) each, up to where the assistant's answer begins."""
    parts = []
    for role, text in messages:
        parts += [_role(role), of_text(text), _END]
    return b"".join([*parts, _role("assistant")])


def count(tokens: bytes) -> int:
    """Return how many tokens these are."""
    return len(tokens) // TOKEN_BYTES


def filler(first: int, n: int) -> bytes:
    """Return the tokens of an answer of n words, the first of them ``WORDS[first]``."""
    again = (first + n) // len(WORDS) + 1
    return (_FILLER * again)[TOKEN_BYTES * first : TOKEN_BYTES * (first + n)]


def words(first: int, n: int) -> str:
    """Return the text of such an answer."""
    again = (first + n) // len(WORDS) + 1
    return ("".join(WORDS) * again)[CHARACTERS * first : CHARACTERS * (first + n)]


def units(tokens: bytes, block_tokens: int, salt: bytes) -> Any:
    """Return int64 ids of the full blocks: each a hash of its tokens and of all before it, and of the salt.

    Equal ids are equal beginnings: 63 bits of a cryptographic hash, so that no caller can name another's block.
    """
    size = TOKEN_BYTES * block_tokens
    before = blake2b(salt, digest_size=8).digest()
    chain = []
    for at in range(0, len(tokens) - size + 1, size):
        before = blake2b(before + tokens[at : at + size], digest_size=8).digest()
        chain.append(before)
    return np.frombuffer(b"".join(chain), np.int64) & np.int64(2**63 - 1)


def _role(name: str) -> bytes:
    return _special(np.array([1 + zlib.crc32(name.encode("utf-8", "surrogatepass"))]), _MARK)


def _special(ids: Any, mark: int) -> bytes:
    pairs = np.empty((len(ids), 2), np.int64)
    pairs[:, 0], pairs[:, 1] = ids, mark
    return pairs.tobytes()


_END = _special(np.zeros(1, np.int64), _MARK)
_FILLER = b"".join(of_text(word) for word in WORDS)
