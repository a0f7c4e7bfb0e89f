"""The arguments of a generation, as tasks of lm-evaluation-harness give them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..config import SETTING_MAX, integer
from ..errors import EvalError

__all__ = ["Generation"]

#: Names of the longest answer, in tokens; where there are several the first one here counts, as in their ``hf`` model.
MAX_GEN_TOKS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")

#: What shapes a distribution that is sampled from: the most probable token stays the same.
SAMPLING = frozenset({"top_k", "top_p", "min_p", "typical_p", "seed"})

#: What would change a greedy answer, but not with this value.
WITHOUT_EFFECT = {"num_beams": 1, "repetition_penalty": 1, "presence_penalty": 0, "frequency_penalty": 0, "n": 1}


@dataclass(frozen=True)
class Generation:
    """A greedy answer that is asked for."""

    max_gen_toks: int
    """Its longest length, in tokens."""

    until: tuple[str, ...]
    """Texts at which it ends; they do not belong to it."""

    @classmethod
    def of(cls, gen_kwargs: Mapping[str, Any], max_gen_toks: int) -> Generation:
        """Read a request's arguments.

        Args:
            gen_kwargs: as given. Not changed.
            max_gen_toks: where they do not say it.

        Raises:
            EvalError: they ask for samples, or for something unknown that could change the answer.
        """
        left = dict(gen_kwargs)
        until = left.pop("until", None) or ()
        lengths = [value for name in MAX_GEN_TOKS if (value := left.pop(name, None)) is not None]
        temperature, do_sample = left.pop("temperature", None), left.pop("do_sample", None)
        # as in their models: do_sample=False wins over a temperature, and a temperature alone means sampling
        if do_sample is not False and (float(temperature or 0) > 0 or (do_sample and temperature is None)):
            raise EvalError(
                f"the task asks for samples (do_sample={do_sample}, temperature={temperature}), this model answers "
                "greedily; ask for that with --gen_kwargs do_sample=False, or gen_kwargs='do_sample=False' in Python"
            )
        unknown = [
            f"{name}={value!r}"
            for name, value in left.items()
            if name not in SAMPLING and (name not in WITHOUT_EFFECT or value != WITHOUT_EFFECT[name])
        ]
        if unknown:
            raise EvalError(
                f"the task asks for {', '.join(unknown)}, which is not supported; "
                f"there are until, {', '.join(MAX_GEN_TOKS)}, do_sample=False and temperature=0"
            )
        return cls(
            integer("max_gen_toks", lengths[0] if lengths else max_gen_toks, 0, SETTING_MAX),
            tuple(term for term in ([until] if isinstance(until, str) else until) if term),
        )
