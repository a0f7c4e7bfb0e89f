"""A model for EleutherAI's lm-evaluation-harness: ``SelfExtendLM``, registered there as ``pyselfextend``.

>>> import lm_eval
>>> from pyselfextend.lm_eval import SelfExtendLM
>>> lm = SelfExtendLM("model.gguf", ga_n=4, ga_w=1024, n_ctx=16384)
>>> lm_eval.simple_evaluate(lm, tasks=["hellaswag"], limit=100)["results"]

Their command line knows the name once this package is imported, which ``python -m pyselfextend.lm_eval`` does first.
"""

from __future__ import annotations

from .._extras import need

need("lm_eval", "lm-eval")
need("lm_eval.models", "lm-eval")  # their own names: they are registered only while the registry is empty

from .model import SelfExtendLM  # noqa: E402

__all__ = ["SelfExtendLM"]
