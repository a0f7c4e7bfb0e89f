"""``pyselfextend completion``: what makes bash, zsh or fish complete commands, options, choices and model files.

This is click's mechanism: the shell runs the program with a variable that asks for completions, and a short script in
the shell shows them. Added to it are model files, lists with commas, and in bash what follows ``=`` or ``:``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import click
from click.shell_completion import (
    BashComplete,
    CompletionItem,
    FishComplete,
    ShellComplete,
    ZshComplete,
    split_arg_string,
)

from ._command import COMPLETE_VARIABLE, Command

__all__ = ["SHELLS", "answer", "command"]

BASH_SCRIPT = """\
%(complete_func)s() {
    local line=${COMP_LINE:0:COMP_POINT} kind value
    COMPREPLY=()
    while IFS=, read -r kind value; do
        case $kind in
            plain) COMPREPLY+=("$value") ;;
            list) COMPREPLY+=("$value"); compopt -o nospace ;;
            path) COMPREPLY+=("$value"); compopt -o filenames ;;
            file) compopt -o default ;;
            dir) compopt -o dirnames ;;
        esac
    done < <(env COMP_WORDS="$line" COMP_CWORD="$2" %(complete_var)s=bash_complete "$1" 2> /dev/null)
}

complete -o nosort -F %(complete_func)s %(prog_name)s
"""

#: A character that nobody types: marks the place of the cursor.
CURSOR = "\x1f"


class Bash(BashComplete):
    """bash 4.4 or later. It leaves file names to readline where it can; which files are models is found here."""

    source_template = BASH_SCRIPT
    typed = ""  # what of the word stands before the piece that bash replaces

    def get_completion_args(self) -> tuple[list[str], str]:
        """The words before the cursor's, and that as far as the cursor.

        bash breaks words at ``=`` and ``:`` as well and replaces the last piece alone. So it sends the line, not its
        words, and in COMP_CWORD that piece.
        """
        *words, incomplete = split_arg_string(os.environ["COMP_WORDS"] + CURSOR)
        incomplete = incomplete.removesuffix(CURSOR)
        piece = "".join(split_arg_string(os.environ["COMP_CWORD"]))
        if incomplete.endswith(piece):
            self.typed = incomplete[: len(incomplete) - len(piece)]
            if incomplete.startswith("-"):  # --option=value
                self.typed = self.typed.partition("=")[2]
        return words[1:], incomplete

    def get_completions(self, args: list[str], incomplete: str) -> list[CompletionItem[str]]:
        """As click finds them, with model files listed."""
        items: list[CompletionItem[str]] = []
        for item in super().get_completions(args, incomplete):
            items += (
                [CompletionItem(path, type="path") for path in _models(item.value)] if item.type == "gguf" else [item]
            )
        return items

    def format_completion(self, item: CompletionItem[Any]) -> str:
        """A line for the script."""
        return f"{item.type},{item.value.removeprefix(self.typed)}"


class Zsh(ZshComplete):
    """zsh, by click's script, with a branch for model files."""

    source_template = ZshComplete.source_template.replace(
        'elif [[ "$type" == "file" ]]; then',
        'elif [[ "$type" == "gguf" ]]; then\n            _files -g "*.gguf"\n'
        '        elif [[ "$type" == "file" ]]; then',
    )

    def format_completion(self, item: CompletionItem[str]) -> str:
        """Three lines for the script."""
        return super().format_completion(_without_list(item))


class Fish(FishComplete):
    """fish, by click's script, with a branch for model files, and values and descriptions that may have commas."""

    source_template = FishComplete.source_template.replace(
        'string split "," $completion', 'string split --max 1 "," -- $completion'
    ).replace(
        'else if test $metadata[1] = "file";',
        'else if test $metadata[1] = "gguf";\n            __fish_complete_suffix .gguf;\n'
        '        else if test $metadata[1] = "file";',
    )

    def format_completion(self, item: CompletionItem[str]) -> str:
        """A line for the script."""
        return super().format_completion(_without_list(item))


SHELLS: dict[str, type[ShellComplete]] = {"bash": Bash, "zsh": Zsh, "fish": Fish}

#: What to do with the script, for each shell.
ADVICE = {
    "bash": """\
# Completion of {name} in bash 4.4 or later. To have it in every new shell, add this line to ~/.bashrc:
#     eval "$({name} completion bash)"
# or, with the package bash-completion, which reads it when it is first needed, write it to a file:
#     {name} completion bash > ~/.local/share/bash-completion/completions/{name}
""",
    "zsh": """\
# Completion of {name} in zsh. To have it in every new shell, add this line to ~/.zshrc, after compinit:
#     eval "$({name} completion zsh)"
# or write it to a file in a folder of fpath, which zsh reads when it is first needed:
#     {name} completion zsh > "${{fpath[1]}}/_{name}"
""",
    "fish": """\
# Completion of {name} in fish. To have it in every new shell, write it to a file:
#     {name} completion fish > ~/.config/fish/completions/{name}.fish
""",
}


@click.command(
    "completion",
    cls=Command,
    examples=['eval "$(pyselfextend completion bash)"'],
)
@click.argument("shell", type=click.Choice(list(SHELLS)))
@click.pass_context
def command(ctx: click.Context, shell: str) -> None:
    """Print a script that makes a shell complete commands, options, choices and model files.

    Comments in the script say how to have it in every new shell.
    """
    root = ctx.find_root()
    name = str(root.info_name)
    first, rest = SHELLS[shell](root.command, {}, name, COMPLETE_VARIABLE).source().split("\n", 1)
    advice = ADVICE[shell].format(name=name)
    # zsh wants its mark, "#compdef", in the first line
    click.echo(f"{first}\n{advice}{rest}" if shell == "zsh" else f"{advice}\n{first}\n{rest}", nl=False)


def answer(program: click.Command, name: str, request: str) -> int:
    """Answer a shell's request, such as "bash_source" (the script) or "bash_complete". Returns the exit status."""
    shell, _, what = request.partition("_")
    if shell not in SHELLS or what not in ("source", "complete"):
        return 1
    completer = SHELLS[shell](program, {}, name, COMPLETE_VARIABLE)
    try:
        text = completer.source() if what == "source" else completer.complete()
    except (Exception, KeyboardInterrupt):  # whatever was said about it would land in the line that is being typed
        return 1
    click.echo(os.fsencode(text), nl=not text.endswith("\n"))  # file names may be no text
    return 0


def _models(start: str) -> Iterator[str]:
    """Folders and GGUF files whose path begins with ``start``."""
    folder, slash, name = start.rpartition("/")
    try:
        entries = sorted(os.scandir(os.path.expanduser(folder + slash) or "."), key=lambda entry: entry.name)
    except OSError:
        return
    for entry in entries:
        is_wanted = entry.name.startswith(name) if name else not entry.name.startswith(".")
        if is_wanted and (entry.is_dir() or entry.name.lower().endswith(".gguf")):
            yield folder + slash + entry.name


def _without_list(item: CompletionItem[str]) -> CompletionItem[str]:
    """Only in bash a list has a kind of its own, after which no space is put."""
    return CompletionItem(item.value, help=item.help) if item.type == "list" else item
