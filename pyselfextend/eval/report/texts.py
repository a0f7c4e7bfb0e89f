"""What a reader is told of tasks, settings and models. Pure."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

from ...errors import SettingError
from ...groups import auto_limit
from ...positions import n_ctx_reach
from .items import LOG_PROB, PERPLEXITY, Subject, auto_window, is_measured, kind_of, pair_of

__all__ = ["SETTINGS", "Source", "TaskText", "labels", "quantity", "setting_text", "slug", "task_text"]


@dataclass(frozen=True)
class Source:
    """A publication or a repository."""

    name: str
    url: str


def arxiv(authors: str, number: str) -> Source:
    """A paper on arXiv."""
    return Source(f"{authors}, arXiv {number}", f"https://arxiv.org/abs/{number}")


SU = Source("Su, kexue.fm, archive 9708", "https://kexue.fm/archives/9708")


@dataclass(frozen=True)
class TaskText:
    """A task in a few sentences."""

    title: str
    how: str
    scored: str
    sources: tuple[Source, ...] = ()
    quantity: str = "accuracy"
    """What its mean score is called."""


TASKS = {
    "passkey": TaskText(
        "Passkey retrieval",
        "A number stands once in a long run of filler sentences that say nothing; at the end the model is asked for "
        "it. The depth is where the number stands: 0% at the beginning of the text, 100% at its end.",
        "1 if the answer holds the number, otherwise 0.",
        (arxiv("Mohtashami and Jaggi", "2305.16300"), arxiv("used for SelfExtend by Jin et al.", "2401.01325")),
    ),
    "niah": TaskText(
        "Needle in a haystack",
        "A sentence that has nothing to do with the rest stands in a long piece of prose; at the end the model is "
        "asked about it. The depth is where the sentence stands: 0% at the beginning of the text, 100% at its end.",
        "The share of the sentence's two distinctive parts that the answer holds.",
        (
            Source("Kamradt, Needle In A Haystack", "https://github.com/gkamradt/LLMTest_NeedleInAHaystack"),
            arxiv("scored as in RULER, Hsieh et al.", "2404.06654"),
        ),
    ),
    "kv": TaskText(
        "Key-value retrieval",
        "A JSON object of pairs of random identifiers (UUIDs); the model is given one key and asked for its value. The "
        "place is where the pair stands among the others: 0% first, 100% last.",
        "1 if the answer holds the value, otherwise 0.",
        (arxiv("Liu et al., Lost in the Middle", "2307.03172"),),
    ),
    "ruler": TaskText(
        "RULER",
        "Six of RULER's tasks, made from a seed: a needle in filler (niah_single_1) or among other needles "
        "(niah_multikey_2, niah_multikey_3), a chain of variables (vt), the most frequent words of a list (cwe, fwe).",
        "The share of the expected strings that the answer holds.",
        (arxiv("Hsieh et al.", "2404.06654"),),
    ),
    "ppl": TaskText(
        "Perplexity",
        "How surprised the model is by the next token of a real text, given as many tokens before it as the length "
        "says. Lower is better, and a model that makes use of a longer context gets better with it. Every length "
        "scores the same tokens, the last ones of each window; tokens that only give context are masked.",
        "exp of the mean negative log likelihood over all scored tokens, each token weighing the same.",
        (arxiv("Press et al.", "2012.15832"), arxiv("Baevski and Auli", "1809.10853")),
    ),
    "longbench": TaskText(
        "LongBench",
        "Questions, summaries, examples and code over real long documents. A prompt that is longer than allowed loses "
        "its middle.",
        "By the subtask's published metric: F1, ROUGE-L, classification, retrieval or edit similarity, up to 100%.",
        (arxiv("Bai et al.", "2308.14508"),),
        "mean score",
    ),
    "leval": TaskText(
        "L-Eval",
        "Questions over real long documents with one right answer (exams, code, topics), and open ones with answers "
        "and summaries in free words. Those that need a judge are left out. A long document loses its middle.",
        "By the subtask's published metric: exact match, F1 or ROUGE, up to 100%.",
        (arxiv("An et al.", "2307.11088"),),
        "mean score",
    ),
    "short": TaskText(
        "Short texts",
        "The same model inside the window that it was trained on, where nothing has to be extended: what a setting "
        "costs there. The perplexity of a real text (ppl), and which of four sentences goes on with it (choice). Every "
        "length scores the same tokens and offers the same sentences, behind more or less text.",
        "Perplexity as exp of the mean negative log likelihood of all scored tokens; and the share of questions whose "
        "right sentence has the largest log probability for each of its bytes, by chance a quarter.",
        (
            arxiv("perplexity: Press et al.", "2012.15832"),
            arxiv("choice: like HellaSwag, Zellers et al.", "1905.07830"),
        ),
    ),
}

#: One line for each kind of setting.
SETTINGS = {
    "plain": ("plain", "The model as it is, read beyond its trained window without any change.", None),
    "auto": (
        "auto:W",
        "SelfExtend with a group that follows the length, and neighbour window W in tokens: a prompt that fits with "
        "its answer into the trained window is read as it is, a longer one with a power of two that is chosen for its "
        "length before it is read. What groups do is said at G:W.",
        arxiv("Jin et al.", "2401.01325"),
    ),
    "pair": (
        "G:W",
        "SelfExtend with group size G and neighbour window W in tokens. Tokens nearer than W keep their exact "
        "distance; further away, distances are divided by G, so that they stay within what the model was trained on.",
        arxiv("Jin et al.", "2401.01325"),
    ),
    "yarn": (
        "yarn",
        "YaRN: fast rotations of the position encoding are kept, slow ones are stretched by the factor.",
        arxiv("Peng et al.", "2309.00071"),
    ),
    "linear": (
        "linear",
        "Position interpolation: all positions are divided by the factor.",
        arxiv("Chen et al.", "2306.15595"),
    ),
    "ntk": (
        "ntk",
        "NTK-aware scaling: the base of the position encoding grows so that its slowest rotation is stretched by the "
        "factor.",
        arxiv("Peng et al., section 3.1", "2309.00071"),
    ),
    "mrrope": (
        "mrrope",
        "MrRoPE-Pro: as YaRN, with factors between neighbouring rotations that grow from the fast to the slow ones.",
        arxiv("MrRoPE", "2601.22181"),
    ),
    "jet-long": (
        "jet-long",
        "SelfExtend without the offset: keys further away than the window are seen at q // G - k // G, so that the "
        "nearest of them look nearer than the window is wide. The group is the smallest that reaches the text.",
        arxiv("Jet-Long", "2607.07740"),
    ),
    "rerope": (
        "rerope",
        "ReRoPE: all keys further away than the window are seen at its edge.",
        SU,
    ),
    "leaky": (
        "leaky",
        "Leaky ReRoPE: distances beyond the window are divided by G and not rounded.",
        SU,
    ),
    "lampe": (
        "lampe",
        "SelfExtend with groups that are not whole numbers: the smallest that keeps the authors' rule, in 64ths of a "
        "token.",
        arxiv("LaMPE", "2508.02308"),
    ),
}


def task_text(task: str) -> TaskText:
    """The text of a task; of one that this version does not know, only its name."""
    return TASKS.get(task) or TaskText(
        task, "This version of the report has no description of the task.", "Mean score from 0 to 1.", (), "mean score"
    )


def quantity(task: str, measure: str) -> str:
    """What a number is called in a plot or table."""
    names = {LOG_PROB: "log probability of the right answer", PERPLEXITY: PERPLEXITY}
    return names.get(measure) or task_text(task).quantity


def setting_text(setting: str, subject: Subject) -> str:
    """What a setting means for a model: the lengths of groups, how far a pair reaches, what a factor does."""
    try:
        if pair := pair_of(setting):
            return f"reaches {n_ctx_reach(subject.n_ctx_train, *pair):,} tokens"
        if is_measured(setting):
            return "groups as tune has measured them on the model"
        if (ga_w := auto_window(setting, subject)) is not None:
            return _groups_text(subject.n_ctx_train, ga_w)
    except SettingError as error:
        return str(error)
    if kind_of(setting) in ("yarn", "linear", "ntk", "mrrope") and ":" in setting:
        factor = float(setting.partition(":")[2])
        return f"stretches {subject.n_ctx_train:,} to {round(subject.n_ctx_train * factor):,} tokens"
    return ""


def _groups_text(n_ctx_train: int, ga_w: int) -> str:
    """Up to which length each group is chosen."""
    limits = [(ga_n, auto_limit(n_ctx_train, ga_w, ga_n)) for ga_n in (2, 4, 8)]
    groups = [f"group {ga_n} up to {n_tokens:,}" for ga_n, n_tokens in limits if n_tokens > n_ctx_train]
    return ", ".join([f"plain up to {n_ctx_train:,} tokens", *groups, "and so on"])


def labels(subjects: Collection[Subject]) -> dict[Subject, str]:
    """A name for each, which tells them apart and says no more than it must."""
    caches = {(s.type_k, s.type_v) for s in subjects}
    sizes = {(s.model, s.model_bytes) for s in subjects}
    found = {}
    for subject in subjects:
        name = subject.model.removesuffix(".gguf")
        if sum(model == subject.model for model, _ in sizes) > 1:
            name += f" ({subject.model_bytes:,} bytes)"
        if len(caches) > 1:
            name += f", {subject.cache} cache"
        found[subject] = name
    return found


def slug(name: str) -> str:
    """A name that is good in the name of a file."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower())[:40].strip("-") or "task"
