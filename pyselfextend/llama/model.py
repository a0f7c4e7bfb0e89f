"""``Llama``: llama_cpp's class of the same name, with a longer context."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import inspect
import os
import sys
import threading
from typing import Any, Literal

from .. import _native
from ..closing import Closing
from ..config import AUTO, SelfExtendConfig
from ..errors import (
    ModelFileError,
    SelfExtendError,
    SettingError,
)
from ..info import SelfExtendInfo
from ..maps import SELF_EXTEND, map_named
from ..model_info import model_info

_library = _native.load()  # before llama_cpp, which it imports with our library

import llama_cpp  # noqa: E402
import numpy as np  # noqa: E402

from . import following, model_file, prompt_cache, states, templates  # noqa: E402
from .arguments import CONSTRUCTOR, N_THREADS_MAX, SEED_MAX, check, check_names, flag, optional  # noqa: E402
from .drafts import Drafts  # noqa: E402
from .generation import Generating  # noqa: E402
from .guard import FORKED, Gone, Guard, check_process  # noqa: E402
from .public import public  # noqa: E402
from .sampling import Callbacks  # noqa: E402
from .shift import shift  # noqa: E402
from .vocabulary import Pieces  # noqa: E402

__all__ = ["Llama"]

#: auto, fused or composed: forces one way of computing the attention. For tests.
ATTN_VARIABLE = "PYSELFEXTEND_ATTN"

#: llama_cpp sends standard output and error to nowhere while it opens a model quietly: one thread at a time.
_opening = threading.RLock()

#: What llama_cpp.server still gives, and llama_cpp leaves unused.
IGNORED = ("mul_mat_q", "rpc_servers")

#: What ``Llama`` is asked for where nothing of SelfExtend is.
DEFAULT = {"ga_n": None, "ga_w": None, "ga_map": SELF_EXTEND.name}

_UPSTREAM = inspect.signature(llama_cpp.Llama.__init__).parameters
_NAMES = [
    *(name for name, each in _UPSTREAM.items() if each.kind is not inspect.Parameter.VAR_KEYWORD),
    *DEFAULT,
]


class Llama(Generating, Closing):
    """A GGUF model that reads beyond its trained context, by SelfExtend (arXiv 2401.01325).

    A ``llama_cpp.Llama`` with three more arguments; all other arguments, methods, chat formats and return types are its
    own.

    >>> from pyselfextend import Llama
    >>> with Llama("model.gguf", n_ctx=65536) as llm:  # trained on 8192
    ...     print(llm.self_extend)
    ...     print(llm.create_completion(long_text, max_tokens=64)["choices"][0]["text"])

    Args:
        model_path: path of the GGUF file.
        ga_n: group size, at least 1. 1 is the plain model: nothing of SelfExtend is built then. "auto": the group
            follows the length of the text. Inside the trained context it is 1, the plain model; beyond it, a power of
            two that is chosen for each text when it is handed over, with the answer that is asked for, and raised where
            a text outgrows it; or what ``pyselfextend tune`` has measured on this model with this window. None: "auto"
            where ``n_ctx`` is above the trained context, otherwise 1; where the model cannot be extended, or a RoPE
            scaling is asked for, 1 with a warning that says so.
        ga_w: neighbour window in tokens, at least 0 and below the trained context. None: an eighth of the trained
            context, at most 2048.
        ga_map: the map of positions: "self-extend", or to compare, "jet-long", "rerope", "leaky", "lampe" (``ga_n``
            counts 64ths of a token then) or "mrrope" (no window, and one group); see docs/maps.md.
        **kwargs: those of ``llama_cpp.Llama``. ``n_ctx`` may go up to the reach of a pair,
            ``pyselfextend.positions.n_ctx_reach(n_ctx_train, ga_n, ga_w)`` tokens, and with "auto" as far as there is
            memory.
            Unless it is given, ``flash_attn`` is on where the model is extended and layers lie on a device that then
            computes their attention in one kernel.

    One call at a time: calls of several threads wait for each other. A stream that is continued after another call
    raises ``StaleStreamError``; an instance is of no use in a child of ``fork``, and says so.

    Raises:
        UnknownArgumentError: a ``TypeError``: there is no argument of that name.
        SettingError: a ``ValueError``: a value is not allowed, the pair does not reach ``n_ctx`` on this model (the
            message says how far it reaches and the smallest ``ga_n`` that fits), or the model's architecture is not
            supported.
        NotAnIntegerError: a ``ValueError`` and ``TypeError``: ``ga_n`` or ``ga_w`` is not an integer.
        ModelFileError: a ``ValueError``: the model or the LoRA adapter could not be loaded; the message says why.
    """

    metadata = templates.Metadata()
    cache = prompt_cache.CacheAttribute()

    def __init__(
        self,
        model_path: str | os.PathLike[str],
        *,
        ga_n: int | Literal["auto"] | None = None,
        ga_w: int | None = None,
        ga_map: str = SELF_EXTEND.name,
        **kwargs: Any,
    ) -> None:
        check_process()
        self._guard = Guard(self._forget)
        self._callbacks = Callbacks(self._guard)
        self._asked = {"ga_n": ga_n, "ga_w": ga_w, "ga_map": ga_map}
        self._config = SelfExtendConfig("auto" if ga_n is None else ga_n, ga_w, ga_map)
        self._self_extend: SelfExtendInfo | None = None
        check_names(kwargs, [*_NAMES, *IGNORED], "Llama()")
        kwargs = check({"model_path": model_path, **kwargs}, CONSTRUCTOR)
        if kwargs.get("vocab_only") and ga_n is None:
            self._config = SelfExtendConfig()
        if kwargs.get("vocab_only") and not self._config.is_plain:
            raise SettingError("vocab_only opens no weights, so there is nothing to extend; leave ga_n at 1")
        self._files = prompt_cache.identity(kwargs["model_path"], kwargs.get("lora_path"))
        try:
            with _opening:
                path = _Path(kwargs.pop("model_path"))
                if self._config.ga_n == AUTO:
                    self._follow(path, is_default=self._asked == DEFAULT, **kwargs)
                else:
                    self._open(path, **kwargs)
            self._complete(**kwargs)
        except BaseException:
            self.close()
            raise

    def _follow(self, model_path: str, *, is_default: bool, **kwargs: Any) -> None:
        """Open with a group that follows the length, plain inside the trained context.

        By default plain as well where it cannot be done.
        """
        n_ctx = kwargs.get("n_ctx") or 0  # 0: the trained context
        info = model_info(model_path, kwargs.get("kv_overrides")) if n_ctx else None
        self._policy = following.policy(info, self._config, n_ctx, kwargs) if info else None
        reason = following.refused(info, kwargs) if info and self._policy and is_default else None
        if self._policy and not reason:
            try:
                self._open(model_path, **kwargs)
                self._policy = dataclasses.replace(self._policy, n_ctx=self.n_ctx())  # llama.cpp pads it
                return
            except SettingError as error:
                if not is_default:
                    raise
                reason = str(error)
                super().close()
        self._policy, self._config = None, SelfExtendConfig()
        self._open(model_path, **kwargs)
        if reason:
            following.warn(n_ctx, self._model.n_ctx_train(), reason)

    def _open(self, model_path: str, **kwargs: Any) -> None:
        if kwargs.get("n_ctx") and "n_batch" in kwargs:  # llama_cpp makes room for the logits of more
            kwargs["n_batch"] = min(kwargs["n_batch"], kwargs["n_ctx"])
        if (os.cpu_count() or 1) > N_THREADS_MAX and not kwargs.get("n_threads_batch"):
            kwargs["n_threads_batch"] = N_THREADS_MAX
        if self._config.is_plain:
            self._create(model_path, **kwargs)
            return
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
        ga_map = self._config.ga_map
        begin = map_named(ga_map).unit
        ga_n, ga_n_max = (begin, self._policy.ga_n_max) if self._policy else (self._config.ga_n, 0)
        if not _library.set_next(int(ga_n), self._config.ga_w, _attn(), ga_n_max, ga_map):
            raise SettingError(_library.last_error())
        try:
            self._create(model_path, **kwargs)
        except ValueError as error:
            reason = _library.last_error()
            if reason:
                raise SettingError(reason) from error
            raise
        finally:
            _library.set_next(1)  # in case that no context was created: the setting must not reach a later one

    def _create(self, model_path: str, **kwargs: Any) -> None:
        with model_file.opening(model_path, **kwargs) as errors:
            try:
                super().__init__(model_path, **kwargs)
            except MemoryError as error:
                raise SettingError(f"there is not enough memory: {error}") from error
        if self.lora_path and not self._lora_adapter:  # which llama_cpp does not see, and goes on
            reason = model_file.reason(errors)
            raise ModelFileError(f"{self.lora_path} cannot be loaded as a LoRA adapter of this model: {reason}")

    def _complete(self, seed: int | None = None, **kwargs: Any) -> None:
        """What llama_cpp's constructor leaves different from what was asked for."""
        templates.add_broken(self, **kwargs)
        if seed is not None:
            self._seed = seed % (SEED_MAX + 1)  # 0 is a seed
        self._pieces = Pieces(self._model.vocab)
        if self.draft_model is not None:
            draft_model: Any = Drafts(self.draft_model, self._guard, self.n_batch - 1)
            self.draft_model = draft_model
        # llama_cpp sizes these for the n_ctx asked for, llama.cpp pads that: make room for all that n_ctx() promises.
        # The logits of all tokens are kept with a draft model as well.
        n_ctx = self.n_ctx()
        self.input_ids = np.zeros((n_ctx,), dtype=np.intc)  # chat handlers of images read what they have not written
        if self._logits_all and len(self.scores) != n_ctx:
            self.scores = np.ndarray((n_ctx, self.n_vocab()), dtype=np.single)

    @property
    def self_extend(self) -> SelfExtendInfo:
        """What is in force: group size of the moment and its next limit, window, trained context, longest reach, bytes
        of each cache part, which way the attention of each layer is computed and where, and the memory on each device.
        """
        if self._self_extend is None:
            self._self_extend = self._read_info()
        if self._policy is None:
            return self._self_extend
        ga_n, is_measured = _library.get_group(self._ctx.ctx), bool(self._policy.table)
        return dataclasses.replace(self._self_extend, ga_n=ga_n, is_measured=is_measured)

    def _read_info(self) -> SelfExtendInfo:
        if self._config.is_plain:
            n_ctx_train = self._model.n_ctx_train()
            return SelfExtendInfo(
                ga_n=1,
                ga_n_max=1,
                ga_w=0,
                ga_map=self._config.ga_map,
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

    @public(changes=False)
    def n_ctx(self) -> int:
        """The context window in tokens: llama.cpp's, which it pads, but no more than the reach."""
        n_ctx = int(super().n_ctx())
        return n_ctx if self._config.is_plain else min(n_ctx, self.self_extend.n_ctx_reach)

    # -- states

    @public(changes=False)
    def save_state(self) -> llama_cpp.LlamaState:
        """What ``load_state`` takes.

        With ``ga_n`` above 1 it has logits only where the instance has those of all tokens.
        """
        _library.apply_shifts(self._ctx.ctx)
        state = super().save_state()
        state.n_exact = self._n_exact  # type: ignore[attr-defined]  # for load_state
        if not self._config.is_plain and not self._logits_all:
            state.scores = state.scores[:0].copy()  # was never written
        return state

    @public(changes=True)
    def load_state(self, state: llama_cpp.LlamaState) -> None:
        """Go back to what ``save_state`` returned, in this instance or in one like it.

        Raises:
            StateError: a ``RuntimeError``: the state is of another model, of another ``ga_n`` or ``ga_w``, of another
                type of cache, truncated or damaged, or it has more tokens than fit. The message says which, and the
                instance keeps what it had.
        """
        states.load(self, state)
        self._n_outputs = 0

    @public(changes=True)
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

    def _read_state(self, state: bytes) -> tuple[int, str]:
        """How many bytes llama.cpp has read of a state, 0 if it is none of this context, and why not."""
        if not self._config.is_plain:
            _library.set_next(1)  # forgets an earlier reason; plain is the default
        data = (ctypes.c_uint8 * len(state)).from_buffer_copy(state)
        with _library.guarded() as errors:
            n_read = int(llama_cpp.llama_state_set_data(self._ctx.ctx, data, len(data)))
        ours = "" if self._config.is_plain else _library.last_error()
        return n_read, ours or (model_file.reason(errors) if errors else "")

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = super().__getstate__()  # type: ignore[no-untyped-call]
        if isinstance(self.draft_model, Drafts):
            state["draft_model"] = self.draft_model.model
        return {**state, **self._asked}

    # -- the end

    def close(self) -> None:
        """Free the model and the context. Closing twice is fine; any other use after that raises SelfExtendError."""
        if hasattr(self, "_stack"):  # not there if the constructor failed early
            self._guard.call(self._close, changes=True, name="close")

    def _close(self) -> None:
        super().close()
        self._replace("this Llama has been closed")

    def _forget(self) -> None:
        """In a child of fork, where llama.cpp's threads are not: nothing is freed."""
        for owner, name in (("_ctx", "ctx"), ("_model", "model"), ("_batch", "batch"), ("_sampler", "sampler")):
            if (found := self.__dict__.get(owner)) is not None and not isinstance(found, Gone):
                setattr(found, name, None)
        self._lora_adapter = None
        self._stack = contextlib.ExitStack()
        self._replace(FORKED)

    def _replace(self, reason: str) -> None:
        gone: Any = Gone(reason)
        self._model = self._ctx = self._batch = self.tokenizer_ = gone


class _Path(str):
    """A path that llama_cpp encodes for llama.cpp: also a name that is not UTF-8."""

    def encode(self, *_: Any, **__: Any) -> bytes:
        return str.encode(self, sys.getfilesystemencoding(), sys.getfilesystemencodeerrors())


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

Llama.create_chat_completion = public(changes=True, checks={"logprobs": optional(flag)})(  # type: ignore[method-assign]
    llama_cpp.Llama.create_chat_completion
)

# The others as they are, with their arguments looked at and one call at a time.
for _name, _changes in {
    "reset": True,
    "create_embedding": True,
    "create_completion": True,
    "__call__": True,
    "set_cache": False,
    "n_embd": False,
    "n_vocab": False,
    "tokenizer": False,
    "token_eos": False,
    "token_bos": False,
    "token_nl": False,
    "pooling_type": False,
}.items():
    setattr(Llama, _name, public(changes=_changes)(getattr(llama_cpp.Llama, _name)))
