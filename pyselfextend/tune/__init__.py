"""Which group size does a model read best with, at each length? Measured on the model itself.

    from pyselfextend.tune import choose, make_plan, measure

    plan = make_plan("model.gguf")
    readings = list(measure(plan))
    for choice in choose(readings, plan.model.n_ctx_train, plan.ga_w):
        print(choice.n_tokens, choice.chosen.ga_n)

``texts`` makes texts of prose with keys in them, ``reader`` reads one with a group and asks for the keys on the way,
``choice`` compares the groups, and ``document`` is the file that keeps all of it. ``ga_n="auto"`` finds what is in the
user's data folder (``pyselfextend.measured``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._lazy import lazily

if TYPE_CHECKING:
    from .choice import Cell as Cell
    from .choice import Choice as Choice
    from .choice import choose as choose
    from .document import Answer as Answer
    from .document import Document as Document
    from .document import Reading as Reading
    from .document import Stop as Stop
    from .plan import Plan as Plan
    from .plan import make_plan as make_plan
    from .run import measure as measure

#: The module of each name; it is imported when it is used, since ``run`` loads the native library.
_MODULES = {
    "Answer": "document",
    "Cell": "choice",
    "Choice": "choice",
    "Document": "document",
    "Plan": "plan",
    "Reading": "document",
    "Stop": "document",
    "choose": "choice",
    "make_plan": "plan",
    "measure": "run",
}

__all__ = [
    "Answer",
    "Cell",
    "Choice",
    "Document",
    "Plan",
    "Reading",
    "Stop",
    "choose",
    "make_plan",
    "measure",
]


__getattr__ = lazily(__name__, _MODULES)


def __dir__() -> list[str]:
    return sorted(__all__)
