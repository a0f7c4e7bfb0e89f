"""How a model is made to read a long text: plain, SelfExtend with a group that follows the length or with a fixed pair,
the same with another map of positions, or a RoPE scaling.

Pure: imports nothing native.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from ..config import AUTO, SETTING_MAX, SelfExtendConfig, integer
from ..errors import SettingError
from ..groups import GroupPolicy, GroupTable, default_ga_w
from ..maps import MAPS, SELF_EXTEND
from ..measured import groups_by_window
from ..model_info import ModelInfo, model_info
from ..positions import n_ctx_reach

__all__ = ["KINDS", "MEASURED", "Rope", "Setting"]

#: Maps that are settings as auto and pairs are.
FOLLOWING = tuple(name for name, each in MAPS.items() if each.follows and each is not SELF_EXTEND)

#: The kinds that name themselves; the other one is a pair ``G:W``.
KINDS = ("plain", "auto", "yarn", "linear", "ntk", "mrrope")

ALLOWED = (
    "plain, auto, also with a neighbour window (auto:1024), G:W (group size and neighbour window; 4: has the model's), "
    f"one of the maps {', '.join(FOLLOWING)}, also with a window or a pair (jet-long:1024, jet-long:4:1024), or yarn, "
    "linear, ntk or mrrope, the last four also with a factor (yarn:4)"
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

    ``auto`` reads each text with the group of its length, as ``Llama`` does; a pair reads all with one. So with another
    map of positions, see ``maps``. ``yarn`` is
    Peng et al., arXiv 2309.00071; ``linear`` is position interpolation, Chen et al., arXiv 2306.15595; ``ntk`` is the
    NTK-aware base ``b * s ** (d / (d - 2))`` of the same YaRN paper, section 3.1; ``mrrope`` is MrRoPE-Pro,
    arXiv 2601.22181. ``s`` is the factor by which the context grows, of ``mrrope`` a whole number. The first three are
    what llama.cpp makes of its own options.
    """

    kind: str
    ga_n: int = 1
    ga_w: int | None = None
    """Of a pair and of auto, in tokens. None: the default of the model."""

    factor: float | None = None
    """Of yarn, linear, ntk and mrrope. None: as much as the longest prompt needs."""

    ga_map: str = SELF_EXTEND.name
    """Of a pair and of auto."""

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
        name, colon, rest = text.partition(":")
        is_map = name in FOLLOWING
        ga_map, rest = (name, rest) if is_map else (SELF_EXTEND.name, text)
        if pair := re.fullmatch(r"(\d+):(\d*)", rest):
            ga_n = integer("ga_n", int(pair[1]), 2, SETTING_MAX)
            return cls("pair", ga_n, _window(pair[2]), ga_map=SelfExtendConfig(ga_n, ga_map=ga_map).ga_map)
        if auto := re.fullmatch(r"(\d+)" if is_map else r"auto:(\d+)", rest):
            return cls("auto", ga_w=_window(auto[1]), ga_map=ga_map)
        if is_map and not colon:
            return cls("auto", ga_map=ga_map)
        kind, colon, rest = text.partition(":")
        if kind not in KINDS or (colon and kind in ("plain", "auto")):
            raise SettingError(f"the setting is {text!r}; it must be {ALLOWED}")
        if not colon:
            return cls(kind)
        try:
            factor = float(rest)
        except ValueError:
            factor = 0.0
        if not 1 <= factor <= 1024 or (kind == "mrrope" and not factor.is_integer()):
            whole = "whole " if kind == "mrrope" else ""
            raise SettingError(f"the setting is {text!r}; its factor must be a {whole}number from 1 to 1024")
        return cls(kind, factor=factor)

    def __str__(self) -> str:
        has_map = self.ga_map != SELF_EXTEND.name
        window = "" if self.ga_w is None else f"{self.ga_w}"
        if self.kind == "pair":
            return f"{self.ga_map}:{self.ga_n}:{window}" if has_map else f"{self.ga_n}:{window}"
        if self.kind == "auto":
            measured = f"{MEASURED}{hashlib.sha256(repr(self.table).encode()).hexdigest()[:6]}" if self.table else ""
            return (self.ga_map if has_map else "auto") + (f":{window}" if window else "") + measured
        return self.kind if self.factor is None else f"{self.kind}:{self.factor:g}"

    def resolve(self, rope: Rope, n_ctx: int) -> Setting:
        """The setting with its window, or with its factor for a context of ``n_ctx`` tokens:
        ``max(1, n_ctx / n_ctx_train)``, rounded up to hundredths, of mrrope to a whole number.

        Raises:
            SettingError: the model does not take it: the file declares a scaling of its own, or the window is too
                large.
        """
        if self.kind == "plain":
            return self
        if self.kind in ("auto", "pair"):
            ga_w = default_ga_w(rope.n_ctx_train) if self.ga_w is None else self.ga_w
            n_ctx_reach(rope.n_ctx_train, 1, ga_w)  # refuses a window that is too large
            is_rule = self.kind != "auto" or self.ga_map != SELF_EXTEND.name
            table = () if is_rule else dict(rope.measured).get(ga_w, ())
            return Setting(self.kind, self.ga_n, ga_w, ga_map=self.ga_map, table=table)
        if rope.n_rot == 0:
            raise SettingError(f"{self.kind} scales RoPE, which the model does not have")
        if rope.scaling:
            raise SettingError(
                f"{self.kind} would replace the RoPE scaling that the model itself declares ({rope.scaling}); "
                "compare plain and pairs on it"
            )
        if self.factor is not None:
            return self
        parts = 1 if self.kind == "mrrope" else 100
        factor = Fraction(-(-Fraction(parts * n_ctx, rope.n_ctx_train) // 1), parts)
        return Setting(self.kind, factor=max(1.0, float(factor)))

    def n_ctx_max(self, rope: Rope) -> int | None:
        """The longest context, in tokens. None: there is no limit, only loss of quality."""
        if self.kind == "mrrope" and self.factor is not None:
            return n_ctx_reach(rope.n_ctx_train, int(self.factor), 0, self.kind)
        if self.kind != "pair":
            return rope.n_ctx_train if rope.is_learned else None
        return n_ctx_reach(rope.n_ctx_train, self.ga_n, self.ga_w or 0, self.ga_map)

    def group(self, rope: Rope, n_tokens: int) -> int:
        """The group size that a text of ``n_tokens`` tokens is read with, counted as by ``sharing.n_read``.

        The setting must be resolved.
        """
        if self.kind != "auto":
            return self.ga_n
        assert self.ga_w is not None
        return GroupPolicy(rope.n_ctx_train, self.ga_w, n_tokens, self.table, self.ga_map).begin(n_tokens)

    def arguments(self, rope: Rope) -> dict[str, Any]:
        """What ``Llama`` is given for it. The setting must be resolved."""
        if self.kind == "pair":
            return {"ga_n": self.ga_n, "ga_w": self.ga_w, "ga_map": self.ga_map}
        if self.kind == "auto":
            return {"ga_n": AUTO, "ga_w": self.ga_w, "ga_map": self.ga_map}
        if self.kind == "mrrope":
            assert self.factor is not None
            return {"ga_n": int(self.factor), "ga_map": self.kind}
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


def _window(digits: str) -> int | None:
    """A neighbour window that is written out, or None for the model's."""
    return integer("ga_w", int(digits), 0, SETTING_MAX) if digits else None
