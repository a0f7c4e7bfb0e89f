"""L-Eval: 20 datasets, closed-ended ones (exams, code, topics) and open-ended ones (answers and summaries).

An et al., arXiv 2307.11088; OpenLMLab/LEval: the prompts of Baselines/llama2-chat-test.py, scored as
Evaluation/auto_eval.py does it (``metrics.leval``). The files are the published ones, ``Closed-ended-tasks/*.jsonl``
and ``Open-ended-tasks/*.jsonl``. A record is a document with several instructions; each of them is asked by itself.

What needs a judge is left out: the records whose ``evaluation`` is ``LLM`` or ``human``, and the win rates that judge
models give. Open-ended answers are scored by F1 and ROUGE, and asked for with the number of words of the reference, as
L-Eval recommends for these (its "length-instruction-enhanced evaluation"). Of ROUGE, the mean over answers of ROUGE-1,
ROUGE-2 or ROUGE-L is what L-Eval reports; its ``LEval_score`` is the geometric mean of the three means.

sci_fi has two questions in one: what the document says (``part=loyalty``), and, without the document, what is true
(``part=fact``). Its score is the mean of both.

Three things differ. What L-Eval gives as a system prompt stands at the beginning of the user's message, as in its
scripts for models that have no such prompt; gsm100 and codeU go without a chat template, as there. The document is
cut in the middle, and not before its end (``truncation``), by tokens. And the fact is asked for in the chat template,
if there is one, as the rest is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from ....errors import EvalError
from ...cases import Axis, Case, Generate, Tokenizer, Tokens, key_of
from ...metrics import require
from ...prompt import check_length
from ...records import Record, find_files, read_records
from ...truncation import cut_end, cut_middle, cut_start
from .prompts import CLOSED_ENDED, FACT, METRICS_BY_DATASET, OPEN_ENDED, Prompt, prompt_of, real_world

__all__ = ["LEval"]

#: Folders of the files: of the repository, and of the earlier release.
FOLDERS = ("Closed-ended-tasks", "Open-ended-tasks", "Exam", "Generation")

#: What ``evaluation`` says of a record, and the metric where the dataset has none of its own.
EVALUATIONS = {"exam": "leval_exact_match", "f1": "leval_f1", "rouge": "leval_rouge_{rouge}"}

#: The same of records that are left out.
JUDGED = ("llm", "human")


@dataclass(frozen=True)
class LEval:
    """The instructions of some documents, at every length: only documents are cut, and for all instructions alike.

    Raises:
        EvalError: the folder or a dataset is missing, or an option is not one of those allowed.
    """

    folder: Path
    """Where the files lie, in it or in folders as published."""

    datasets: tuple[str, ...] = ()
    """Names in ``CLOSED_ENDED`` and ``OPEN_ENDED``; all that the folder holds if none is given."""

    lengths: tuple[int, ...] = (16384,)
    """The longest prompts, in tokens."""

    limit: int | None = None
    """How many documents of each dataset, from the first one. None for all."""

    n_predict: int = 512
    """The longest answer, in tokens. 512 as published."""

    truncation: str = "middle"
    """``middle``, or ``published``: a document that is too long loses its end, in codeU its beginning."""

    rouge: str = "l"
    """ROUGE-``1``, ROUGE-``2`` or ROUGE-``l``."""

    name: str = "leval"
    chat: bool = True

    def __post_init__(self) -> None:
        for field, allowed in (("truncation", ("middle", "published")), ("rouge", ("1", "2", "l"))):
            if (value := getattr(self, field)) not in allowed:
                raise EvalError(f"{field} is {value!r}; it must be one of {', '.join(allowed)}")
        _ = self.files  # what is missing is said at once

    @property
    def n_ctx(self) -> int:
        """The context that the longest case needs, in tokens."""
        return max(self.lengths) + self.n_predict

    @property
    def files(self) -> dict[str, Path]:
        """The file of each dataset, by its name."""
        return find_files(self.folder, "L-Eval", (*CLOSED_ENDED, *OPEN_ENDED), self.datasets, FOLDERS)

    def cases(self, tokenizer: Tokenizer) -> Iterator[Case]:
        """See ``Task.cases``. The instructions of a document stand beside each other, so that it is read once.

        Raises:
            EvalError: a file or a line is not as published, a length is too small, or all records need a judge.
            MissingExtraError: a metric needs a library that is not installed.
        """
        files = self.files
        nothing = True
        for dataset, path in files.items():
            records = (record for record in read_records(path) if _evaluation(record) in EVALUATIONS)
            for sample, record in enumerate(islice(records, self.limit)):
                nothing = False
                yield from self._cases(tokenizer, dataset, sample, record)
        if nothing:
            raise EvalError(f"{self.folder}: all records of {', '.join(files)} need a judge; there is nothing to score")

    def _cases(self, tokenizer: Tokenizer, dataset: str, sample: int, record: Record) -> Iterator[Case]:
        evaluation = _evaluation(record)
        metric = METRICS_BY_DATASET.get(dataset, EVALUATIONS[evaluation].format(rouge=self.rouge))
        require(metric)
        questions = _questions(tokenizer, dataset, prompt_of(dataset, evaluation), record)
        document = tokenizer.plain(record.text("input"))
        n_around = max(len(question.before) + len(question.behind) for question in questions)
        for n_tokens in sorted(set(self.lengths)):
            kept = self._cut(dataset)(document, check_length(f"a prompt of L-Eval's {dataset}", n_tokens, n_around))
            for question in questions:
                axes: dict[str, Axis] = {"subtask": dataset, "n_tokens": n_tokens, "sample": sample, **question.axes}
                inside = kept if question.on_document else ()
                prompt = question.before + inside + question.behind
                query = Generate(prompt, self.n_predict, (question.reference,), metric)
                truncated = "yes" if question.on_document and len(kept) < len(document) else "no"
                yield Case(self.name, key_of(axes), {**axes, "truncated": truncated}, query)

    def _cut(self, dataset: str) -> Callable[[Tokens, int], Tokens]:
        if self.truncation == "middle":
            return cut_middle
        return cut_start if dataset == "codeU" else cut_end


@dataclass(frozen=True)
class _Question:
    """What stands around a document, and what is right."""

    axes: dict[str, Axis]
    before: Tokens
    behind: Tokens
    reference: str
    on_document: bool = True


def _questions(tokenizer: Tokenizer, dataset: str, prompt: Prompt, record: Record) -> list[_Question]:
    instructions, references = record.texts("instructions"), record.texts("outputs")
    if len(instructions) != len(references):
        raise record.error(
            f"there are {len(instructions)} 'instructions' and {len(references)} 'outputs'; there must be as many"
        )
    questions, facts = [], []
    for i, (instruction, reference) in enumerate(zip(instructions, references, strict=True)):
        around = _around(tokenizer, prompt, instruction, len(reference.split()))
        if dataset != "sci_fi":
            questions.append(_Question({"question": i}, *around, reference))
            continue
        # "True [fact: False]"; the first release has "True" alone.
        said, mark, fact = reference.lower().partition("[fact:")
        questions.append(_Question({"question": i, "part": "loyalty"}, *around, said.strip()))
        if mark:
            around = _around(tokenizer, FACT, real_world(instruction))
            facts.append(_Question({"question": i, "part": "fact"}, *around, fact.strip(" ]"), on_document=False))
    return questions + facts


def _around(tokenizer: Tokenizer, prompt: Prompt, instruction: str, n_words: int = 0) -> tuple[Tokens, Tokens]:
    """What stands before and behind a document, with the chat template."""
    before, after = (tokenizer.before, tokenizer.after) if prompt.chat else (tokenizer.bos, ())
    tail = prompt.tail.format(instruction=instruction, n_words=n_words)
    return before + tokenizer.plain(prompt.head), tokenizer.plain(tail) + after + tokenizer.plain(prompt.answer)


def _evaluation(record: Record) -> str:
    """How a record is scored, in lower case."""
    evaluation = record.text("evaluation").lower()
    if evaluation not in EVALUATIONS and evaluation not in JUDGED:
        raise record.error(f"'evaluation' is {evaluation!r}; it must be one of {', '.join((*EVALUATIONS, *JUDGED))}")
    return evaluation
