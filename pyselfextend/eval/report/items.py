"""Results made ready to be grouped: checked, in a fixed order, each with the axes it can be grouped by. Pure."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ...errors import EvalError
from ...groups import default_ga_w
from ...maps import MAPS, SELF_EXTEND
from ..cases import Axis
from ..results import Result
from ..settings import KINDS, MEASURED, Setting

__all__ = [
    "ACCURACY",
    "BEYOND",
    "INSIDE",
    "LOG_PROB",
    "MEASURES",
    "PERPLEXITY",
    "PLAIN",
    "Axes",
    "Item",
    "Subject",
    "auto_window",
    "axes_order",
    "axis_order",
    "clean",
    "every_measure",
    "group_order",
    "is_measured",
    "is_number",
    "kind_of",
    "measured",
    "n_read",
    "pair_of",
    "prepare",
    "setting_order",
    "subject_order",
    "task_order",
]

PLAIN = "plain"

ACCURACY, LOG_PROB, PERPLEXITY = "accuracy", "log_prob", "perplexity"

#: In the page's order.
MEASURES = (ACCURACY, LOG_PROB, PERPLEXITY)

#: Values of the axis ``where``: whether a case is longer than the model's trained window.
INSIDE, BEYOND = "inside", "beyond"

#: The order of the tasks on the page. Others follow by name.
TASKS = ("passkey", "niah", "kv", "ruler", "ppl", "longbench", "leval", "short")

#: Tasks that ask the same at every length, so that lengths cannot be put together. All perplexities do so as well.
SAME_AT_EVERY_LENGTH = frozenset({"longbench", "leval", "short"})

#: ``exp`` of more than this is no perplexity but an accident; so is more than this for a token of a right answer.
MAX_NLL = 500.0

#: What would disturb a page though it is no HTML: controls, marks that turn the direction of text, lone surrogates.
DISTURBING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")

#: Names and values that a group of cases has in common.
Axes = tuple[tuple[str, Axis], ...]


@dataclass(frozen=True)
class Subject:
    """What is measured under each setting: a model file with types of the cache."""

    model: str
    """Name of the file."""

    model_bytes: int
    n_ctx_train: int
    """Trained window in tokens; 0 is unknown."""

    type_k: str
    type_v: str

    @property
    def cache(self) -> str:
        """The types of the cache, as one word."""
        return self.type_k if self.type_k == self.type_v else f"K {self.type_k}, V {self.type_v}"


@dataclass(frozen=True)
class Item:
    """A result as it is counted."""

    result: Result
    subject: Subject
    measure: str
    """``ACCURACY`` or ``PERPLEXITY``; ``LOG_PROB`` only out of ``measured``. A failed case has that of its
    neighbours."""

    axes: Mapping[str, Axis]
    """Those of the case, and ``where``: ``INSIDE`` or ``BEYOND`` the trained window, if that is known."""

    error: str
    """Why it does not count; empty if it does."""

    @property
    def task(self) -> str:
        return self.result.task

    @property
    def setting(self) -> str:
        return self.result.setting

    @property
    def is_repeated(self) -> bool:
        """Whether other lengths ask the same."""
        return "n_tokens" in self.axes and (self.measure == PERPLEXITY or self.task in SAME_AT_EVERY_LENGTH)

    @property
    def length(self) -> int:
        """In tokens: as asked for where the task asks for a length, otherwise that of the prompt."""
        n_tokens = self.axes.get("n_tokens", self.result.n_prompt)
        return int(n_tokens) if is_number(n_tokens) else self.result.n_prompt


def prepare(results: Iterable[Result]) -> list[Item]:
    """The results in a fixed order, whatever the order that they came in; of two with one identity, the last one.

    Raises:
        EvalError: there are none.
    """
    found = [_drawable(result) for result in {result.identity: result for result in results}.values()]
    if not found:
        raise EvalError("there are no results to report")
    items = [
        Item(r, _subject(r), measure, _axes(r), _problem(r)) for r, measure in zip(found, _measures(found), strict=True)
    ]
    return sorted(items, key=_order)


def measured(items: Iterable[Item], measure: str) -> list[Item]:
    """The cases that one measure counts. What has an accuracy can have the log probability of its right answer as well;
    a result without one, as of an earlier version, is not counted there.
    """
    items = list(items)
    if measure != LOG_PROB:
        return [item for item in items if item.measure == measure]
    found = {_family(item) for item in items if item.result.gold_log_prob is not None}
    return [
        replace(item, measure=LOG_PROB, error=item.error or _gold_problem(item.result))
        for item in items
        if item.result.gold_log_prob is not None or (item.error and _family(item) in found)
    ]


def every_measure(items: Iterable[Item]) -> list[Item]:
    """The cases once for each measure that counts them."""
    items = list(items)
    return [item for measure in MEASURES for item in measured(items, measure)]


def _family(item: Item) -> tuple[str, Axis]:
    """Cases that are all measured, or none of them."""
    return item.task, item.axes.get("subtask", "")


def clean(text: str) -> str:
    """The text with everything invisible that disturbs made visible."""
    return DISTURBING.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def is_number(value: object) -> bool:
    """Whether an axis' value can be a coordinate."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def axis_order(value: Axis) -> tuple[Hashable, ...]:
    """Sorts numbers by size and before names."""
    return (0, value, "") if is_number(value) else (1, 0, str(value))


def pair_of(setting: str) -> tuple[int, int] | None:
    """Group size and neighbour window of a setting ``G:W``, None of another."""
    return None if (parsed := _of_kind(setting, "pair")) is None else (parsed.ga_n, parsed.ga_w or 0)


def auto_window(setting: str, subject: Subject) -> int | None:
    """The neighbour window of a setting ``auto`` for a model, None of another."""
    if (parsed := _of_kind(setting, "auto")) is None:
        return None
    return default_ga_w(subject.n_ctx_train) if parsed.ga_w is None else parsed.ga_w


def _of_kind(setting: str, kind: str) -> Setting | None:
    """What a setting of this kind with SelfExtend's own map says."""
    return _parse(setting) if kind_of(setting) == kind else None


def is_measured(setting: str) -> bool:
    """Whether it is ``auto`` with the groups that were measured on the model."""
    return kind_of(setting) == "auto" and MEASURED in setting


def kind_of(setting: str) -> str:
    """``plain``, ``auto``, ``pair``, the name of another map, ``yarn``, ``linear``, ``ntk``, or nothing for what this
    version does not know.
    """
    parsed = _parse(setting)
    if parsed is None:
        return ""
    return parsed.kind if parsed.ga_map == SELF_EXTEND.name else parsed.ga_map


def setting_order(setting: str) -> tuple[Hashable, ...]:
    """Plain first, then auto, then pairs by size, then the others."""
    order = ("plain", "auto", "pair", *MAPS, *KINDS[2:])
    parsed = _parse(setting)
    if parsed is None:
        return (len(order), 0, 0, 0.0, setting)
    return (order.index(kind_of(setting)), parsed.ga_n, parsed.ga_w or 0, parsed.factor or 0.0, setting)


def task_order(task: str) -> tuple[int, str]:
    """As in ``TASKS``, then by name."""
    return (TASKS.index(task), "") if task in TASKS else (len(TASKS), task)


def subject_order(subject: Subject) -> tuple[Hashable, ...]:
    """By name, size and cache."""
    return (subject.model, subject.model_bytes, subject.n_ctx_train, subject.type_k, subject.type_v)


def group_order(task: str, measure: str, subject: Subject, setting: str, axes: Axes) -> tuple[Hashable, ...]:
    """Sorts groups of cases as the page shows them."""
    return (task_order(task), measure, subject_order(subject), setting_order(setting), axes_order(axes))


def axes_order(axes: Axes) -> tuple[Hashable, ...]:
    """Sorts groups of cases by what they share."""
    return tuple((name, value == BEYOND, axis_order(value)) for name, value in axes)


def _parse(setting: str) -> Setting | None:
    try:
        return Setting.parse(setting.partition(MEASURED)[0])
    except ValueError:  # SettingError is one
        return None


def _order(item: Item) -> tuple[Hashable, ...]:
    result = item.result
    axes = tuple((name, axis_order(value)) for name, value in item.axes.items())
    subject = subject_order(item.subject)
    return (task_order(result.task), subject, setting_order(result.setting), axes, result.key, result.digest)


def _subject(result: Result) -> Subject:
    return Subject(result.model, result.model_bytes, result.n_ctx_train, result.type_k, result.type_v)


def _axes(result: Result) -> dict[str, Axis]:
    axes = dict(result.axes)
    if result.n_ctx_train > 0:
        axes["where"] = INSIDE if n_read(result) <= result.n_ctx_train else BEYOND
    return axes


def n_read(result: Result) -> int:
    """Tokens that the model has read at once.

    LongBench's prompts are often shorter than the length that they are cut at; ``n_prompt`` of a choice among
    continuations counts all of them, its length the longest one.
    """
    n_tokens = result.axes.get("n_tokens")
    return min(result.n_prompt, int(n_tokens)) if isinstance(n_tokens, (int, float)) else result.n_prompt


def _drawable(result: Result) -> Result:
    """With names that can stand in a plot; files can hold anything."""
    names = ("model", "setting", "type_k", "type_v", "task")
    cleaned: dict[str, Any] = {name: clean(getattr(result, name)) for name in names}
    return replace(result, axes={clean(name): _axis(value) for name, value in result.axes.items()}, **cleaned)


def _axis(value: object) -> Axis:
    return value if isinstance(value, (int, float)) and is_number(value) else clean(str(value))


def _measures(results: Sequence[Result]) -> list[str]:
    """Of each result. What failed does not say how it would have been scored, but the same case elsewhere does."""

    def own(result: Result) -> str:
        return PERPLEXITY if result.nll is not None else ACCURACY if result.score is not None else ""

    votes: dict[tuple[str, ...], Counter[str]] = {}
    for result in results:
        if own(result):
            for group in _neighbours(result):
                votes.setdefault(group, Counter())[own(result)] += 1

    def guess(result: Result) -> str:
        for group in _neighbours(result):
            if group in votes:
                return max(sorted(votes[group]), key=votes[group].__getitem__)
        return PERPLEXITY if "ppl" in result.task else ACCURACY

    return [own(result) or guess(result) for result in results]


def _neighbours(result: Result) -> tuple[tuple[str, ...], ...]:
    """Groups that a result belongs to, the closest first."""
    return (
        (result.task, str(result.axes.get("subtask", "")), result.key),
        (result.task, str(result.axes.get("subtask", ""))),
        (result.task,),
    )


def _gold_problem(result: Result) -> str:
    """Why the log probability of the right answer does not count."""
    mean = result.gold_mean
    if mean is not None and -MAX_NLL <= mean <= 0:
        return ""
    return f"the log probability of the right answer is {result.gold_log_prob} over {result.n_gold} tokens"


def _problem(result: Result) -> str:
    """Why a result does not count."""
    if result.error:
        return result.error
    if result.nll is not None:
        if not math.isfinite(result.nll) or result.n_scored < 1 or abs(result.nll) > MAX_NLL * result.n_scored:
            return f"the negative log likelihood is {result.nll} over {result.n_scored} tokens"
        return ""
    if result.score is None:
        return "the result has neither a score nor a likelihood"
    return "" if 0 <= result.score <= 1 else f"the score is {result.score}; it must be from 0 to 1"
