"""The settings of SelfExtend as they are asked for. Pure: imports nothing native."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Literal

from .errors import NotAnIntegerError, SettingError
from .maps import POS_MAX, SELF_EXTEND, map_named

__all__ = ["AUTO", "SETTING_MAX", "SelfExtendConfig", "integer"]

#: The value of ``ga_n`` with which the group follows the length.
AUTO = "auto"

#: The largest group size and neighbour window.
SETTING_MAX = POS_MAX


def integer(name: str, value: object, low: int, high: int | None = None) -> int:
    """Return ``value`` as a plain ``int`` if it is an integer in ``low .. high``.

    Integers are ``int`` and whatever implements ``__index__``, such as NumPy's integers. ``bool`` is not one here:
    ``ga_n=True`` is a mistake, not a group size.

    Raises:
        NotAnIntegerError: ``value`` is not an integer.
        SettingError: ``value`` lies outside the range.
    """
    allowed = f"an integer of at least {low}" if high is None else f"an integer from {low} to {high}"
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)  # type: ignore[arg-type]  # raises TypeError for what is not an integer
    except TypeError:
        raise NotAnIntegerError(f"{name} is {value!r} of type {type(value).__name__}; it must be {allowed}") from None
    if number < low or (high is not None and number > high):
        raise SettingError(f"{name} is {number}; it must be {allowed}")
    return number


@dataclass(frozen=True)
class SelfExtendConfig:
    """Group size and neighbour window as asked for, checked as far as that goes without a model.

    Raises:
        SettingError: a value is out of range; ``NotAnIntegerError`` when it is not an integer.
    """

    ga_n: int | Literal["auto"] = 1
    """Group size, at least 1. 1 is the plain model, for which nothing of SelfExtend is built; "auto" follows the length
    of the text."""

    ga_w: int | None = None
    """Neighbour window in tokens, at least 0 and below the model's trained context (checked when the model is
    loaded). None stands for an eighth of the trained context, at most 2048. Without effect when ``ga_n`` is 1."""

    ga_map: str = SELF_EXTEND.name
    """The map of positions, a name from ``maps.MAPS``. Without effect when ``ga_n`` is 1."""

    def __post_init__(self) -> None:
        by = map_named(self.ga_map)
        if not isinstance(self.ga_n, str) or self.ga_n != AUTO:  # an array is compared by its elements
            try:
                object.__setattr__(self, "ga_n", integer("ga_n", self.ga_n, 1, SETTING_MAX))
            except SettingError as error:
                raise type(error)(f"{error}, or {AUTO!r}") from None
            if self.ga_n != 1 and (fault := by.fault(int(self.ga_n))):
                raise SettingError(f"ga_n is {self.ga_n}; it must be {fault}")
        elif not by.follows:
            raise SettingError(f"ga_n is {AUTO!r}, but the group of the map {by.name} does not follow the length")
        if self.ga_w is not None:
            object.__setattr__(self, "ga_w", integer("ga_w", self.ga_w, 0, SETTING_MAX))
        if self.ga_w and not by.has_window:
            raise SettingError(f"ga_w is {self.ga_w}; it must be 0 with the map {by.name}, which has no near keys")

    @property
    def is_plain(self) -> bool:
        """Whether this is the plain model."""
        return self.ga_n == 1
