"""What rounding may do: bounds that stock llama.cpp sets in the same test, on the same model and tokens.

How far stock is from the plain reference is what the arithmetic can do. With F32 weights and an F32 cache that is float
rounding; the yardstick then is stock's plain attention, because its flash attention rounds an F32 cache to F16 first.
Measured, over the models and pairs: the largest difference of a logit is 0.1 to 1.4 times stock's, the root mean square
0.2 to 1.0 times; the factors leave room for other processors. A rule that is off by one is three orders of magnitude
further away, in KL.

A device may round more: CUDA multiplies F32 matrices in TF32, with 10 bits, if there are more than three columns.
Where a mixture of experts is close to a tie another expert is chosen then, and such tokens are anywhere: in the
yardstick or in what is measured with it, or in both. ``share`` leaves them out: of all tokens those that are nearest
are compared. A wrong rule moves all tokens beyond its window.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from reference import Array, Reference
from runner import Job, evaluate

PAIRS = [(2, 0), (4, 64), (3, 100), (8, 256), (5, 1)]
N_TOKENS = 700  # beyond every window and beyond the trained context, 512
WAYS = ["fused", "composed"]  # of computing the attention
F32 = Job(type_k="f32", type_v="f32", n_ubatch=128, threads=1)

MAX_FACTOR, MAX_FLOOR = 3.0, 5e-5  # of the largest difference of a logit; logits have a standard deviation of 1 to 3
RMS_FACTOR, RMS_FLOOR = 2.0, 5e-6  # the floors count where stock happens to be nearly exact: StableLM


@dataclass(frozen=True)
class Distance:
    """How far logits are from exact ones."""

    largest: float
    rms: float

    @classmethod
    def between(cls, logits: Array, exact: Array, share: float = 1.0) -> Distance:
        assert logits.shape == exact.shape
        difference = np.abs(logits - exact)
        if share < 1.0:
            nearest = np.argsort(difference.max(axis=1))
            difference = difference[nearest[: round(share * len(nearest))]]
        return cls(float(difference.max()), float(np.sqrt(np.mean(difference**2))))

    def check(self, logits: Array, exact: Array, share: float = 1.0) -> None:
        """Fail unless logits are as near to exact ones as this distance, which is the yardstick, allows."""
        found = Distance.between(logits, exact, share)
        print(f"largest {found.largest:.1e} (stock {self.largest:.1e}), rms {found.rms:.1e} (stock {self.rms:.1e})")
        assert found.largest <= max(MAX_FACTOR * self.largest, MAX_FLOOR), (found, self)
        assert found.rms <= max(RMS_FACTOR * self.rms, RMS_FLOOR), (found, self)


def stock_rounding(lib: Path, model: Path, reference: Reference, tokens: Array) -> Distance:
    """The yardstick: stock llama.cpp, F32 cache, plain attention, against the plain reference."""
    stock = evaluate(lib, model, tokens, replace(F32, flash="off"))
    return Distance.between(stock.logits, reference.logits(tokens))
