"""``Llama``: llama_cpp's class of the same name, with a longer context."""

from __future__ import annotations

import contextlib
import ctypes
import inspect
import os
import sys
import threading
import warnings
from collections.abc import Callable, Generator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from .. import _native
from ..config import SelfExtendConfig, SelfExtendInfo, integer
from ..errors import (
    ContextFullError,
    ModelFileError,
    SelfExtendError,
    SettingError,
    UsageError,
)

if TYPE_CHECKING:
    from typing_extensions import Self

_library = _native.load()  # before llama_cpp, which it imports with our library

import llama_cpp  # noqa: E402
import numpy as np  # noqa: E402
from llama_cpp.llama_tokenizer import LlamaTokenizer  # noqa: E402

from . import grammar as grammars  # noqa: E402
from . import model_file, prompt_cache, states, templates, windows  # noqa: E402
from .arguments import CONSTRUCTOR, N_THREADS_MAX, SEED_MAX, check, check_names, flag, optional, tokens_of  # noqa: E402
from .completion import Ending, criteria_of, text_before  # noqa: E402
from .guard import FORKED, Gone, Guard, check_process  # noqa: E402
from .public import public  # noqa: E402
from .sampling import Callbacks, processor, processors_of  # noqa: E402
from .shift import shift  # noqa: E402
from .vocabulary import Pieces  # noqa: E402

__all__ = ["Llama"]

#: auto, fused or composed: forces one way of computing the attention. For tests.
ATTN_VARIABLE = "PYSELFEXTEND_ATTN"

#: llama_cpp sends standard output and error to nowhere while it opens a model quietly: one thread at a time.
_opening = threading.RLock()

_UPSTREAM = inspect.signature(llama_cpp.Llama.__init__).parameters
_NAMES = [*(name for name, each in _UPSTREAM.items() if each.kind is not inspect.Parameter.VAR_KEYWORD), "ga_n", "ga_w"]

NO_VOCAB = 0  # LLAMA_VOCAB_TYPE_NONE


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
        self, model_path: str | os.PathLike[str], *, ga_n: int = 1, ga_w: int | None = None, **kwargs: Any
    ) -> None:
        check_process()
        self._guard = Guard(self._forget)
        self._callbacks = Callbacks(self._guard)
        self._config = SelfExtendConfig(ga_n, ga_w)
        self._self_extend: SelfExtendInfo | None = None
        self._n_outputs = 0  # of the last tokens, that have logits
        check_names(kwargs, _NAMES, "Llama()")
        kwargs = check({"model_path": model_path, **kwargs}, CONSTRUCTOR)
        self._files = prompt_cache.identity(kwargs["model_path"], kwargs.get("lora_path"))
        try:
            with _opening:
                self._open(_Path(kwargs.pop("model_path")), **kwargs)
            self._complete(**kwargs)
        except BaseException:
            self.close()
            raise

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
        if not _library.set_next(self._config.ga_n, self._config.ga_w, _attn()):
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
        # llama_cpp sizes these for the n_ctx asked for, llama.cpp pads that: make room for all that n_ctx() promises.
        # The logits of all tokens are kept with a draft model as well.
        n_ctx = self.n_ctx()
        if len(self.input_ids) != n_ctx:
            self.input_ids = np.ndarray((n_ctx,), dtype=np.intc)
        if self._logits_all and len(self.scores) != n_ctx:
            self.scores = np.ndarray((n_ctx, self.n_vocab()), dtype=np.single)

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

    @public(changes=False)
    def n_ctx(self) -> int:
        """The context window in tokens: llama.cpp's, which it pads, but no more than the reach."""
        n_ctx = int(super().n_ctx())
        return n_ctx if self._config.is_plain else min(n_ctx, self.self_extend.n_ctx_reach)

    # -- tokens and texts

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
            return super().detokenize(found, prev_tokens=list(prev_tokens or ()), special=special)
        text = self._pieces.join(found, special)
        return text[1:] if found and found[0] == self.token_bos() and text[:1] == b" " else text

    def _need_vocabulary(self) -> None:
        if type(self.tokenizer_) is LlamaTokenizer and self._model.vocab_type() == NO_VOCAB:
            raise ModelFileError(f"{self.model_path} has no tokenizer, so it has no texts")  # llama.cpp would abort

    @public(changes=False)
    def set_seed(self, seed: int | None) -> None:
        """Set the seed, as in ``llama_cpp.Llama``. None and -1: another one each time."""
        self._seed = SEED_MAX if seed is None else seed % (SEED_MAX + 1)

    # -- evaluation

    @property
    def n_tokens(self) -> int:
        """How many tokens have been evaluated. A smaller number goes back to an earlier point."""
        return self._n_tokens

    @n_tokens.setter
    def n_tokens(self, value: int) -> None:
        if value < getattr(self, "_n_tokens", 0):
            self._requires_eval = True  # the logits are those after the last token: llama_cpp would sample from them
        self._n_tokens = value

    @public(changes=True)
    def eval(self, tokens: Sequence[int]) -> None:
        """Evaluate tokens after the ``n_tokens`` that have been evaluated.

        Raises:
            ContextFullError: a ``ValueError``: they do not fit into what is left of the context. Nothing was evaluated.
            SettingError: one is not a token of this vocabulary. Nothing was evaluated.
        """
        found = tokens_of("tokens", tokens, self._n_vocab)
        if self._ctx.memory is None:
            raise UsageError("this model has no cache: it embeds texts, and does not go on with them; use embed()")
        room = min(self.n_ctx(), len(self.input_ids))
        if self.n_tokens + len(found) > room:
            raise ContextFullError(
                f"{len(found)} tokens after {self.n_tokens} do not fit into the context of {room} tokens; "
                f"give at most {room - self.n_tokens}, or create the model with a larger n_ctx"
            )
        if not self._ctx.kv_cache_seq_rm(-1, self.n_tokens, -1) or windows.have_forgotten(self):
            self._evaluate_again()
        self._evaluate(found)

    def _evaluate(self, tokens: list[int]) -> None:
        if tokens:
            self._n_outputs = 0  # should it be stopped half-way
            super().eval(tokens)
            self._n_outputs = (len(tokens) - 1) % self.n_batch + 1 if self._logits_all else 1

    def _evaluate_again(self) -> None:
        """Fill the cache anew with the tokens so far: it cannot be cut at ``n_tokens``.

        So it is where keys that would come into a window again are lost: those of layers with a sliding window of their
        own (``swa_full=False``), and of models that normalize keys after RoPE. llama_cpp ignores the refusal, and would
        go on with both the old tokens and the new ones in the cache.
        """
        tokens = self.input_ids[: self.n_tokens].tolist()
        self.n_tokens = 0
        super().eval(tokens)  # which removes what the cache holds from position 0 on

    @public(changes=True, like=llama_cpp.Llama.sample)
    def sample(self, idx: int | None = None, **kwargs: Any) -> int:  # type: ignore[override]
        """Sample a token, as in ``llama_cpp.Llama``.

        Args:
            idx: after which of the tokens evaluated. None: the last.
            **kwargs: settings of the sampler.

        Raises:
            UsageError: there are no logits: nothing was evaluated since the instance was opened or loaded a state.
            GrammarError: the grammar cannot be used, or no token continues the text as it wants it.
        """
        if self._requires_eval or self._n_outputs == 0:
            raise UsageError("there are no logits to sample from; evaluate tokens first")
        last = self.n_tokens - 1
        self._sampled_after = last if idx is None else integer("idx", idx, last + 1 - self._n_outputs, last)
        token = super().sample(idx=idx, **kwargs)
        self._callbacks.raise_kept()
        grammars.check_sampled()
        return int(token)

    def _init_sampler(self, *args: Any, **kwargs: Any) -> Any:
        found, grammar = kwargs.pop("logits_processor", None), kwargs.pop("grammar", None)
        if found is not None:
            kwargs["logits_processor"] = [processor(each, self._sampled) for each in found]
        sampler = super()._init_sampler(*args, **kwargs)
        if grammar is not None:  # llama_cpp's ends the process where it cannot be followed
            grammars.add(sampler, self._model.vocab, grammar)
        for _, custom in sampler.custom_samplers:
            custom.apply_func = self._callbacks.keep(custom.apply_func)
        return sampler

    def _sampled(self) -> Any:
        """The tokens up to that after which one is sampled: those evaluated, without drafts that may be dropped."""
        return self.input_ids[: self._sampled_after + 1]

    @public(changes=True, like=llama_cpp.Llama.generate)
    def generate(  # type: ignore[override]
        self, tokens: Sequence[int], stopping_criteria: Any = None, **kwargs: Any
    ) -> Generator[int, Sequence[int] | None, None]:
        """Generate tokens after a prompt, as in ``llama_cpp.Llama``."""
        ending = next((each for each in stopping_criteria or () if isinstance(each, Ending)), None)
        criterion = ending.criterion if ending else criteria_of(stopping_criteria)
        prompt = tokens_of("tokens", tokens, self._n_vocab)
        if not prompt and not self.n_tokens:
            raise SettingError(
                "there is nothing to go on from: the prompt is empty, and the model has no token to begin with"
            )
        if ending:
            ending.limit(self._n_ctx - len(prompt))
        steps = super().generate(prompt, **kwargs)
        sampler = sent = None
        given: list[int] = []
        try:
            while True:
                token = steps.send(sent)
                sampler = self._sampler
                if criterion is not None and self._is_met(criterion):
                    if ending:
                        ending.end("stop")
                    return
                if ending:
                    self._tell(ending, prompt, given, token)
                sent = yield token
                if ending and ending.finish_reason:
                    return
        except StopIteration:
            return
        finally:
            steps.close()
            if self._sampler is sampler:
                self._sampler = None  # sample() would use it, whatever settings it is given

    def _is_met(self, criterion: Callable[[Any, Any], bool]) -> bool:
        row = self._ctx.get_logits_ith(self._sampled_after - self.n_tokens)
        logits = np.ctypeslib.as_array(row, shape=(self._n_vocab,)).copy()
        with self._guard.callback():
            return criterion(self._sampled(), logits)

    def _tell(self, ending: Ending, prompt: list[int], given: list[int], token: int) -> None:
        if llama_cpp.llama_vocab_is_eog(self._model.vocab, token):
            ending.end("stop")
            return
        given.append(token)
        if type(self.tokenizer_) is LlamaTokenizer:
            ending.add(self.detokenize([token]))
        else:  # whose texts of tokens may depend on those before
            ending.add_to(self.detokenize(given, prev_tokens=prompt))

    # -- completions

    def _create_completion(self, prompt: Any, *args: Any, **kwargs: Any) -> Generator[Any, None, None]:
        given = dict(_COMPLETION.bind(self, prompt, *args, **kwargs).arguments)
        given.pop("self")
        if not isinstance(prompt, str):
            given["prompt"] = prompt = tokens_of("prompt", prompt, self._n_vocab)
        stream, echo = given.get("stream", False), given.get("echo", False)
        if echo and not isinstance(prompt, str):
            given["echo"] = False  # llama_cpp adds a list to a text
        biases = given.pop("logit_bias", None)
        for token in biases or ():
            integer("a key of logit_bias", token, 0, self._n_vocab - 1)
        given["logits_processor"] = processors_of(given.get("logits_processor"), biases)
        if given.get("logprobs") is not None and not self._logits_all:
            raise SettingError("logprobs are of all tokens; open the model with logits_all=True to have them")
        criterion = criteria_of(given.pop("stopping_criteria", None))
        ending = Ending(
            given.pop("stop", None) or (), given.get("max_tokens", 16), criterion, is_first=len(prompt) == 0
        )
        answers: Any = super()._create_completion(**given, stopping_criteria=ending)  # type: ignore[arg-type]
        try:
            for answer in answers:
                if stream:
                    yield from ending.chunks(answer)
                else:
                    yield ending.answer(answer, text_before(self, prompt, echo))
        except ValueError as error:
            if "exceed context window" in str(error):  # llama_cpp's own words
                raise ContextFullError(
                    f"{error} tokens; shorten the prompt, or open the model with a larger n_ctx"
                ) from None
            raise

    @public(changes=True)
    def embed(
        self, input: str | list[str], normalize: bool = False, truncate: bool = True, return_count: bool = False
    ) -> Any:
        """Embed texts, as in ``llama_cpp.Llama``; that one is longer than ``n_batch`` and cut is warned of."""
        if not isinstance(input, str) and not input:
            return ([], 0) if return_count else []
        for i, text in enumerate([input] if isinstance(input, str) else input):
            n_tokens = len(self.tokenize(text.encode("utf-8")))
            if n_tokens == 0:  # llama_cpp would write before the batch
                raise SettingError(f"input[{i}] is {text!r}, which has no tokens; there is nothing to embed")
            if truncate and n_tokens > self.n_batch:
                warnings.warn(
                    f"input[{i}] has {n_tokens} tokens, and is cut to n_batch={self.n_batch}; create the model with a "
                    "larger n_batch and n_ctx, or give truncate=False to have an error",
                    RuntimeWarning,
                    stacklevel=3,
                )
        if isinstance(input, str) or int(self.pooling_type()) != llama_cpp.LLAMA_POOLING_TYPE_NONE:
            return super().embed(input, normalize, truncate, return_count)
        # of several texts in a batch, llama_cpp takes the tokens' embeddings of all but the first from other places
        found = [super(Llama, self).embed(text, normalize, truncate, return_count=True) for text in input]
        embeddings = [each for each, _ in found]
        return (embeddings, sum(n for _, n in found)) if return_count else embeddings

    # -- states

    @public(changes=False)
    def save_state(self) -> llama_cpp.LlamaState:
        """What ``load_state`` takes.

        With ``ga_n`` above 1 it has logits only where the instance has those of all tokens.
        """
        _library.apply_shifts(self._ctx.ctx)
        state = super().save_state()
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

    def _read_state(self, data: ctypes.Array[ctypes.c_uint8]) -> tuple[int, str]:
        """How many bytes llama.cpp has read of a state, 0 if it is none of this context, and why not."""
        if not self._config.is_plain:
            _library.set_next(1)  # forgets an earlier reason; plain is the default
        with _library.guarded() as errors:
            n_read = int(llama_cpp.llama_state_set_data(self._ctx.ctx, data, len(data)))
        ours = "" if self._config.is_plain else _library.last_error()
        return n_read, ours or (model_file.reason(errors) if errors else "")

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = llama_cpp.Llama.__getstate__(self)
        return {**state, "ga_n": self._config.ga_n, "ga_w": self._config.ga_w}

    # -- the end

    def close(self) -> None:
        """Free the model and the context. Closing twice is fine; any other use after that raises SelfExtendError."""
        if hasattr(self, "_stack"):  # not there if the constructor failed early
            with self._guard.call(changes=True, name="close"):
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

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


_COMPLETION = inspect.signature(llama_cpp.Llama._create_completion)


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
    "create_chat_completion_openai_v1": True,
    "set_cache": False,
    "n_ctx": False,
    "n_embd": False,
    "n_vocab": False,
    "tokenizer": False,
    "token_eos": False,
    "token_bos": False,
    "token_nl": False,
    "pooling_type": False,
}.items():
    if _name not in Llama.__dict__:
        setattr(Llama, _name, public(changes=_changes)(getattr(llama_cpp.Llama, _name)))
