"""The text of a completion, and where it ends.

llama_cpp looks for the first of the stops in the order of the list, and does not look at all, nor count, while bytes of
an unfinished character come; what a stream gives and what one call gives are computed apart, and differ. Here both are
one text: ``Ending`` is told each token, and says what is certain of the text, and whether it has ended.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from llama_cpp import Llama as Upstream

from ..groups import N_ANSWER

__all__ = ["Criterion", "Ending", "criteria_of"]

#: Given the tokens evaluated and the logits [n_vocab] after the last; whether to stop.
Criterion = Callable[[Any, Any], bool]


class Ending:
    """Collects the text of one completion, and ends it.

    Is handed through llama_cpp's own completion as its stopping criterion, to ``generate``, which tells it the tokens.

    Args:
        stops: texts that end it, and are not part of it; none is empty.
        max_tokens: None: as many as there is room for.
        criterion: of the caller.
        is_first: whether there is no prompt before it, so that a space at its beginning is none.
    """

    def __init__(
        self, stops: Sequence[str], max_tokens: int | None, criterion: Criterion | None, *, is_first: bool = False
    ) -> None:
        self.criterion = criterion
        self.finish_reason: str | None = None
        self._stops = list(stops)
        self._n_left = max_tokens if max_tokens is not None and max_tokens > 0 else None
        self._is_open = self._n_left is None
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="ignore")
        self._is_first = is_first
        self._text = ""
        self._n_given = 0
        self._is_cut = False  # before a stop

    def __call__(self, tokens: Any, logits: Any) -> bool:
        """For llama_cpp, which asks once more behind the last token, with logits that may be anything."""
        return True

    @property
    def n_expected(self) -> int:
        """How many tokens the text is expected to have: as many as were asked for, if there is room for them."""
        assert self._n_left is not None, "limit() was not called"
        return min(self._n_left, N_ANSWER) if self._is_open else self._n_left

    def limit(self, n_room: int) -> None:
        """There is room for so many tokens."""
        self._n_left = n_room if self._n_left is None else min(self._n_left, n_room)

    def add(self, piece: bytes) -> None:
        """One token more, of these bytes."""
        if self._is_first and piece:
            self._is_first, piece = False, piece.removeprefix(b" ")
        assert self._n_left is not None, "limit() was not called"
        self._n_left -= 1
        begin = len(self._text)
        self._text += self._decoder.decode(piece)
        if not self._cut(begin) and self._n_left <= 0:
            self.end("length")

    def add_to(self, whole: bytes) -> None:
        """One token more, with which all of them have these bytes."""
        is_certain = not whole.endswith("\N{REPLACEMENT CHARACTER}".encode())  # what an unfinished character is read as
        if is_certain:
            self._text = whole.decode("utf-8", "ignore")  # that of tokens before may be another now
            self._cut(0)
        self.add(b"")

    def end(self, finish_reason: str) -> None:
        """No token more."""
        if self.finish_reason is None:
            self.finish_reason = finish_reason

    @property
    def text(self) -> str:
        """All of it so far, without the stop."""
        return self._text

    def ready(self) -> str:
        """What is certain of the text, and has not been given yet: not what may be the beginning of a stop."""
        end = len(self._text) - (0 if self.finish_reason else self._n_held())
        begin, self._n_given = self._n_given, max(end, self._n_given)
        return self._text[begin:end]

    def _cut(self, begin: int) -> bool:
        longest = max(map(len, self._stops), default=1)
        found = [self._text.find(stop, max(begin - longest + 1, 0)) for stop in self._stops]
        places = [place for place in found if place >= 0]
        if not places:
            return False
        self._text, self._is_cut = self._text[: min(places)], True
        self.end("stop")
        return True

    def _n_held(self) -> int:
        longest = max(map(len, self._stops), default=1)
        for n in range(min(longest - 1, len(self._text) - self._n_given), 0, -1):
            if any(stop.startswith(self._text[-n:]) for stop in self._stops):
                return n
        return 0

    def answer(self, completion: dict[str, Any], before: str) -> dict[str, Any]:
        """llama_cpp's answer with this text, behind what it echoes."""
        (choice,) = completion["choices"]
        choice["text"] = before + self.text
        choice["finish_reason"] = self.finish_reason or choice["finish_reason"]
        return completion

    def chunks(self, chunk: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """llama_cpp's chunk of a stream with what is ready of this text, if anything is; before the last the rest."""
        (choice,) = chunk["choices"]
        is_last = choice["finish_reason"] is not None
        if is_last:
            self.end(choice["finish_reason"])
        text = self.ready()
        if text or (choice["logprobs"] is not None and not self._is_cut):
            yield {**chunk, "choices": [{**choice, "text": text, "finish_reason": None}]}
        if is_last:
            yield {**chunk, "choices": [{**choice, "finish_reason": self.finish_reason}]}


def criteria_of(found: Sequence[Criterion] | None) -> Criterion | None:
    """One criterion that is met where any of several is. All are asked, as in llama_cpp's list."""
    if not found:
        return None
    return lambda tokens, logits: any([bool(each(tokens, logits)) for each in found])


def text_before(llm: Upstream, prompt: Any, echo: bool) -> str:
    """What an answer with ``echo`` begins with: the prompt, as text."""
    if not echo:
        return ""
    return prompt if isinstance(prompt, str) else llm.detokenize(prompt).decode("utf-8", errors="ignore")
