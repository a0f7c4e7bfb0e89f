"""Completion, in a real bash at a terminal, and in zsh and fish where they are installed."""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyselfextend import cli
from pyselfextend.commands import eval as eval_command
from pyselfextend.commands.completion import SHELLS

#: The folder of the program: beside the Python that runs the tests.
BIN = Path(sys.executable).parent

#: What no completion may import. NumPy and gguf are allowed: they say what types of cache there are.
HEAVY = {"jinja2", "llama_cpp", "lm_eval", "matplotlib", "rich", "scipy", "statsmodels"}

ALL = "\x1b*"  # readline inserts all completions
TAB = "\t"  # readline inserts what all have in common

FILES = [
    "a.gguf",
    "my model.gguf",
    "notes.txt",
    "UPPER.GGUF",
    ".hidden.gguf",
    "a:b.gguf",
    "models/b.gguf",
    "models/x.bin",
]
FILES += ["with space/c.gguf"]


class Bash:
    """An interactive bash in a terminal."""

    def __init__(self, folder: Path) -> None:
        environment = {
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "HOME": str(folder),
            "HISTFILE": "",
            "INPUTRC": "/dev/null",
            "LC_ALL": "C.UTF-8",
            "PS1": "ready> ",
            "TERM": "dumb",
        }
        self.pid, self.terminal = pty.fork()
        if self.pid == 0:
            os.chdir(folder)
            os.execvpe("bash", ["bash", "--norc", "--noprofile", "-i"], environment)
        self.seen = ""
        self.wait("ready> ")
        self.run("bind 'set enable-bracketed-paste off'; stty cols 1000")

    def run(self, line: str) -> str:
        """What a line prints."""
        os.write(self.terminal, f"{line}; echo E''ND\n".encode())
        output = self.wait("END\r\n")
        self.wait("ready> ")
        return output

    def wait(self, text: str) -> str:
        """What is printed before a text."""
        end = time.monotonic() + 60
        while text not in self.seen:
            ready, _, _ = select.select([self.terminal], [], [], max(0, end - time.monotonic()))
            assert ready, f"waiting for {text!r}, there is {self.seen!r}"
            self.seen += os.read(self.terminal, 65536).decode(errors="replace")
        before, _, self.seen = self.seen.partition(text)
        return before

    def complete(self, line: str, key: str) -> list[str]:
        """The words of a line after a key was pressed at its end: bash itself splits and prints them."""
        os.write(self.terminal, f"{line}{key}\x01printf '<%s>\\n' \x05".encode())
        return re.findall(r"^<(.*)>\r$", self.run(""), re.MULTILINE)

    def close(self) -> None:
        os.close(self.terminal)
        os.waitpid(self.pid, 0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with models and other files."""
    folder = tmp_path_factory.mktemp("home")
    for name in FILES:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
    return folder


@pytest.fixture(scope="module")
def bash(folder: Path) -> Iterator[Bash]:
    """One in which completion is set up as the script advises."""
    bash = Bash(folder)
    bash.run('eval "$(pyselfextend completion bash)"')
    yield bash
    bash.close()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("", [*cli.COMMANDS]),
        ("d", ["demo", "doctor"]),
        ("--", ["--version", "--help"]),
        ("eval ", [*eval_command.COMMANDS]),
        ("eval pas", ["passkey"]),
        ("completion ", [*SHELLS]),
        ("demo --ga", ["--ga-n", "--ga-w"]),
        ("demo --ga-n 4 --ga", ["--ga-w"]),
        ("demo --ga-n ", ["auto"]),
        ("plan a.gguf --ga-n a", ["auto"]),
        ("bench a.gguf --pairs 4:64,a", ["4:64,auto"]),
        ("demo --threads ", []),
        ("demo --model ", ["UPPER.GGUF", "a.gguf", "a:b.gguf", "models", "my model.gguf", "with space"]),
        ("demo --model m", ["models", "my model.gguf"]),
        ("demo --model .h", [".hidden.gguf"]),
        ("demo --model missing/", []),
        ("plan ", ["UPPER.GGUF", "a.gguf", "a:b.gguf", "models", "my model.gguf", "with space"]),
        ("plan --type-v q8", ["q8_0"]),
        ("eval passkey a.gguf models/", ["models/b.gguf"]),
        ("eval passkey --set", ["--setting"]),
    ],
)
def test_what_completes(bash: Bash, line: str, words: list[str]) -> None:
    begun = [] if line == "" or line.endswith((" ", "=")) else [line.rsplit(" ", 1)[-1]]
    *before, _ = f"pyselfextend {line}".split(" ")
    assert bash.complete(f"pyselfextend {line}", ALL) == [*before, *(words or begun)]


@pytest.mark.parametrize(
    ("line", "completed"),
    [
        ("demo --mo", ["demo", "--model"]),
        ("demo --model my", ["demo", "--model", "my model.gguf"]),
        ('demo --model "my', ["demo", "--model", "my model.gguf"]),
        ("demo --model 'my m", ["demo", "--model", "my model.gguf"]),
        ("demo --model my\\ m", ["demo", "--model", "my model.gguf"]),
        ("demo --model wi", ["demo", "--model", "with space/"]),
        ("demo --model with\\ space/", ["demo", "--model", "with space/c.gguf"]),
        ("demo --model ./mod", ["demo", "--model", "./models/"]),
        ("demo --model ~/mod", ["demo", "--model", "HOME/models/"]),
        ("demo --model ~/models/", ["demo", "--model", "HOME/models/b.gguf"]),
        ("demo --model $HOME/models/b", ["demo", "--model", "HOME/models/b"]),  # variables are left alone
        ("demo --model=mod", ["demo", "--model=models/"]),
        ("demo --model=models/", ["demo", "--model=models/b.gguf"]),
        ("demo --model a:", ["demo", "--model", "a:b.gguf"]),
        ("demo --model a.gguf --see", ["demo", "--model", "a.gguf", "--seed"]),
        ("eval passkey --setting pl", ["eval", "passkey", "--setting", "plain"]),
        ("eval passkey --setting plain,4:1024,y", ["eval", "passkey", "--setting", "plain,4:1024,yarn"]),
        ("eval passkey --setting=plain,4:1024,y", ["eval", "passkey", "--setting=plain,4:1024,yarn"]),
        ("eval passkey --setting 4:1024 --cac", ["eval", "passkey", "--setting", "4:1024", "--cache"]),
        ("eval report not", ["eval", "report", "notes.txt"]),
        ("eval passkey --out mod", ["eval", "passkey", "--out", "models/"]),
        ("nonsense --mo", ["nonsense", "--mo"]),
    ],
)
def test_what_is_begun_is_completed(bash: Bash, folder: Path, line: str, completed: list[str]) -> None:
    expected = ["pyselfextend", *(word.replace("HOME", str(folder)) for word in completed)]
    assert bash.complete(f"pyselfextend {line}", TAB) == expected


def test_a_list_can_go_on(bash: Bash) -> None:
    """No space is put after its last item, but after anything else."""
    assert bash.complete("pyselfextend eval passkey --setting pl\t,ya", TAB)[-1] == "plain,yarn"
    assert bash.complete("pyselfextend eval pass\t--set\tpl", TAB)[2:] == ["passkey", "--setting", "plain"]


def test_only_what_stands_before_the_cursor_counts(bash: Bash) -> None:
    left = "\x02"
    line = f"pyselfextend demo --model models/ --threads 2{left * len(' --threads 2')}"
    assert bash.complete(line, TAB) == ["pyselfextend", "demo", "--model", "models/b.gguf", "--threads", "2"]


def test_nothing_is_said_while_a_line_is_typed(folder: Path, tmp_path: Path) -> None:
    """Not even by a program that is broken."""
    broken = tmp_path / "pyselfextend"
    broken.write_text("#!/bin/sh\necho broken >&2\nexit 1\n")
    broken.chmod(0o755)
    bash = Bash(folder)
    bash.run('eval "$(pyselfextend completion bash)"')
    os.write(bash.terminal, f"{broken} de{TAB}\x01: \x05".encode())
    assert "broken\r\n" not in bash.run("").replace(f"{broken}", "")
    bash.close()


def test_click_s_own_way_gives_the_same_script() -> None:
    done = subprocess.run(
        [BIN / "pyselfextend"],
        env={**os.environ, "_PYSELFEXTEND_COMPLETE": "bash_source"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run("completion", "bash").endswith(done.stdout)
    assert "complete -o nosort -F _pyselfextend_completion pyselfextend\n" in done.stdout


def run(*arguments: str) -> str:
    return subprocess.run([BIN / "pyselfextend", *arguments], capture_output=True, text=True, check=True).stdout


def answer(shell: str, words: str, word: str) -> list[str]:
    """What the program answers to a shell."""
    environment = {"_PYSELFEXTEND_COMPLETE": f"{shell}_complete", "COMP_WORDS": words, "COMP_CWORD": word}
    done = subprocess.run(
        [BIN / "pyselfextend"], env={**os.environ, **environment}, capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    return done.stdout.splitlines()


@pytest.mark.parametrize("request_", ["bash", "bash_", "bash_dance", "tcsh_source", "tcsh_complete"])
def test_other_requests_are_refused(request_: str) -> None:
    done = subprocess.run(
        [BIN / "pyselfextend"], env={**os.environ, "_PYSELFEXTEND_COMPLETE": request_}, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "")


def test_called_from_python_it_completes_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("_PYSELFEXTEND_COMPLETE", "bash_source")
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("pyselfextend ")


def test_zsh_is_told_of_descriptions_and_models() -> None:
    assert answer("zsh", "pyselfextend de", "1") == ["plain", "demo", cli.COMMANDS["demo"]]
    assert answer("zsh", "pyselfextend demo --model mod", "3")[:2] == ["gguf", "mod"]
    assert answer("zsh", "pyselfextend eval passkey --setting plain,y", "4") == ["plain", "plain,yarn", "_"]
    script = run("completion", "zsh")
    assert script.startswith("#compdef pyselfextend\n# ")
    assert '_files -g "*.gguf"' in script


def test_fish_is_told_of_descriptions_and_models() -> None:
    assert answer("fish", "pyselfextend de", "de") == [f"plain,demo\t{cli.COMMANDS['demo']}"]
    assert answer("fish", "pyselfextend demo --model mod", "mod") == ["gguf,mod"]
    assert answer("fish", "pyselfextend eval passkey --setting plain,y", "plain,y") == ["plain,plain,yarn"]
    script = run("completion", "fish")
    assert "string split --max 1" in script
    assert "__fish_complete_suffix .gguf" in script


@pytest.mark.skipif(shutil.which("zsh") is None, reason="zsh is not installed")
def test_zsh() -> None:
    code = 'autoload -Uz compinit && compinit -u -D; eval "$(pyselfextend completion zsh)"; echo $_comps[pyselfextend]'
    environment = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"}
    done = subprocess.run(["zsh", "-f", "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("_pyselfextend_completion\n", "")


@pytest.mark.skipif(shutil.which("fish") is None, reason="fish is not installed")
@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("de", ["demo"]),
        ("demo --ga", ["--ga-n", "--ga-w"]),
        ("demo --model a.g", ["a.gguf"]),
        ("eval passkey --setting plain,y", ["plain,yarn"]),
    ],
)
def test_fish(folder: Path, line: str, words: list[str]) -> None:
    code = f'pyselfextend completion fish | source; complete -C "pyselfextend {line}"'
    environment = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", "HOME": str(folder)}
    done = subprocess.run(
        ["fish", "--no-config", "-c", code], env=environment, cwd=folder, capture_output=True, text=True, check=True
    )
    assert [line.split("\t")[0] for line in done.stdout.splitlines()] == words


# -- quick


LINES = [
    "",
    "demo --",
    "demo --model ",
    "plan --",
    "bench --",
    "doctor ",
    "eval ",
    "eval passkey --",
    "eval ppl --text ",
]


@pytest.mark.parametrize("line", LINES)
def test_completion_imports_nothing_heavy(line: str) -> None:
    code = "import sys; from pyselfextend.cli import main; status = main(); print(*sys.modules); sys.exit(status)"
    environment = {"_PYSELFEXTEND_COMPLETE": "bash_complete", "COMP_WORDS": f"pyselfextend {line}", "COMP_CWORD": ""}
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, check=True
    )
    loaded = set(done.stdout.splitlines()[-1].split())
    assert "click" in loaded
    assert not HEAVY & loaded
    assert "numpy" not in loaded or (line.startswith(("bench", "eval ", "plan")) and line != "eval ")


def test_completion_is_quick() -> None:
    """Against Python with click and nothing else, so that it does not depend on the machine: measured 1.3 to 1.5."""

    def seconds(*command: str | Path, **environment: str) -> float:
        times = []
        for _ in range(7):
            started = time.perf_counter()
            subprocess.run(command, env={**os.environ, **environment}, check=True, stdout=subprocess.DEVNULL)
            times.append(time.perf_counter() - started)
        return min(times)

    least = seconds(sys.executable, "-c", "import click.shell_completion")
    environment = {"_PYSELFEXTEND_COMPLETE": "bash_complete", "COMP_CWORD": ""}
    for line in ("pyselfextend ", "pyselfextend demo --"):
        assert seconds(BIN / "pyselfextend", COMP_WORDS=line, **environment) < 3 * least
