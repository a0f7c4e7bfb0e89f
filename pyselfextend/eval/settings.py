"""How a model is made to read a long text: plain, SelfExtend with a group that follows the length or with a fixed pair,
or one of llama.cpp's own RoPE scalings.

Pure: imports nothing native.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from ..config import AUTO, SETTING_MAX, integer
from ..errors import SettingError
from ..groups import GroupPolicy, GroupTable, default_ga_w
from ..measured import groups_by_window
from ..model_info import ModelInfo, model_info
from ..positions import n_ctx_reach

__all__ = ["KINDS", "MEASURED", "Rope", "Setting"]

#: The kinds that name themselves; the other one is a pair ``G:W``.
KINDS = ("plain", "auto", "yarn", "linear", "ntk")

ALLOWED = (
    "plain, auto, also with a neighbour window (auto:1024), G:W (group size and neighbour window), yarn, linear or "
    "ntk, the last three also with a factor (yarn:4)"
)

#: Between the window and a digest of the groups in the name of auto with measured groups.
MEASURED = "+"

# enum llama_rope_scaling_type
LINEAR, YARN = 1, 2


@dataclass(frozen=True)
class Rope:
    """What a model file says about its positions."""

    n_ctx_train: int
    """Trained context in tokens."""

    freq_base: float
    n_rot: int
    """How many dimensions of a head are rotated."""

    scaling: str = ""
    """The kind of scaling that the file itself declares; empty for none."""

    is_learned: bool = False
    """Whether each position has learned weights, so that there are none beyond the trained context."""

    measured: tuple[tuple[int, GroupTable], ...] = ()
    """The groups that ``pyselfextend tune`` has measured on the model, by neighbour window."""

    @classmethod
    def of(cls, model: Path | ModelInfo) -> Rope:
        """What a GGUF file says.

        Raises:
            ModelFileError: it is not a GGUF file of a model.
        """
        info = model if isinstance(model, ModelInfo) else model_info(model)
        scaling = "" if info.rope.scaling == "none" else info.rope.scaling
        measured = tuple(groups_by_window(info.path, info.n_ctx_train).items())
        return cls(
            info.n_ctx_train, info.rope.freq_base, info.rope.n_rot, scaling, info.has_learned_positions, measured
        )


@dataclass(frozen=True)
class Setting:
    """One column of a comparison.

    ``auto`` reads each text with the group of its length, as ``Llama`` does; a pair reads all with one. ``yarn`` is
    Peng et al., arXiv 2309.00071; ``linear`` is position interpolation, Chen et al., arXiv 2306.15595; ``ntk`` is the
    NTK-aware base ``b * s ** (d / (d - 2))`` of the same YaRN paper, section 3.1. ``s`` is the factor by which the
    context grows. Each is what llama.cpp makes of its own options.
    """

    kind: str
    ga_n: int = 1
    ga_w: int | None = None
    """Of a pair and of auto, in tokens. None: the default of the model."""

    factor: float | None = None
    """Of yarn, linear and ntk. None: as much as the longest prompt needs."""

    table: GroupTable = ()
    """Of auto, resolved: the groups that were measured on the model. What was asked with others has another name."""

    def __post_init__(self) -> None:
        if self.kind not in (*KINDS, "pair"):
            raise SettingError(f"the kind of setting is {self.kind!r}; it must be pair or one of {', '.join(KINDS)}")

    @classmethod
    def parse(cls, text: str) -> Setting:
        """The setting that ``text`` names: see ``ALLOWED``.

        Raises:
            SettingError: it names none.
        """
        if pair := re.fullmatch(r"(\d+):(\d+)", text):
            ga_n, ga_w = integer("ga_n", int(pair[1]), 2, SETTING_MAX), integer("ga_w", int(pair[2]), 0, SETTING_MAX)
            return cls("pair", ga_n, ga_w)
        if auto := re.fullmatch(r"auto:(\d+)", text):
            return cls("auto", ga_w=integer("ga_w", int(auto[1]), 0, SETTING_MAX))
        kind, colon, rest = text.partition(":")
        if kind not in KINDS or (colon and kind in ("plain", "auto")):
            raise SettingError(f"the setting is {text!r}; it must be {ALLOWED}")
        if not colon:
            return cls(kind)
        try:
            factor = float(rest)
        except ValueError:
            factor = 0.0
        if not 1 <= factor <= 1024:
            raise SettingError(f"the setting is {text!r}; its factor must be a number from 1 to 1024")
        return cls(kind, factor=factor)

    def __str__(self) -> str:
        if self.kind == "pair":
            return f"{self.ga_n}:{self.ga_w}"
        if self.ga_w is not None:
            measured = f"{MEASURED}{hashlib.sha256(repr(self.table).encode()).hexdigest()[:6]}" if self.table else ""
            return f"{self.kind}:{self.ga_w}{measured}"
        return self.kind if self.factor is None else f"{self.kind}:{self.factor:g}"

    def resolve(self, rope: Rope, n_ctx: int) -> Setting:
        """The setting with its window, or with its factor for a context of ``n_ctx`` tokens:
        ``max(1, n_ctx / n_ctx_train)``, rounded up to hundredths.

        Raises:
            SettingError: the model does not take it: the file declares a scaling of its own, or the window is too
                large.
        """
        if self.kind == "plain":
            return self
        if self.kind in ("auto", "pair"):
            ga_w = default_ga_w(rope.n_ctx_train) if self.ga_w is None else self.ga_w
            n_ctx_reach(rope.n_ctx_train, self.ga_n, ga_w)  # refuses a window that is too large
            table = dict(rope.measured).get(ga_w, ()) if self.kind == "auto" else ()
            return Setting(self.kind, self.ga_n, ga_w, table=table)
        if rope.n_rot == 0:
            raise SettingError(f"{self.kind} scales RoPE, which the model does not have")
        if rope.scaling:
            raise SettingError(
                f"{self.kind} would replace the RoPE scaling that the model itself declares ({rope.scaling}); "
                "compare plain and pairs on it"
            )
        if self.factor is not None:
            return self
        hundredths = -(-Fraction(100 * n_ctx, rope.n_ctx_train) // 1)
        return Setting(self.kind, factor=max(1.0, float(hundredths) / 100))

    def n_ctx_max(self, rope: Rope) -> int | None:
        """The longest context, in tokens. None: there is no limit, only loss of quality."""
        if self.kind != "pair":
            return rope.n_ctx_train if rope.is_learned else None
        return n_ctx_reach(rope.n_ctx_train, self.ga_n, self.ga_w or 0)

    def group(self, rope: Rope, n_tokens: int) -> int:
        """The group size that a text of ``n_tokens`` tokens is read with, counted as by ``sharing.n_read``.

        The setting must be resolved.
        """
        if self.kind != "auto":
            return self.ga_n
        assert self.ga_w is not None
        return GroupPolicy(rope.n_ctx_train, self.ga_w, n_tokens, self.table).begin(n_tokens)

    def arguments(self, rope: Rope) -> dict[str, Any]:
        """What ``Llama`` is given for it. The setting must be resolved."""
        if self.kind == "pair":
            return {"ga_n": self.ga_n, "ga_w": self.ga_w}
        if self.kind == "auto":
            return {"ga_n": AUTO, "ga_w": self.ga_w}
        return {"ga_n": 1, **self._scaling(rope)}  # by name: without, a longer context would be one with SelfExtend

    def _scaling(self, rope: Rope) -> dict[str, Any]:
        if self.kind == "plain":
            return {}
        assert self.factor is not None
        if self.kind == "ntk":
            return {"rope_freq_base": rope.freq_base * self.factor ** (rope.n_rot / (rope.n_rot - 2))}
        if self.kind == "linear":
            return {"rope_scaling_type": LINEAR, "rope_freq_scale": 1 / self.factor}
        return {"rope_scaling_type": YARN, "rope_freq_scale": 1 / self.factor, "yarn_orig_ctx": rope.n_ctx_train}
