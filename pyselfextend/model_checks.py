"""Metadata with which llama.cpp refuses a model, or ends the process when it evaluates the first token.

Raises:
    ModelFileError: in every function: what is wrong, and what is allowed.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import TYPE_CHECKING

from . import architectures
from .gguf_file import TOKENS, Skipped, shown
from .metadata import N_HEAD_MAX, Keys

if TYPE_CHECKING:
    from .model_info import Layer

__all__ = ["epsilons", "n_rot", "vocabulary"]

NO_VOCABULARY = ("no_vocab", "none")  # what files without one name


def vocabulary(keys: Keys) -> bool:
    """It names its tokenizer, and has tokens for it. Returns whether there is one."""
    metadata = keys.file.metadata
    model = metadata.get("tokenizer.ggml.model")
    if not isinstance(model, str):
        raise keys.problem("it does not name the model of its tokenizer, tokenizer.ggml.model")
    tokens = metadata.get(TOKENS)
    if model not in NO_VOCABULARY and not (isinstance(tokens, Skipped) and tokens.n):
        raise keys.problem(f"it has no tokens: {TOKENS} is {shown(tokens)}")
    return model not in NO_VOCABULARY


def epsilons(keys: Keys) -> None:
    """What norms add to a variance: llama.cpp fails on others when a token is evaluated."""
    for key, value in keys.file.metadata.items():
        if key.endswith("_epsilon") and not (isinstance(value, float) and 0.0 <= value < inf):
            raise keys.problem(f"{key} is {shown(value)}; it must be a number that is not negative")


def n_rot(keys: Keys, layers: Sequence[Layer]) -> int:
    """Dimensions of a head that are turned by its position, in a layer without a window."""
    full = next((layer.n_embd_head_k for layer in layers if not layer.window), layers[0].n_embd_head_k)
    full_rot = keys.integer("rope.dimension_count", 0, N_HEAD_MAX, full)
    window_rot = keys.integer("rope.dimension_count_swa", 0, N_HEAD_MAX, full_rot)
    if keys.architecture in architectures.WHOLE_ROPE and full_rot != full:
        raise keys.problem(f"{keys.full('rope.dimension_count')} is {full_rot}, its heads have {full} dimensions")
    for layer in layers:
        n, key = (window_rot, "rope.dimension_count_swa") if layer.window else (full_rot, "rope.dimension_count")
        if layer.has_rope and layer.n_head and not (0 < n <= layer.n_embd_head_k and n % 2 == 0):
            raise keys.problem(
                f"{keys.full(key)} is {n}; it must be even, from 2 to {layer.n_embd_head_k}, the size of a head"
            )
    return full_rot
