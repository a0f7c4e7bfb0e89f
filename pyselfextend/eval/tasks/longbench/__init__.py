"""LongBench: 21 datasets of questions about long texts, summaries, classifications, retrieval and code.

Bai et al., arXiv 2308.14508; THUDM/LongBench, folder LongBench: prompts and longest answers of ``config``, cut and
framed as pred.py does it, scored as eval.py does it (``metrics.longbench``). The files are the published ones, as they
lie in data.zip: ``narrativeqa.jsonl`` and so on, with LongBench-E in ``qasper_e.jsonl`` and so on.

Three things differ. Here the length is that of the whole prompt, with the chat template; pred.py counts the message
alone. And its tokens are cut, while pred.py cuts, makes text of both halves and tokens of that text again. samsum's
answers end at the longest answer, of which the first line counts; pred.py stops at the end of that line.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from ...cases import Axis, Case, Generate, Tokenizer, key_of
from ...metrics import require
from ...prompt import check_length
from ...records import Record, find_files, read_records
from ...truncation import cut_middle
from .datasets import DATASETS, DATASETS_E, Dataset

__all__ = ["LongBench"]

SUFFIX_E = "_e"

#: What the references of a retrieval must hold.
PARAGRAPHS = {"longbench_retrieval": "Paragraph {n}", "longbench_retrieval_zh": "段落{n}"}


@dataclass(frozen=True)
class LongBench:
    """The records of some datasets, at every length: what is longer is cut in the middle, what is shorter stays.

    Raises:
        EvalError: the folder or a dataset is missing.
    """

    folder: Path
    """Where the files lie, or the folder ``data`` of data.zip in it."""

    datasets: tuple[str, ...] = ()
    """Names in ``DATASETS``; all that the folder holds if none is given."""

    lengths: tuple[int, ...] = (16384,)
    """The longest prompts, in tokens."""

    limit: int | None = None
    """How many records of each dataset, from the first one. None for all."""

    e: bool = False
    """LongBench-E in place of LongBench."""

    name: str = "longbench"
    chat: bool = True

    def __post_init__(self) -> None:
        _ = self.files  # what is missing is said at once

    @property
    def n_ctx(self) -> int:
        """The context that the longest case needs, in tokens."""
        return max(self.lengths) + max(_dataset(name).n_predict for name in self.files)

    @property
    def files(self) -> dict[str, Path]:
        """The file of each dataset, by its name; ``_e`` ends those of LongBench-E."""
        suffix = SUFFIX_E if self.e else ""
        names = [name + suffix for name in (DATASETS_E if self.e else DATASETS)]
        wanted = [name.removesuffix(suffix) + suffix for name in self.datasets]
        return find_files(self.folder, "LongBench-E" if self.e else "LongBench", names, wanted, ("data",))

    def cases(self, tokenizer: Tokenizer) -> Iterator[Case]:
        """See ``Task.cases``. The prompts of a record stand beside each other: what is kept grows with the length.

        Raises:
            EvalError: a file or a line is not as published, or a length is too small.
            MissingExtraError: a metric needs a library that is not installed.
        """
        for name, path in self.files.items():
            for sample, record in enumerate(islice(read_records(path), self.limit)):
                yield from self._cases(tokenizer, name, sample, record)

    def _cases(self, tokenizer: Tokenizer, name: str, sample: int, record: Record) -> Iterator[Case]:
        dataset = _dataset(name)
        require(dataset.metric)
        text = dataset.prompt.format(context=record.text("context"), input=record.text("input"))
        references, options = _references(dataset, record)
        about: dict[str, Axis] = {"language": dataset.language}
        if self.e:
            about["interval"] = _interval(record.integer("length"))
        before, after = (tokenizer.before, tokenizer.after) if dataset.chat else (tokenizer.bos, ())
        tokens = tokenizer.plain(text)
        for n_tokens in sorted(set(self.lengths)):
            n_left = check_length(f"a prompt of LongBench's {name}", n_tokens, len(before) + len(after))
            message = cut_middle(tokens, n_left)
            axes: dict[str, Axis] = {"subtask": name, "n_tokens": n_tokens, "sample": sample}
            query = Generate(before + message + after, dataset.n_predict, references, dataset.metric, options=options)
            truncated = "yes" if len(message) < len(tokens) else "no"
            yield Case(self.name, key_of(axes), {**axes, **about, "truncated": truncated}, query)


def _dataset(name: str) -> Dataset:
    return DATASETS[name.removesuffix(SUFFIX_E)]


def _references(dataset: Dataset, record: Record) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The references, and the classes of a classification."""
    references = record.texts("answers")
    options = record.texts("all_classes") if dataset.metric.startswith("longbench_classification") else ()
    wanted = PARAGRAPHS.get(dataset.metric)
    if wanted is not None and not all(re.search(wanted.format(n=r"\d"), reference) for reference in references):
        raise record.error(f"'answers' must be like {wanted.format(n=1)!r}")
    return references, options


def _interval(length: int) -> str:
    """The lengths, in words, that LongBench-E is reported by: ``scorer_e`` of eval.py."""
    return "0-4k" if length < 4000 else "4-8k" if length < 8000 else "8k+"
