"""The demo: its prompt, its choices, its screen, and the whole of it on the real model."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from architectures import make_tiny

from pyselfextend import DemoError, SelfExtendInfo, SettingError, positions
from pyselfextend.cli import main
from pyselfextend.commands import demo_run
from pyselfextend.commands.demo_screen import Run, result_table
from pyselfextend.groups import choose_ga_n
from pyselfextend.prompts import Fact, build_prompt, prose
from pyselfextend.screen import result_console

PARAGRAPHS = [f"Paragraph {number} of the text." for number in range(20)]


def characters(text: str, special: bool) -> list[int]:
    """The simplest tokenizer."""
    return [ord(character) for character in text]


def text_of(tokens: list[int]) -> str:
    return "".join(map(chr, tokens))


# -- prompt


def test_prose_is_sentences_and_enough_of_them() -> None:
    paragraphs = prose()
    assert len(set(paragraphs)) == len(paragraphs)
    assert sum(map(len, paragraphs)) > 80_000  # characters; about 4.5 to a token
    assert all(paragraph[0].isupper() and paragraph.endswith(".") and "\n" not in paragraph for paragraph in paragraphs)
    assert not any("lighthouse" in paragraph for paragraph in paragraphs)
    assert prose() == paragraphs


def test_facts_follow_the_seed() -> None:
    numbers = [Fact.of(seed).number for seed in range(50)]
    assert numbers == [Fact.of(seed).number for seed in range(50)]
    assert len(set(numbers)) > 45
    assert all(10_000 <= number <= 99_999 for number in numbers)


def test_an_answer_holds_the_fact_or_not() -> None:
    assert Fact(12345).is_in("It is 12345.")
    assert not Fact(12345).is_in("It is 12354.")


@pytest.mark.parametrize("n_tokens", [400, 777, 5000])
@pytest.mark.parametrize("depth", [0.0, 0.1, 0.5, 1.0])
def test_prompt(n_tokens: int, depth: float) -> None:
    fact = Fact(12345)
    tokens = build_prompt(characters, fact, PARAGRAPHS, n_tokens, depth=depth, before="<user>", after="</user>")
    assert len(tokens) == n_tokens
    text = text_of(tokens)
    assert text.startswith("<user>")
    assert text.endswith(f"\n\n{fact.question}</user>")
    assert text.count(fact.sentences) == 1
    place = (text.index(fact.sentences) - len("<user>")) / (n_tokens - len(fact.sentences))
    assert depth - 40 / n_tokens - 0.2 * depth <= place <= depth + 0.01


def test_a_prompt_that_is_too_short_for_the_question() -> None:
    with pytest.raises(
        DemoError, match=r"^a prompt of 20 tokens is too short; at least ([0-9]+) are needed$"
    ) as caught:
        build_prompt(characters, Fact(12345), PARAGRAPHS, 20)
    least = int(str(caught.value).split()[-3])
    assert len(build_prompt(characters, Fact(12345), PARAGRAPHS, least)) == least


# -- choices


@pytest.mark.parametrize("n_ctx_train", [512, 4096, 8192])
@pytest.mark.parametrize("part", [8, 4, 2])
@pytest.mark.parametrize("times", [0.5, 1, 1.5, 2, 4])
def test_group_size_by_the_authors_rule(n_ctx_train: int, part: int, times: float) -> None:
    ga_w, n_tokens = n_ctx_train // part, int(n_ctx_train * times)

    def follows(ga_n: int) -> bool:
        return ga_w + (n_tokens - ga_w) / ga_n < 2 / 3 * n_ctx_train

    ga_n = choose_ga_n(n_ctx_train, ga_w, n_tokens)
    assert ga_n == next(candidate for candidate in range(2, 1000) if follows(candidate))
    assert positions.n_ctx_reach(n_ctx_train, ga_n, ga_w) >= n_tokens


def test_group_size_for_a_window_that_leaves_little() -> None:
    assert choose_ga_n(512, 400, 1000) == positions.ga_n_min(512, 400, 1000)
    with pytest.raises(SettingError, match=r"^ga_w is 512; it must be below the trained context of 512 tokens$"):
        choose_ga_n(512, 512, 1000)


# -- screen


def test_the_table_shows_answers_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    info = SelfExtendInfo(4, 4, 64, 512, 1856, 3 * 2**19, 2**20, (), ())
    plain, extended = Run("plain", "[/INST] :pig:", False, 900, 2.0, 1.0), Run("ga", "", True, 900, 3.0, 0.5)
    result_console().print(result_table(Fact(12345), info, plain, extended))
    lines = [[cell.strip() for cell in line.strip("│").split("│")] for line in capsys.readouterr().out.splitlines()]
    assert ["answer", "[/INST] :pig:", "(nothing)"] in lines
    assert ["holds the fact", "no", "yes"] in lines
    assert ["reading", "2 s (450 tokens/s)", "3 s (300 tokens/s)"] in lines
    assert ["answering", "1.0 s", "0.5 s"] in lines


# -- the whole


def test_a_model_that_does_not_know(tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Random weights: everything runs, the answer is wrong, and the exit status says so."""
    status = main(["demo", "--model", str(tiny_model), "--tokens", "900", "--threads", "1", "--seed", "3"])
    output, errors = capsys.readouterr()
    assert status == 1
    assert errors == ""
    for words in (
        "512 tokens",
        "900/900",
        "plain model",
        "ga_n=auto: reading",
        "\nga_n=4 ga_w=64: ",
        "SelfExtend, ga_n=4 ga_w=64",
        "holds the fact",
        "KV cache",
        "MiB",
    ):
        assert words in output
    assert str(Fact.of(3).number) in output
    assert "yes" not in output


@pytest.mark.parametrize(
    ("tokens", "words", "ga_n"),
    [  # trained on 512, ga_w 64: of two thirds, 341, less 64 a group has 277 1/3, and 32 of the tokens are the answer
        (512 - 32 + 1, [], 2),
        (64 + 554 - 32, [], 2),
        (64 + 554 - 32 + 1, ["--ga-n", "auto"], 4),
        (64 + 1109 - 32, [], 4),
        (64 + 1109 - 32 + 1, [], 8),
        (128 + 853 - 32 + 1, ["--ga-w", "128"], 8),
        (900, ["--ga-n", "3"], 3),
        (300, ["--ga-n", "2"], 2),
    ],
)
def test_one_group_reads_the_whole_text(
    tiny_model: Path,
    tokens: int,
    words: list[str],
    ga_n: int,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """From its first slice to the end of the answer; the plain model has none."""
    groups: dict[bool, list[int]] = {}

    class Watched(demo_run.Llama):
        def eval(self, tokens: list[int], **options: int) -> None:  # type: ignore[override]
            super().eval(tokens, **options)
            info = self.self_extend
            groups.setdefault(info.ga_n_max > 1, []).append(info.ga_n)

    monkeypatch.setattr("pyselfextend.opening.Llama", Watched)
    assert main(["demo", "--model", str(tiny_model), "--tokens", str(tokens), "--threads", "1", *words]) == 1
    assert {is_extended: set(found) for is_extended, found in groups.items()} == {False: {1}, True: {ga_n}}
    assert min(map(len, groups.values())) > tokens // 256
    assert f"\nga_n={ga_n} ga_w=" in capsys.readouterr().out


def test_a_text_that_fits(tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """There auto is the plain model, and there is nothing to show."""
    assert main(["demo", "--model", str(tiny_model), "--tokens", "480", "--threads", "1"]) == 2
    output, errors = capsys.readouterr()
    assert (output, errors.count("\n")) == ("", 1)
    assert errors.endswith("auto is the plain model; give at least 481 tokens, or a group size\n")


def test_a_model_that_cannot_be_extended(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is refused before anything is read."""
    tiny = make_tiny()
    monkeypatch.setitem(tiny.MODELS, "windows", replace(tiny.MODELS["gemma3"], n_layer=2))  # the third would be global
    model = tiny.make(tmp_path / "windows.gguf", "windows")
    assert main(["demo", "--model", str(model), "--tokens", "900", "--threads", "1"]) == 2
    output, errors = capsys.readouterr()
    assert errors.startswith("pyselfextend demo: architecture 'gemma3' is not supported")
    assert "reading" not in output


def test_interrupted(smollm2: Path) -> None:
    code = (  # in the background SIGINT is ignored
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"from pyselfextend.cli import main; sys.exit(main(['demo', '--model', {str(smollm2)!r}]))"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parent,
    )
    assert child.stdout is not None
    assert "was trained on 8192 tokens" in child.stdout.readline()
    time.sleep(3)  # it is reading now
    child.send_signal(signal.SIGINT)
    _, errors = child.communicate(timeout=60)
    assert child.returncode == 130
    assert errors == "pyselfextend demo: interrupted\n"


@pytest.mark.slow
def test_passkey_beyond_the_trained_window(smollm2: Path) -> None:
    """The main job: 12,000 tokens, 8,192 trained. The plain model does not know, the extended one does."""
    command = [sys.executable, "-m", "pyselfextend", "demo", "--model", str(smollm2)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=580, cwd=Path(__file__).parent)
    assert (done.returncode, done.stderr) == (0, "")
    row = next(line for line in done.stdout.splitlines() if "holds the fact" in line)
    assert [cell.strip() for cell in row.strip("│").split("│")] == ["holds the fact", "no", "yes"]
