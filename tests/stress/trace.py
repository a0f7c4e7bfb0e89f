"""What was done to an instance, for the message of what then went wrong."""

from __future__ import annotations

from typing import ClassVar


class Trace:
    """Operations in order; each has a name, and notes of what was drawn for it."""

    #: Whether each is printed at once: if the process ends, nobody is left to tell.
    tells: ClassVar = False

    def __init__(self, name: str) -> None:
        self.name = name
        self.steps: list[str] = []

    def begin(self, step: str) -> None:
        self.steps.append(step)
        self._tell(step)

    def note(self, what: object) -> None:
        self.steps[-1] += f" {what}"
        self._tell(f"  {what}")

    def _tell(self, line: str) -> None:
        if self.tells:
            print(f"{id(self) % 9973:4} {self.name}: {line}", flush=True)

    def __str__(self) -> str:
        return "".join(f"  {step}\n" for step in self.steps)
