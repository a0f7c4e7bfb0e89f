"""What chat programs do with an instance: go on, go back, save, load, draft, constrain, adapt; and go on for long."""

from __future__ import annotations

import os
import pickle
import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from shutil import copyfile
from typing import Any

import gguf
import numpy as np
import pytest
from reference_cache import CachedReference

from pyselfextend import Llama, SettingError, ShiftError, StateError

import llama_cpp  # isort: skip  # after pyselfextend
from llama_cpp.llama_speculative import LlamaPromptLookupDecoding  # isort: skip
from test_llama import QUIET, complete, last_logits, some_tokens  # isort: skip

EXTENDED: dict[str, Any] = {"ga_n": 4, "ga_w": 64, "n_ctx": 1024}

Open = Callable[..., Llama]


@pytest.fixture
def open_llama(tiny_model: Path) -> Iterator[Open]:
    """Opens the tiny Llama model, extended unless told otherwise; closes what was opened."""
    opened: list[Llama] = []

    def open_model(path: Path = tiny_model, **kwargs: Any) -> Llama:
        opened.append(Llama(str(path), **{**QUIET, **EXTENDED, **kwargs}))
        return opened[-1]

    yield open_model
    for llm in opened:
        llm.close()


def n_evaluated(llm: Llama) -> int:
    """Tokens that the model has evaluated."""
    llama_cpp.llama_synchronize(llm._ctx.ctx)  # counts what is still queued
    perf = llama_cpp.llama_perf_context(llm._ctx.ctx)
    return int(perf.n_p_eval + perf.n_eval)


# -- prefixes


def test_a_second_turn_evaluates_only_what_is_new(open_llama: Open) -> None:
    llm, fresh = open_llama(), open_llama()
    messages: list[Any] = [{"role": "user", "content": "What is in the text? " * 30}]
    options: dict[str, Any] = {"max_tokens": 12, "temperature": 0.0}

    first: Any = llm.create_chat_completion(messages, **options)
    messages += [first["choices"][0]["message"], {"role": "user", "content": "And what is not?"}]
    before = n_evaluated(llm)
    second: Any = llm.create_chat_completion(messages, **options)
    used = second["usage"]
    assert used["prompt_tokens"] > 500  # far beyond the window

    # the last token of the first answer was drawn, but not evaluated; the text of an answer may be cut into tokens anew
    n_new = n_evaluated(llm) - before
    assert n_new < used["prompt_tokens"] - first["usage"]["prompt_tokens"] + used["completion_tokens"] + 4
    expected: Any = fresh.create_chat_completion(messages, **options)
    assert second["choices"][0]["message"] == expected["choices"][0]["message"]


def test_eval_goes_on(open_llama: Open) -> None:
    tokens = some_tokens(900)
    llm, fresh = open_llama(), open_llama()
    llm.eval(tokens[:700])
    before = n_evaluated(llm)
    llm.eval(tokens[700:])
    assert n_evaluated(llm) - before == 200
    fresh.eval(tokens)
    assert np.allclose(last_logits(llm), last_logits(fresh), rtol=0, atol=0.02)


@pytest.mark.parametrize("keep", [899, 500, 100, 3])
def test_going_back_evaluates_only_what_is_new(open_llama: Open, keep: int) -> None:
    tokens, others = some_tokens(900), some_tokens(60, seed=1)
    llm, fresh = open_llama(n_ubatch=64), open_llama(n_ubatch=64)
    llm.eval(tokens)
    before = n_evaluated(llm)
    llm.n_tokens = keep
    llm.eval(others)
    assert n_evaluated(llm) - before == 60
    fresh.eval(tokens[:keep] + others)
    assert np.allclose(last_logits(llm), last_logits(fresh), rtol=0, atol=0.02)


@pytest.mark.parametrize(("name", "options"), [("hunyuan-dense", {}), ("gemma3", {"swa_full": False})])
def test_going_back_where_keys_are_lost(
    open_llama: Open, tiny_models: dict[str, Path], name: str, options: dict[str, Any]
) -> None:
    """Keys that cannot be turned back, layers that have forgotten: the kept tokens are evaluated again."""
    tokens, others = some_tokens(900), some_tokens(60, seed=1)
    llm, fresh = (open_llama(tiny_models[name], n_ubatch=64, type_k=0, type_v=0, **options) for _ in range(2))
    llm.eval(tokens)
    before = n_evaluated(llm)
    llm.n_tokens = 300
    llm.eval(others)
    assert n_evaluated(llm) - before == 360
    fresh.eval(tokens[:300] + others)
    assert np.allclose(last_logits(llm), last_logits(fresh), rtol=0, atol=5e-3)


# -- context shift


@pytest.mark.parametrize("ga_n", [1, 4])
def test_context_shift(open_llama: Open, ga_n: int) -> None:
    """Tokens and scores move along. That keys do too is compared with a reference elsewhere."""
    tokens = some_tokens(400)
    llm = open_llama(ga_n=ga_n, n_ctx=512, logits_all=True)
    llm.eval(tokens)
    scores = llm.scores[:400].copy()
    llm.context_shift(10, 150)
    assert llm.n_tokens == 250
    assert list(llm.eval_tokens) == tokens[:10] + tokens[160:]
    assert np.array_equal(llm.scores[:250], np.concatenate([scores[:10], scores[160:]]))
    llm.eval(some_tokens(200, seed=1))
    assert llm.n_tokens == 450


@pytest.mark.parametrize(("n_keep", "n_discard"), [(-1, 5), (401, 0), (10, 391), (0, -1)])
def test_what_is_not_there_cannot_be_shifted(open_llama: Open, n_keep: int, n_discard: int) -> None:
    llm = open_llama()
    llm.eval(some_tokens(400))
    with pytest.raises(SettingError, match=r"^n_(keep|discard) is -?\d+; it must be an integer from 0 to \d+$"):
        llm.context_shift(n_keep, n_discard)
    assert llm.n_tokens == 400


def test_what_is_asked_after_a_shift_is_evaluated(open_llama: Open) -> None:
    """The last logits are those of a token that may be gone."""
    tokens = some_tokens(300)
    llm = open_llama()
    llm.eval(tokens)
    llm.context_shift(200, 100)
    assert complete(llm, tokens[:200]) == complete(open_llama(), tokens[:200])


def test_layers_with_windows_are_shifted_again_and_again(open_llama: Open, tiny_models: dict[str, Path]) -> None:
    """What a shift leaves free is filled before anything that has left a window is overwritten."""
    path = tiny_models["gemma3"]
    llm = open_llama(path, type_k=0, type_v=0, n_ctx=512)
    reference = CachedReference(path, llm.self_extend.ga_n, llm.self_extend.ga_w)
    for step in range(5):
        tokens = some_tokens(500 - llm.n_tokens, seed=step)
        llm.eval(tokens)
        assert np.abs(last_logits(llm) - reference.extend(np.array(tokens))[-1]).max() < 5e-3, step
        llm.context_shift(100, 390)  # the window reaches back to what was kept
        reference.remove(100, 490)
        reference.shift(490, 500, -390)


def test_layers_with_windows_that_forget_cannot_be_shifted(open_llama: Open, tiny_models: dict[str, Path]) -> None:
    tokens = some_tokens(500)
    llm = open_llama(tiny_models["gemma3"], swa_full=False)
    llm.eval(tokens[:400])
    with pytest.raises(ShiftError):
        llm.context_shift(100, llm.n_tokens - 110)
    assert llm.n_tokens == 400
    llm.eval(tokens[400:])


def test_a_model_that_cannot_be_shifted_says_so(open_llama: Open, tiny_models: dict[str, Path]) -> None:
    llm, same = (open_llama(tiny_models["qwen2vl"]) for _ in range(2))
    for model in (llm, same):
        model.eval(some_tokens(400))
    with pytest.raises(ShiftError, match="cannot be shifted"):
        llm.context_shift(10, 150)
    for model in (llm, same):
        model.eval(some_tokens(50, seed=1))
    assert np.array_equal(last_logits(llm), last_logits(same))


# -- saved state


def test_saved_state(open_llama: Open) -> None:
    tokens, others = some_tokens(800), some_tokens(100, seed=1)
    llm = open_llama()
    llm.eval(tokens)
    state = llm.save_state()
    llm.eval(others)
    expected = last_logits(llm)

    for target in (llm, open_llama(), open_llama(n_ctx=1500)):
        target.load_state(pickle.loads(pickle.dumps(state)))
        assert target.n_tokens == 800
        assert list(target.eval_tokens) == tokens
        target.eval(others)
        assert np.allclose(last_logits(target), expected, rtol=0, atol=0.02)


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        ({"ga_n": 3}, "the state was saved with ga_n = 3 and ga_w = 64, this context has ga_n = 4 and ga_w = 64"),
        ({"ga_w": 65}, "the state was saved with ga_n = 4 and ga_w = 65, this context has"),
        ({"ga_n": 1}, "the state was not saved with SelfExtend"),
        ({"type_k": 8}, "the state was saved with a q8_0/f16 cache"),
        ({"n_ctx": 1536, "n": 1200}, "the state has 1200 tokens, this context has room for 1024"),
        ({"path": "llama-mha"}, "the state was saved with another model"),
        ({"path": "qwen3"}, "wrong model arch: 'qwen3' instead of 'llama'"),
    ],
)
def test_a_foreign_state_is_refused(
    open_llama: Open, tiny_models: dict[str, Path], other: dict[str, Any], reason: str
) -> None:
    other = {**other, "path": tiny_models[other.get("path", "llama")]}
    n_tokens = other.pop("n", 300)
    foreign = open_llama(**other)
    foreign.eval(some_tokens(n_tokens))
    state = foreign.save_state()

    llm, same = open_llama(), open_llama()
    for model in (llm, same):
        model.eval(some_tokens(700, seed=2))
    with pytest.raises(StateError, match=f"^the state cannot be loaded: {reason}") as caught:
        llm.load_state(state)
    assert isinstance(caught.value, RuntimeError)
    assert (llm.n_tokens, list(llm.eval_tokens)) == (700, list(same.eval_tokens))
    for model in (llm, same):
        model.eval(some_tokens(50, seed=1))
    assert np.array_equal(last_logits(llm), last_logits(same))


@pytest.mark.parametrize(("n", "reason"), [(-1, "truncated"), (100, "truncated"), (3, "or it is damaged")])
def test_a_truncated_state_is_refused(open_llama: Open, n: int, reason: str) -> None:
    llm = open_llama()
    llm.eval(some_tokens(300))
    state = llm.save_state()
    state.llama_state = state.llama_state[:n]
    expected = complete(llm, some_tokens(700))
    with pytest.raises(StateError, match=reason):
        llm.load_state(state)
    assert complete(llm, some_tokens(700)) == expected


def test_a_state_without_logits(open_llama: Open) -> None:
    """Logits that the saving instance did not have are none, rather than what lay in memory."""
    llm, all_logits = open_llama(), open_llama(logits_all=True)
    llm.eval(some_tokens(300))
    state = llm.save_state()
    assert state.scores.shape == (0, llm.n_vocab())
    all_logits.load_state(state)
    assert np.isnan(all_logits.scores[:300]).all()
    all_logits.eval([5])
    assert np.isfinite(all_logits.scores[300]).all()


@pytest.mark.parametrize("kind", ["ram", "disk"])
def test_completions_are_cached(open_llama: Open, tmp_path: Path, kind: str) -> None:
    """With llama_cpp's caches a prompt that was seen before is not evaluated again."""
    cache: Any = llama_cpp.LlamaRAMCache() if kind == "ram" else llama_cpp.LlamaDiskCache(str(tmp_path))
    llm, plain = open_llama(), open_llama()
    llm.set_cache(cache)
    prompts = [some_tokens(700, seed=seed) for seed in (0, 1)]
    for prompt in prompts:
        complete(llm, prompt)
    for prompt in prompts:
        before = n_evaluated(llm)
        assert complete(llm, [*prompt, 7, 8]) == complete(plain, [*prompt, 7, 8])
        assert n_evaluated(llm) - before < 50


# -- drafts, grammars, adapters, and what else an instance can do


def test_speculative_decoding_changes_nothing(open_llama: Open) -> None:
    """Rejected drafts are roll-backs."""
    tokens = some_tokens(40) * 20
    draft = open_llama(draft_model=LlamaPromptLookupDecoding(num_pred_tokens=6))
    assert complete(draft, tokens, 60) == complete(open_llama(), tokens, 60)


def test_grammars(open_llama: Open) -> None:
    """A grammar constrains what is drawn: inside the window just as in the plain model, and beyond it as well."""
    grammar = llama_cpp.LlamaGrammar.from_string('root ::= ("yes" | "no") " " [0-9]{3}', verbose=False)

    def answer(llm: Llama, tokens: list[int]) -> str:
        completion: Any = llm.create_completion(tokens, max_tokens=20, temperature=0.0, grammar=grammar)
        return str(completion["choices"][0]["text"])

    llm = open_llama()
    assert answer(llm, some_tokens(40)) == answer(open_llama(ga_n=1, n_ctx=512), some_tokens(40))
    far = answer(llm, some_tokens(700))
    assert far.split()[0] in ("yes", "no")
    assert len(far.split()[1]) == 3
    assert far.split()[1].isdigit()


def with_adapter(tiny_model: Path, folder: Path) -> tuple[Path, Path]:
    """A LoRA adapter of rank 2 on q, k and v, and the model with the adapter merged into it."""
    rng = np.random.default_rng(0)
    merged, adapter = folder / "merged.gguf", folder / "lora.gguf"
    copyfile(tiny_model, merged)
    reader = gguf.GGUFReader(merged, "r+")
    writer = gguf.GGUFWriter(adapter, "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 2.0)
    for tensor in reader.tensors:
        if tensor.name.split(".")[-2] in ("attn_q", "attn_k", "attn_v"):
            n_out, n_in = tensor.data.shape
            a = rng.normal(0, 0.1, (2, n_in)).astype(np.float32)
            b = rng.normal(0, 0.3, (n_out, 2)).astype(np.float32)
            writer.add_tensor(f"{tensor.name}.lora_a", a)
            writer.add_tensor(f"{tensor.name}.lora_b", b)
            tensor.data[:] += b @ a
    reader.data.flush()
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return adapter, merged


def test_lora_adapters(open_llama: Open, tiny_model: Path, tmp_path: Path) -> None:
    """The same as the model that the adapter is merged into."""
    adapter, merged = with_adapter(tiny_model, tmp_path)
    tokens = some_tokens(900)
    adapted, expected, without = open_llama(lora_path=str(adapter)), open_llama(merged), open_llama()
    for llm in (adapted, expected, without):
        llm.eval(tokens)
    assert np.abs(last_logits(adapted) - last_logits(expected)).max() < 0.02
    assert np.abs(last_logits(adapted) - last_logits(without)).max() > 0.5


def test_log_probabilities(open_llama: Open) -> None:
    """With the logits of all tokens: the same tokens and probabilities as those of the last one at a time."""
    tokens = some_tokens(700)
    completion: Any = open_llama(logits_all=True).create_completion(
        tokens, max_tokens=8, temperature=0.0, logprobs=3, echo=False
    )
    choice = completion["choices"][0]
    assert choice["text"] == complete(open_llama(), tokens, 8)
    llm = open_llama()
    llm.eval(tokens)
    logits = last_logits(llm).astype(np.float64)
    expected = logits.max() - np.log(np.exp(logits - logits.max()).sum()) - logits.max()
    assert abs(choice["logprobs"]["token_logprobs"][0] - expected) < 0.01


def test_embeddings(open_llama: Open) -> None:
    """Inside the window those of the plain model, bit for bit but for the kernel; beyond it others."""
    short, long = "a short text", "a long text that goes on and on, " * 25
    options: dict[str, Any] = {"embedding": True, "n_batch": 1024, "n_ubatch": 1024}
    extended, plain = open_llama(**options), open_llama(ga_n=1, **options)

    def embed(llm: Llama, text: str) -> Any:
        return np.array(llm.embed(text, normalize=True))

    assert np.abs(embed(extended, short) - embed(plain, short)).max() < 1e-3
    assert embed(extended, long).shape == embed(plain, long).shape
    assert np.abs(embed(extended, long) - embed(plain, long)).max() > 0.01
    assert np.array_equal(embed(extended, short), embed(extended, short))


def test_infill(open_llama: Open) -> None:
    """With a suffix: as the plain model where nothing is far."""

    def fill(llm: Llama, prompt: str) -> str:
        completion: Any = llm.create_completion(prompt, suffix=" and so on", max_tokens=10, temperature=0.0)
        return str(completion["choices"][0]["text"])

    llm = open_llama()
    assert fill(llm, "one, two") == fill(open_llama(ga_n=1, n_ctx=512), "one, two")
    assert fill(llm, "one, two, " * 80) == fill(open_llama(), "one, two, " * 80)


# -- for long, and side by side


def resident() -> int:
    """Bytes of memory that this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads the memory of the process from procfs")
@pytest.mark.parametrize("flash_attn", [False, True])
def test_memory_does_not_grow(open_llama: Open, flash_attn: bool) -> None:
    """10,000 tokens one by one, with 1,000 roll-backs of any depth among them."""
    rng = random.Random(0)
    llm = open_llama(n_ubatch=64, flash_attn=flash_attn)
    llm.eval(some_tokens(900))
    sizes = []
    for step in range(1000):
        llm.n_tokens = rng.randrange(1, min(llm.n_tokens + 1, 1010))
        for token in some_tokens(10, seed=step):
            llm.eval([token])
        if llm.n_tokens < 500:
            llm.eval(some_tokens(400, seed=step))
        if step % 100 == 99:
            sizes.append(resident())
    assert max(sizes[2:]) - sizes[1] < 2**20, sizes


def test_two_pairs_in_two_threads(open_llama: Open, tiny_model: Path) -> None:
    """Created and used at the same time in one process: each as if it were alone."""
    tokens = some_tokens(800)
    pairs = [(4, 64), (3, 100), (1, None)]
    ready = threading.Barrier(len(pairs))
    results: dict[int, list[Any]] = {}

    def run(ga_n: int, ga_w: int | None) -> list[Any]:
        found = []
        for _ in range(3):
            with Llama(str(tiny_model), **{**QUIET, "ga_n": ga_n, "ga_w": ga_w, "n_ctx": 1024}) as llm:
                llm.eval(tokens[:700])
                llm.n_tokens = 300
                llm.eval(tokens[300:])
                found.append(last_logits(llm))
        return found

    def work(ga_n: int, ga_w: int | None) -> None:
        ready.wait(60)
        results[ga_n] = run(ga_n, ga_w)

    threads = [threading.Thread(target=work, args=pair) for pair in pairs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    for ga_n, ga_w in pairs:
        alone = run(ga_n, ga_w)
        assert len(results[ga_n]) == 3
        assert all(np.array_equal(logits, alone[0]) for logits in [*results[ga_n], *alone])
