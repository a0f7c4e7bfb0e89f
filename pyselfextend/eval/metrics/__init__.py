"""How an answer is scored: from 0 to 1, by the definition that a benchmark has published. Pure Python and libraries.

A task names a metric by its key in ``METRICS``, so that a results file says how it was scored and can be scored again.
The libraries belong to the extra ``eval`` and are imported when a metric that needs them is used.
"""

from __future__ import annotations

import functools

from . import leval, longbench
from .common import Metric, contains_all, contains_any

__all__ = ["METRICS", "Metric", "require"]

METRICS: dict[str, Metric] = {
    "contains_all": contains_all,
    "contains_any": contains_any,
    "longbench_qa_f1": longbench.qa_f1,
    "longbench_qa_f1_first_line": longbench.first_line(longbench.qa_f1),
    "longbench_qa_f1_zh": longbench.qa_f1_zh,
    "longbench_rouge_l": longbench.rouge_l,
    "longbench_rouge_l_first_line": longbench.first_line(longbench.rouge_l),
    "longbench_rouge_l_zh": longbench.rouge_l_zh,
    "longbench_classification_first_line": longbench.first_line(longbench.classification),
    "longbench_retrieval": longbench.retrieval,
    "longbench_retrieval_zh": longbench.retrieval_zh,
    "longbench_count": longbench.count,
    "longbench_code_sim": longbench.code_sim,
    "leval_choice": leval.choice,
    "leval_choices": leval.choices,
    "leval_math": leval.math,
    "leval_code": leval.code,
    "leval_true_false": leval.true_false,
    "leval_exact_match": leval.exact_match,
    "leval_f1": leval.f1,
    "leval_rouge_1": leval.rouge_1,
    "leval_rouge_2": leval.rouge_2,
    "leval_rouge_l": leval.rouge_l,
}


@functools.cache
def require(name: str) -> None:
    """Score something by a metric, so that a library that is missing is found out before a model has been asked.

    Raises:
        MissingExtraError: the metric's library is not installed.
    """
    METRICS[name]("an answer", ("a reference",), ())
