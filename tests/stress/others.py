"""What is under test besides single instances: embeddings, and an instance that threads share."""

from __future__ import annotations

import random
from collections import Counter
from functools import cache
from typing import Any, cast

import numpy as np

from pyselfextend import StaleStreamError

from .kinds import Kind, Text, some_tokens
from .trace import Trace


class Embedding:
    """An instance that embeds texts: each alone, or many at once, is the same."""

    def __init__(self, kind: Kind, rng: random.Random) -> None:
        self.kind, self.rng = kind, rng
        self.llm = kind.open(embedding=True)
        self.operations: Counter[str] = Counter()
        self.trace = Trace(f"{kind.name}, embedding")
        self.worst = 0.0

    def close(self) -> None:
        self.llm.close()

    def operate(self) -> None:
        n = self.rng.choice([1, 1, 2, 5])
        self.trace.begin(f"embed {n}")
        self.operations["embed"] += 1
        texts = ["".join(self.rng.choices("abcdefg hij", k=self.rng.randint(1, 40))) for _ in range(n)]
        self.texts, self.embeddings = texts, self.llm.embed(texts, normalize=True)
        assert [len(rows) for rows in self.embeddings] == [len(self.llm.tokenize(text.encode())) for text in texts]

    def check(self) -> None:
        if not self.trace.steps:
            self.operate()
        self.operations["check"] += 1
        with self.kind.open(embedding=True) as fresh:
            for text, rows in zip(self.texts, self.embeddings, strict=True):
                exact: Any = fresh.embed(text, normalize=True)
                distance = float(np.abs(np.array(rows) - np.array(exact)).max())
                assert distance < 0.01, f"an embedding of unit length is {distance} from a fresh instance's"


class Shared:
    """An instance that several threads ask at the same time, prompts whose answers rounding cannot change."""

    def __init__(self, kind: Kind) -> None:
        self.kind, self.llm = kind, kind.open()

    def close(self) -> None:
        self.llm.close()

    def ask(self, rng: random.Random) -> None:
        """A completion, or a stream, that may come to its end or be overtaken by another thread."""
        prompt, answer = rng.choice(_clear_prompts(self.kind))
        given: dict[str, Any] = {"max_tokens": _N_ANSWER, "temperature": 0.0}
        if rng.random() < 0.5:
            completion: Any = self.llm.create_completion(list(prompt), **given)
            assert completion["choices"][0]["text"] == answer, "another answer than alone"
            return
        text, stream = "", cast(Any, self.llm.create_completion(list(prompt), **given, stream=True))
        try:
            for chunk in stream:
                text += chunk["choices"][0]["text"]
        except StaleStreamError:
            assert answer.startswith(text), "another stream than alone"
        else:
            assert text == answer, "another stream than alone"


_N_ANSWER = 4


@cache
def _clear_prompts(kind: Kind, n: int = 5) -> list[tuple[tuple[int, ...], str]]:
    """Prompts and answers, each token of which is the likeliest by far."""
    rng, found = random.Random(0), []
    while len(found) < n:
        prompt = some_tokens(rng, rng.randint(20, kind.options["n_ctx"] - 40))
        with kind.open() as alone:
            completion: Any = alone.create_completion(list(prompt), max_tokens=_N_ANSWER, temperature=0.0)
            tokens = tuple(alone.input_ids[: alone.n_tokens].tolist())
        best = np.sort(kind.logits(Text().add(tokens))[len(prompt) - 1 :], axis=-1)
        if (best[:, -1] - best[:, -2]).min() > 2 * kind.bound:
            found.append((prompt, completion["choices"][0]["text"]))
    return found
