"""What extending costs where it is not needed: texts inside the window that a model was trained on.

Two subtasks. ``ppl`` is the perplexity of ``tasks.ppl``. ``choice`` asks which of four sentences goes on with a text:
the one that really does, among three from other paragraphs. The kind of question is HellaSwag's (Zellers et al.,
arXiv 1905.07830), without its adversarial choices, and so is the score: the choice with the largest log probability,
here for each of its bytes (lm-evaluation-harness's ``acc_bytes``; its ``acc_norm`` divides by characters). Chance is a
quarter.

Both ask the same at every length: the same tokens are scored, the same choices offered, and only what stands before
them grows. With SelfExtend nothing changes before a text is longer than the neighbour window.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ...errors import EvalError
from ..cases import Axis, Case, Choose, Query, Tokenizer, Tokens, key_of
from ..prompt import check_length
from ..text import Text
from .ppl import Perplexity

__all__ = ["N_CHOICES", "Short"]

N_CHOICES = 4

#: Bytes of a sentence that is a choice: long enough to say something, short enough to leave room for what is before it.
N_BYTES = range(40, 301)

#: How many sentences of about the right one's length the others are drawn from.
N_SIMILAR = 20

#: The end of a sentence and the beginning of the next one.
BREAK = re.compile(r"(?<=[.!?]) (?=[A-Z])")


@dataclass(frozen=True)
class Short:
    """Both subtasks at every length."""

    text: Text
    lengths: tuple[int, ...] = (512, 1024, 2048)
    """Lengths in tokens, none of them beyond the trained window: of a text that is scored, or of the longest choice
    with all that stands before it."""

    stride: int = 256
    """Of the perplexity: how far a window moves on, and how many of its tokens are scored."""

    windows: int = 4
    """How many windows of each length."""

    samples: int = 16
    """How many questions of each length."""

    seed: int = 1
    name: str = "short"
    chat: bool = False

    @property
    def n_ctx(self) -> int:
        """The context that the longest case needs, in tokens."""
        return max(self.lengths)

    def cases(self, tokenizer: Tokenizer) -> Iterator[Case]:
        """See ``Task.cases``."""
        if 0 < tokenizer.n_ctx_train < self.n_ctx:
            raise EvalError(
                f"{self.n_ctx} tokens are beyond the window of {tokenizer.n_ctx_train} tokens that the model was "
                f"trained on, and {self.name} asks inside it: give shorter lengths"
            )
        for case in Perplexity(self.text, self.lengths, self.stride, self.windows).cases(tokenizer):
            yield self._case("ppl", case.axes, case.query)
        for sample, question in enumerate(self._questions(tokenizer)):
            for n_tokens in sorted(self.lengths):
                axes = {"n_tokens": n_tokens, "sample": sample}
                yield self._case("choice", axes, question.at(n_tokens, tokenizer.bos))

    def _case(self, subtask: str, axes: Mapping[str, Axis], query: Query) -> Case:
        axes = {"subtask": subtask, **axes}
        return Case(self.name, key_of(axes), axes, query)

    def _questions(self, tokenizer: Tokenizer) -> Iterator[_Question]:
        """Questions that have room for the longest length before them."""
        rng = random.Random(f"{self.name} {self.seed}")
        source = _Source.of(self.text.paragraphs, tokenizer)
        places = source.places(self.n_ctx)
        if len(places) < self.samples and self.text.more is not None:
            source = _Source.of((*self.text.paragraphs, *self.text.more()), tokenizer)
            places = source.places(self.n_ctx)
        if len(places) < self.samples:
            raise EvalError(
                f"{self.text.name} has {len(places)} sentences that can be asked for behind {self.n_ctx} tokens of "
                f"text, {self.samples} are needed: sentences of {N_BYTES.start} to {N_BYTES.stop - 1} bytes that begin "
                "with a capital letter, in paragraphs with blank lines between them; give a longer text, shorter "
                "lengths or fewer samples"
            )
        for place in rng.sample(places, self.samples):
            yield source.question(place, self.n_ctx, rng)


@dataclass(frozen=True)
class _Question:
    """What goes on with a text."""

    before: Tokens
    """All that stands before it, at least as much as the longest length wants."""

    choices: tuple[Tokens, ...]
    n_bytes: tuple[int, ...]
    gold: int

    def at(self, n_tokens: int, bos: Tokens) -> Choose:
        """The question with as much text before it as ``n_tokens`` leave room for."""
        longest = max(map(len, self.choices))
        n_before = check_length("a question with its choices", n_tokens, len(bos) + longest + 1) + 1
        return Choose(bos + self.before[-n_before:], self.choices, self.n_bytes, self.gold)


@dataclass(frozen=True)
class _Place:
    """A sentence that is not the first one of its paragraph."""

    paragraph: int
    sentence: int


@dataclass(frozen=True)
class _Source:
    """A text that questions are made of."""

    tokenizer: Tokenizer
    sentences: tuple[tuple[str, ...], ...]
    """By paragraph."""

    tokens: tuple[Tokens, ...]
    """Of each paragraph, with the blank line behind it."""

    @classmethod
    def of(cls, paragraphs: Sequence[str], tokenizer: Tokenizer) -> _Source:
        sentences = tuple(tuple(BREAK.split(paragraph)) for paragraph in paragraphs)
        return cls(tokenizer, sentences, tuple(tokenizer.plain(paragraph + "\n\n") for paragraph in paragraphs))

    def places(self, n_before: int) -> list[_Place]:
        """Sentences of a fit length before whose paragraph there are that many tokens."""
        found, n_tokens = [], 0
        for i, (sentences, tokens) in enumerate(zip(self.sentences, self.tokens, strict=True)):
            if n_tokens >= n_before:
                found += self._choices_in(i, sentences)
            n_tokens += len(tokens)
        return found

    def _choices_in(self, paragraph: int, sentences: Sequence[str]) -> list[_Place]:
        return [_Place(paragraph, j) for j in range(1, len(sentences)) if len(sentences[j].encode()) in N_BYTES]

    def sentence(self, place: _Place) -> str:
        return self.sentences[place.paragraph][place.sentence]

    def question(self, place: _Place, n_before: int, rng: random.Random) -> _Question:
        """Which sentence stands at a place? The others come from paragraphs that are not in the text before it."""
        right = self.sentence(place)
        first, n_tokens = place.paragraph, 0
        while n_tokens < n_before and first > 0:
            first -= 1
            n_tokens += len(self.tokens[first])
        known = {sentence for sentences in self.sentences[first : place.paragraph + 1] for sentence in sentences}
        others = {
            self.sentence(other): None  # an ordered set: a sentence can stand in several paragraphs
            for i, sentences in enumerate(self.sentences)
            for other in self._choices_in(i, sentences)
            if not first <= i <= place.paragraph and self.sentence(other) not in known
        }
        similar = sorted(others, key=lambda sentence: abs(len(sentence.encode()) - len(right.encode())))[:N_SIMILAR]
        if len(similar) < N_CHOICES - 1:
            raise EvalError(
                "the text has too few sentences that could be choices; give a longer one, or shorter lengths"
            )
        texts = rng.sample(similar, N_CHOICES - 1)
        gold = rng.randrange(N_CHOICES)
        texts.insert(gold, right)

        head = " ".join(self.sentences[place.paragraph][: place.sentence])
        head_tokens = self.tokenizer.plain(head)
        # As in lm-evaluation-harness: a choice is what its tokens are behind the text, with the space before it.
        choices = tuple(self.tokenizer.plain(f"{head} {text}")[len(head_tokens) :] for text in texts)
        before = sum(self.tokens[first : place.paragraph], ()) + head_tokens
        return _Question(before, choices, tuple(len(f" {text}".encode()) for text in texts), gold)
