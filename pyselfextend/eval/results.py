"""What came out, and the JSON Lines file that it is kept in. Pure: imports nothing native.

Each line is an object with a ``type``: ``run`` says on what machine and with what version the lines after it were made,
``result`` is a case's result.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from ..closing import Closing
from ..errors import EvalError
from ..output_file import is_stream
from .cases import Axis

__all__ = ["Result", "ResultsFile", "RunInfo", "read_results"]


@dataclass(frozen=True)
class RunInfo:
    """Where and with what results were made."""

    date: str
    """UTC, ISO 8601."""

    version: str
    build_id: str
    machine: str
    command: str
    """The command line; empty when called from Python."""


@dataclass(frozen=True)
class Result:
    """What a model made of a case, under one setting and with one type of cache."""

    model: str
    """Name of the model file."""

    model_bytes: int
    """Its size."""

    model_digest: str
    """A hash of its beginning and of samples of the rest, see ``fingerprint``."""

    n_ctx_train: int
    """The model's trained context, in tokens."""

    setting: str
    """``plain``, ``G:W``, or ``yarn``, ``linear`` or ``ntk`` with their factor."""

    type_k: str
    type_v: str
    task: str
    key: str
    """The case, unique in its task."""

    digest: str
    """A hash of what was asked."""

    axes: Mapping[str, Axis]
    """What to group by."""

    n_prompt: int
    """Tokens that the model was given."""

    seconds: float
    """Wall time, with what had to be evaluated of the prompt."""

    score: float | None = None
    """From 0 to 1, of an answer or a choice. None for tasks that score tokens, and where the case failed."""

    nll: float | None = None
    """Negative log likelihood of the scored tokens, in nats, summed."""

    n_scored: int = 0
    """How many tokens ``nll`` is about."""

    answer: str = ""
    references: tuple[str, ...] = ()
    metric: str = ""
    error: str = ""
    """Why the case failed; empty if it did not."""

    gold_log_prob: float | None = None
    """Natural logarithm of the probability of the right answer behind the prompt, summed over its tokens, in nats. None
    where there is not one right answer alone, where its probability is 0, and in files of versions without this."""

    n_gold: int = 0
    """How many tokens the right answer has."""

    @property
    def gold_mean(self) -> float | None:
        """``gold_log_prob`` for each token: the mean of ``ln p(token | prompt, tokens before)``, in nats.

        A mean, so that answers with more digits compare with those with fewer, and those of several lengths can be put
        together. Tokens are a model's own: settings of one model compare, models with other tokenizers do not.
        """
        return None if self.gold_log_prob is None or self.n_gold < 1 else self.gold_log_prob / self.n_gold

    @property
    def identity(self) -> tuple[str, ...]:
        """What makes it this result and no other: an interrupted run does not repeat it."""
        names = ("model_digest", "setting", "type_k", "type_v", "task", "key", "digest")
        return tuple(str(getattr(self, name)) for name in names)


@dataclass
class ResultsFile(Closing):
    """Results that are appended to a file as they come; each line is whole or not there.

    A file that exists is gone on with: what it holds is in ``done``, without failed cases if these are to be tried
    again. A last line that an interruption left unfinished is taken away.

    Raises:
        EvalError: the file is something else, cannot be written, or another process is writing to it.
    """

    path: Path
    retry_failed: bool = False
    done: set[tuple[str, ...]] = field(default_factory=set, init=False)
    failed: set[tuple[str, ...]] = field(default_factory=set, init=False)
    """Those of its cases that have failed."""

    builds: set[str] = field(default_factory=set, init=False)
    """Builds of the engine that its results were made with."""

    def __post_init__(self) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._is_new = not os.path.lexists(self.path)
            if is_stream(self.path) and not self.path.is_dir():
                raise EvalError(f"{self.path} is no regular file; results are read again and added to")
            self._file = open(self.path, "a+b", buffering=0)  # noqa: SIM115  # closed by close()
        except OSError as error:
            raise EvalError(f"{self.path} cannot be written: {error.strerror}") from None
        try:
            self._lock()
            self._file.seek(0)
            content = self._file.read()
            whole = content.rfind(b"\n") + 1
            if whole < len(content) and not content[whole:].startswith(b'{"type": '[: len(content) - whole]):
                raise EvalError(f"{self.path} is not a file of results; give another name")
            for record in _parse(self.path, content[:whole]):
                if isinstance(record, Result):
                    self._note(record)
                else:
                    self.builds.add(record.build_id)
            if self.retry_failed:
                self.done -= self.failed
            self._file.truncate(whole)
        except BaseException:
            self._file.close()
            raise

    def _lock(self) -> None:
        try:
            import fcntl
        except ImportError:  # Windows does not let two processes write
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise EvalError(f"{self.path} is being written by another process") from None

    def append(self, record: Result | RunInfo) -> None:
        """Add a line.

        Raises:
            EvalError: it cannot be written, for example because the disk is full. The file is as it was.
        """
        kind = "result" if isinstance(record, Result) else "run"
        line = json.dumps({"type": kind, **asdict(record)}, ensure_ascii=False, allow_nan=False) + "\n"
        data = line.encode("utf-8", "backslashreplace")  # a name that is not UTF-8, as JSON escapes it
        size = self._file.seek(0, os.SEEK_END)
        try:
            while data:
                data = data[self._file.write(data) :]
            os.fsync(self._file.fileno())
        except OSError as error:
            with contextlib.suppress(OSError):
                self._file.truncate(size)
            raise EvalError(f"{self.path} cannot be written: {error.strerror}") from None
        if isinstance(record, Result):
            self._note(record)

    def _note(self, result: Result) -> None:
        self.done.add(result.identity)
        (self.failed.add if result.error else self.failed.discard)(result.identity)

    def close(self) -> None:
        """Close the file; if it was made here and nothing was written to it, it is removed. Closing twice is fine."""
        if not self._file.closed:
            is_empty = self._file.seek(0, os.SEEK_END) == 0
            self._file.close()
            if is_empty and self._is_new:
                self.path.unlink()


def read_results(paths: Iterable[Path]) -> tuple[list[Result], list[RunInfo]]:
    """Everything in some files; of results with one identity, the last one.

    Raises:
        EvalError: a file is missing, or is something else.
    """
    results: dict[tuple[str, ...], Result] = {}
    runs: list[RunInfo] = []
    for path in paths:
        try:
            content = path.read_bytes()
        except OSError as error:
            raise EvalError(f"{path} cannot be read: {error.strerror}") from None
        for record in _parse(path, content[: content.rfind(b"\n") + 1]):
            if isinstance(record, Result):
                results[record.identity] = record
            else:
                runs.append(record)
    return _told_apart(list(results.values())), runs


def _told_apart(results: list[Result]) -> list[Result]:
    """Results whose models have names of their own: two files of one name are told apart by their digests."""
    digests: dict[str, set[str]] = {}
    for result in results:
        digests.setdefault(result.model, set()).add(result.model_digest)
    return [
        replace(result, model=f"{result.model} ({result.model_digest[:6]})")
        if len(digests[result.model]) > 1
        else result
        for result in results
    ]


def _parse(path: Path, content: bytes) -> Iterator[Result | RunInfo]:
    is_known = not content
    for number, line in enumerate(io.BytesIO(content), 1):
        try:
            record = _record(json.loads(line))
        except (ValueError, TypeError, KeyError, AttributeError):
            raise EvalError(f"{path} is not a file of results: line {number} is something else") from None
        if record is not None:
            is_known = True
            yield record
    if not is_known:
        raise EvalError(f"{path} is not a file of results: it holds none")


#: What the fields of a record may hold, by their annotations.
_TYPES: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "int": (int,),
    "float": (int, float),
    "float | None": (int, float, type(None)),
    "Mapping[str, Axis]": (dict,),
    "tuple[str, ...]": (tuple,),
}


def _record(line: dict[str, Any]) -> Result | RunInfo | None:
    """The record of a line. None: one of a kind that a later version has added."""
    name = line.pop("type")
    if not isinstance(name, str):
        raise TypeError(name)
    kind = {"result": Result, "run": RunInfo}.get(name)
    if kind is None:
        return None
    values = {f.name: line[f.name] for f in fields(kind) if f.name in line}  # a later version may say more
    if "references" in values:
        values["references"] = tuple(values["references"])
    for f in fields(kind):
        if f.name in values and not isinstance(values[f.name], _TYPES[str(f.type)]):
            raise TypeError(f.name)
    words = [*values.get("references", ()), *values.get("axes", {})]
    if not all(isinstance(word, str) for word in words):
        raise TypeError("references")
    if not all(isinstance(value, int | float | str) for value in values.get("axes", {}).values()):
        raise TypeError("axes")
    record: Result | RunInfo = kind(**values)
    return record
