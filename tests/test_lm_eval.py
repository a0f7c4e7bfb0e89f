"""The adapter for lm-evaluation-harness: its own tasks over small files, against the reference, without a network.

The reference shares nothing with the engine, and prompts, windows, metrics and answers are computed here a second time.
With an F32 cache and without flash attention the log probability of a token is within 3e-6 of the exact one (measured,
on average over a request); a rule that is off by one, or a request that is cut elsewhere, is further away by orders of
magnitude.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from reference import Array, Reference, log_softmax

from pyselfextend import EvalError, Llama, ModelFileError, SettingError

import llama_cpp  # isort: skip  # after pyselfextend

TOLERANCE = 5e-5  # of the log probability of a token
N_CTX_TRAIN = 512
N_CTX = 900  # of the runs
MAX_GEN_TOKS = 6
EXACT: dict[str, Any] = {"type_k": "F32", "type_v": "F32", "flash_attn": False, "n_threads": 1}

WORDS = "a the cat dog sat on in it and then that hat near tree in rain he she went again home"


def words(n: int, seed: int) -> str:
    return " ".join(np.random.default_rng(seed).choice(WORDS.split(), n))


@dataclass
class Exact:
    """The reference, by texts."""

    reference: Reference
    llm: Llama
    ga_n: int
    ga_w: int

    def tokens(self, text: str, add_bos: bool = True) -> list[int]:
        return list(self.llm.tokenize(text.encode(), add_bos=add_bos, special=True))

    def log_probs(self, tokens: list[int]) -> Array:
        """[n_tokens, n_vocab]: of what follows each."""
        return log_softmax(self.reference.logits(np.array(tokens), self.ga_n, self.ga_w))

    def score(self, tokens: list[int], n: int) -> tuple[float, bool]:
        """Log probability of the last n tokens, and whether they are the most probable ones."""
        rows, last = self.log_probs(tokens[:-1])[-n:], np.array(tokens[-n:])
        return float(rows[np.arange(n), last].sum()), bool((rows.argmax(axis=1) == last).all())

    def loglikelihood(self, context: str, continuation: str, n_ctx: int = N_CTX) -> tuple[float, bool]:
        whole = self.tokens(context + continuation)
        n = len(whole) - len(self.tokens(context))
        return self.score(whole[-(n_ctx + 1) :], n)

    def rolling(self, text: str, n_ctx: int = N_CTX) -> float:
        """Windows of n_ctx tokens one behind another, the last one moved back so that it is full."""
        tokens = [self.llm.token_bos(), *self.tokens(text, add_bos=False)]
        total, done = 0.0, 1
        while done < len(tokens):
            end = min(done + n_ctx, len(tokens))
            total += self.score(tokens[max(0, end - n_ctx - 1) : end], end - done)[0]
            done = end
        return total

    def answer(self, prompt: str, n_predict: int, until: list[str], n_ctx: int = N_CTX) -> str:
        tokens = self.tokens(prompt)[-(n_ctx - n_predict) :]
        answer: list[int] = []
        while len(answer) < n_predict:
            answer.append(int(self.log_probs([*tokens, *answer])[-1].argmax()))
            if answer[-1] == self.llm.token_eos():
                break
        text = self.llm.detokenize(answer).decode(errors="replace")
        for term in until:
            text = text.split(term)[0]
        return text


@pytest.fixture(scope="module")
def vocab(tiny_model: Path) -> Iterator[Llama]:
    with Llama(str(tiny_model), vocab_only=True, verbose=False) as llm:
        yield llm


@pytest.fixture(scope="module")
def extended(reference: Reference, vocab: Llama) -> Exact:
    return Exact(reference, vocab, 4, 64)


@pytest.fixture(scope="module")
def plain(reference: Reference, vocab: Llama) -> Exact:
    return Exact(reference, vocab, 1, 0)


# -- their tasks


ARC = [
    {
        "question": words(n, seed=i),
        "choices": {"label": list("ABCD"), "text": [words(2 + k, seed=100 * i + k) for k in range(4)]},
        "answerKey": "ABCD"[i % 4],
    }
    for i, n in enumerate([5, 8, 200, 220, 340])  # in tokens: 20 to 1,000; the last one does not fit into N_CTX
]
LAMBADA = [{"text": words(n, seed=50 + i)} for i, n in enumerate([4, 30, 230])]
PAGES = [{"page": words(n, seed=70 + i) + " ."} for i, n in enumerate([10, 700])]
TRIVIA = [{"question": words(n, seed=90 + i)} for i, n in enumerate([6, 210, 320])]


def trivia_prompt(doc: dict[str, Any]) -> str:
    return f"Question: {doc['question']}?\nAnswer:"


@dataclass
class Run:
    """What the harness wrote."""

    results: dict[str, dict[str, Any]]
    samples: dict[str, list[dict[str, Any]]]
    config: dict[str, Any]
    log: str

    def of(self, task: str) -> list[dict[str, Any]]:
        """The samples of a task in the order of its documents."""
        return sorted(self.samples[task], key=lambda sample: sample["doc_id"])


@dataclass
class Harness:
    """A folder with their tasks over our files, and a process that they run in."""

    folder: Path

    def write(self, name: str, theirs: str, docs: list[dict[str, Any]]) -> None:
        spec = importlib.util.find_spec("lm_eval")
        assert spec is not None and spec.origin is not None
        data = self.folder / f"{name}.jsonl"
        data.write_text("".join(json.dumps(doc) + "\n" for doc in docs))
        config = {
            "include": str(Path(spec.origin).parent / "tasks" / theirs),
            "task": name,
            "dataset_path": "json",
            "dataset_name": None,
            "dataset_kwargs": {"data_files": {split: str(data) for split in ("train", "validation", "test")}},
            "tag": None,
        }
        (self.folder / f"{name}.yaml").write_text(json.dumps(config))  # JSON is YAML

    def call(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        """Run Python with these arguments. Whatever reaches for a network is noted in a file, and fails."""
        guard = self.folder / "guard"
        guard.mkdir(exist_ok=True)
        (guard / "sitecustomize.py").write_text(
            "import socket\n"
            "def refuse(*args, **kwargs):\n"
            f"    open({str(self.folder / 'network')!r}, 'a').write(repr(args))\n"
            "    raise OSError('no network in this test')\n"
            "socket.socket.connect = socket.socket.connect_ex = refuse\n"
            "socket.getaddrinfo = socket.create_connection = refuse\n"
        )
        env = {**os.environ, "PYTHONPATH": str(guard), "HF_HOME": str(self.folder / "hf"), "PYTHONWARNINGS": "ignore"}
        env |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TQDM_MININTERVAL": "10"}
        return subprocess.run(
            [sys.executable, *map(str, words)], cwd=self.folder, env=env, capture_output=True, text=True, timeout=300
        )

    def run(self, out: str, *options: str | Path) -> Run:
        """Their command line."""
        done = self.call(
            "-m", "pyselfextend.lm_eval", "run", "--include_path", self.folder, "--log_samples", "--output_path", out,
            "--model", "pyselfextend", *options,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        assert not (self.folder / "network").exists(), (self.folder / "network").read_text()
        (results,) = self.folder.glob(f"{out}/*/results_*.json")
        found = json.loads(results.read_text())
        samples = {
            task: [json.loads(line) for line in next(results.parent.glob(f"samples_{task}_*")).read_text().splitlines()]
            for task in found["configs"]
        }
        return Run(found["results"], samples, found["config"], done.stderr)


@pytest.fixture(scope="module")
def answers(extended: Exact) -> list[str]:
    """The exact answers to TRIVIA."""
    return [extended.answer(trivia_prompt(doc), MAX_GEN_TOKS, ["\n", ".", ","]) for doc in TRIVIA]


@pytest.fixture(scope="module")
def harness(tmp_path_factory: pytest.TempPathFactory, answers: list[str]) -> Harness:
    harness = Harness(tmp_path_factory.mktemp("harness"))
    harness.write("our_arc", "arc/arc_easy.yaml", ARC)
    harness.write("our_lambada", "lambada/lambada_openai.yaml", LAMBADA)
    harness.write("our_wikitext", "wikitext/wikitext.yaml", PAGES)
    # the second document wants what the model answers, the others something else
    docs = [
        {**doc, "answer": {"aliases": [answer.strip() if i == 1 else "nothing"]}}
        for i, (doc, answer) in enumerate(zip(TRIVIA, answers, strict=True))
    ]
    assert docs[1]["answer"] != docs[0]["answer"]
    harness.write("our_trivia", "triviaqa/default.yaml", docs)
    return harness


@pytest.fixture(scope="module")
def run(harness: Harness, tiny_model: Path) -> Run:
    """All four tasks, with SelfExtend, in a context of 900 tokens."""
    return harness.run(
        "extended", "--tasks", "our_arc,our_lambada,our_wikitext,our_trivia", "--model_args",
        f"path={tiny_model},ga_n=4,ga_w=64,n_ctx={N_CTX},type_k=F32,type_v=F32,flash_attn=False,n_threads=1,"
        f"max_gen_toks={MAX_GEN_TOKS}",
    )  # fmt: skip


def check_loglikelihoods(samples: list[dict[str, Any]], exact: Exact) -> list[list[tuple[float, bool]]]:
    """Compare every request with the reference. Returns the exact ones, by document."""
    found = []
    for sample in samples:
        expected = []
        for arguments, (given,) in zip(sample["arguments"].values(), sample["resps"], strict=True):
            context, continuation = arguments["arg_0"], arguments["arg_1"]
            value, greedy = exact.loglikelihood(context, continuation)
            n = len(exact.tokens(context + continuation)) - len(exact.tokens(context))
            assert float(given[0]) == pytest.approx(value, abs=n * TOLERANCE)
            assert given[1] in (greedy, str(greedy))
            expected.append((value, greedy))
        found.append(expected)
    return found


def test_multiple_choice(run: Run, extended: Exact) -> None:
    """ARC: prompts and choices as they write them, acc and acc_norm, contexts of 20 to 1,000 tokens."""
    samples = run.of("our_arc")
    lengths = []
    for sample, doc in zip(samples, ARC, strict=True):
        for arguments, choice in zip(sample["arguments"].values(), doc["choices"]["text"], strict=True):
            assert arguments["arg_0"] == f"Question: {doc['question']}\nAnswer:"
            assert arguments["arg_1"] == f" {choice}"
            lengths.append(len(extended.tokens(arguments["arg_0"] + arguments["arg_1"])))
    assert min(lengths) < 64 < N_CTX_TRAIN < lengths[11] < N_CTX < lengths[-1]
    expected = check_loglikelihoods(samples, extended)
    acc, acc_norm = [], []
    for doc, values in zip(ARC, expected, strict=True):
        gold = "ABCD".index(doc["answerKey"])
        n_chars = np.array([len(choice) for choice in doc["choices"]["text"]])
        lls = np.array([value for value, _ in values])
        acc.append(lls.argmax() == gold)
        acc_norm.append((lls / n_chars).argmax() == gold)
    assert run.results["our_arc"]["acc,none"] == pytest.approx(np.mean(acc))
    assert run.results["our_arc"]["acc_norm,none"] == pytest.approx(np.mean(acc_norm))


def test_plain_differs(run: Run, plain: Exact) -> None:
    """The bounds tell SelfExtend from the plain model."""
    sample = run.of("our_arc")[2]
    arguments = sample["arguments"]["gen_args_0"]
    value, _ = plain.loglikelihood(arguments["arg_0"], arguments["arg_1"])
    assert abs(float(sample["resps"][0][0][0]) - value) > 0.1


def test_last_words(run: Run, extended: Exact) -> None:
    """LAMBADA: perplexity and accuracy of the last word."""
    samples = run.of("our_lambada")
    expected = [values[0] for values in check_loglikelihoods(samples, extended)]
    perplexity = math.exp(-np.mean([value for value, _ in expected]))
    assert run.results["our_lambada"]["perplexity,none"] == pytest.approx(perplexity, rel=1e-3)
    assert run.results["our_lambada"]["acc,none"] == np.mean([greedy for _, greedy in expected])


def test_rolling(run: Run, extended: Exact) -> None:
    """WikiText: perplexities of whole pages, the second one in three windows."""
    texts = [doc["page"].replace(" .", ".") if doc["page"].endswith(" . ") else doc["page"] for doc in PAGES]
    lls = [extended.rolling(text) for text in texts]
    n_tokens = [len(extended.tokens(text, add_bos=False)) for text in texts]
    assert 2 * N_CTX < n_tokens[1] < 3 * N_CTX
    for sample, value, n in zip(run.of("our_wikitext"), lls, n_tokens, strict=True):
        assert float(sample["resps"][0][0]) == pytest.approx(value, abs=n * TOLERANCE)
    n_words = sum(len(re.split(r"\s+", doc["page"])) for doc in PAGES)
    n_bytes = sum(len(doc["page"]) for doc in PAGES)
    results = run.results["our_wikitext"]
    assert results["word_perplexity,none"] == pytest.approx(math.exp(-sum(lls) / n_words), rel=1e-3)
    assert results["byte_perplexity,none"] == pytest.approx(math.exp(-sum(lls) / n_bytes), rel=1e-3)
    assert results["bits_per_byte,none"] == pytest.approx(-sum(lls) / n_bytes / math.log(2), rel=1e-3)


def test_answers(run: Run, extended: Exact, answers: list[str]) -> None:
    """TriviaQA: greedy answers that end at one of three texts, and exact match."""
    for sample, doc, answer in zip(run.of("our_trivia"), TRIVIA, answers, strict=True):
        assert sample["arguments"]["gen_args_0"]["arg_0"] == trivia_prompt(doc)
        assert sample["resps"][0][0] == answer
    assert len(extended.tokens(trivia_prompt(TRIVIA[2]))) > N_CTX - MAX_GEN_TOKS
    assert run.results["our_trivia"]["exact_match,remove_whitespace"] == pytest.approx(1 / 3)


def test_what_is_written(run: Run, tiny_model: Path) -> None:
    """The settings stand beside the results, and what was cut is said once for each kind of request."""
    assert run.config["setting"] == "4:64"
    assert run.config["n_ctx"] == N_CTX and run.config["n_ctx_train"] == N_CTX_TRAIN
    assert run.config["type_k"] == "F32" and run.config["model_file"] == tiny_model.name
    n_long = sum(len(doc["question"].split()) == 340 for doc in ARC) * 4
    assert f"{n_long} of 23 requests are longer than the context of {N_CTX} tokens" in run.log
    assert f"1 of 3 requests are longer than the context of {N_CTX} tokens" in run.log


def test_from_python(harness: Harness, tiny_model: Path, plain: Exact) -> None:
    """simple_evaluate, with few shots and in the chat template; their other models are still known."""
    script = """
import json, sys
import lm_eval
from lm_eval.tasks import TaskManager
from pyselfextend.lm_eval import SelfExtendLM
path, folder = sys.argv[1:]
lm = SelfExtendLM(path, n_ctx=900, type_k="F32", type_v="F32", flash_attn=False, n_threads=1)
tasks = TaskManager(include_path=folder, include_defaults=False)
out = lm_eval.simple_evaluate(lm, tasks=["our_arc"], limit=2, num_fewshot=1, task_manager=tasks, bootstrap_iters=0)
chat = lm_eval.simple_evaluate(lm, tasks=["our_trivia"], limit=1, apply_chat_template=True, task_manager=tasks,
                               bootstrap_iters=0, gen_kwargs="max_gen_toks=6")["samples"]["our_trivia"][0]
names = [lm_eval.api.registry.get_model(name).__name__ for name in ("pyselfextend", "dummy")]
samples = [{"arguments": {i: dict(arg_0=a, arg_1=b) for i, (a, b) in enumerate(s["arguments"])}, "resps": s["resps"]}
           for s in out["samples"]["our_arc"]]
print(json.dumps([names, out["config"]["setting"], samples, chat["arguments"][0][0], chat["resps"][0][0]]))
"""
    done = harness.call("-c", script, tiny_model, harness.folder)
    assert done.returncode == 0, done.stderr[-3000:]
    assert not (harness.folder / "network").exists()
    assert "Exception ignored" not in done.stderr  # the model was not closed
    names, setting, samples, prompt, answer = json.loads(done.stdout.splitlines()[-1])
    assert names == ["SelfExtendLM", "DummyLM"]
    assert setting == "plain"
    check_loglikelihoods(samples, plain)
    assert (
        len(samples) == 2 and samples[0]["arguments"]["0"]["arg_0"].count("Question: ") == 2
    )  # a shot, and the question
    assert prompt == f"user: {trivia_prompt(TRIVIA[0])}\nassistant:"
    assert answer == plain.answer(prompt, 6, ["\n", ".", ","])


def test_an_error_is_one_line(harness: Harness, tiny_model: Path) -> None:
    done = harness.call(
        "-m", "pyselfextend.lm_eval", "run", "--include_path", harness.folder, "--tasks", "our_arc",
        "--model", "pyselfextend", "--model_args", f"path={tiny_model},ga_n=2,ga_w=64,n_ctx=5000",
    )  # fmt: skip
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("pyselfextend: ") and "5000" in last and "960" in last  # the reach


# -- the model's interface, in this process


class Request(SimpleNamespace):
    """What they call an instance: its arguments."""

    def __init__(self, *args: Any) -> None:
        super().__init__(args=args)


Open = Callable[..., Any]


@pytest.fixture
def open_lm(tiny_model: Path) -> Iterator[Open]:
    """Opens the tiny model; closes what was opened."""
    from pyselfextend.lm_eval import SelfExtendLM

    opened: list[SelfExtendLM] = []

    def open_model(path: Path = tiny_model, **kwargs: Any) -> SelfExtendLM:
        opened.append(SelfExtendLM(path, **{**EXACT, **kwargs}))
        return opened[-1]

    yield open_model
    for lm in opened:
        lm.close()


@pytest.mark.parametrize(
    ("arguments", "max_length", "setting"),
    [
        ({}, 512, "plain"),
        ({"n_ctx": 700}, 700, "plain"),
        ({"ga_n": 4, "ga_w": 64}, 4 * (512 - 64 + 16) - 1, "4:64"),  # the last token of a request is only scored
        ({"ga_n": 4}, 4 * (512 - 64 + 16) - 1, "4:64"),
        ({"ga_n": "auto"}, 512, "auto:64"),
        ({"ga_n": "auto", "n_ctx": 100}, 100, "auto:64"),
        ({"ga_n": "auto", "ga_w": 32, "n_ctx": 1000}, 1000, "auto:32"),
        ({"setting": "auto", "n_ctx": 700}, 700, "auto:64"),
        ({"setting": "4:64", "n_ctx": 1000}, 1000, "4:64"),
        ({"setting": "yarn:2"}, 1024, "yarn:2"),
        ({"setting": "linear", "n_ctx": 640}, 640, "linear:1.25"),
        ({"setting": "ntk"}, 512, "ntk:1"),
    ],
)
def test_settings(open_lm: Open, arguments: dict[str, Any], max_length: int, setting: str) -> None:
    lm = open_lm(**arguments)
    assert (lm.max_length, str(lm.setting)) == (max_length, setting)
    # the longest request, and the last prompt before the context is full
    text = "x " * (max_length // 2 + 4)
    tokens = lm.tok_encode(text)[: max_length + 1]
    assert len(tokens) == max_length + 1
    ((value, greedy),) = lm._loglikelihood_tokens([(None, tokens[:-5], tokens[-5:])], disable_tqdm=True)
    assert math.isfinite(value) and not greedy
    assert lm.generate_until([Request(text, {"max_gen_toks": 3})], disable_tqdm=True)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"path": Path("nothing.gguf")}, ModelFileError, "nothing.gguf"),
        ({"setting": "4:64", "ga_n": 2}, SettingError, "the setting is '4:64', and ga_n or ga_w are given too"),
        ({"setting": "4:64", "ga_n": "auto"}, SettingError, "the setting is '4:64', and ga_n or ga_w are given too"),
        ({"setting": "auto", "ga_w": 64}, SettingError, "the setting is 'auto', and ga_n or ga_w are given too"),
        ({"setting": "plane"}, SettingError, "the setting is 'plane'; it must be plain, auto, also"),
        (
            {"ga_n": "all"},
            SettingError,
            "ga_n is 'all' of type str; it must be an integer from",
        ),
        ({"ga_n": "auto", "ga_w": 512}, SettingError, "ga_w is 512; it must be below the trained context of 512"),
        ({"ga_n": 0}, SettingError, "ga_n is 0; it must be an integer from 1"),
        ({"ga_n": 2, "ga_w": 512}, SettingError, "ga_w is 512; it must be below the trained context of 512"),
        ({"n_ctx": 1}, SettingError, "n_ctx is 1; it must be an integer from 2"),
        ({"max_gen_toks": 0}, SettingError, "max_gen_toks is 0; it must be an integer from 1"),
        ({"type_k": "F17"}, SettingError, "the cache type is 'F17'"),
    ],
)
def test_wrong_arguments(open_lm: Open, arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        open_lm(**arguments)


def test_border_of_context_and_continuation(open_lm: Open, plain: Exact) -> None:
    """Spaces at the end of a context belong to the continuation; an empty context is a beginning of sequence."""
    lm = open_lm()
    requests = [("the cat ", "sat"), ("the cat", " sat"), ("", "the cat"), ("<s>the cat", " sat")]
    values = [value for value, _ in lm.loglikelihood([Request(*pair) for pair in requests], disable_tqdm=True)]
    assert values[0] == values[1] == values[3]
    assert values[1] == pytest.approx(plain.loglikelihood("the cat", " sat")[0], abs=10 * TOLERANCE)
    tokens = plain.tokens("the cat")
    assert tokens[0] == plain.llm.token_bos()
    assert values[2] == pytest.approx(plain.score(tokens, len(tokens) - 1)[0], abs=10 * TOLERANCE)


def test_greedy_continuation(open_lm: Open, extended: Exact) -> None:
    """The one that the reference holds for the most probable is said to be, and another one is not."""
    for seed in range(100):
        context = words(4, seed)
        tokens = extended.tokens(context)
        best = int(extended.log_probs(tokens)[-1].argmax())
        text = extended.llm.detokenize([best]).decode(errors="replace")
        if extended.tokens(context + text) == [*tokens, best]:
            break
    else:
        pytest.fail("no context has a greedy continuation that is a text")
    lm = open_lm(ga_n=4, ga_w=64)
    found = lm.loglikelihood([Request(context, text), Request(context, "~")], disable_tqdm=True)
    assert [greedy for _, greedy in found] == [True, False]
    assert found[0][0] > found[1][0]


def test_beginning_of_sequence(open_lm: Open, tiny_model: Path, tmp_path: Path) -> None:
    """As the model wants it, unless the text has one or the caller says otherwise."""
    lm = open_lm()
    without = lm.tok_encode("the cat", add_special_tokens=False)
    assert lm.tok_encode("the cat") == lm.tok_encode("<s>the cat") == [1, *without]
    assert lm.tok_encode("the cat", add_special_tokens=True) == [1, *without]
    assert lm.tok_encode("<s>", add_special_tokens=True) == [1, 1]
    assert open_lm(add_bos_token=False).tok_encode("the cat") == without
    assert (lm.prefix_token_id, lm.eot_token_id) == (1, 2)


def test_rolling_scores_the_text_alone(open_lm: Open, plain: Exact) -> None:
    """Not the beginning of sequence as well; an empty text has no tokens."""
    found = open_lm().loglikelihood_rolling([Request("the cat"), Request("")], disable_tqdm=True)
    tokens = plain.tokens("the cat")
    assert found == [pytest.approx(plain.score(tokens, len(tokens) - 1)[0], abs=10 * TOLERANCE), 0.0]


def test_refused_requests(open_lm: Open) -> None:
    lm = open_lm(n_ctx=64)
    with pytest.raises(EvalError, match="a continuation has 71 tokens, the context 64; give a larger n_ctx"):
        lm.loglikelihood([Request("a", "b" * 71)], disable_tqdm=True)
    with pytest.raises(EvalError, match="a continuation has no token of its own"):
        lm.loglikelihood([Request("at", "h")], disable_tqdm=True)  # "th" is one token
    with pytest.raises(EvalError, match="answers of 64 tokens leave no room for a prompt in a context of 64"):
        lm.generate_until([Request("a", {"max_gen_toks": 64})], disable_tqdm=True)


def test_shared_beginnings_are_evaluated_once(open_lm: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests in any order: equal contexts once, and common beginnings in whole slices of 512 tokens."""
    shots = words(260, 1)
    contexts = [f"{shots} {words(20, seed)}" for seed in (2, 3, 4)]
    requests = [Request(context, f" {choice}") for choice in ("cat", "dog", "hat", "tree") for context in contexts]
    lm = open_lm(n_ctx=1200)
    prompts = [lm.tok_encode(context) for context in contexts]
    n_continuations = sum(len(lm._encode_pair(*request.args)[1]) - 1 for request in requests)
    decode, n_evaluated = llama_cpp.llama_decode, []

    def count(ctx: Any, batch: Any) -> int:
        n_evaluated.append(batch.n_tokens)
        return int(decode(ctx, batch))

    monkeypatch.setattr(llama_cpp, "llama_decode", count)
    values = lm.loglikelihood(requests, disable_tqdm=True)
    assert sum(n_evaluated) == 512 + sum(len(prompt) - 512 for prompt in prompts) + n_continuations
    alone = [lm.loglikelihood([request], disable_tqdm=True)[0] for request in requests]
    assert values == alone


# -- auto


@dataclass
class Auto:
    """The reference, with the group of each request's length by the authors' rule ``2/3 * L > W + (N - W) / G``."""

    plain: Exact

    def of(self, n_read: int) -> Exact:
        ga_n = 1 if n_read <= N_CTX_TRAIN else 2
        while ga_n > 1 and 2 * N_CTX_TRAIN * ga_n <= 3 * (64 * ga_n + n_read - 64):
            ga_n *= 2
        return Exact(self.plain.reference, self.plain.llm, ga_n, 64)

    def loglikelihood(self, context: str, continuation: str) -> tuple[float, bool]:
        n_read = min(len(self.plain.tokens(context + continuation)) - 1, N_CTX)  # the last token is not read
        return self.of(n_read).loglikelihood(context, continuation)

    def answer(self, prompt: str, n_predict: int) -> str:
        n_read = min(len(self.plain.tokens(prompt)) + n_predict, N_CTX)
        return self.of(n_read).answer(prompt, n_predict, [])


def test_auto_reads_each_request_with_its_group(open_lm: Open, plain: Exact) -> None:
    """Contexts of 20 to 1,000 tokens behind one another, with groups of 1, 2 and 4, and answers."""
    auto, lm = Auto(plain), open_lm(ga_n="auto", n_ctx=N_CTX)
    contexts = [words(n, seed=n) for n in (5, 165, 170, 176, 195, 210, 290, 360)]
    n_read = [min(len(plain.tokens(context)) + MAX_GEN_TOKS, N_CTX) for context in contexts]
    assert {auto.of(n).ga_n for n in n_read} == {1, 2, 4}
    requests = [Request(context, f" {choice}") for choice in ("cat", "the dog sat in rain") for context in contexts]
    values = lm.loglikelihood(requests, disable_tqdm=True)
    for request, (value, _) in zip(requests, values, strict=True):
        n = len(plain.tokens("".join(request.args))) - len(plain.tokens(request.args[0]))
        assert value == pytest.approx(auto.loglikelihood(*request.args)[0], abs=n * TOLERANCE)
    asked = [Request(context, {"max_gen_toks": MAX_GEN_TOKS}) for context in contexts]
    answers = lm.generate_until(asked, disable_tqdm=True)
    assert answers == [auto.answer(context, MAX_GEN_TOKS) for context in contexts]
    assert [lm.loglikelihood([request], disable_tqdm=True)[0] for request in requests] == values


@pytest.mark.parametrize(("n_ctx", "ga_n"), [(N_CTX_TRAIN, 1), (N_CTX_TRAIN + 1, 2), (N_CTX, 4)])
def test_auto_reads_windows_with_their_group(open_lm: Open, plain: Exact, n_ctx: int, ga_n: int) -> None:
    """Full windows of the trained length are the plain model's. The rest of a text is a window as well."""
    text = words(700, 71)
    assert len(plain.tokens(text)) > 2 * n_ctx
    lm = open_lm(setting="auto", n_ctx=n_ctx)
    (value,) = lm.loglikelihood_rolling([Request(text)], disable_tqdm=True)
    exact = Exact(plain.reference, plain.llm, ga_n, 64)
    tokens = len(plain.tokens(text, add_bos=False))
    assert value == pytest.approx(exact.rolling(text, n_ctx), abs=tokens * TOLERANCE)


def test_auto_shares_beginnings_by_groups(open_lm: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """Contexts that share a slice, in turn with a group of 2 and of 4: it is evaluated once for each."""
    shots = words(160, 1)
    contexts = [f"{shots} {words(n, seed)}" for seed, n in enumerate([5, 60, 7, 70, 9, 80])]
    lm = open_lm(ga_n="auto", n_ctx=N_CTX, flash_attn=True, type_k="F16", type_v="F16")
    prompts = [lm.tok_encode(context) for context in contexts]
    assert len(lm.tok_encode(shots)) > 512
    groups = [lm.setting.group(lm._rope, len(prompt)) for prompt in prompts]
    assert groups == [2, 4] * 3
    n_evaluated = []
    decode = llama_cpp.llama_decode

    def count(ctx: Any, batch: Any) -> int:
        n_evaluated.append(batch.n_tokens)
        return int(decode(ctx, batch))

    monkeypatch.setattr(llama_cpp, "llama_decode", count)
    lm.loglikelihood([Request(context, "~") for context in contexts], disable_tqdm=True)
    assert sum(n_evaluated) == 2 * 512 + sum(len(prompt) - 512 for prompt in prompts)


def test_auto_from_the_command_line(harness: Harness, tiny_model: Path, plain: Exact) -> None:
    run = harness.run(
        "auto", "--tasks", "our_lambada", "--model_args",
        f"path={tiny_model},ga_n=auto,n_ctx={N_CTX},type_k=F32,type_v=F32,flash_attn=False,n_threads=1",
    )  # fmt: skip
    assert run.config["setting"] == "auto:64"
    for sample in run.of("our_lambada"):
        arguments = sample["arguments"]["gen_args_0"]
        value, _ = Auto(plain).loglikelihood(arguments["arg_0"], arguments["arg_1"])
        assert float(sample["resps"][0][0][0]) == pytest.approx(value, abs=20 * TOLERANCE)


GREEDY = [
    {},
    {"do_sample": False, "temperature": 0.7},
    {"temperature": 0.0, "top_k": 5, "num_beams": 1},
    {"do_sample": True, "temperature": 0},
]
SAMPLES = [{"do_sample": True}, {"temperature": 0.8}, {"do_sample": True, "temperature": 1}]


def test_generation_arguments(open_lm: Open) -> None:
    lm = open_lm(max_gen_toks=8)
    text = words(6, 5)
    answers = lm.generate_until([Request(text, kwargs) for kwargs in GREEDY], disable_tqdm=True)
    assert len(set(answers)) == 1 and answers[0]
    for name in ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens"):
        (answer,) = lm.generate_until([Request(text, {name: 3})], disable_tqdm=True)
        assert len(answer) < len(answers[0]) and answers[0].startswith(answer.rstrip("\ufffd"))
    for kwargs in SAMPLES:
        with pytest.raises(EvalError, match="the task asks for samples"):
            lm.generate_until([Request(text, kwargs)], disable_tqdm=True)
    with pytest.raises(EvalError, match=r"the task asks for num_beams=4, logits_processor=3, which is not supported"):
        lm.generate_until([Request(text, {"num_beams": 4, "top_p": 0.9, "logits_processor": 3})], disable_tqdm=True)


@pytest.mark.parametrize("n_terms", [1, 2])
def test_until(open_lm: Open, n_terms: int) -> None:
    """An answer ends before the first of the texts, wherever tokens end."""
    lm = open_lm()
    text = words(6, 5)
    (whole,) = lm.generate_until([Request(text, {"max_gen_toks": 20})], disable_tqdm=True)
    middle = whole[len(whole) // 2 : len(whole) // 2 + 2]
    terms = [middle, "never to be seen"][:n_terms]
    for until in [terms, tuple(terms)] if n_terms > 1 else [terms, middle]:
        (answer,) = lm.generate_until([Request(text, {"until": until, "max_gen_toks": 20})], disable_tqdm=True)
        assert answer == whole[: whole.index(middle)]


def test_interrupted_runs_keep_what_was_done(open_lm: Open) -> None:
    """What is handed to their cache as it comes is what they look for when a run begins again."""
    from lm_eval.api.model import CacheHook, hash_args

    hook = CacheHook(None)
    hook.dbdict = {}
    lm = open_lm()
    lm.set_cache_hook(hook)
    pairs = [Request("the cat", " sat"), Request("", "dog")]
    texts = [Request("a tree")]
    prompts = [Request("the cat", {"until": ["x"], "max_gen_toks": 2})]
    expected = {}
    for name, requests in (("loglikelihood", pairs), ("loglikelihood_rolling", texts), ("generate_until", prompts)):
        found = getattr(lm, name)(requests, disable_tqdm=True)
        expected |= {hash_args(name, r.args): value for r, value in zip(requests, found, strict=True)}
    assert hook.dbdict == expected


def test_chat_template(open_lm: Open) -> None:
    lm = open_lm()
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    assert lm.apply_chat_template(chat) == "system: Be brief.\nuser: Hi\nassistant:"
    begun = [*chat, {"role": "assistant", "content": "Well, "}]
    assert lm.apply_chat_template(begun, add_generation_prompt=False).endswith("user: Hi\nassistant: Well, ")
    assert "{{ m['content'] }}" in lm.chat_template(True)
    assert lm.chat_template(False) is None
    with pytest.raises(EvalError, match="the chat template 'tools' was asked for; only the model's own can be used"):
        lm.chat_template("tools")
    assert lm.tokenizer_name.startswith("tiny-llama-")


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "has no chat template; leave --apply_chat_template out"),
        ("{{ raise_exception('only pictures') }}", "fails: only pictures"),
        ("{% if x %}", "fails: Unexpected end of template"),
    ],
)
def test_chat_templates_that_fail(open_lm: Open, template: str | None, message: str) -> None:
    lm = open_lm()
    lm._llm.metadata.pop("tokenizer.chat_template")
    if template is not None:
        lm._llm.metadata["tokenizer.chat_template"] = template
    with pytest.raises(EvalError, match=message):
        lm.apply_chat_template([{"role": "user", "content": "Hi"}])


def test_chat_template_without_system_messages(open_lm: Open, caplog: pytest.LogCaptureFixture) -> None:
    """The conversation goes without it, as in their hf model."""
    lm = open_lm()
    lm._llm.metadata["tokenizer.chat_template"] = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "{{ messages[0]['content'] }}"
    )
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    with caplog.at_level("WARNING", "lm_eval.pyselfextend"):
        assert lm.apply_chat_template(chat) == "Hi"
    assert "takes no system message" in caplog.text


def test_one_sentence_if_the_extra_is_missing() -> None:
    script = (
        "import sys\nsys.modules['lm_eval'] = None\nfrom pyselfextend import MissingExtraError\n"
        "try:\n    import pyselfextend.lm_eval\nexcept MissingExtraError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (
        "this needs lm_eval, which is not installed; install it with: pip install 'pyselfextend[lm-eval]'"
        in done.stdout
    )
