"""What the arguments of ``Llama`` and of its methods may be.

llama_cpp hands most of them on as they are, cut to 32 bits or not, and llama.cpp does not survive all of them. So each
is looked at here, by its name, before llama_cpp sees it: one check a name, for the constructor and for all methods.
"""

from __future__ import annotations

import difflib
import inspect
import math
import numbers
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import llama_cpp
import numpy as np
from llama_cpp.llama_tokenizer import BaseLlamaTokenizer

from ..config import SETTING_MAX, integer
from ..errors import SettingError, UnknownArgumentError, WrongTypeError

__all__ = ["CACHE_TYPES", "CONSTRUCTOR", "METHODS", "Check", "check", "check_names", "tokens_of"]

#: Takes an argument's name and what was given; returns what llama_cpp is to be given, or raises a SettingError.
Check = Callable[[str, Any], Any]

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

N_THREADS_MAX = 512  # GGML_MAX_N_THREADS
SEED_MAX = 2**32 - 1
FLOAT_MAX = 3.4e38  # of 32 bits
KV_KEY_MAX = 127  # bytes, of llama_model_kv_override
KV_TEXT_MAX = 127

#: More than any context has; the sampler takes this many numbers of memory.
LAST_N_MAX = 2**24


def wrong_type(name: str, value: object, allowed: str) -> WrongTypeError:
    return WrongTypeError(f"{name} is {_shown(value)} of type {type(value).__name__}; it must be {allowed}")


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def whole(low: int, high: int = SETTING_MAX) -> Check:
    """An integer in a range."""
    return lambda name, value: integer(name, value, low, high)


def real(low: float = -math.inf, high: float = math.inf, *, above: bool = False) -> Check:
    """A number that is finite and in a range; above: and not its lower end."""
    limits = [f"{'above' if above else 'of at least'} {low:g}"] * math.isfinite(low)
    limits += [f"of at most {high:g}"] * math.isfinite(high)
    allowed = " ".join(["a number", " and ".join(limits)]).strip()

    def one(name: str, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, numbers.Real | np.number):
            raise wrong_type(name, value, allowed)
        try:
            number = float(value)
        except (OverflowError, TypeError):
            raise SettingError(f"{name} is {_shown(value)}; it must be {allowed}") from None
        if not math.isfinite(number) or number < low or number > high or (above and number == low):
            raise SettingError(f"{name} is {number:g}; it must be {allowed}")
        return number

    return one


def flag(name: str, value: Any) -> bool:
    """True or False; 1 and 0 as well."""
    if isinstance(value, bool | np.bool_) or (isinstance(value, int) and value in (0, 1)):
        return bool(value)
    raise wrong_type(name, value, "True or False")


def text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise wrong_type(name, value, "a str")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise SettingError(f"{name} has a character at {error.start} that is no Unicode text: {error.reason}") from None
    return value


def data(name: str, value: Any) -> bytes:
    if isinstance(value, bytearray | memoryview):
        return bytes(value)
    if not isinstance(value, bytes):
        raise wrong_type(name, value, "bytes, such as 'text'.encode()")
    return value


def path(name: str, value: Any) -> str:
    """A path as a ``str``, whatever bytes its name is of."""
    try:
        name_of = os.fsdecode(value)
    except TypeError:
        raise wrong_type(name, value, "a path") from None
    if not name_of or "\0" in name_of:
        raise SettingError(f"{name} is {_shown(name_of)}; it must be the path of a file")
    return name_of


def call(name: str, value: Any) -> Any:
    if not callable(value):
        raise wrong_type(name, value, "callable")
    return value


def callables(name: str, value: Any) -> list[Any]:
    """A list of callables, also for one of them by itself (``LogitsProcessorList`` is both)."""
    found = [value] if callable(value) else list(value) if isinstance(value, Sequence) else [value]
    if not all(callable(each) for each in found):
        raise wrong_type(name, value, "a list of callables")
    return found


def optional(check: Check, *none: Any) -> Check:
    """None, or what the check allows. None of ``none`` either, which llama_cpp takes for None."""
    return lambda name, value: value if value is None or any(value is each for each in none) else check(name, value)


def one_of(allowed: Iterable[int]) -> Check:
    values = sorted(allowed)

    def check(name: str, value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or int(value) not in values:
            raise SettingError(f"{name} is {_shown(value)}; it must be one of {', '.join(map(str, values))}")
        return int(value)

    return check


def instance(kind: type, label: str) -> Check:
    def check(name: str, value: Any) -> Any:
        if not isinstance(value, kind):
            raise wrong_type(name, value, label)
        return value

    return check


def cache_type(name: str, value: Any) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or int(value) not in CACHE_TYPES:
        allowed = ", ".join(f"{number} ({label})" for number, label in CACHE_TYPES.items())
        raise SettingError(f"{name} is {value!r}; it must be None or one of {allowed}")
    return int(value)


def texts(name: str, value: Any) -> list[str]:
    """One text or several. Empty ones end nothing, and are left out."""
    if isinstance(value, str):
        return [value] if text(name, value) else []
    if not isinstance(value, Sequence) or isinstance(value, bytes | bytearray):
        raise wrong_type(name, value, "a str or a list of them")
    return [each for i, each in enumerate(value) if text(f"{name}[{i}]", each)]


def parts(name: str, value: Any) -> list[float]:
    """tensor_split: how much of the model each device gets."""
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise wrong_type(name, value, "a list of numbers")
    found = [real(0)(f"{name}[{i}]", each) for i, each in enumerate(value)]
    if len(found) > llama_cpp.LLAMA_MAX_DEVICES:
        raise SettingError(f"{name} has {len(found)} numbers; it must have at most {llama_cpp.LLAMA_MAX_DEVICES}")
    return found


def overrides(name: str, value: Any) -> dict[str, bool | int | float | str]:
    """kv_overrides: metadata of the file that are to be something else."""
    if not isinstance(value, Mapping):
        raise wrong_type(name, value, "a dict of metadata")
    for key, each in value.items():
        if len(text(f"a key of {name}", key).encode()) > KV_KEY_MAX:
            raise SettingError(f"{name} has the key {_shown(key)}; keys are at most {KV_KEY_MAX} bytes long")
        label = f"{name}[{key!r}]"
        if isinstance(each, bool):
            continue
        if isinstance(each, int):
            integer(label, each, -(2**63), 2**63 - 1)
        elif isinstance(each, str):
            if len(text(label, each).encode()) > KV_TEXT_MAX:
                raise SettingError(f"{label} is {_shown(each)}; a text is at most {KV_TEXT_MAX} bytes long")
        elif not isinstance(each, float):
            raise wrong_type(label, each, "a bool, int, float or str")
    return dict(value)


def prompt(name: str, value: Any) -> Any:
    """A text, or tokens: those are looked at by ``tokens_of``, which knows the vocabulary."""
    if isinstance(value, str):
        return text(name, value)
    is_list = isinstance(value, Sequence) or (isinstance(value, np.ndarray) and value.ndim == 1)
    if isinstance(value, bytes | bytearray) or not is_list:
        raise wrong_type(name, value, "a str or a list of tokens")
    return value


def embedded(name: str, value: Any) -> str | list[str]:
    """A text, or a list of them."""
    if isinstance(value, str):
        return text(name, value)
    if isinstance(value, bytes | bytearray) or not isinstance(value, Sequence):
        raise wrong_type(name, value, "a str or a list of them")
    return [text(f"{name}[{i}]", each) for i, each in enumerate(value)]


def with_keys(*keys: str, allowed: str = "") -> Check:
    """A dict that has some keys."""
    allowed = allowed or f"a dict with {' and '.join(map(repr, keys))}"

    def check(name: str, value: Any) -> Any:
        if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
            raise wrong_type(name, value, allowed)
        if missing := [key for key in keys if key not in value]:
            raise SettingError(f"{name} is {_shown(value)}; it has no {missing[0]!r}")
        return value

    return check


def dicts(*keys: str) -> Check:
    """A list of dicts that have some keys; or of objects of a library that have them, such as openai's messages."""
    allowed = f"a list of dicts with {' and '.join(map(repr, keys))}"
    one = with_keys(*keys, allowed=f"one of {allowed}")

    def check(name: str, value: Any) -> list[Any]:
        if isinstance(value, str | bytes | Mapping) or not isinstance(value, Sequence):
            raise wrong_type(name, value, allowed)
        return [
            each if all(hasattr(each, key) for key in keys) else one(f"{name}[{i}]", each)
            for i, each in enumerate(value)
        ]

    return check


def response_format(name: str, value: Any) -> dict[str, Any]:
    """The form of an answer. llama_cpp leaves OpenAI's way to give a schema unused, and types that it does not know."""
    found = dict(with_keys("type")(name, value))
    if found["type"] == "json_schema":
        schema = with_keys("schema")(f"{name}['json_schema']", found.get("json_schema"))["schema"]
        return {"type": "json_object", "schema": schema}
    if found["type"] not in ("text", "json_object"):
        raise SettingError(f"{name} is {_shown(value)}; its type must be text, json_object or json_schema")
    return found


def biases(name: str, value: Any) -> dict[int, float]:
    """logit_bias: what is added to the logits of tokens. Its keys may be decimal texts, as in JSON."""
    if not isinstance(value, Mapping):
        raise wrong_type(name, value, "a dict of tokens and numbers")
    found = {}
    for key, each in value.items():
        try:
            token = int(key) if isinstance(key, str) else key
        except ValueError:
            raise SettingError(f"{name} has the key {key!r}; its keys must be tokens") from None
        label = f"{name}[{key!r}]"
        if isinstance(each, float) and each == -math.inf:  # the token is not to come at all
            found[integer(f"a key of {name}", token, 0)] = each
        else:
            found[integer(f"a key of {name}", token, 0)] = real(-FLOAT_MAX, FLOAT_MAX)(label, each)
    return found


#: By the name of an argument, wherever a method has one of it.
METHODS: dict[str, Check] = {
    "top_k": whole(-SETTING_MAX - 1),
    "top_p": real(),
    "min_p": real(),
    "typical_p": real(),
    "temp": real(),
    "temperature": real(),
    "repeat_penalty": real(0, above=True),
    "frequency_penalty": real(),
    "presence_penalty": real(),
    "tfs_z": real(),
    "mirostat_mode": one_of((0, 1, 2)),
    "mirostat_tau": real(0),
    "mirostat_eta": real(),
    "penalize_nl": flag,
    "logits_processor": optional(callables),
    "stopping_criteria": optional(callables),
    "logit_bias": optional(biases),
    "seed": optional(whole(-1, SEED_MAX + 1)),  # llama_cpp itself draws one that is too large, once in 2**32 times
    "max_tokens": optional(whole(-SETTING_MAX)),
    "logprobs": optional(whole(0)),
    "stop": optional(texts),
    "suffix": optional(text),
    "model": optional(text),
    "echo": flag,
    "stream": flag,
    "prompt": prompt,
    "text": data,
    "input": embedded,
    "add_bos": flag,
    "special": flag,
    "reset": flag,
    "idx": optional(whole(0)),
    "n_expected": whole(0),
    "normalize": flag,
    "truncate": flag,
    "return_count": flag,
    "messages": dicts("role"),
    "functions": optional(dicts("name")),
    "tools": optional(dicts("function")),
    "response_format": optional(response_format),
    "top_logprobs": optional(whole(0)),
}

_rope = real(0)

CONSTRUCTOR: dict[str, Check] = {
    "model_path": path,
    "n_gpu_layers": whole(-1),
    "split_mode": one_of(range(4)),
    "main_gpu": whole(0),
    "tensor_split": optional(parts),
    "vocab_only": flag,
    "use_mmap": flag,
    "use_mlock": flag,
    "kv_overrides": optional(overrides),
    "seed": optional(whole(-1, SEED_MAX)),
    "n_ctx": whole(0),
    "n_batch": whole(1),
    "n_ubatch": whole(1),
    "n_threads": optional(whole(0, N_THREADS_MAX)),
    "n_threads_batch": optional(whole(0, N_THREADS_MAX)),
    "rope_scaling_type": optional(one_of(range(-1, 4))),
    "pooling_type": one_of(range(-1, 5)),
    "attention_type": one_of(range(-1, 2)),
    "rope_freq_base": _rope,
    "rope_freq_scale": _rope,
    "yarn_ext_factor": real(),
    "yarn_attn_factor": real(),
    "yarn_beta_fast": real(),
    "yarn_beta_slow": real(),
    "yarn_orig_ctx": whole(0),
    "logits_all": flag,
    "embedding": flag,
    "offload_kqv": flag,
    "flash_attn": flag,
    "op_offload": optional(flag),
    "swa_full": optional(flag),
    "no_perf": flag,
    "last_n_tokens_size": whole(-1, LAST_N_MAX),
    "lora_base": optional(path),
    "lora_scale": real(),
    "lora_path": optional(path),
    "numa": lambda name, value: value if isinstance(value, bool) else one_of(range(5))(name, value),
    "chat_format": optional(text),
    "chat_handler": optional(call),
    "draft_model": optional(call),
    "tokenizer": optional(instance(BaseLlamaTokenizer, "a BaseLlamaTokenizer")),
    "type_k": cache_type,
    "type_v": cache_type,
    "spm_infill": flag,
    "verbose": flag,
}


def check_names(given: Iterable[str], known: Iterable[str], of: str) -> None:
    """llama_cpp takes arguments of any name, and leaves those unused that it does not know.

    Raises:
        UnknownArgumentError: one is not known; the message names those that are spelt like it.
    """
    names = list(known)
    for name in given:
        if name not in names:
            similar = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
            hint = f"; did you mean {' or '.join(similar)}?" if similar else ""
            raise UnknownArgumentError(f"{of} has no argument {name!r}{hint}")


def check(arguments: Mapping[str, Any], checks: Mapping[str, Check]) -> dict[str, Any]:
    """The arguments as llama_cpp is to be given them.

    Raises:
        SettingError: one is not allowed.
    """
    return {name: checks[name](name, value) if name in checks else value for name, value in arguments.items()}


def tokens_of(name: str, value: Any, n_vocab: int) -> list[int]:
    """Tokens as a list of ``int``, each in ``0 .. n_vocab-1``.

    Raises:
        SettingError: one is not a token of this vocabulary; the message says which.
    """
    is_list = isinstance(value, Iterable) and not isinstance(value, str | bytes | bytearray | Mapping)
    if not is_list or (isinstance(value, np.ndarray) and value.ndim != 1):
        raise wrong_type(name, value, "a list of tokens")
    found = value.tolist() if isinstance(value, np.ndarray) and value.dtype.kind in "iu" else list(value)
    for i, token in enumerate(found):
        if type(token) is not int or not 0 <= token < n_vocab:
            found[i] = integer(f"{name}[{i}]", token, 0, n_vocab - 1)
    return found


def bound(signature: inspect.Signature, of: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call by their names, those that were not given left out.

    Raises:
        UnknownArgumentError: one does not exist.
        WrongTypeError: one is missing, or given twice.
    """
    parameters = signature.parameters
    if not any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters.values()):
        check_names(kwargs, parameters, of)
    try:
        return dict(signature.bind(*args, **kwargs).arguments)
    except TypeError as error:
        raise WrongTypeError(f"{of}: {error}") from None
