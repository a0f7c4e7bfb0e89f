"""Prompt caches: ``Llama.cache``, through which an instance uses the cache that ``set_cache`` was given.

llama_cpp files the state after each completion under its tokens alone, so that instances which share a cache find
states that they cannot load; it counts a part of what a state holds; and what a cache raises ends the completion. Here
an instance finds its own entries only, each counts all its bytes, and what cannot be read or written is a miss.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
import threading
import warnings
import weakref
import zlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from .. import _native
from ..errors import WrongTypeError

_library = _native.load()

import llama_cpp  # noqa: E402
from llama_cpp.llama_cache import BaseLlamaCache, LlamaDiskCache, LlamaRAMCache  # noqa: E402

if TYPE_CHECKING:
    from .model import Llama

__all__ = ["CacheAttribute", "PromptCache", "identity"]

T = TypeVar("T")

#: What ``Llama.__getstate__`` has and neither the bytes of a state nor what is computed from them depend on.
_WITHOUT_EFFECT = {
    "model_path", "lora_path",  # by their identities
    "seed", "n_threads", "n_threads_batch", "use_mmap", "use_mlock", "no_perf", "last_n_tokens_size", "lora_base",
    "numa", "chat_format", "chat_handler", "draft_model", "spm_infill", "verbose",
}  # fmt: skip

#: llama_cpp's RAM cache fails when another thread changes it while it is searched.
_lock = threading.RLock()


def identity(*paths: Any) -> list[tuple[str, int, int] | None]:
    """Path, bytes and time of the last change [ns] of each file: what tells it from another. None: there is none."""
    return [_identity(path) for path in paths]


def _identity(path: Any) -> tuple[str, int, int] | None:
    try:
        status = os.stat(path)
    except (OSError, TypeError, ValueError):  # what is wrong with it, the one who opens it says
        return None
    return os.path.realpath(os.fsdecode(path)), status.st_size, status.st_mtime_ns


class CacheAttribute:
    """``Llama.cache``, which ``Llama.set_cache`` sets: None, or a view of the cache that it is given.

    Raises:
        WrongTypeError: what is set is not a ``llama_cpp.BaseLlamaCache``.
    """

    def __get__(self, llm: Llama | None, owner: type[Llama] | None = None) -> PromptCache | None:
        return None if llm is None else vars(llm).get("_prompt_cache")

    def __set__(self, llm: Llama, cache: Any) -> None:
        if cache is not None and not isinstance(cache, BaseLlamaCache):
            raise WrongTypeError(
                f"the cache is of type {type(cache).__name__}; "
                "it must be None or a llama_cpp.BaseLlamaCache, such as LlamaRAMCache or LlamaDiskCache"
            )
        if isinstance(cache, PromptCache):  # another instance's
            cache = cache.cache_given
        vars(llm)["_prompt_cache"] = None if cache is None else PromptCache(llm, cache)


class PromptCache(BaseLlamaCache):
    """An instance's view of a cache: it maps tokens to the state after them or after the longest known part of them.

    Other instances may share the cache, in this process or in others: what they file is found by those alone that were
    opened with the same files and settings. What cannot be read, or is damaged, is a miss, and what cannot be written
    is not kept; a ``RuntimeWarning`` says so, once. Nor are states of a text that was shifted, whose keys know of what
    was discarded. Further attributes are those of ``cache_given``.
    """

    def __init__(self, llm: Llama, cache: BaseLlamaCache) -> None:
        self.cache_given: Any = cache
        self._llm = weakref.ref(llm)
        self._tag = _tag(llm)
        self._said: set[str] = set()
        if isinstance(cache, LlamaDiskCache):  # it keeps to its capacity, and diskcache to 1 GiB if that is less
            self._attempt("written", functools.partial(cache.cache.reset, "cull_limit", 0), None)

    def __getattr__(self, name: str) -> Any:
        if name == "cache_given":  # not there yet: a copy that is being made
            raise AttributeError(name)
        return getattr(self.cache_given, name)

    @property
    def capacity_bytes(self) -> int:
        """As much may the cache hold."""
        return int(self.cache_given.capacity_bytes)

    @capacity_bytes.setter
    def capacity_bytes(self, value: int) -> None:
        self.cache_given.capacity_bytes = value

    @property
    def cache_size(self) -> int:
        """Bytes that the cache holds, the entries of other instances with them."""
        return int(self.cache_given.cache_size)

    def __contains__(self, key: Sequence[int]) -> bool:
        return self._attempt("read", lambda: self._key(key) in self.cache_given, False)

    def __getitem__(self, key: Sequence[int]) -> llama_cpp.LlamaState:
        entry = self._attempt("read", lambda: self._read(self._key(key)), None)
        if entry is None:
            raise KeyError("no state of these tokens, or of their beginning, is in the cache")
        llm = self._llm()
        # without the seed of then: the next answer would be drawn as the one after that state was
        return llama_cpp.LlamaState(
            input_ids=entry.input_ids,
            scores=entry.scores,
            n_tokens=entry.n_tokens,
            llama_state=entry.llama_state,
            llama_state_size=len(entry.llama_state),
            seed=entry.seed if llm is None else llm._seed,
        )

    def __setitem__(self, key: Sequence[int], value: llama_cpp.LlamaState) -> None:
        if getattr(value, "n_exact", math.inf) < value.n_tokens:  # other instances would have evaluated these tokens
            return
        tagged, llm = self._key(key), self._llm()
        entry = _Entry(value, len(tagged), has_scores=llm is None or llm._logits_all, is_checked=not self._is_ram)
        capacity = getattr(self.cache_given, "capacity_bytes", None)
        if capacity is not None and entry.llama_state_size > capacity:  # llama_cpp would throw out all others as well
            self._say(
                "large", f"a state of {entry.llama_state_size} bytes does not fit into the cache of {capacity} bytes"
            )
            return
        self._attempt("written", lambda: self.cache_given.__setitem__(tagged, entry), None)

    @property
    def _is_ram(self) -> bool:
        return isinstance(self.cache_given, LlamaRAMCache)

    def _key(self, tokens: Sequence[int]) -> tuple[int, ...]:
        """Tokens, the first of which no other instance has: caches compare keys from their beginning.

        It is negative, as no token of those who use the cache without a view is.
        """
        key = [int(token) for token in tokens]
        if key:
            key[0] = -1 - (self._tag << 32) - key[0]
        return tuple(key)

    def _read(self, key: tuple[int, ...]) -> _Entry | None:
        cache = self.cache_given
        if type(cache).__getitem__ is not LlamaDiskCache.__getitem__:
            return self._checked(cache[key])
        # llama_cpp takes out what it reads, also what is then not used, or what another process is about to read
        while (found := cache._find_longest_prefix_key(key)) is not None:
            entry = self._attempt("read", functools.partial(self._fetch, found), None)
            if entry is not None:
                return entry
            cache.cache.delete(found)  # it would hide shorter ones
        return None

    def _fetch(self, key: tuple[int, ...]) -> _Entry | None:
        return self._checked(self.cache_given.cache.get(key))

    def _checked(self, value: Any) -> _Entry | None:
        """The value if it is an entry as it was written."""
        if not isinstance(value, _Entry):
            return None
        if value.checksum is not None and value.checksum != _checksum(value):
            raise ValueError("an entry is damaged")
        return value

    def _attempt(self, what: str, action: Callable[[], T], otherwise: T) -> T:
        """What the action returns. If it fails, a warning: nothing that a cache does is worth an answer.

        Reading a damaged file raises whatever pickle, SQLite or the constructor of what was read does.
        """
        try:
            with _lock:
                return action()
        except (KeyError, StopIteration):  # the latter if another process was faster in making room
            return otherwise
        except Exception as error:
            self._say(what, f"the prompt cache cannot be {what}: {error!r}")
            return otherwise

    def _say(self, what: str, message: str) -> None:
        if what not in self._said:
            self._said.add(what)
            warnings.warn(message, RuntimeWarning, stacklevel=2)


class _Entry(llama_cpp.LlamaState):
    """A state in a cache. Its ``llama_state_size`` counts all that is kept for it: caches add it up.

    Args:
        state: what ``save_state`` returned.
        n_key: tokens of its key.
        has_scores: whether there are logits of each token. If not, at ``ga_n=1`` it has as many rows of rubbish; one is
            kept, which llama_cpp's ``load_state`` takes for all.
        is_checked: whether to tell later if its bytes are what they were.
    """

    def __init__(self, state: llama_cpp.LlamaState, n_key: int, *, has_scores: bool, is_checked: bool) -> None:
        scores = state.scores if has_scores else state.scores[:1].copy()
        n_bytes = len(state.llama_state) + scores.nbytes + state.input_ids.nbytes + _BYTES_PER_KEY_TOKEN * n_key
        super().__init__(state.input_ids, scores, state.n_tokens, state.llama_state, n_bytes, state.seed)
        self.checksum = _checksum(self) if is_checked else None


#: A tuple's pointer, and an int.
_BYTES_PER_KEY_TOKEN = 8 + 28


def _checksum(state: llama_cpp.LlamaState) -> int:
    checksum = state.n_tokens
    parts: tuple[Any, ...] = (state.llama_state, state.input_ids, state.scores)
    for part in parts:
        checksum = zlib.crc32(part, checksum)
    return checksum


def _tag(llm: Llama) -> int:
    """63 bits that are the same for instances that can load each other's states and go on as if they were their own."""
    settings = {name: value for name, value in llm.__getstate__().items() if name not in _WITHOUT_EFFECT}
    parts = [llm._files, settings, _library.build_info()]
    text = json.dumps(parts, sort_keys=True, default=str)
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=8).digest(), "big") >> 1
