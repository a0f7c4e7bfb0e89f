"""The work of ``pyselfextend demo``: a model that is opened, reads a text and answers, plain and extended."""

from __future__ import annotations

import codecs
import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from ..chat_frame import chat_frame
from ..config import AUTO
from ..default_model import find_model
from ..errors import DemoError, ModelFileError
from ..llama import Llama
from ..opening import open_quietly
from ..prompts import Fact, build_prompt, prose
from ..screen import clock, reading_bar, result_console
from ..terminal import printable
from .demo_screen import Run, result_table

import llama_cpp  # isort: skip  # after ..llama, which makes it load our library

__all__ = ["Arguments", "run"]

N_ANSWER = 32  # tokens
N_SLICE = 256  # tokens that are read at once: Ctrl-C waits for no more than that


@dataclass(frozen=True)
class Arguments:
    """What the demo was asked for. None and "auto" leave the choice to it."""

    model: Path | None
    tokens: int
    depth: float
    seed: int
    ga_n: int | Literal["auto"]
    ga_w: int | None
    threads: int


def run(args: Arguments) -> int:
    """Run the demo. Returns 0 if the extended model's answer holds the fact, otherwise 1.

    Raises:
        SelfExtendError: it cannot run; the message says why.
    """
    model_path = find_model() if args.model is None else args.model
    if not model_path.is_file():
        raise DemoError(f"there is no model file {model_path}")
    fact, paragraphs = Fact.of(args.seed), prose()
    console = result_console()
    started = time.monotonic()

    with open_model(model_path, args, ga_n=1) as llm:
        n_ctx_train = llm.self_extend.n_ctx_train
        if args.ga_n == AUTO and args.tokens + N_ANSWER <= n_ctx_train:
            raise DemoError(
                f"a text of {args.tokens} tokens and the answer fit into the trained window of {n_ctx_train}, where "
                f"auto is the plain model; give at least {n_ctx_train - N_ANSWER + 1} tokens, or a group size"
            )
        tokens = prompt_tokens(llm, fact, paragraphs, args)
        console.print(
            f"{printable(model_path.name, lines=False)} was trained on {n_ctx_train} tokens; the text has "
            f"{len(tokens)}. At {args.depth:.0%} of it stands:\n  {fact.sentences}",
            soft_wrap=True,
        )
        with open_model(model_path, args, ga_n=args.ga_n, ga_w=args.ga_w):
            pass  # what cannot be extended is refused now, not after minutes of reading
        plain = read_and_answer(llm, tokens, fact, "plain model", console)

    with open_model(model_path, args, ga_n=args.ga_n, ga_w=args.ga_w) as llm:
        extended = read_and_answer(llm, tokens, fact, f"ga_n={args.ga_n}", console)
        info = llm.self_extend

    console.print()
    console.print(result_table(fact, info, plain, extended))
    seconds = time.monotonic() - started
    console.print(f"took {clock(seconds)} {'hours' if seconds >= 3600 else 'minutes'}")
    return 0 if extended.is_right else 1


@contextlib.contextmanager
def open_model(model_path: Path, args: Arguments, **self_extend: Any) -> Iterator[Llama]:
    """A model with room for the text and the answer, closed at the end.

    Raises:
        DemoError: it cannot be loaded. SettingError: it cannot be extended like that.
    """
    try:
        llm = open_quietly(
            model_path, args.tokens + N_ANSWER, n_threads=args.threads, n_threads_batch=args.threads, **self_extend
        )
    except ModelFileError as error:
        raise DemoError(str(error)) from error
    with llm:
        yield llm


def prompt_tokens(llm: Llama, fact: Fact, paragraphs: Sequence[str], args: Arguments) -> list[int]:
    """The prompt, in the model's chat template if it has one."""

    def tokenize(text: str, special: bool) -> list[int]:
        return list(llm.tokenize(text.encode(), add_bos=False, special=special))

    before, after = chat_frame(llm)
    return build_prompt(tokenize, fact, paragraphs, args.tokens, depth=args.depth, before=before, after=after)


def read_and_answer(llm: Llama, tokens: list[int], fact: Fact, name: str, console: Console) -> Run:
    """Let the model read the prompt, slice by slice, and answer; both are shown as they go.

    ``name`` is what it is called until the group that is in force is known.
    """
    started = time.monotonic()
    with reading_bar(console, f"{name}: reading", len(tokens)) as bar:
        for start in range(0, len(tokens), N_SLICE):
            part = tokens[start : start + N_SLICE]
            llm.eval(part, n_expected=len(tokens) - start - len(part) + N_ANSWER)
            bar.advance(len(part))
    read = time.monotonic()
    info = llm.self_extend
    if info.ga_n_max > 1:
        name = f"ga_n={info.ga_n} ga_w={info.ga_w}"

    console.print(f"{name}: ", end="")
    answer = ""
    for piece in stream_answer(llm, tokens):
        answer += piece
        console.print(piece, end="", markup=False, soft_wrap=True)
    console.print()
    return Run(name, answer, fact.is_in(answer), len(tokens), read - started, time.monotonic() - read)


def stream_answer(llm: Llama, tokens: list[int]) -> Iterator[str]:
    """The answer to a prompt that has been evaluated, greedily, piece by piece."""
    decode = codecs.getincrementaldecoder("utf-8")(errors="replace").decode  # a character can span tokens
    for n_tokens, token in enumerate(llm.generate(tokens, temp=0.0)):
        if n_tokens == N_ANSWER or llama_cpp.llama_vocab_is_eog(llm._model.vocab, token):
            return
        yield printable(decode(llm.detokenize([token])))
