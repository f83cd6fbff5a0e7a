"""Speculative decoding as declared: how many tokens are drafted a step, by what, and how likely each is accepted."""

from __future__ import annotations

import math

from headway.errors import BadInput
from headway.specs import Spec, check_types

__all__ = ["MTP", "NGRAM", "Speculation"]

MTP, NGRAM = "mtp", "ngram"
_DRAFTED_MAX = 16


class Speculation(Spec):
    """`tokens` drafted a step for every sequence, each accepted with the probability `acceptance`.

    `draft` says what drafts: the key of another model (or the path of its config.json), run `tokens` times a step on
    the same GPUs at the same TP; "mtp", one more layer of the model itself, run as often; "ngram", which costs nothing.

    Raises:
        BadInput: a value of another type, or a number out of its range.
    """

    tokens: int
    acceptance: float
    draft: str

    def __post_init__(self) -> None:
        check_types(self, "speculation")
        if not 1 <= self.tokens <= _DRAFTED_MAX:
            raise BadInput(f"speculation.tokens={self.tokens}: tokens drafted a step, expected 1 to {_DRAFTED_MAX}")
        if not (math.isfinite(self.acceptance) and 0.0 <= self.acceptance <= 1.0):
            raise BadInput(
                f"speculation.acceptance={self.acceptance}: the share of drafted tokens accepted, given that those "
                f"before them were; expected 0 to 1, as in 0.8"
            )

    @property
    def verified(self) -> int:
        """Tokens of a sequence in a step: those drafted, and the one the model itself adds."""
        return self.tokens + 1

    @property
    def emitted(self) -> float:
        """Mean tokens that a sequence gets from a step, ``(1 - a^(k+1)) / (1 - a)``.

        Acceptances are taken as independent (Y. Leviathan, M. Kalman, Y. Matias, "Fast inference from transformers via
        speculative decoding", ICML 2023, equation 1).
        """
        return math.fsum(self.acceptance**i for i in range(self.verified))
