"""What is measured: lengths, groups, texts. Pure: imports nothing native."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from ..config import SETTING_MAX, integer
from ..errors import SettingError
from ..eval.text import Text, default_text
from ..fingerprint import fingerprint
from ..groups import default_ga_w, ga_n_auto
from ..model_info import ModelInfo, model_info
from ..positions import ga_n_min, n_ctx_reach

__all__ = [
    "KEYS",
    "KEYS_MAX",
    "SAMPLES",
    "SAMPLES_MAX",
    "WINDOW",
    "Plan",
    "default_groups",
    "default_lengths",
    "make_plan",
]

#: Defaults: keys that are asked for at a length, texts, tokens before a length whose probabilities are its perplexity.
KEYS, SAMPLES, WINDOW = 12, 1, 1024

KEYS_MAX, SAMPLES_MAX = 64, 1000


@dataclass(frozen=True)
class Plan:
    """What is measured on a model."""

    model: ModelInfo
    digest: str
    """The model's ``fingerprint``."""

    ga_w: int
    """Neighbour window in tokens."""

    lengths: tuple[int, ...]
    """In tokens, ascending: of a text with a question and its answer."""

    groups: tuple[int, ...]
    """Group sizes, ascending. Each has a length that it reaches, and each length a group that reaches it."""

    samples: int
    """How many texts."""

    keys: int
    """Keys that are asked for at each length, at depths spread over the text."""

    window: int
    """Tokens before each length whose probabilities make up its perplexity."""

    seed: int
    """Chooses the keys."""

    text: Text = field(repr=False)
    """The prose."""

    def lengths_of(self, ga_n: int) -> tuple[int, ...]:
        """The lengths that a group reaches."""
        reach = n_ctx_reach(self.model.n_ctx_train, ga_n, self.ga_w)
        return tuple(length for length in self.lengths if length <= reach)


def default_lengths(n_ctx_train: int) -> tuple[int, ...]:
    """Half the trained context, all of it, 1.5, 2, 3 and 4 times it, in tokens."""
    return tuple(max(1, n_ctx_train * halves // 2) for halves in (1, 2, 3, 4, 6, 8))


def default_groups(n_ctx_train: int, ga_w: int, lengths: Sequence[int]) -> tuple[int, ...]:
    """1, 2, 3, 4, 6, 8, 12, ... up to the group that the rule chooses for the longest length: those that reach the
    shortest one.
    """
    largest = ga_n_auto(n_ctx_train, ga_w, max(lengths))
    return tuple(ga_n for ga_n in _ladder(largest) if n_ctx_reach(n_ctx_train, ga_n, ga_w) >= min(lengths))


def _ladder(largest: int) -> Iterator[int]:
    power = 1
    while power <= largest:
        yield power
        if 1 < power < largest:
            yield 3 * power // 2
        power *= 2


def make_plan(
    model: str | os.PathLike[str],
    *,
    lengths: Sequence[int] | None = None,
    groups: Sequence[int] | None = None,
    ga_w: int | None = None,
    samples: int = SAMPLES,
    keys: int = KEYS,
    window: int = WINDOW,
    seed: int = 1,
    text: Text | None = None,
) -> Plan:
    """A plan, checked against the model as far as that goes without loading it.

    Args:
        model: path of the GGUF file.
        lengths: in tokens. None: see ``default_lengths``.
        groups: group sizes. None: see ``default_groups``.
        ga_w: neighbour window. None: an eighth of the trained context, at most 2048.
        samples, keys, window, seed: see ``Plan``.
        text: the prose. None: the documentation that comes with Python.

    Raises:
        ModelFileError: the file is not a GGUF model.
        SettingError: a value is not allowed, or the model cannot be extended.
        DemoError: this Python comes without its language reference.
    """
    info = model_info(model)
    n_ctx_train = info.n_ctx_train
    if info.refused is not None:
        raise SettingError(f"{info.path} has no groups to choose from: {info.refused}")
    ga_w = default_ga_w(n_ctx_train) if ga_w is None else integer("ga_w", ga_w, 0, SETTING_MAX)
    n_ctx_reach(n_ctx_train, 1, ga_w)  # refuses a window that is too large
    lengths = default_lengths(n_ctx_train) if lengths is None else lengths
    found_lengths = sorted({integer("length", length, 1, SETTING_MAX) for length in lengths})
    if not found_lengths:
        raise SettingError("there is nothing to measure: no length")
    if groups is None:
        groups = default_groups(n_ctx_train, ga_w, found_lengths)
    found_groups = sorted({integer("ga_n", ga_n, 1, SETTING_MAX) for ga_n in groups})
    plan = Plan(
        model=info,
        digest=fingerprint(info.path),
        ga_w=ga_w,
        lengths=tuple(found_lengths),
        groups=tuple(found_groups),
        samples=integer("samples", samples, 1, SAMPLES_MAX),
        keys=integer("keys", keys, 1, KEYS_MAX),
        window=integer("window", window, 1, SETTING_MAX),
        seed=seed,
        text=default_text() if text is None else text,
    )
    _check_reach(plan)
    return plan


def _check_reach(plan: Plan) -> None:
    """See that every group has a length, and every length a group."""
    n_ctx_train, longest = plan.model.n_ctx_train, plan.lengths[-1]
    for ga_n in plan.groups:
        if not plan.lengths_of(ga_n):
            reach = n_ctx_reach(n_ctx_train, ga_n, plan.ga_w)
            raise SettingError(
                f"ga_n={ga_n} reaches {reach} tokens on this model, and the shortest length is {plan.lengths[0]}"
            )
    if not any(longest in plan.lengths_of(ga_n) for ga_n in plan.groups):
        smallest = ga_n_min(n_ctx_train, plan.ga_w, longest)
        raise SettingError(
            f"none of the groups {', '.join(map(str, plan.groups))} reaches {longest} tokens; give one of at least "
            f"{smallest}"
        )
