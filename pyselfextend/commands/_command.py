"""What commands are made of: help in sections, and groups whose commands are imported when they are called."""

from __future__ import annotations

import contextlib
import importlib
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.shell_completion import CompletionItem

from .._interrupt import EXIT_INTERRUPTED

if TYPE_CHECKING:
    from click.types import OptionHelpExtra

__all__ = [
    "COMMAND_PATH",
    "COMPLETE_VARIABLE",
    "EXIT_ERROR",
    "Command",
    "LazyGroup",
    "Option",
    "option",
]

EXIT_ERROR = 2  # as click's usage errors

#: Where ``Context.meta`` keeps the words that called the innermost command, such as "pyselfextend demo".
COMMAND_PATH = "pyselfextend.command_path"

#: Set by a shell that wants completions, to what it wants.
COMPLETE_VARIABLE = "_PYSELFEXTEND_COMPLETE"

COLUMN_MAX = 26  # the widest option beside whose name its description stands

_Function = TypeVar("_Function", bound=Callable[..., Any])


class Option(click.Option):
    """An option that help lists under a heading of its own, ``section``."""

    def __init__(self, *args: Any, section: str = "Options", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.section = section

    def get_help_extra(self, ctx: click.Context) -> OptionHelpExtra:
        """What stands in brackets. A default in words needs no parentheses in them."""
        extra = super().get_help_extra(ctx)
        if isinstance(self.show_default, str):
            extra["default"] = self.show_default
        return extra


def option(*declarations: str, section: str = "Options", **attributes: Any) -> Callable[[_Function], _Function]:
    """``click.option`` for an ``Option``."""
    return click.option(*declarations, cls=Option, section=section, **attributes)


class Command(click.Command):
    """A command whose help is: usage, what it does, examples, arguments, options under headings, exit statuses.

    Its function returns the exit status; None is 0.

    Args:
        examples: lines for a shell.
        exit_statuses: what each means. 2 and 130 mean the same everywhere and are added.
    """

    def __init__(
        self, *args: Any, examples: Sequence[str] = (), exit_statuses: Mapping[int, str] | None = None, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.examples = examples
        self.exit_statuses = {
            **(exit_statuses or {0: "done"}),
            EXIT_ERROR: "it cannot run; the message says why",
            EXIT_INTERRUPTED: "interrupted",
        }

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the arguments."""
        with _usage_of(ctx):
            return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Call the function."""
        with _usage_of(ctx):
            return super().invoke(ctx)

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """What the command does, and examples."""
        super().format_help_text(ctx, formatter)
        if self.examples:
            with formatter.section("Examples"):
                for example in self.examples:
                    indent = " " * formatter.current_indent
                    lines = textwrap.wrap(
                        example,
                        formatter.width - 2,
                        initial_indent=indent,
                        subsequent_indent=indent + "    ",
                        break_long_words=False,
                        break_on_hyphens=False,
                    )
                    formatter.write(" \\\n".join(lines) + "\n")

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Options under their headings, in the order in which these first occur."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None and isinstance(param, click.Option):
                sections.setdefault(getattr(param, "section", "Options"), []).append(record)
        names = [name for rows in sections.values() for name, _ in rows]
        width = min(max(map(len, names), default=0), COLUMN_MAX)
        for heading, rows in sections.items():
            with formatter.section(heading):
                formatter.write_dl([(f"{name:{width}}", text) for name, text in rows], col_max=COLUMN_MAX)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """What the exit statuses mean."""
        super().format_epilog(ctx, formatter)
        with formatter.section("Exit status"):
            formatter.write_dl([(str(status), meaning) for status, meaning in sorted(self.exit_statuses.items())])


@contextlib.contextmanager
def _usage_of(ctx: click.Context) -> Iterator[None]:
    """Show the command's usage with each error: click leaves it out where an option's value is missing."""
    try:
        yield
    except click.UsageError as error:
        error.ctx = error.ctx or ctx
        raise


class LazyGroup(Command, click.Group):
    """Commands that are known by a line each, and imported when one is called, or its own help or completion is wanted.

    Args:
        lazy: module and description by name, in the order of the help. The module has the command as ``command``.
    """

    def __init__(self, *args: Any, lazy: Mapping[str, tuple[str, str]], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.lazy = lazy

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names in their order. Imports nothing."""
        return list(self.lazy)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return a command; None if there is none of that name."""
        if cmd_name not in self.lazy:
            return None
        command = importlib.import_module(self.lazy[cmd_name][0]).command
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that the first argument names, and note its path for messages.

        Raises:
            NoSuchCommand: there is none; the message names similar ones.
        """
        if args[0] not in self.lazy and not ctx.resilient_parsing:
            raise click.exceptions.NoSuchCommand(args[0], possibilities=self.lazy, ctx=ctx)
        ctx.meta[COMMAND_PATH] = f"{ctx.command_path} {args[0]}"
        return super().resolve_command(ctx, args)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Commands, then options."""
        self.format_commands(ctx, formatter)
        super().format_options(ctx, formatter)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """A line for each command. Imports nothing."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, about) for name, (_, about) in self.lazy.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem[str]]:
        """Names of commands and options. Imports nothing."""
        return [
            CompletionItem(name, help=about) for name, (_, about) in self.lazy.items() if name.startswith(incomplete)
        ] + click.Command.shell_complete(self, ctx, incomplete)
