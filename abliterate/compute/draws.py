"""The random numbers of sampled replies.

Each reply has numbers of its own, computed from its key and the token's place. So a reply is the same whatever is computed beside it, on
whichever device or process, and after an interruption; only rounding of the logits can move a token whose edge the number lies on.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

TEMPERATURE = 1.0  # the model's own distribution, over all tokens
_BITS = 53  # of a float64's fraction


@dataclass(frozen=True)
class Draw:
    """The numbers of one reply. ``key``: what it is the reply to. ``begun``: tokens of the reply that were written before."""

    key: str
    begun: int = 0

    def number(self, token: int) -> float:
        """The number in [0, 1) that the reply's next token is drawn with, after ``token`` others."""
        digest = hashlib.sha256(f"{self.begun + token}\0{self.key}".encode("utf-8", "surrogatepass")).digest()
        return (int.from_bytes(digest[:8]) >> (64 - _BITS)) / 2.0**_BITS

    def after(self, tokens: int) -> Draw:
        """The numbers for the rest of the reply."""
        return replace(self, begun=self.begun + tokens)
