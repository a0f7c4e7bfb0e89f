"""The part of ``Llama`` that samples, generates and completes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator, Sequence
from typing import Any

import llama_cpp
import numpy as np
from llama_cpp.llama_tokenizer import LlamaTokenizer

from ..config import integer
from ..errors import ContextFullError, SettingError, UsageError
from . import grammar as grammars
from .arguments import SEED_MAX, tokens_of
from .completion import Ending, criteria_of, text_before
from .evaluation import Evaluating
from .following import N_ANSWER
from .guard import Guard
from .public import public
from .sampling import Callbacks, processor, processors_of

__all__ = ["Generating"]

_COMPLETION = inspect.signature(llama_cpp.Llama._create_completion)


class Generating(Evaluating):
    """``llama_cpp.Llama`` with callbacks that are heard, grammars that come back, and one text of each completion."""

    _guard: Guard
    _callbacks: Callbacks

    @public(changes=False)
    def set_seed(self, seed: int | None) -> None:
        """Set the seed, as in ``llama_cpp.Llama``. None and -1: another one each time."""
        self._seed = SEED_MAX if seed is None else seed % (SEED_MAX + 1)

    @public(changes=True, like=llama_cpp.Llama.sample)
    def sample(self, idx: int | None = None, **kwargs: Any) -> int:  # type: ignore[override]
        """Sample a token, as in ``llama_cpp.Llama``.

        Args:
            idx: after which of the tokens evaluated. None: the last.
            **kwargs: settings of the sampler.

        Raises:
            UsageError: there are no logits: nothing was evaluated since the instance was opened or loaded a state.
            GrammarError: the grammar cannot be used, or no token continues the text as it wants it.
        """
        if self._requires_eval or self._n_outputs == 0:
            raise UsageError("there are no logits to sample from; evaluate tokens first")
        last = self.n_tokens - 1
        self._sampled_after = last if idx is None else integer("idx", idx, last + 1 - self._n_outputs, last)
        self._callbacks.clear()
        grammars.clear()
        before = self._sampler
        try:
            token = super().sample(idx=idx, **kwargs)
        finally:
            self._sampler = before  # where it makes one of its own, it leaves it when it is interrupted
        self._callbacks.raise_kept()
        grammars.check_sampled()
        return int(token)

    def _init_sampler(self, *args: Any, **kwargs: Any) -> Any:
        found, grammar = kwargs.pop("logits_processor", None), kwargs.pop("grammar", None)
        sampler = super()._init_sampler(*args, **kwargs)
        if grammar is not None:  # llama_cpp's ends the process where it cannot be followed
            grammars.add(sampler, self._model.vocab, grammar)
        if found is not None:
            self._callbacks.add_to(sampler, [processor(each, self._sampled) for each in found])
        return sampler

    def _sampled(self) -> Any:
        """The tokens up to that after which one is sampled: those evaluated, without drafts that may be dropped."""
        return self.input_ids[: self._sampled_after + 1]

    @public(changes=True, like=llama_cpp.Llama.generate)
    def generate(  # type: ignore[override]
        self, tokens: Sequence[int], stopping_criteria: Any = None, **kwargs: Any
    ) -> Generator[int, Sequence[int] | None, None]:
        """Generate tokens after a prompt, as in ``llama_cpp.Llama``."""
        ending = next((each for each in stopping_criteria or () if isinstance(each, Ending)), None)
        criterion = ending.criterion if ending else criteria_of(stopping_criteria)
        prompt = tokens_of("tokens", tokens, self._n_vocab)
        if not prompt and not self.n_tokens:
            raise SettingError(
                "there is nothing to go on from: the prompt is empty, and the model has no token to begin with"
            )
        n_answer: int | None = N_ANSWER
        if ending:
            ending.limit(self._n_ctx - len(prompt))
            n_answer = ending.n_expected
        if not self._n_outputs:  # an evaluation was interrupted
            self._requires_eval = True
        steps = super().generate(prompt, **kwargs)
        sampler = sent = None
        given: list[int] = []
        try:
            while True:
                try:
                    self._n_answer = n_answer
                    token = steps.send(sent)
                finally:
                    self._n_answer, n_answer = 0, None
                    sampler = sampler or self._sampler
                if criterion is not None and self._is_met(criterion):
                    if ending:
                        ending.end("stop")
                    return
                if ending:
                    self._tell(ending, prompt, given, token)
                sent = yield token
                if ending and ending.finish_reason:
                    return
        except StopIteration:
            return
        finally:
            steps.close()
            if self._sampler is sampler:
                self._sampler = None  # sample() would use it, whatever settings it is given

    def _is_met(self, criterion: Callable[[Any, Any], bool]) -> bool:
        row = self._ctx.get_logits_ith(self._sampled_after - self.n_tokens)
        logits = np.ctypeslib.as_array(row, shape=(self._n_vocab,)).copy()
        return self._guard.call_back(criterion, self._sampled(), logits)

    def _tell(self, ending: Ending, prompt: list[int], given: list[int], token: int) -> None:
        if llama_cpp.llama_vocab_is_eog(self._model.vocab, token):
            ending.end("stop")
            return
        given.append(token)
        if type(self.tokenizer_) is LlamaTokenizer:
            ending.add(self._pieces.join([token], special=False))
        else:  # whose texts of tokens may depend on those before
            ending.add_to(self.tokenizer_.detokenize(given, prev_tokens=prompt))

    def _create_completion(self, prompt: Any, *args: Any, **kwargs: Any) -> Generator[Any, None, None]:
        given = dict(_COMPLETION.bind(self, prompt, *args, **kwargs).arguments)
        given.pop("self")
        if not isinstance(prompt, str):
            given["prompt"] = prompt = tokens_of("prompt", prompt, self._n_vocab)
        stream, echo = given.get("stream", False), given.get("echo", False)
        if echo and not isinstance(prompt, str):
            given["echo"] = False  # llama_cpp adds a list to a text
        biases = given.pop("logit_bias", None)
        for token in biases or ():
            integer("a key of logit_bias", token, 0, self._n_vocab - 1)
        given["logits_processor"] = processors_of(given.get("logits_processor"), biases)
        if given.get("logprobs") is not None and not self._logits_all:
            raise SettingError("logprobs are of all tokens; open the model with logits_all=True to have them")
        criterion = criteria_of(given.pop("stopping_criteria", None))
        n_max = given.get("max_tokens", 16)
        if len(prompt) == 0 and (n_max or 0) > 0:
            given["max_tokens"] = n_max + 1  # llama_cpp counts the token that it begins with
        ending = Ending(given.pop("stop", None) or (), n_max, criterion, is_first=len(prompt) == 0)
        answers: Any = super()._create_completion(**given, stopping_criteria=ending)  # type: ignore[arg-type]
        try:
            while (answer := self._next(answers, stream)) is not None:
                if stream:
                    yield from ending.chunks(answer)
                else:
                    yield ending.answer(answer, text_before(self, prompt, echo))
        except ValueError as error:
            if "exceed context window" in str(error):  # llama_cpp's own words
                raise ContextFullError(
                    f"{error} tokens; shorten the prompt, or open the model with a larger n_ctx"
                ) from None
            raise

    def _next(self, answers: Any, stream: bool) -> Any:
        """llama_cpp's next answer. For a stream it is shown texts without the bytes of unfinished characters: with each
        token it would try all beginnings of what it has not given yet.
        """
        self._shows_whole = stream
        try:
            return next(answers, None)
        finally:
            self._shows_whole = False
