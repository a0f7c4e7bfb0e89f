"""``Llama``: llama-cpp-python's class of the same name, with a longer context."""

from __future__ import annotations

import ctypes
import inspect
import os
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from .. import _native
from ..config import SETTING_MAX, SelfExtendConfig, SelfExtendInfo, integer
from ..errors import ContextFullError, SelfExtendError, SettingError, StateError
from .shift import shift

if TYPE_CHECKING:
    from typing_extensions import Self

_library = _native.load()  # before llama_cpp, which it imports with our library

import llama_cpp  # noqa: E402
import numpy as np  # noqa: E402

__all__ = ["Llama"]

#: auto, fused or composed: forces one way of computing the attention. For tests.
ATTN_VARIABLE = "PYSELFEXTEND_ATTN"

#: The ggml types that a KV cache can have.
CACHE_TYPES = {
    llama_cpp.GGML_TYPE_F32: "F32",
    llama_cpp.GGML_TYPE_F16: "F16",
    30: "BF16",  # llama_cpp has no name for it
    llama_cpp.GGML_TYPE_Q8_0: "Q8_0",
    llama_cpp.GGML_TYPE_Q5_1: "Q5_1",
    llama_cpp.GGML_TYPE_Q5_0: "Q5_0",
    llama_cpp.GGML_TYPE_Q4_1: "Q4_1",
    llama_cpp.GGML_TYPE_Q4_0: "Q4_0",
    llama_cpp.GGML_TYPE_IQ4_NL: "IQ4_NL",
}


class Llama(llama_cpp.Llama):
    """A GGUF model that reads beyond its trained context, by SelfExtend (arXiv 2401.01325).

    A ``llama_cpp.Llama`` with two more arguments; every other argument, method, chat format and return type is its own.

    >>> from pyselfextend import Llama
    >>> with Llama("model.gguf", n_ctx=16384, ga_n=4, ga_w=1024) as llm:
    ...     print(llm.self_extend)
    ...     print(llm.create_completion(long_text, max_tokens=64)["choices"][0]["text"])

    Args:
        model_path: path of the GGUF file.
        ga_n: group size, at least 1. 1 is the plain model: nothing of SelfExtend is built then.
        ga_w: neighbour window in tokens, at least 0 and below the trained context. None: an eighth of the trained
            context.
        **kwargs: those of ``llama_cpp.Llama``. ``n_ctx`` may go up to the reach of the pair,
            ``pyselfextend.positions.n_ctx_reach(n_ctx_train, ga_n, ga_w)`` tokens.
            Unless it is given, ``flash_attn`` is on where ``ga_n`` is above 1 and layers lie on a device that then
            computes their attention in one kernel.

    Raises:
        SettingError: a ``ValueError``: a value is not allowed, the pair does not reach ``n_ctx`` on this model (the
            message says how far it reaches and the smallest ``ga_n`` that fits), or the model's architecture is not
            supported.
        NotAnIntegerError: a ``ValueError`` and ``TypeError``: ``ga_n`` or ``ga_w`` is not an integer.
        ValueError: the model could not be loaded, as in ``llama_cpp.Llama``.
    """

    def __init__(self, model_path: str, *, ga_n: int = 1, ga_w: int | None = None, **kwargs: Any) -> None:
        self._config = SelfExtendConfig(ga_n, ga_w)
        self._self_extend: SelfExtendInfo | None = None
        try:
            if self._config.is_plain:
                super().__init__(model_path, **kwargs)
            else:
                self._init_extended(model_path, **kwargs)
        except BaseException:
            self.close()
            raise

    def _init_extended(self, model_path: str, **kwargs: Any) -> None:
        # What llama_cpp hands on as it is, or cut to 32 bits, and llama.cpp may not survive.
        for name, low in (("n_ctx", 0), ("n_batch", 1), ("n_ubatch", 1)):
            if name in kwargs:
                kwargs[name] = integer(name, kwargs[name], low, SETTING_MAX)
        for name in ("type_k", "type_v"):
            if kwargs.get(name) not in (None, *CACHE_TYPES):
                allowed = ", ".join(f"{value} ({label})" for value, label in CACHE_TYPES.items())
                raise SettingError(f"{name} is {kwargs[name]!r}; it must be None or one of {allowed}")
        # llama_cpp's default is off, and a device fuses only with flash attention: V is cached transposed without
        if "flash_attn" in kwargs or kwargs.get("n_gpu_layers", 0) == 0 or not _library.device_is_fused():
            self._create_extended(model_path, **kwargs)
            return
        self._create_extended(model_path, **kwargs, flash_attn=True)
        info = _library.get_info(self._ctx.ctx)
        if info is not None and any(each.way == "composed" and each.device != "CPU" for each in info.attention):
            # this model's heads or cache are not what the device fuses, and then it is better off without
            super().close()
            self._create_extended(model_path, **kwargs)

    def _create_extended(self, model_path: str, **kwargs: Any) -> None:
        if not _library.set_next(self._config.ga_n, self._config.ga_w, _attn()):
            raise SettingError(_library.last_error())
        try:
            super().__init__(model_path, **kwargs)
        except ValueError as error:
            reason = _library.last_error()
            if reason:
                raise SettingError(reason) from error
            raise
        finally:
            _library.set_next(1)  # in case that no context was created: the setting must not reach a later one

        # llama_cpp sizes these for the n_ctx asked for, llama.cpp pads that: make room for all that n_ctx() promises.
        self.input_ids = np.ndarray((self.n_ctx(),), dtype=np.intc)
        if self._logits_all:
            self.scores = np.ndarray((self.n_ctx(), self.n_vocab()), dtype=np.single)

    @property
    def self_extend(self) -> SelfExtendInfo:
        """What is in force: group size, window, trained context, longest reach, bytes of each cache part, which way the
        attention of each layer is computed and where, and the memory on each device.
        """
        if self._self_extend is None:
            self._self_extend = self._read_info()
        return self._self_extend

    def _read_info(self) -> SelfExtendInfo:
        if self._config.is_plain:
            n_ctx_train = self._model.n_ctx_train()
            return SelfExtendInfo(
                ga_n=1,
                ga_w=0,
                n_ctx_train=n_ctx_train,
                n_ctx_reach=n_ctx_train,
                bytes_far=0,
                bytes_near=0,
                attention=(),
                memory=_library.get_memory(self._ctx.ctx),
            )
        info = _library.get_info(self._ctx.ctx)
        if info is None:
            raise SelfExtendError("llama.cpp created a plain context although SelfExtend was asked for")
        return info

    def n_ctx(self) -> int:
        """The context window in tokens: llama.cpp's, which it pads, but no more than the reach."""
        n_ctx = int(super().n_ctx())
        return n_ctx if self._config.is_plain else min(n_ctx, self.self_extend.n_ctx_reach)

    def eval(self, tokens: Sequence[int]) -> None:
        """Evaluate tokens after the ``n_tokens`` that have been evaluated.

        Raises:
            ContextFullError: a ``ValueError``: they do not fit into what is left of the context. Nothing was evaluated.
        """
        if self._config.is_plain:
            super().eval(tokens)
            return
        room = min(self.n_ctx(), len(self.input_ids))
        if self.n_tokens + len(tokens) > room:
            raise ContextFullError(
                f"{len(tokens)} tokens after {self.n_tokens} do not fit into the context of {room} tokens; "
                f"give at most {room - self.n_tokens}, or create the model with a larger n_ctx"
            )
        if not self._ctx.kv_cache_seq_rm(-1, self.n_tokens, -1):
            self._evaluate_again()
        super().eval(tokens)

    def _evaluate_again(self) -> None:
        """Fill the cache anew with the tokens so far: it cannot be cut at ``n_tokens``.

        So it is where keys that would come into a window again are lost: those of layers with a sliding window of their
        own (``swa_full=False``), and of models that normalize keys after RoPE. llama_cpp ignores the refusal, and would
        go on with both the old tokens and the new ones in the cache.
        """
        tokens = self.input_ids[: self.n_tokens].tolist()
        self.n_tokens = 0
        super().eval(tokens)  # which removes what the cache holds from position 0 on

    def save_state(self) -> llama_cpp.LlamaState:
        """What ``load_state`` takes.

        With ``ga_n`` above 1 it has logits only where the instance has those of all tokens.
        """
        state = super().save_state()
        if not self._config.is_plain and not self._logits_all:
            state.scores = state.scores[:0].copy()  # was never written
        return state

    def load_state(self, state: llama_cpp.LlamaState) -> None:
        """Go back to what ``save_state`` returned, in this instance or in one like it.

        Raises:
            StateError: a ``RuntimeError``: the state is of another model, of another ``ga_n`` or ``ga_w``, of another
                type of cache, truncated or damaged, or it has more tokens than fit. The message says which, and the
                instance keeps what it had.
        """
        if self._config.is_plain:
            super().load_state(state)
            return
        data = (ctypes.c_uint8 * len(state.llama_state)).from_buffer_copy(state.llama_state)
        _library.set_next(1)  # forgets an earlier reason; plain is the default
        if llama_cpp.llama_state_set_data(self._ctx.ctx, data, len(data)) != state.llama_state_size:
            reason = _library.last_error() or "it is not a state of this model's architecture, or it is damaged"
            raise StateError(f"the state cannot be loaded: {reason}")

        # llama_cpp would replace arrays by those of the instance that saved the state, or write into them beforehand
        n_tokens = state.n_tokens
        self.input_ids[:n_tokens] = state.input_ids[:n_tokens]
        if self._logits_all:
            n_rows = min(n_tokens, len(state.scores))
            self.scores[:n_rows] = state.scores[:n_rows]
            self.scores[n_rows:n_tokens] = np.nan  # saved without them
        self.n_tokens = n_tokens
        self._seed = state.seed
        self._requires_eval = True

    def context_shift(self, n_keep: int, n_discard: int) -> None:
        """Make room in a full context: forget tokens and move those behind them to their places.

        Keys and values stay what they were, so the model still knows something of what was discarded. With SelfExtend
        each far key goes to the group of its new position. Works for the plain model as well.

        Args:
            n_keep: how many tokens at the beginning stay where they are.
            n_discard: how many tokens behind them are forgotten.

        Raises:
            SettingError: there are not that many tokens.
            ShiftError: the model's keys cannot be moved to other positions without loss. Nothing has changed.
        """
        shift(self, n_keep, n_discard)

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = llama_cpp.Llama.__getstate__(self)
        return {**state, "ga_n": self._config.ga_n, "ga_w": self._config.ga_w}

    def close(self) -> None:
        """Free the model and the context. Closing twice is fine; any other use after that raises SelfExtendError."""
        if hasattr(self, "_stack"):  # not there if the constructor failed early
            super().close()
            closed: Any = _Closed()
            self._model = self._ctx = self._batch = self.tokenizer_ = closed

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class _Closed:
    """In place of what has been freed: llama_cpp would hand the stale pointers to llama.cpp, which ends the process."""

    def __getattr__(self, name: str) -> Any:
        raise SelfExtendError("this Llama has been closed")


def _attn() -> str:
    attn = os.environ.get(ATTN_VARIABLE, "auto")
    if attn not in _native.ATTN:
        raise SettingError(f"{ATTN_VARIABLE} is {attn!r}; it must be one of {', '.join(_native.ATTN)}")
    return attn


def _signature() -> inspect.Signature:
    """llama_cpp's parameters, with ours after ``model_path``, so that help() and editors show all of them."""
    upstream = inspect.signature(llama_cpp.Llama.__init__)
    ours = inspect.signature(Llama.__init__).parameters
    parameters = list(upstream.parameters.values())
    return upstream.replace(parameters=[*parameters[:2], ours["ga_n"], ours["ga_w"], *parameters[2:]])


Llama.__init__.__signature__ = _signature()  # type: ignore[attr-defined]
