"""A model that is asked: greedy answers and log probabilities, with what prompts share evaluated once.

Results do not depend on what was asked before, bit by bit: prompts are evaluated in slices that are counted from their
beginning, and what prompts share (``sharing``) is whole slices. A cache is cut there as long as no neighbour window has
forgotten a key: later, which cells the window fills depends on those that it had to free, and a key that comes back has
been rounded once more. Then beginnings are kept as saved states; but not of models that have sliding windows of their
own as well, since states leave out what those windows have passed, and cells lie elsewhere after loading.

Where a prompt is answered and its right answer scored, the answer comes first, as if nothing was scored; then the cache
is cut back to the prompt, which is neither read again nor saved. An answer of up to ``N_SLICE`` tokens makes no window
forget a key that stands in it at the end of the prompt: the near part has as many cells more. What a cache that was cut
so held is not cut for another prompt.

Under ``auto`` the group is chosen for a whole text before its first token is read, and what has been read with another
one is not reused.
"""

from __future__ import annotations

import codecs
import ctypes
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from .. import _native
from ..closing import Closing
from ..errors import EvalError, SettingError
from ..llama import CACHE_TYPES
from ..opening import open_quietly
from .cases import Tokenizer, Tokens
from .settings import Rope, Setting
from .sharing import N_SLICE, n_read, shared_prefix

import llama_cpp  # isort: skip  # after ..llama, which makes it load our library

__all__ = ["Answer", "EvalModel", "LogProbs", "Progress", "cache_type", "scored"]

_library = _native.load()

#: Tokens that are evaluated at once where the logits of all are wanted: each takes 4 bytes a word of the vocabulary.
N_SLICE_LOGITS = 128

#: A state of a prompt's beginning is kept if it takes no more than this part of the free memory.
MEMORY_SHARE = 0.5

#: Called when tokens have been evaluated: their number, and that of the tokens before them.
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Answer:
    """A greedy answer."""

    text: str
    n_tokens: int
    gold: tuple[float, ...] = ()
    """Natural logarithms of the probabilities of the right answer's tokens, if one was given to score."""


@dataclass(frozen=True)
class LogProbs:
    """Of a continuation, given what stands before it."""

    values: NDArray[np.float64]
    """Natural logarithms of the probabilities of its tokens, [n_tokens]."""

    greedy: NDArray[np.bool_]
    """Whether each token is the most probable one, [n_tokens]."""


@dataclass(frozen=True)
class _State:
    """What a cache held."""

    tokens: list[int] = field(default_factory=list)
    data: Any = None
    last: NDArray[np.float32] | None = None
    """The logits behind the last token, if they are known, [n_vocab]."""

    group: int = 0
    """The group size that the tokens were read with."""

    def is_of(self, prompt: Tokens, group: int) -> bool:
        """Whether it is what a prompt, or a beginning of one, leaves with this group size."""
        return self.group == group and self.tokens == list(prompt)


def scored(rows: NDArray[np.float32], tokens: Sequence[int] | NDArray[np.int64]) -> LogProbs:
    """Score tokens by the logits that predict them, [n_tokens, n_vocab]."""
    shifted = rows - rows.max(axis=1, keepdims=True)
    chosen = shifted[np.arange(len(tokens)), tokens]
    values = chosen - np.log(np.exp(shifted, dtype=np.float64).sum(axis=1))
    return LogProbs(values, rows.argmax(axis=1) == tokens)


def cache_type(name: str) -> int:
    """The ggml type of a cache, by its name in any case.

    Raises:
        SettingError: there is none.
    """
    for value, label in CACHE_TYPES.items():
        if label == name.upper():
            return int(value)
    raise SettingError(f"the cache type is {name!r}; it must be one of {', '.join(CACHE_TYPES.values())}")


class EvalModel(Closing):
    """A model under one setting.

    Args:
        path: the GGUF file.
        setting: resolved, see ``Setting.resolve``.
        rope: what the file says of positions.
        n_ctx: context in tokens.
        type_k, type_v: names of the types of the cache.
        n_threads: None for llama_cpp's default.
        flash_attn: llama.cpp's flash attention; a quantized V needs it.
        progress: called while tokens are evaluated.

    Raises:
        ModelFileError: the file is not a model that llama.cpp can load.
        SettingError: the setting is not allowed for this model.
    """

    def __init__(
        self,
        path: Path,
        setting: Setting,
        rope: Rope,
        n_ctx: int,
        *,
        type_k: str = "F16",
        type_v: str = "F16",
        n_threads: int | None = None,
        n_gpu_layers: int = 0,
        flash_attn: bool = True,
        progress: Progress | None = None,
    ) -> None:
        self.progress = progress
        self._setting, self._rope = setting, rope
        self._tokens: list[int] = []  # what the cache holds
        self._n_most = 0  # how many tokens it has held since it was empty
        self._group = 0  # that they were read with
        self._n_last = 0
        self._last: NDArray[np.float32] | None = None  # the logits behind the first _n_last tokens of the cache
        self._kept = self._whole = _State()  # of a prompt's beginning, and of a prompt
        self._llm = open_quietly(
            path,
            n_ctx,
            n_batch=N_SLICE,
            n_ubatch=N_SLICE,
            n_threads=n_threads,
            n_threads_batch=n_threads,
            n_gpu_layers=n_gpu_layers,
            flash_attn=flash_attn,
            swa_full=True,
            type_k=cache_type(type_k),
            type_v=cache_type(type_v),
            **setting.arguments(rope),
        )
        self._ctx = self._llm.ctx
        self._memory = llama_cpp.llama_get_memory(self._ctx)
        self._vocab = llama_cpp.llama_model_get_vocab(self._llm.model)
        self._n_vocab = int(llama_cpp.llama_vocab_n_tokens(self._vocab))
        self._batch = llama_cpp.llama_batch_init(N_SLICE, 0, 1)
        info = self._llm.self_extend
        is_extended = info.ga_n_max > 1  # auto is the plain model inside the trained context
        #: Tokens that the cache can hold and still be cut: there are at least as many cells in the near part.
        self._n_cut = info.ga_w + N_SLICE if is_extended else self.n_ctx
        self._follows = is_extended and setting.kind == "auto"
        self._has_windows = llama_cpp.llama_model_n_swa(self._llm.model) > 0

    def close(self) -> None:
        """Free the model. Closing twice is fine."""
        if self._batch is not None:
            llama_cpp.llama_batch_free(self._batch)
            self._batch = None
            self._kept = self._whole = _State()
            self._llm.close()

    @property
    def n_ctx(self) -> int:
        """The context in tokens."""
        return self._llm.n_ctx()

    def tokenizer(self, chat: bool = True) -> Tokenizer:
        """The model's tokenizer, with the frame of its chat template, or of none."""

        def tokenize(text: str, special: bool) -> list[int]:
            return list(self._llm.tokenize(text.encode(), add_bos=False, special=special))

        def detokenize(tokens: Tokens) -> str:
            return b"".join(map(self._piece, tokens)).decode(errors="replace")

        bos: Tokens = (self._llm.token_bos(),) if self._llm._model.add_bos_token() else ()
        before, after = bos, Tokens()
        if chat and "tokenizer.chat_template" in self._llm.metadata:
            from ..chat_frame import chat_frame

            before, after = (tuple(tokenize(text, True)) for text in chat_frame(self._llm))
        return Tokenizer(tokenize, detokenize, before, after, bos, self._llm._model.n_ctx_train())

    def answer(
        self,
        prompt: Tokens,
        n_predict: int,
        stop: str | Sequence[str] = (),
        n_keep: int = 0,
        gold: Tokens = (),
    ) -> Answer:
        """Answer a prompt greedily, and score the right answer to it.

        Args:
            prompt: at least one token.
            n_predict: the longest answer, in tokens.
            stop: a text at which the answer ends, or several, of which the first one counts.
            n_keep: how many tokens of the prompt's beginning to keep for the next ones, see ``sharing``.
            gold: a continuation that is scored in place of the answer, behind the prompt as it has been read for the
                answer: under ``auto`` with the group for ``n_predict``. It does not change the answer.

        Raises:
            EvalError: the prompt and the answer do not fit into the context.
        """
        self._check(len(prompt) + max(n_predict, len(gold)))
        stops = [word for word in ([stop] if isinstance(stop, str) else stop) if word]
        first = self._read(prompt, n_keep, n_read(len(prompt), n_predict))
        text, n_tokens = self._greedy(first, n_predict, stops)
        if len(gold) > 1 and not self._go_back(len(prompt)):
            first = self._read(prompt, n_keep, n_read(len(prompt), n_predict))
        return Answer(text, n_tokens, tuple(self._score(first, gold).values.tolist()))

    def _greedy(self, logits: NDArray[np.float32], n_predict: int, stops: Sequence[str]) -> tuple[str, int]:
        """The most probable tokens behind what is in the cache: their text up to a stop, and their number."""
        decode = codecs.getincrementaldecoder("utf-8")(errors="replace").decode  # a character can span tokens
        text = ""
        for n_tokens in range(n_predict):
            token = int(logits.argmax())
            if llama_cpp.llama_vocab_is_eog(self._vocab, token):
                break
            text += decode(self._piece(token))
            if ends := [text.index(word) for word in stops if word in text]:
                return text[: min(ends)], n_tokens + 1
            if n_tokens + 1 < n_predict:
                logits = self._decode([token], 1)[0]
        else:
            n_tokens = n_predict
        return text + decode(b"", True), n_tokens

    def log_probs(self, prompt: Tokens, continuation: Tokens, n_keep: int = 0, again: bool = False) -> LogProbs:
        """Score a continuation.

        Args:
            prompt: at least one token.
            continuation: what is scored.
            n_keep: how many tokens of the prompt's beginning to keep for the next ones, see ``sharing``.
            again: whether another continuation of the same prompt comes next; the prompt is evaluated once then.

        Raises:
            EvalError: they do not fit into the context.
        """
        self._check(len(prompt) + len(continuation))
        first = self._read(prompt, n_keep, n_read(len(prompt), n_scored=len(continuation)))
        is_long = len(prompt) + len(continuation) > self._n_cut
        if again and is_long and not self._whole.is_of(prompt, self._group):
            self._whole = self._save()
        return self._score(first, continuation)

    def _score(self, first: NDArray[np.float32], continuation: Tokens) -> LogProbs:
        """Score a continuation of what is in the cache, which ``first`` are the logits behind."""
        found = [scored(rows, tokens) for rows, tokens in self._rows(first, continuation)]
        if not found:
            return LogProbs(np.zeros(0), np.zeros(0, dtype=np.bool_))
        return LogProbs(
            np.concatenate([each.values for each in found]), np.concatenate([each.greedy for each in found])
        )

    def _rows(
        self, first: NDArray[np.float32], continuation: Tokens
    ) -> Iterator[tuple[NDArray[np.float32], NDArray[np.int64]]]:
        """The logits that predict the tokens of a continuation, with these tokens, piece by piece."""
        tokens = np.asarray(continuation, dtype=np.int64)
        if len(tokens):
            yield first[None], tokens[:1]
        for begin in range(0, len(tokens) - 1, N_SLICE_LOGITS):
            given = continuation[begin : min(begin + N_SLICE_LOGITS, len(tokens) - 1)]
            yield self._decode(given, len(given)), tokens[begin + 1 : begin + 1 + len(given)]

    def _piece(self, token: int) -> bytes:
        """The text of a token. llama_cpp's detokenize loses those of more than 32 bytes, such as runs of spaces."""
        size = 32
        while True:
            buffer = ctypes.create_string_buffer(size)
            n = llama_cpp.llama_token_to_piece(self._vocab, token, buffer, size, 0, False)
            if n >= 0:
                return buffer.raw[:n]
            size = -n

    def _check(self, n_tokens: int) -> None:
        if n_tokens > self.n_ctx:
            raise EvalError(f"{n_tokens} tokens do not fit into the context of {self.n_ctx} tokens")

    # -- the cache

    def _read(self, prompt: Tokens, n_keep: int, n_tokens: int) -> NDArray[np.float32]:
        """Evaluate a prompt and return the logits that follow it, [n_vocab].

        Args:
            prompt: at least one token.
            n_keep: how many tokens of its beginning are kept.
            n_tokens: how long the text is that is read, see ``n_read``.
        """
        if not prompt:
            raise EvalError("the prompt is empty")
        group = self._setting.group(self._rope, n_tokens)
        if self._last is not None and self._n_last == len(prompt) and self._cut(prompt, len(prompt), group):
            return self._last
        if self._whole.is_of(prompt, group):
            self._load(self._whole)
            assert self._last is not None
            return self._last
        self._whole = _State()
        begin = self._resume(prompt, group)
        logits = None
        for start in range(begin, len(prompt), N_SLICE):
            if start == n_keep and start > begin and self._n_cut < self.n_ctx:
                self._kept = self._save()
            end = min(start + N_SLICE, len(prompt))
            logits = self._decode(prompt[start:end], int(end == len(prompt)))
        assert logits is not None
        self._last = logits[-1].copy()
        self._n_last = len(prompt)
        return self._last

    def _resume(self, prompt: Tokens, group: int) -> int:
        """Leave whole slices of the prompt in the cache, or load those that are kept. Returns where to go on."""
        n = min(shared_prefix(self._tokens, prompt), len(prompt) - 1) // N_SLICE * N_SLICE
        if self._cut(prompt, n, group):
            self._last = None
            return n
        n = len(self._kept.tokens)
        if 0 < n < len(prompt) and self._kept.is_of(prompt[:n], group):
            self._load(self._kept)
            return n
        self._begin(group)
        return 0

    def _begin(self, group: int) -> None:
        """Empty the cache, for a text that is read with this group size."""
        self._clear()
        if self._follows and not _library.set_group(self._ctx, 0, group):
            raise EvalError(_library.last_error())
        self._group = group

    def _cut(self, prompt: Tokens, n: int, group: int) -> bool:
        """Leave the first n tokens of a prompt in the cache, if they are there, read with this group size, and those
        behind will not show.
        """
        if self._group != group:
            return False
        if self._n_most > max(self._n_cut, n) or self._tokens[:n] != list(prompt[:n]):
            return False
        return n > 0 and self._go_back(n)

    def _go_back(self, n: int) -> bool:
        """Leave the first n tokens in the cache; keys that a window has forgotten come back. False: that cannot be."""
        if not llama_cpp.llama_memory_seq_rm(self._memory, 0, n, -1):
            return False
        del self._tokens[n:]
        return True

    def _clear(self) -> None:
        llama_cpp.llama_memory_clear(self._memory, False)
        self._tokens, self._n_most, self._last = [], 0, None

    def _save(self) -> _State:
        """The state of what is in the cache, if there is room for it and it is one that loads exactly."""
        size = int(llama_cpp.llama_state_seq_get_size(self._ctx, 0))
        if self._has_windows or size > MEMORY_SHARE * psutil.virtual_memory().available:
            return _State()
        data = (ctypes.c_uint8 * size)()
        if llama_cpp.llama_state_seq_get_data(self._ctx, data, size, 0) != size:
            return _State()
        last = self._last if self._n_last == len(self._tokens) else None
        return _State(list(self._tokens), data, last, self._group)

    def _load(self, state: _State) -> None:
        self._clear()
        if llama_cpp.llama_state_seq_set_data(self._ctx, state.data, len(state.data), 0) != len(state.data):
            raise EvalError("a saved state could not be loaded")
        self._tokens, self._last, self._n_last = list(state.tokens), state.last, len(state.tokens)
        self._n_most = len(state.tokens)
        self._group = state.group  # a state brings that of the engine

    def _decode(self, tokens: Sequence[int], n_logits: int) -> NDArray[np.float32]:
        """Evaluate tokens behind those in the cache. Returns the logits of the last n_logits, [n_logits, n_vocab]."""
        batch, n, n_past = self._batch, len(tokens), len(self._tokens)
        batch.n_tokens = n
        for i, token in enumerate(tokens):
            batch.token[i] = token
            batch.pos[i] = n_past + i
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = 0
            batch.logits[i] = i >= n - n_logits
        status = llama_cpp.llama_decode(self._ctx, batch)
        if status != 0:
            self._clear()
            raise EvalError(f"llama.cpp could not evaluate {n} tokens behind {n_past}: llama_decode returned {status}")
        self._tokens.extend(tokens)
        self._n_most = max(self._n_most, len(self._tokens))
        rows = np.empty((n_logits, self._n_vocab), dtype=np.float32)
        if n_logits:
            logits = llama_cpp.llama_get_logits(self._ctx)
            rows[:] = np.ctypeslib.as_array(logits, shape=rows.shape)
        if self.progress is not None:
            self.progress(n, n_past)
        if n_logits and not math.isfinite(float(rows[-1, 0])):
            raise EvalError("the model's logits are not numbers")
        return rows
