"""Embeddings: of several texts at once they are those of each alone."""

from __future__ import annotations

from pathlib import Path

import architectures
import numpy as np
import pytest
from test_llama import QUIET

from pyselfextend import Llama
from pyselfextend.groups import ga_n_auto
from pyselfextend.positions import n_ctx_reach

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


@pytest.mark.parametrize("pooling", [0, 1, 2, 3])
def test_texts_beyond_the_trained_context(tmp_path: Path, pooling: int) -> None:
    """Each is read with the group of its own length, in one batch: it is not cut where a group no longer reaches."""
    path = architectures.make_tiny().make(tmp_path / "model.gguf", "llama", 64)
    settings = {**QUIET, "embedding": True, "pooling_type": pooling, "n_batch": 512, "n_ubatch": 512, "ga_w": 8,
                "type_k": 0, "type_v": 0}  # fmt: skip
    texts = ["one two three four five six seven eight nine ten " * 4, TEXTS[0], TEXTS[2] * 2]
    with Llama(str(path), n_ctx=512, **settings) as llm:
        together = llm.embed(texts)
        sizes = [len(llm.tokenize(text.encode())) for text in texts]
        assert np.array_equal(llm.embed(texts[0]), together[0])
    assert sizes[0] > 64 > sizes[1]
    for text, size, rows in zip(texts, sizes, together, strict=True):
        ga_n = ga_n_auto(64, 8, size)
        n_ctx = min(256, n_ctx_reach(64, ga_n, 8)) // 64 * 64  # llama.cpp fails to make others with pooling
        with Llama(str(path), **{**settings, "n_ctx": n_ctx, "n_batch": n_ctx, "n_ubatch": n_ctx}, ga_n=ga_n) as alone:
            assert np.abs(np.array(rows) - np.array(alone.embed(text))).max() < 0.001
