"""The command line: help, version, errors and their exit status, and what it imports when."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import types
from importlib import metadata
from pathlib import Path

import click
import pytest
from pseudo_terminal import run_at_terminal

from pyselfextend import SettingError, cli
from pyselfextend.commands import eval as eval_command
from pyselfextend.commands._command import Command, LazyGroup, option
from pyselfextend.commands._options import FRACTION, GGUF_FILE, CommaSeparated, GroupSize, Integer, Real

#: What takes long to import. Neither help nor completion may need it.
HEAVY = {"jinja2", "llama_cpp", "lm_eval", "matplotlib", "rich", "scipy", "statsmodels"}


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pyselfextend", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=Path(__file__).parent,
        env={**os.environ, "COLUMNS": "80", **environment},
    )


#: The words that call each command.
PATHS = [*((name,) for name in cli.COMMANDS), *(("eval", name) for name in eval_command.COMMANDS)]


def test_version() -> None:
    done = run("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"pyselfextend {metadata.version('pyselfextend')}\n", "")


def test_help_names_every_command() -> None:
    done = run("--help")
    assert (done.returncode, done.stderr) == (0, "")
    lines = [line.split(maxsplit=1) for line in done.stdout.splitlines()]
    for name, about in cli.COMMANDS.items():
        assert [name, about] in lines
    assert run("-h").stdout == done.stdout


@pytest.mark.parametrize("path", PATHS, ids=" ".join)
@pytest.mark.parametrize("columns", [80, 120])
def test_help_of_every_command(path: tuple[str, ...], columns: int) -> None:
    done = run(*path, "--help", COLUMNS=str(columns))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"Usage: pyselfextend {' '.join(path)} [OPTIONS]")
    for heading in ("Options:", "Exit status:"):
        assert f"\n{heading}\n" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert "\x1b" not in done.stdout


def test_help_says_what_is_allowed_and_what_is_left_out() -> None:
    text = " ".join(run("demo", "--help").stdout.split())
    for words in (
        "--tokens N Length in the model's tokens. [default: 12000]",
        "--ga-w W Neighbour window in tokens. [default: 1/8 of the trained window, at most 2048]",
        "--ga-n G Group size; auto chooses it for the length of the text. [default: auto]",
        "Examples: pyselfextend demo pyselfextend demo --model model.gguf",
        "Exit status: 0 the extended model knows the fact 1 it does not 2 it cannot run; the message says why 130 int",
    ):
        assert words in text


def test_long_examples_are_broken_as_a_shell_reads_them() -> None:
    example = "program --option " + " ".join(f"word-{i}" for i in range(30))
    command = Command("program", examples=[example], callback=lambda: None)
    lines = command.get_help(click.Context(command, terminal_width=60)).splitlines()
    lines = lines[lines.index("Examples:") + 1 : lines.index("Options:") - 1]
    assert len(lines) > 3
    assert max(map(len, lines)) <= 60
    done = subprocess.run(
        ["bash", "-c", 'program() { printf "%s " program "$@"; }\n' + "\n".join(lines)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == example


def test_installed_as_a_script() -> None:
    (script,) = metadata.entry_points(group="console_scripts", name="pyselfextend")
    assert script.load() is cli.main


# -- imported when called


@pytest.mark.parametrize("path", [(), *PATHS], ids=" ".join)
def test_help_loads_nothing_heavy(path: tuple[str, ...]) -> None:
    code = (
        f"import sys; from pyselfextend.cli import main\nassert main({[*path, '--help']!r}) == 0\nprint(*sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=Path(__file__).parent, check=True
    )
    loaded = set(done.stdout.splitlines()[-1].split())
    assert "pyselfextend.cli" in loaded
    assert not HEAVY & loaded
    called = f"pyselfextend.commands.{path[0]}" if path else None
    others = {f"pyselfextend.commands.{name}" for name in cli.COMMANDS} - {called}
    assert not others & loaded


@pytest.fixture
def group(monkeypatch: pytest.MonkeyPatch) -> LazyGroup:
    """A program with commands in modules of this test, one of which is missing, and a group in it."""

    def module(name: str, function: object, **attributes: object) -> None:
        made = types.ModuleType(name)
        vars(made)["command"] = click.command(cls=Command, **attributes)(function)  # type: ignore[call-overload]
        monkeypatch.setitem(sys.modules, name, made)

    def refuse() -> None:
        raise SettingError("ga_n is 0; it must be at least 1")

    def interrupt() -> None:
        raise KeyboardInterrupt

    def abort() -> None:
        raise click.Abort

    def bug() -> None:
        raise ZeroDivisionError

    def full() -> None:
        raise OSError(28, "No space left on device", "a\x1b")

    def memory() -> None:
        raise MemoryError

    def status() -> int:
        return 7

    @click.pass_context
    def leave(ctx: click.Context) -> None:
        ctx.exit(3)

    functions = {f.__name__: f for f in (refuse, interrupt, abort, bug, full, memory, status, lambda: None)}
    functions |= {"leave": leave, "nothing": functions.pop("<lambda>")}
    for name, function in functions.items():
        module(f"test_cli_{name}", function)
    lazy = {name: (f"test_cli_{name}", f"About {name}.") for name in functions}
    lazy["missing"] = ("test_cli_missing", "About missing.")
    inner = types.ModuleType("test_cli_inner")
    vars(inner)["command"] = LazyGroup("inner", lazy=lazy, help="Inner.")
    monkeypatch.setitem(sys.modules, "test_cli_inner", inner)
    program = LazyGroup("pyselfextend", lazy={**lazy, "inner": ("test_cli_inner", "About inner.")}, help="Outer.")
    monkeypatch.setattr(cli, "program", program)
    return program


@pytest.mark.parametrize("before", [[], ["inner"]])
@pytest.mark.parametrize(
    ("command", "status", "message"),
    [
        ("nothing", 0, ""),
        ("status", 7, ""),
        ("leave", 3, ""),
        ("refuse", 2, "{path}: ga_n is 0; it must be at least 1\n"),
        ("full", 2, "{path}: a\\x1b: No space left on device\n"),
        ("memory", 2, "{path}: there is not enough memory\n"),
        ("interrupt", 130, "{path}: interrupted\n"),
        ("abort", 130, "{path}: interrupted\n"),
    ],
)
def test_ends(
    group: LazyGroup,
    capsys: pytest.CaptureFixture[str],
    before: list[str],
    command: str,
    status: int,
    message: str,
) -> None:
    path = " ".join(["pyselfextend", *before, command])
    assert cli.main([*before, command]) == status
    assert capsys.readouterr() == ("", message.format(path=path))


def test_bugs_are_not_hidden(group: LazyGroup) -> None:
    with pytest.raises(ZeroDivisionError):
        cli.main(["bug"])


def test_a_command_that_is_not_there_leaves_the_others_alone(
    group: LazyGroup, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["--help"]) == 0
    output = capsys.readouterr().out
    assert "  missing    About missing.\n" in output
    assert list(group.lazy) == [line.split()[0] for line in output.splitlines() if "About" in line]
    assert cli.main(["nothing"]) == 0
    with pytest.raises(ModuleNotFoundError, match="test_cli_missing"):
        cli.main(["missing"])


# -- errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "Commands:\n"),
        (("dance",), "No such command 'dance'."),
        (("dmo",), "No such command 'dmo'. Did you mean 'demo'?"),
        (("demo", "--dance"), "No such option '--dance'."),
        (("demo", "--token", "900"), "No such option '--token'. Did you mean '--tokens'?"),
        (("demo", "extra"), "Got unexpected extra argument (extra)"),
        (("demo", "--tokens"), "Option '--tokens' requires an argument."),
        (("demo", "--tokens", "0"), "Invalid value for '--tokens': 0 is not at least 1"),
        (("demo", "--tokens", "many"), "Invalid value for '--tokens': 'many' is not an integer"),
        (("demo", "--tokens", "2147483648"), "'--tokens': 2147483648 is not between 1 and 2147483647"),
        (("demo", "--ga-n", "1"), "'--ga-n': 1 is not at least 2; the plain model is shown anyway"),
        (("demo", "--ga-n", "many"), "'--ga-n': 'many' is not an integer or auto"),
        (("demo", "--ga-n", "AUTO"), "'--ga-n': 'AUTO' is not an integer or auto"),
        (("plan", "m", "--ga-n", "0"), "'--ga-n': 0 is not at least 1"),
        (("demo", "--ga-w", "-1"), "'--ga-w': -1 is not at least 0"),
        (("demo", "--depth", "2"), "'--depth': 2 is not between 0 and 1"),
        (("demo", "--depth", "nan"), "'--depth': 'nan' is not a number"),
        (("plan", ""), "Invalid value for 'MODEL': the name is empty; it must be that of a GGUF file"),
        (("eval", "kv", "m", "--out", ""), "Invalid value for '--out': the name is empty"),
        (("bench", "m", "--json", ""), "Invalid value for '--json': the name is empty"),
        (("eval", "kv", "m", "--samples", "10001"), "'--samples': 10001 is not between 1 and 10000"),
        (("eval", "ppl", "m", "--lengths", "20000000"), "'--lengths': 20000000 is not between 1 and 16777216"),
        (("demo", "--threads", "600"), "'--threads': 600 is not between 1 and 512"),
        (("completion",), "Missing argument '{bash|zsh|fish}'."),
        (("completion", "tcsh"), "'tcsh' is not one of 'bash', 'zsh', 'fish'."),
    ],
)
def test_usage_errors(arguments: tuple[str, ...], message: str) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("Usage: pyselfextend ")
    assert message in done.stderr
    if arguments:
        assert "--help' for help.\n" in done.stderr


def test_errors_are_one_line(tmp_path: Path) -> None:
    missing, text = tmp_path / "missing.gguf", tmp_path / "text.gguf"
    text.write_text("not a model")
    for path, message in ((missing, "there is no model file "), (text, "could not be loaded as a GGUF model")):
        done = run("demo", "--model", str(path))
        assert done.returncode == 2
        assert done.stderr.startswith("pyselfextend demo: ")
        assert message in done.stderr
        assert str(path) in done.stderr
        assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    "arguments", [["--help"], ["completion", "bash"], ["demo", "--model", "MODEL", "--tokens", "600"]]
)
def test_a_closed_pipe_ends_it_quietly(tiny_model: Path, arguments: list[str], unbuffered: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "pyselfextend", *(str(tiny_model) if a == "MODEL" else a for a in arguments)]
    done = subprocess.run(
        command,
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        timeout=120,
        cwd=Path(__file__).parent,
        env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")


def test_another_broken_pipe_is_not_hidden(monkeypatch: pytest.MonkeyPatch, group: LazyGroup) -> None:
    """Such as that of a child that died."""

    def write() -> None:
        reader, writer = os.pipe()
        os.close(reader)
        try:
            os.write(writer, b"text")
        finally:
            os.close(writer)

    made = types.ModuleType("test_cli_nothing")
    vars(made)["command"] = click.command(cls=Command)(write)
    monkeypatch.setitem(sys.modules, "test_cli_nothing", made)
    with pytest.raises(BrokenPipeError):
        cli.main(["nothing"])


@pytest.mark.parametrize("closed", ["1>&-", "2>&-", "1>&- 2>&-"])
def test_closed_streams(closed: str) -> None:
    for arguments, status in (("--version", 0), ("demo --tokens 0", 2), ("demo --model missing", 2)):
        command = f'exec "{sys.executable}" -m pyselfextend {arguments} {closed}'
        done = subprocess.run(
            ["bash", "-c", command], capture_output=True, text=True, timeout=120, cwd=Path(__file__).parent
        )
        assert done.returncode == status
        assert "Traceback" not in done.stderr


def test_interrupted_at_a_terminal_begins_a_line_of_its_own() -> None:
    code = (
        "import sys, types, click\n"
        "from pyselfextend import cli\n"
        "from pyselfextend.commands._command import LazyGroup\n"
        "def wait():\n"
        "    print('half a line', end='', flush=True)\n"
        "    raise KeyboardInterrupt\n"
        "sys.modules['waits'] = types.ModuleType('waits')\n"
        "sys.modules['waits'].command = click.command(wait)\n"
        "cli.program = LazyGroup('pyselfextend', lazy={'wait': ('waits', '')})\n"
        "sys.exit(cli.main(['wait']))"
    )
    expected = "half a line\r\npyselfextend wait: interrupted\r\n"
    assert run_at_terminal([sys.executable, "-c", code]) == (130, expected)


# -- types


def convert(kind: click.ParamType, text: str) -> object:
    """What a command gets."""
    command = click.Command("program", params=[click.Argument(["value"], type=kind)], callback=lambda value: value)
    return command.main([text], standalone_mode=False)


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (Integer(), "-5", -5),
        (Integer(1), "1", 1),
        (Integer(1, 3), "3", 3),
        (Integer(None, None), str(2**70), 2**70),
        (GroupSize(2), "auto", "auto"),
        (GroupSize(2), "2", 2),
        (Real(), "1e-3", 0.001),
        (FRACTION, "1", 1.0),
        (CommaSeparated(Integer(1)), "4", (4,)),
        (CommaSeparated(Integer(1)), "4, 8,8", (4, 8, 8)),
        (CommaSeparated(FRACTION), "0,0.5,1", (0.0, 0.5, 1.0)),
        (CommaSeparated(click.Choice(["a", "b"])), "b,a", ("b", "a")),
        (GGUF_FILE, "some/model.gguf", Path("some/model.gguf")),
        (GGUF_FILE, "~/model.gguf", Path.home() / "model.gguf"),
        (GGUF_FILE, "~no-such-user/model.gguf", Path("~no-such-user/model.gguf")),
    ],
)
def test_what_is_given_is_read(kind: click.ParamType, text: str, value: object) -> None:
    given = convert(kind, f"--{text}" if text.startswith("--") else text) if not text.startswith("-") else None
    if given is None:  # as a command line would need it
        command = click.Command("program", params=[click.Option(["--value"], type=kind)], callback=lambda value: value)
        given = command.main(["--value", text], standalone_mode=False)
    assert given == value
    assert type(given) is type(value)


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        (Integer(1), "1.5", "'1.5' is not an integer"),
        (Integer(1), "", "'' is not an integer"),
        (GroupSize(2), "1", "1 is not at least 2"),
        (GroupSize(2), "", "'' is not an integer or auto"),
        (Integer(None, 3), "4", "4 is not at most 3"),
        (Integer(1, 3), "0", "0 is not between 1 and 3"),
        (Integer(), str(2**31), "2147483648 is not at most 2147483647"),
        (Real(0), "inf", "'inf' is not a number"),
        (CommaSeparated(Integer(1)), "4,,8", "'4,,8' has an empty item"),
        (CommaSeparated(Integer(1)), "4,8,", "'4,8,' has an empty item"),
        (CommaSeparated(Integer(1)), "", "'' has an empty item"),
        (CommaSeparated(Integer(1)), "4,0", "0 is not at least 1"),
    ],
)
def test_what_is_not_allowed_is_refused(kind: click.ParamType, text: str, message: str) -> None:
    with pytest.raises(click.BadParameter) as caught:
        convert(kind, text)
    assert caught.value.message == message


def test_defaults_are_read_like_what_is_given() -> None:
    @click.command(cls=Command)
    @option("--lengths", type=CommaSeparated(Integer(1)), default="512,1024", section="Text", help="Lengths.")
    def command(lengths: tuple[int, ...]) -> tuple[int, ...]:
        return lengths

    assert command.main([], standalone_mode=False) == (512, 1024)
    assert "Text:\n  --lengths INTEGER LIST" in command.get_help(click.Context(command))
