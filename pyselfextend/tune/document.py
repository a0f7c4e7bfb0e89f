"""What came out, and the JSON file that keeps it. Pure: imports nothing native.

While a measurement goes on its readings are kept in a file beside the one that is asked for, so that what ``auto`` uses
is whole. Each time all of it is written anew, and takes the place of what was there.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from .. import measured
from ..errors import EvalError
from ..eval.results import RunInfo
from ..groups import GroupTable
from ..output_file import check_output, is_stream, write_output
from .plan import Plan

__all__ = ["Answer", "Document", "Reading", "ResultFile", "Stop"]


@dataclass(frozen=True)
class Answer:
    """What a model knew of a key."""

    depth: float
    """Where it stands in what has been read, from 0 to 1."""

    log_p: float
    """Natural logarithm of the probability of the right answer: the sum over its tokens."""

    is_right: bool
    """Whether the model gives it when it answers greedily."""


@dataclass(frozen=True)
class Stop:
    """What was asked at a length."""

    n_tokens: int
    """The length, with question and answer, in tokens."""

    nll: float
    """Negative log likelihood of the prose before it, in nats, summed."""

    n_scored: int
    """How many tokens that is about."""

    answers: tuple[Answer, ...]
    """By the depth of the key."""


@dataclass(frozen=True)
class Reading:
    """A text that was read with one group."""

    ga_n: int
    sample: int
    """Which text, from 0."""

    digest: str
    """A hash of the text, its keys and its lengths."""

    seconds: float
    stops: tuple[Stop, ...]
    """By length, as far as the group reaches."""


@dataclass(frozen=True)
class Document:
    """What was measured on a model with a neighbour window."""

    model: str
    """Name of the model file."""

    model_bytes: int
    digest: str
    """The model's ``fingerprint``."""

    n_ctx_train: int
    ga_w: int
    settings: Mapping[str, Any]
    """What was asked for: lengths, groups, samples, keys, window, seed, text."""

    runs: tuple[RunInfo, ...]
    """Where and with what versions readings were made."""

    readings: tuple[Reading, ...]
    groups: GroupTable = ()
    """The group that is chosen for each length; empty while something is missing."""

    @classmethod
    def of(cls, plan: Plan) -> Document:
        """An empty one."""
        names = ("lengths", "groups", "samples", "keys", "window", "seed")
        settings = {name: getattr(plan, name) for name in names} | {"text": plan.text.name}
        path = plan.model.path
        n_bytes = path.stat().st_size
        return cls(path.name, n_bytes, plan.digest, plan.model.n_ctx_train, plan.ga_w, settings, (), ())

    def reading(self, ga_n: int, sample: int, digest: str, lengths: Iterable[int]) -> Reading | None:
        """That of a text with a group at these lengths, if it is there."""
        wanted = (ga_n, sample, digest, tuple(lengths))
        for each in self.readings:
            if (each.ga_n, each.sample, each.digest, tuple(stop.n_tokens for stop in each.stops)) == wanted:
                return each
        return None

    def to_json(self) -> str:
        """As text."""
        fields = {"format": measured.FORMAT, "version": measured.VERSION, **asdict(self)}
        return json.dumps(fields, indent=1, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> Document:
        """What ``to_json`` wrote.

        Raises:
            ValueError: it is something else, or damaged.
        """
        try:
            fields = json.loads(text)
            if (fields.pop("format"), fields.pop("version")) != (measured.FORMAT, measured.VERSION):
                raise ValueError("it is of another kind or version")
            return cls(
                **{
                    **fields,
                    "runs": tuple(RunInfo(**each) for each in fields["runs"]),
                    "readings": tuple(map(_reading, fields["readings"])),
                    "groups": tuple((int(length), int(ga_n)) for length, ga_n in fields["groups"]),
                }
            )
        except (AttributeError, KeyError, RecursionError, TypeError, UnicodeDecodeError) as error:
            raise ValueError("it is damaged") from error


def _reading(fields: Mapping[str, Any]) -> Reading:
    reading = Reading(**{**fields, "stops": tuple(map(_stop, fields["stops"]))})
    _check(reading, ga_n=int, sample=int, digest=str, seconds=float)
    return reading


def _stop(fields: Mapping[str, Any]) -> Stop:
    answers = tuple(Answer(**each) for each in fields["answers"])
    for answer in answers:
        _check(answer, depth=float, log_p=float, is_right=bool)
    stop = Stop(**{**fields, "answers": answers})
    _check(stop, n_tokens=int, nll=float, n_scored=int)
    return stop


def _check(record: object, **kinds: type) -> None:
    """See that fields of a record are of these types.

    Raises:
        TypeError: one is not.
    """
    for name, kind in kinds.items():
        if type(getattr(record, name)) is not kind:
            raise TypeError(name)


class ResultFile:
    """The file of a measurement, and the one beside it that holds what is not whole yet.

    Args:
        path: where the result is to be.

    Raises:
        EvalError: it cannot be written there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.unfinished = path.with_name(f"{path.name}.unfinished")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if is_stream(path) and not path.is_dir():
                raise EvalError(f"{path} is no regular file; a result is read again and added to")
            check_output(path)
        except OSError as error:
            raise EvalError(f"{path} cannot be written: {error.strerror or error}") from None

    def load(self, empty: Document) -> Document:
        """What is there of the same model and window, with the settings of ``empty``; readings of both files.

        Raises:
            EvalError: the file is something else, and would be lost.
        """
        found = [document for path in (self.unfinished, self.path) if (document := self._read(path, empty)) is not None]
        readings: dict[tuple[int, int, str, int], Reading] = {}
        for each in (reading for document in found for reading in document.readings):
            readings.setdefault((each.ga_n, each.sample, each.digest, len(each.stops)), each)
        runs = dict.fromkeys(run for document in found for run in document.runs)
        return replace(empty, runs=tuple(runs), readings=tuple(readings.values()))

    def _read(self, path: Path, empty: Document) -> Document | None:
        try:
            document = Document.from_json(path.read_bytes())
        except FileNotFoundError:
            return None
        except OSError as error:
            raise EvalError(f"{path} cannot be read: {error.strerror}") from None
        except ValueError as error:
            raise EvalError(f"{path} is not a result of tune that can be gone on with: {error}; remove it") from None
        if (document.digest, document.ga_w) == (empty.digest, empty.ga_w):
            return document
        raise EvalError(f"{path} holds what was measured on another model or with another window; give another name")

    def keep(self, document: Document) -> None:
        """Write what there is so far. See ``finish`` for what it raises."""
        self._write(self.unfinished, document)

    def finish(self, document: Document) -> None:
        """Write the result.

        Raises:
            EvalError: it cannot be written. What was there is as it was.
        """
        self._write(self.path, document)
        with contextlib.suppress(OSError):
            self.unfinished.unlink(missing_ok=True)

    def _write(self, path: Path, document: Document) -> None:
        try:
            write_output(path, document.to_json().encode("utf-8", "backslashreplace"))
        except OSError as error:
            raise EvalError(f"{path} cannot be written: {error.strerror or error}") from None
