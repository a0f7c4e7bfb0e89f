"""The texts of tokens, looked up once each.

llama_cpp asks for each token of a completion again with every token that is added, and reads from a buffer of 32 bytes,
also where a token has more.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import llama_cpp

from ..errors import ModelFileError

__all__ = ["Pieces"]


class Pieces:
    """The bytes of each token of a model.

    Args:
        vocab: llama.cpp's vocabulary.
    """

    def __init__(self, vocab: Any) -> None:
        self._vocab = vocab
        self._pieces: dict[tuple[int, bool], bytes] = {}

    def join(self, tokens: Sequence[int], special: bool) -> bytes:
        """The text of tokens of the vocabulary.

        Args:
            tokens: each in the vocabulary.
            special: whether control tokens have one.
        """
        return b"".join([self._piece(token, special) for token in tokens])

    def _piece(self, token: int, special: bool) -> bytes:
        piece = self._pieces.get((token, special))
        if piece is None:
            piece = self._pieces[token, special] = self._read(token, special)
        return piece

    def _read(self, token: int, special: bool) -> bytes:
        size = 64
        while True:
            buffer = (ctypes.c_char * size)()
            n = llama_cpp.llama_token_to_piece(self._vocab, token, buffer, size, 0, special)
            if n >= 0:
                return buffer.raw[:n]
            if -n <= size:
                raise ModelFileError(f"llama.cpp has no text for the token {token}")
            size = -n
