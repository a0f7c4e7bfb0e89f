"""``python -m pyselfextend.lm_eval``: lm-evaluation-harness's own command line, with the model ``pyselfextend``."""

from __future__ import annotations

import sys

from .. import _interrupt, terminal
from ..errors import SelfExtendError

__all__ = ["main"]


def main() -> int:
    """Run their command line. Returns the exit status: 2 for an error of ours, 130 after Ctrl-C."""
    _interrupt.raise_again()
    try:
        from . import SelfExtendLM as SelfExtendLM  # registers it

        from lm_eval.__main__ import cli_evaluate  # type: ignore[import-untyped]  # isort: skip

        cli_evaluate()
    except SelfExtendError as error:
        terminal.say(f"pyselfextend: {terminal.printable(str(error), lines=False)}")
        return 2
    except KeyboardInterrupt:
        return _interrupt.EXIT_INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())
