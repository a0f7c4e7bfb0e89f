"""Texts that are longer than a prompt may be. Pure."""

from __future__ import annotations

from .cases import Tokens

__all__ = ["cut_end", "cut_middle", "cut_start"]


def cut_middle(tokens: Tokens, n_tokens: int) -> Tokens:
    """The first and the last half of ``n_tokens`` tokens, or all if there are no more.

    LongBench's pred.py (Bai et al., arXiv 2308.14508): instructions stand at both ends of a prompt. Of an odd number
    the last half is the longer one; pred.py leaves out a token.
    """
    if len(tokens) <= n_tokens:
        return tokens
    half = n_tokens // 2
    return tokens[:half] + tokens[len(tokens) - (n_tokens - half) :]


def cut_end(tokens: Tokens, n_tokens: int) -> Tokens:
    """The first ``n_tokens`` tokens."""
    return tokens[:n_tokens]


def cut_start(tokens: Tokens, n_tokens: int) -> Tokens:
    """The last ``n_tokens`` tokens."""
    return tokens[max(0, len(tokens) - n_tokens) :]
