"""Texts: what ships with Python, and files."""

from __future__ import annotations

from pathlib import Path

import pytest
from eval_helpers import characters

from pyselfextend import EvalError
from pyselfextend.eval.text import default_text, read_text
from pyselfextend.prompts import docstrings, prose


def test_the_default_text_is_long_and_repeats_nothing() -> None:
    more = list(docstrings())
    assert len(set(more)) == len(more)
    assert sum(map(len, more)) > 250_000  # characters; about 4.5 to a token
    assert all(paragraph[0].isupper() and paragraph.endswith(".") and "\n" not in paragraph for paragraph in more)
    n = sum(len(paragraph) + 2 for paragraph in prose())
    text = default_text()
    assert characters().detokenize(text.tokens(characters(), n)) == "".join(f"{p}\n\n" for p in prose())
    behind = characters().detokenize(text.tokens(characters(), n + 50)[n:])
    assert f"{more[0]}\n\n".startswith(behind[:50])
    again = characters().detokenize(text.tokens(characters(), n + 50, repeat=True)[n:])
    assert f"{prose()[0]}\n\n".startswith(again)


def test_a_file(tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    path.write_text("First line\nof a paragraph.\n\n\n\n  Second\tparagraph. \n", encoding="utf-8")
    text = read_text(path)
    assert (text.name, text.paragraphs) == ("book.txt", ("First line of a paragraph.", "Second paragraph."))
    assert characters().detokenize(text.tokens(characters(), 30)) == "First line of a paragraph.\n\nSe"
    with pytest.raises(EvalError, match=r"book\.txt has 47 tokens for this model, 48 are needed"):
        text.tokens(characters(), 48)
    assert len(text.tokens(characters(), 480, repeat=True)) == 480


def test_files_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text(" \n\n")
    (tmp_path / "latin1.txt").write_bytes("Grüße".encode("latin-1"))
    for name, message in {
        "missing.txt": "cannot be read: No such file",
        "empty.txt": "holds no text",
        "latin1.txt": "is not a UTF-8 text",
    }.items():
        with pytest.raises(EvalError, match=f"{name} {message}"):
            read_text(tmp_path / name)
