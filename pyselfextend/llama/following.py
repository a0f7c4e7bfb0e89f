"""``ga_n="auto"``: whether the group of an instance is to follow the length, and that it does."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .. import _native, measured
from ..config import SelfExtendConfig
from ..groups import N_ANSWER, GroupPolicy, default_ga_w
from ..maps import SELF_EXTEND
from ..model_info import ModelInfo

if TYPE_CHECKING:
    from .evaluation import Evaluating

__all__ = ["N_ANSWER", "follow", "policy", "refused", "warn"]

_library = _native.load()

#: Arguments of llama_cpp that choose a RoPE scaling, and the values that leave it to the model.
ROPE = {
    "rope_scaling_type": -1, "rope_freq_base": 0, "rope_freq_scale": 0, "yarn_ext_factor": -1, "yarn_orig_ctx": 0,
}  # fmt: skip


def policy(info: ModelInfo, config: SelfExtendConfig, n_ctx: int, arguments: Mapping[str, Any]) -> GroupPolicy | None:
    """The policy of an instance of a model. None: its context is as trained, or less.

    With the groups that were measured on the model, unless ``arguments`` scale its positions.

    Raises:
        SettingError: ``ga_w`` is not below the trained context.
    """
    if n_ctx <= info.n_ctx_train:
        return None
    ga_w = default_ga_w(info.n_ctx_train, config.ga_map) if config.ga_w is None else config.ga_w
    is_rule = config.ga_map != SELF_EXTEND.name or _scaling(arguments)
    table = () if is_rule else measured.groups(info.path, info.n_ctx_train, ga_w)
    return GroupPolicy(info.n_ctx_train, ga_w, n_ctx, table, config.ga_map)


def refused(info: ModelInfo, arguments: Mapping[str, Any]) -> str | None:
    """Why a longer context is not one with SelfExtend, unless it is asked for by name."""
    if scaling := _scaling(arguments):
        return scaling
    if info.rope.has_sections and arguments.get("chat_handler") is not None:
        return "a chat_handler is given, and images of this model have positions in several dimensions"
    return info.refused


def _scaling(arguments: Mapping[str, Any]) -> str | None:
    for name, value in ROPE.items():
        if arguments.get(name, value) not in (value, None):
            return f"{name}={arguments[name]} scales its positions"
    return None


def warn(n_ctx: int, n_ctx_train: int, reason: str) -> None:
    """Say that a longer context is the plain model's."""
    warnings.warn(
        f"n_ctx={n_ctx} is above the {n_ctx_train} tokens that the model was trained on, and it is opened without "
        f"SelfExtend: {reason}; ga_n=1 says that this is wanted",
        RuntimeWarning,
        stacklevel=5,  # of who calls Llama()
    )


def follow(llm: Evaluating, n_tokens: int, n_answer: int | None) -> bool:
    """Choose the group of a text that is ``n_tokens`` long when the next ones have been evaluated.

    Args:
        llm: ``llm.n_tokens`` of them are kept in the cache, which has no others.
        n_answer: tokens that will follow. None: the text has been handed over before, and goes on.

    Returns:
        False if it has to be read anew: the keys of this model cannot be turned to another group.
    """
    assert llm._policy is not None
    now = _library.get_group(llm.ctx)
    if n_answer is None:
        wanted = llm._policy.outgrow(now, n_tokens)
    else:
        wanted = llm._policy.resume(now, llm.n_tokens, n_tokens + n_answer)
    return wanted in (now, 0) or _library.set_group(llm.ctx, 0, wanted)
