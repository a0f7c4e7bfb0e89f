"""What a server is started with: the context of a slot, and how it is extended. Imports nothing native."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..config import AUTO, SETTING_MAX, integer
from ..errors import ModelFileError, SettingError
from ..maps import SELF_EXTEND
from ..model_info import model_info
from ..plan import Plan, make_plan

__all__ = ["ServerSetting", "default_n_ctx", "make_setting"]

#: Where nobody asks for a context: so many times the trained one, and no more than so many tokens beyond it.
TIMES, N_CTX_MAX = 4, 32768

N_CTX_MIN = 2048  # below which memory is not looked at any more

N_PARALLEL_MAX = 256  # LLAMA_MAX_SEQ


@dataclass(frozen=True)
class ServerSetting:
    """The slots of a server."""

    model: Path
    """The GGUF file."""

    n_ctx: int
    """Tokens of a slot: a chat with its answers."""

    n_ctx_train: int
    """The model's trained context in tokens."""

    n_parallel: int
    """How many slots there are."""

    ga_n: int | Literal["auto"]
    """Group size; 1 is the plain model."""

    ga_w: int | None
    """Neighbour window in tokens. None: the default."""

    ga_map: str
    """The map of positions."""

    groups: tuple[tuple[int, int], ...]
    """Lengths and group sizes that ``tune`` has measured on the model; empty: the authors' rule is followed."""

    refused: str | None
    """Why a slot is no longer than the trained context, although that was asked for."""

    def arguments(self) -> list[str]:
        """For ``llama-cli``, and of ``llama-server``'s those that both have."""
        given = ["--model", os.fspath(self.model), "--ctx-size", str(self.n_ctx * self.n_parallel)]
        given += ["--ga-n", str(self.ga_n)]
        if self.ga_w is not None:
            given += ["--ga-w", str(self.ga_w)]
        if self.ga_map != SELF_EXTEND.name:
            given += ["--ga-map", self.ga_map]
        if self.groups:
            given += ["--ga-groups", ",".join(f"{n_tokens}:{ga_n}" for n_tokens, ga_n in self.groups)]
        return given

    def server_arguments(self, host: str, port: int) -> list[str]:
        """For ``llama-server``. Each slot has a buffer of its own, and so a group of its own.

        Pages of other machines may not use it, unless options that follow say so.
        """
        slots = ["--parallel", str(self.n_parallel), "--no-kv-unified"]
        return [*self.arguments(), *slots, "--cors-origins", "localhost", "--host", host, "--port", str(port)]


def default_n_ctx(model: str | os.PathLike[str], n_parallel: int = 1) -> int:
    """The context of a slot where none is asked for, in tokens: what memory holds and the model reads well.

    The trained context, and beyond it up to four times as much, but not above 32,768 tokens; halved until an F16 cache
    for all slots, with the weights, fits into this machine's free memory.

    Raises:
        ModelFileError: the file cannot be read.
    """
    info = model_info(model)
    n_ctx_train = min(info.n_ctx_train, SETTING_MAX // N_PARALLEL_MAX)
    n_ctx = n_ctx_train if info.refused else max(n_ctx_train, min(TIMES * n_ctx_train, N_CTX_MAX))
    while n_ctx >= 2 * N_CTX_MIN:
        plan = make_plan(model, n_ctx * n_parallel, type_k="F16", type_v="F16")
        if not plan.memory or plan.memory[0].holds:
            break
        n_ctx //= 2
    return n_ctx


def make_setting(
    model: str | os.PathLike[str],
    n_ctx: int | None = None,
    *,
    ga_n: int | Literal["auto"] = "auto",
    ga_w: int | None = None,
    ga_map: str = SELF_EXTEND.name,
    n_parallel: int = 1,
) -> ServerSetting:
    """Check what a server is asked for against its model.

    Args:
        model: the GGUF file. Only its metadata are read.
        n_ctx: tokens of a slot; None: ``default_n_ctx``.
        ga_n: group size; "auto" follows the length of the text, 1 is the plain model.
        ga_w: neighbour window in tokens; None: an eighth of the trained context, at most 2048.
        ga_map: the map of positions, a name from ``maps.MAPS``.
        n_parallel: slots, each with a context of its own.

    Raises:
        ModelFileError: the file cannot be read, llama.cpp cannot load what it says, or it has no tokenizer.
        SettingError: a value is not allowed, or the model does not reach ``n_ctx`` with it.
    """
    n_parallel = integer("n_parallel", n_parallel, 1, N_PARALLEL_MAX)
    if n_ctx is None:
        n_ctx = default_n_ctx(model, n_parallel)
    n_ctx = integer("n_ctx", n_ctx, 1, SETTING_MAX // n_parallel)
    plan = make_plan(model, n_ctx, ga_n=ga_n, ga_w=ga_w, ga_map=ga_map)
    if not plan.model.has_tokenizer:
        raise ModelFileError(f"{plan.model.path} has no tokenizer, so it cannot be asked")  # llama.cpp would abort
    return ServerSetting(
        model=Path(model),
        n_ctx=n_ctx,
        n_ctx_train=plan.model.n_ctx_train,
        n_parallel=n_parallel,
        ga_n=ga_n,
        ga_w=ga_w,
        ga_map=ga_map,
        groups=tuple((group.n_tokens, group.ga_n) for group in plan.auto) if plan.is_measured else (),
        refused=_refused(plan, ga_n),
    )


def _refused(plan: Plan, ga_n: int | Literal["auto"]) -> str | None:
    n_ctx, n_ctx_train = plan.n_tokens, plan.model.n_ctx_train
    if ga_n == AUTO:
        return plan.model.refused if n_ctx > n_ctx_train else None
    if ga_n == 1:
        return f"ga_n=1 is the plain model, which was trained on {n_ctx_train} tokens" if n_ctx > n_ctx_train else None
    if plan.model.refused:
        raise SettingError(plan.model.refused)
    if plan.asked is not None and not plan.asked.reaches:
        raise SettingError(
            f"n_ctx is {n_ctx}, but ga_n={plan.asked.ga_n} and ga_w={plan.asked.ga_w} reach {plan.asked.n_ctx_reach} "
            f"tokens on this model, which was trained on {n_ctx_train}"
        )
    return None
