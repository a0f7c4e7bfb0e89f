"""Embeddings: of several texts at once they are those of each alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from test_llama import QUIET

from pyselfextend import Llama

TEXTS = ["The quick brown fox", "a", "jumps over the lazy dog, twice, and then once more", "The quick brown fox"]


@pytest.mark.parametrize("ga_n", [1, 4])
@pytest.mark.parametrize("pooling", [-1, 0, 1, 2, 3])  # as the model says, none, mean, the first token, the last
def test_many_at_once(tiny_model: Path, ga_n: int, pooling: int) -> None:
    settings = {**QUIET, "ga_n": ga_n, "embedding": True, "pooling_type": pooling, "n_ctx": 512}
    with Llama(str(tiny_model), **settings) as llm:
        together, n_tokens = llm.embed(TEXTS, normalize=True, return_count=True)
        assert n_tokens == sum(len(llm.tokenize(text.encode())) for text in TEXTS)
        response = llm.create_embedding(TEXTS)
        assert [each["index"] for each in response["data"]] == list(range(len(TEXTS)))
    for text, rows in zip(TEXTS, together, strict=True):
        with Llama(str(tiny_model), **settings) as alone:
            exact = alone.embed(text, normalize=True)
        assert np.shape(rows) == np.shape(exact)
        assert np.abs(np.array(rows) - np.array(exact)).max() < 0.001
