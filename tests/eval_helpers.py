"""What the tests of evaluations share: a tokenizer without a model, and models that are asked for their tokenizer."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from pyselfextend.eval.cases import Tokenizer, Tokens

#: A chat template around the simplest tokenizer.
CHAT = ("<user>", "</user>")


def characters() -> Tokenizer:
    """A tokenizer whose tokens are characters."""

    def tokenize(text: str, special: bool) -> list[int]:
        return [ord(character) for character in text]

    def detokenize(tokens: Tokens) -> str:
        return "".join(map(chr, tokens))

    before, after = (tuple(tokenize(text, True)) for text in CHAT)
    return Tokenizer(tokenize, detokenize, before, after, (1,))


def under_hash_seed(code: str, seed: int) -> str:
    """What a program prints when Python's hashes are seeded with ``seed``."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=Path(__file__).parent,
        env={"PYTHONHASHSEED": str(seed), "PATH": "/usr/bin:/bin"},
        check=True,
    )
    return done.stdout
