"""One instance under test: random operations on it, and what it should know after them."""

from __future__ import annotations

import copy
import pickle
import random
from collections import Counter
from typing import Any, ClassVar

import numpy as np
import pytest

from pyselfextend import ContextFullError, Llama, ShiftError, StaleStreamError, StateError

from .interrupts import interrupted
from .kinds import Kind, Shift, Text, some_tokens
from .trace import Trace

from llama_cpp import LogitsProcessorList, StoppingCriteriaList  # isort: skip  # after pyselfextend


class Cancelled(Exception):
    """What a caller's function raises."""


class Subject:
    """An instance of a kind; ``text`` is what it has evaluated.

    operations counts what was done; trace says it in order; worst is how near to its bound a difference came.
    """

    #: Names of methods, and how often each is drawn.
    OPERATIONS: ClassVar = {
        "evaluate": 6, "cut": 3, "shift": 2, "overfill": 0.5, "reset": 0.3,
        "save": 1.5, "load": 1.5, "load_damaged": 0.5,
        "complete": 2, "draw": 1, "chat": 0.5, "stream": 1.5, "generate": 1.5, "cancel": 1, "overtake": 0.5,
        "pickle": 0.2, "reopen": 0.2, "set_cache": 0.5, "tokenize": 0.3,
    }  # fmt: skip
    #: Those after which the instance itself can say what it holds.
    INTERRUPTED: ClassVar = [
        "evaluate",
        "cut",
        "reset",
        "save",
        "load",
        "complete",
        "draw",
        "chat",
        "stream",
        "generate",
    ]
    #: Whether Ctrl-C comes at any moment of them. It comes at another moment each time, whatever the seed.
    has_interrupts: ClassVar = False

    def __init__(self, kind: Kind, rng: random.Random, caches: list[Any]) -> None:
        self.kind, self.rng, self.caches = kind, rng, [None, *caches]
        self.llm = kind.open()
        self.text = Text()
        self.states: list[tuple[Any, Text]] = []
        self.operations: Counter[str] = Counter()
        self.trace = Trace(kind.name)
        self.worst = 0.0

    def close(self) -> None:
        self.llm.close()

    def operate(self) -> None:
        weights = {**self.OPERATIONS, "interrupt": 2} if self.has_interrupts else self.OPERATIONS
        (name,) = self.rng.choices(list(weights), list(weights.values()))
        self._begin(name)
        getattr(self, name)()
        assert tuple(self.llm.input_ids[: self.llm.n_tokens].tolist()) == self.text.tokens, "other tokens"

    def check(self) -> None:
        """That the logits of some more tokens are those of a fresh instance."""
        self._begin("check")
        probe = some_tokens(self.rng, self.rng.choice([1, 1, 2, 40]))
        if len(probe) > self._room():
            self.cut()
            probe = probe[: self._room()]
        self._note(len(probe))
        self._evaluate(probe)
        logits = np.ctypeslib.as_array(self.llm._ctx.get_logits_ith(-1), shape=(self.llm.n_vocab(),))
        rows = self.kind.logits(self.text)
        self._compare(logits, rows[-1])
        if self.kind.options.get("logits_all"):
            known = self.llm.scores[: self.llm.n_tokens]
            self._compare(known, rows[: len(known)])

    # -- the text

    def evaluate(self) -> None:
        n = min(self.rng.choice([1, 1, 2, 7, 30, 100, 300]), self._room())
        self._note(n)
        self._evaluate(some_tokens(self.rng, n))

    def cut(self) -> None:
        n = max(0, len(self.text.tokens) - self.rng.choice([1, 2, 5, 30, 70, 200, 400]))
        self._note(n)
        self.llm.n_tokens = n
        self.text = self.text.cut(n)

    def shift(self) -> None:
        n_keep = self.rng.randint(0, len(self.text.tokens))
        shift = Shift(n_keep, self.rng.randint(0, len(self.text.tokens) - n_keep))
        self._note(shift)
        try:
            self.llm.context_shift(shift.n_keep, shift.n_discard)
        except ShiftError as error:
            self._note(error)
        else:
            self.text = self.text.shift(shift)

    def overfill(self) -> None:
        with pytest.raises(ContextFullError):
            self.llm.eval(some_tokens(self.rng, self._room() + self.rng.randint(1, 100)))

    def reset(self) -> None:
        self.llm.reset()
        self.text = Text()

    # -- states

    def save(self) -> None:
        self.states = [*self.states, (self.llm.save_state(), self.text)][-3:]

    def load(self) -> None:
        if self.states:
            state, self.text = self.rng.choice(self.states)
            self._note(len(self.text.tokens))
            self.llm.load_state(state)

    def load_damaged(self) -> None:
        if self.states:
            state = copy.copy(self.rng.choice(self.states)[0])
            state.llama_state = state.llama_state[: self.rng.randrange(len(state.llama_state))]
            state.llama_state_size = len(state.llama_state)
            with pytest.raises(StateError):
                self.llm.load_state(state)

    # -- completions

    def complete(self) -> None:
        prompt = self._prompt()
        answer: Any = self.llm.create_completion(list(prompt), max_tokens=self.rng.randint(1, 12), temperature=0.0)
        assert answer["usage"]["prompt_tokens"] == len(prompt)
        self._generated(prompt)
        self._check_choices(prompt)

    def draw(self) -> None:
        prompt, seed = self._prompt(), self.rng.randrange(2**31)
        self.llm.create_completion(list(prompt), max_tokens=self.rng.randint(1, 12), temperature=1.5, seed=seed)
        self._generated(prompt)

    def chat(self) -> None:
        self._forget_shifts()
        messages: Any = [{"role": "user", "content": "What is in the text? " * self.rng.randint(1, 8)}]
        answer: Any = self.llm.create_chat_completion(messages, max_tokens=8, temperature=0.0)
        assert answer["object"] == "chat.completion"
        self._generated(())

    def stream(self) -> None:
        """Closed half-way, or read to its end, or dropped."""
        prompt, n = self._prompt(), self.rng.randint(1, 12)
        stream: Any = self.llm.create_completion(list(prompt), max_tokens=n, temperature=0.0, stream=True)
        n_chunks = self.rng.choice([0, 1, 3, 100])
        self._note(n_chunks)
        n_read = sum(1 for _ in zip(range(n_chunks), stream, strict=False))
        if self.rng.random() < 0.5:
            stream.close()
        del stream
        self._generated(prompt if n_read else ())

    def generate(self) -> None:
        prompt = self._prompt()
        tokens = self.llm.generate(list(prompt), temp=0.0)
        taken = [next(tokens) for _ in range(self.rng.randint(1, 12))]
        tokens.close()
        self._generated(prompt)
        if not self._has_drafts:
            assert self.text.tokens[len(prompt) :] == tuple(taken[:-1]), "the last is not evaluated yet"
        self._check_choices(prompt)

    def cancel(self) -> None:
        """A function of the caller's raises during a completion."""
        prompt, error, n = self._prompt(), self.rng.choice([Cancelled, KeyboardInterrupt]), self.rng.randint(1, 5)
        calls = 0

        def cancel(_: Any, scores: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == n:
                raise error
            if not is_processor:
                return False
            scores[self.llm.token_eos()] = -1e9
            return scores

        is_processor = self.rng.random() < 0.5
        self._note(f"{error.__name__} in call {n} of a {'processor' if is_processor else 'criterion'}")
        given: dict[str, Any] = (
            {"logits_processor": LogitsProcessorList([cancel])}
            if is_processor
            else {"stopping_criteria": StoppingCriteriaList([cancel]), "logit_bias": self._no_end()}
        )
        with pytest.raises(error):
            self.llm.create_completion(list(prompt), max_tokens=12, temperature=0.0, **given)
        self._generated(prompt)

    def overtake(self) -> None:
        """A stream that is continued after another call on the instance."""
        prompt, other = self._prompt(), self._prompt()
        stream: Any = self.llm.create_completion(
            list(prompt), max_tokens=12, temperature=0.0, stream=True, logit_bias=self._no_end()
        )
        next(stream)
        self.llm.create_completion(list(other), max_tokens=2, temperature=0.0)
        with pytest.raises(StaleStreamError):
            for _ in stream:
                pass
        self._generated(other)

    def interrupt(self) -> None:
        self._forget_shifts()
        name, seconds = self.rng.choice(self.INTERRUPTED), self.rng.random() * 0.03
        self._note(f"{name} after {seconds:.4f} s:")
        with interrupted(seconds):
            getattr(self, name)()
        self._generated(())

    # -- the instance

    def pickle(self) -> None:
        """Goes on with a copy."""
        copied = pickle.loads(pickle.dumps(self.llm))
        assert isinstance(copied, Llama)
        assert copied.self_extend == self.llm.self_extend
        self._replace(copied)

    def reopen(self) -> None:
        self.llm.close()
        self._replace(self.kind.open())

    def set_cache(self) -> None:
        number = self.rng.randrange(len(self.caches))
        self._note(number)
        self.llm.set_cache(self.caches[number])

    def tokenize(self) -> None:
        text = "".join(self.rng.choices("The quick brown fox, 1 \u00fc\u4e2d", k=self.rng.randint(1, 40))).encode()
        assert self.llm.detokenize(self.llm.tokenize(text)).strip() == text.strip()

    # -- parts

    @property
    def _has_drafts(self) -> bool:
        return "draft_model" in self.kind.options

    def _begin(self, name: str) -> None:
        self.trace.begin(name)
        self.operations[name] += 1

    def _note(self, what: object) -> None:
        self.trace.note(what)

    def _room(self) -> int:
        return self.llm.n_ctx() - len(self.text.tokens)

    def _evaluate(self, tokens: tuple[int, ...]) -> None:
        self.llm.eval(list(tokens))
        self.text = self.text.add(tokens)

    def _prompt(self) -> tuple[int, ...]:
        """New tokens after a part of the text, or after all of it. There is room for 12 more, and an open character."""
        self._forget_shifts()
        n_known = self.rng.choice([0, self.rng.randint(0, len(self.text.tokens)), len(self.text.tokens)])
        n_new = self.rng.choice([0, 1, 5, 60, 200])
        prompt = (self.text.tokens[:n_known] + some_tokens(self.rng, n_new))[: self.llm.n_ctx() - 40] or (5,)
        self._note(f"prompt {min(n_known, len(prompt))}+{n_new}")
        return prompt

    def _forget_shifts(self) -> None:
        """llama_cpp goes on with what is there of the same tokens, and files it in the prompt cache."""
        if self.text.n_shifts:
            self.reset()

    def _generated(self, prompt: tuple[int, ...]) -> None:
        """Take over what was generated after the prompt."""
        tokens = tuple(self.llm.input_ids[: self.llm.n_tokens].tolist())
        assert tokens[: len(prompt)] == prompt, "another prompt"
        self.text = Text().add(tokens) if tokens else Text()

    def _check_choices(self, prompt: tuple[int, ...]) -> None:
        """That each token that was generated is the likeliest, or as good as that. Drafts may be wrong at the end."""
        if self.rng.random() < 0.3 and not self._has_drafts:
            self.operations["check"] += 1
            rows = self.kind.logits(self.text)
            for pos in range(len(prompt), len(self.text.tokens)):
                row = rows[pos - 1]
                behind = float(row.max() - row[self.text.tokens[pos]])
                assert behind <= 2 * self.kind.bound, f"token {pos} is not the likeliest, by {behind}"

    def _compare(self, logits: Any, exact: Any) -> None:
        bound = self.kind.bound * (1 + self.text.n_shifts)  # each moves keys, and rounds them
        distance = float(np.abs(logits - exact).max())
        self.worst = max(self.worst, distance / bound)
        assert distance <= bound, f"logits are {distance} from those of a fresh instance; the bound is {bound}"

    def _no_end(self) -> dict[int, float]:
        return {self.llm.token_eos(): -1e9}

    def _replace(self, llm: Llama) -> None:
        self.llm.close()
        self.llm, self.text = llm, Text()
