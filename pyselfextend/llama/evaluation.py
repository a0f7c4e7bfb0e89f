"""The part of ``Llama`` that evaluates tokens, and says their texts."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import llama_cpp
from llama_cpp.llama_tokenizer import LlamaTokenizer

from ..config import SelfExtendConfig
from ..errors import ContextFullError, ModelFileError, SettingError, UsageError
from ..groups import GroupPolicy
from . import windows
from .arguments import tokens_of
from .following import follow
from .public import public
from .vocabulary import Pieces

__all__ = ["Evaluating"]

NO_VOCAB = 0  # LLAMA_VOCAB_TYPE_NONE


class Evaluating(llama_cpp.Llama):
    """``llama_cpp.Llama`` with what it leaves to its caller looked at: tokens, room, and what a cache can be cut to."""

    _config: SelfExtendConfig
    _policy: GroupPolicy | None = None  # of a group that follows the length
    _n_answer: int | None = 0  # tokens to follow those that are handed over; None: these were handed over before
    _pieces: Pieces
    _n_outputs = 0  # of the last tokens, that have logits
    _shows_whole = False  # characters alone
    _n_exact: float = math.inf  # tokens at the beginning that no shift has moved: those behind know of what is gone

    @public(changes=False)
    def tokenize(self, text: bytes, add_bos: bool = True, special: bool = False) -> list[int]:
        """The tokens of a text, as in ``llama_cpp.Llama``."""
        self._need_vocabulary()
        return super().tokenize(text, add_bos, special)

    @public(changes=False)
    def detokenize(
        self, tokens: Sequence[int], prev_tokens: Sequence[int] | None = None, special: bool = False
    ) -> bytes:
        """The text of tokens, as in ``llama_cpp.Llama``.

        Raises:
            SettingError: one is not a token of this vocabulary.
        """
        self._need_vocabulary()
        found = tokens_of("tokens", tokens, self._n_vocab)
        if type(self.tokenizer_) is not LlamaTokenizer:
            return super().detokenize(
                found, prev_tokens=None if prev_tokens is None else list(prev_tokens), special=special
            )
        text = self._pieces.join(found, special)
        if self._shows_whole:
            text = text.decode("utf-8", "ignore").encode()
        return text[1:] if found and found[0] == self.token_bos() and text[:1] == b" " else text

    def _need_vocabulary(self) -> None:
        if type(self.tokenizer_) is LlamaTokenizer and self._model.vocab_type() == NO_VOCAB:
            raise ModelFileError(f"{self.model_path} has no tokenizer, so it has no texts")  # llama.cpp would abort

    @property
    def n_tokens(self) -> int:
        """How many tokens have been evaluated. A smaller number goes back to an earlier point."""
        return self._n_tokens

    @n_tokens.setter
    def n_tokens(self, value: int) -> None:
        if value < getattr(self, "_n_tokens", 0):
            self._requires_eval = True  # the logits are those after the last token: llama_cpp would sample from them
            if value <= self._n_exact:
                self._n_exact = math.inf
        self._n_tokens = value

    @public(changes=True)
    def eval(self, tokens: Sequence[int], *, n_expected: int = 0) -> None:
        """Evaluate tokens after the ``n_tokens`` that have been evaluated.

        Args:
            tokens: the next ones.
            n_expected: how many are to follow them. With ``ga_n="auto"`` the group is chosen for all of it: a text that
                is handed over in parts is read with one group.

        Raises:
            ContextFullError: a ``ValueError``: they do not fit into what is left of the context. Nothing was evaluated.
            SettingError: one is not a token of this vocabulary. Nothing was evaluated.
        """
        found = tokens_of("tokens", tokens, self._n_vocab)
        if self._ctx.memory is None:
            raise UsageError(
                "this model has no cache, so it cannot go on from what it has read: it is one that embeds texts, by "
                "embed(), or was opened with vocab_only"
            )
        room = min(self.n_ctx(), len(self.input_ids))
        if self.n_tokens + len(found) > room:
            raise ContextFullError(
                f"{len(found)} tokens after {self.n_tokens} do not fit into the context of {room} tokens; "
                f"give at most {room - self.n_tokens}, or create the model with a larger n_ctx"
            )
        can_cut = self._ctx.kv_cache_seq_rm(-1, self.n_tokens, -1) and not windows.have_forgotten(self)
        n_answer = None if self._n_answer is None else max(self._n_answer, n_expected)
        if not can_cut or not self._choose_group(len(found), n_answer):
            self._evaluate_again(len(found), n_answer)
        self._evaluate(found)

    def _choose_group(self, n_more: int, n_answer: int | None) -> bool:
        return self._policy is None or n_more == 0 or follow(self, self.n_tokens + n_more, n_answer)

    def _evaluate(self, tokens: list[int]) -> None:
        if tokens:
            self._n_outputs = 0  # should it be stopped half-way
            super().eval(tokens)
            self._n_outputs = (len(tokens) - 1) % self.n_batch + 1 if self._logits_all else 1

    def _evaluate_again(self, n_more: int = 0, n_answer: int | None = 0) -> None:
        """Fill the cache anew with the tokens so far, before ``n_more`` and ``n_answer``: it cannot be cut at
        ``n_tokens``, or turned to another group.

        It is so where keys that would come into a window again are lost: those of layers with a sliding window of their
        own (``swa_full=False``), and of models that normalize keys after RoPE. llama_cpp ignores the refusal, and would
        go on with both the old tokens and the new ones in the cache.
        """
        tokens = self.input_ids[: self.n_tokens].tolist()
        self.n_tokens = 0
        self._ctx.kv_cache_clear()
        self._choose_group(len(tokens) + n_more, n_answer)
        super().eval(tokens)

    @public(changes=True)
    def embed(
        self, input: str | list[str], normalize: bool = False, truncate: bool = True, return_count: bool = False
    ) -> Any:
        """Embed texts, as in ``llama_cpp.Llama``; that one is longer than ``n_batch`` and cut is warned of."""
        if not isinstance(input, str) and not input:
            return ([], 0) if return_count else []
        texts = [input] if isinstance(input, str) else input
        sizes = []
        for i, text in enumerate(texts):
            n_tokens = len(self.tokenize(text.encode("utf-8")))
            sizes.append(min(n_tokens, self.n_batch))
            if n_tokens == 0:  # llama_cpp would write before the batch
                raise SettingError(f"input[{i}] is {text!r}, which has no tokens; there is nothing to embed")
            if truncate and n_tokens > self.n_batch:
                warnings.warn(
                    f"input[{i}] has {n_tokens} tokens, and is cut to n_batch={self.n_batch}; create the model with a "
                    "larger n_batch and n_ctx, or give truncate=False to have an error",
                    RuntimeWarning,
                    stacklevel=3,
                )
        is_pooled = int(self.pooling_type()) != llama_cpp.LLAMA_POOLING_TYPE_NONE
        if self._policy is None and (is_pooled or isinstance(input, str)):
            return super().embed(input, normalize, truncate, return_count)
        # of several texts in a batch, llama_cpp takes the tokens' embeddings of all but the first from other places;
        # and they would share a group
        embeddings = [self._embed(text, n, normalize, truncate) for text, n in zip(texts, sizes, strict=True)]
        found = embeddings[0] if isinstance(input, str) else embeddings
        return (found, sum(sizes)) if return_count else found

    def _embed(self, text: str, n_tokens: int, normalize: bool, truncate: bool) -> Any:
        self._ctx.kv_cache_clear()
        self.n_tokens = 0
        self._choose_group(n_tokens, 0)
        return super().embed(text, normalize, truncate)
