"""llama.cpp's server on our libraries, as a process: what it answers past the trained window, and what it says of it.

What it should answer is what ``Llama`` answers in this process.
"""

from __future__ import annotations

import json
import re
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
import unsupported
from architectures import make_tiny
from serving import N_CTX, NEEDS_SERVER, L, call, complete, serving, short_model, text
from test_chats import with_adapter

from pyselfextend import Llama, ServerError, SettingError
from pyselfextend.groups import GroupPolicy, default_ga_w
from pyselfextend.server import Server, start

from llama_cpp import LlamaGrammar  # isort: skip  # after pyselfextend

pytestmark = NEEDS_SERVER

GA_W = default_ga_w(L)


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return short_model(tmp_path_factory.mktemp("server"))


@pytest.fixture(scope="module")
def server(short: Path) -> Iterator[Server]:
    with serving(short, "--metrics", "--slots") as server:
        yield server


class Own:
    """A ``Llama`` in this process, whose group follows the length as well."""

    def __init__(self, model: Path, **arguments: Any) -> None:
        given = {"n_ctx": N_CTX, "n_threads": 1, "n_threads_batch": 1, "verbose": False, **arguments}
        self.llm = Llama(model, **given)

    def __enter__(self) -> Own:
        return self

    def __exit__(self, *_: object) -> None:
        self.llm.close()

    def complete(self, tokens: Sequence[int], n_predict: int = 8) -> str:
        answer: Any = self.llm.create_completion(list(tokens), max_tokens=n_predict, temperature=0.0)
        return str(answer["choices"][0]["text"])

    @property
    def ga_n(self) -> int:
        return self.llm.self_extend.ga_n


#
# what it answers
#


@pytest.mark.parametrize("n_tokens", [40, L - 20, L + 50, 700])
def test_the_answer_is_that_of_llama(server: Server, short: Path, n_tokens: int) -> None:
    answer = complete(server, text(n_tokens), cache_prompt=False)
    with Own(short) as own:
        assert answer["content"] == own.complete(text(n_tokens))
        assert answer["timings"]["ga_n"] == own.ga_n == GroupPolicy(L, GA_W, N_CTX).begin(n_tokens + 8)


def test_a_chat_grows_past_the_window(short: Path) -> None:
    """Each turn reads its own tokens alone; keys that are cached are turned to larger groups."""
    with serving(short) as server, Own(short) as own:
        tokens, groups = text(100), []
        for turn in range(6):
            answer = complete(server, tokens, 16)
            assert answer["content"] == own.complete(tokens, 16), turn
            assert answer["timings"]["ga_n"] == own.ga_n
            assert answer["timings"]["prompt_n"] <= 121 and answer["timings"]["cache_n"] >= len(tokens) - 121
            groups.append(own.ga_n)
            tokens += answer["tokens"] + text(120 - len(answer["tokens"]), turn + 1)
        assert groups[0] == 1 and len(set(groups)) >= 3
        answer = complete(server, tokens[:150] + text(20, 9))  # an early message is edited
        assert answer["content"] == own.complete(tokens[:150] + text(20, 9))
        assert answer["timings"]["cache_n"] >= 149
        assert answer["timings"]["ga_n"] == own.ga_n == groups[-1]  # what is cached keeps its group


def test_slots_give_what_each_gives_alone(short: Path) -> None:
    texts = [text(60, 1), text(700, 2), text(320, 3)]
    with serving(short, n_parallel=3) as server:
        with ThreadPoolExecutor(3) as pool:
            together = list(pool.map(lambda tokens: complete(server, tokens, 24), texts))
        assert len({answer["id_slot"] for answer in together}) == 3
        slots = call(server, "/slots")
    assert sorted(slot["self_extend"]["ga_n"] for slot in slots) == sorted(a["timings"]["ga_n"] for a in together)
    for tokens, answer in zip(texts, together, strict=True):
        with Own(short) as own:
            assert answer["content"] == own.complete(tokens, 24)
            assert answer["timings"]["ga_n"] == own.ga_n


def test_a_saved_slot_goes_on(short: Path, tmp_path: Path) -> None:
    with serving(short, "--slot-save-path", f"{tmp_path}/") as server:
        first = complete(server, text(500), 8, id_slot=0)
        saved = call(server, "/slots/0?action=save", {"filename": "a.bin"})
        assert saved["n_saved"] >= 500
        complete(server, text(90, 5), 8, id_slot=0)
    with serving(short, "--slot-save-path", f"{tmp_path}/") as server:
        assert call(server, "/slots/0?action=restore", {"filename": "a.bin"})["n_restored"] == saved["n_saved"]
        again = complete(server, text(500), 8, id_slot=0)
        assert again["content"] == first["content"]
        assert again["timings"]["ga_n"] == first["timings"]["ga_n"] > 1
        assert again["timings"]["prompt_n"] <= 2


def test_chunks_are_used_again_at_other_places(short: Path) -> None:
    """--cache-reuse shifts them past the window: it must be what a shift of the cache gives."""
    prompt = text(600)
    edited = prompt[:100] + prompt[130:]
    with serving(short, "--cache-reuse", 64) as server, Own(short) as own:
        for asked in (complete(server, prompt, 4)["content"], own.complete(prompt, 4)):
            assert asked
        own.llm.context_shift(100, 30)
        answer = complete(server, edited, 16)
        assert answer["content"] == own.complete(edited, 16)
        assert answer["timings"]["cache_n"] == len(edited) - 1
        assert answer["timings"]["ga_n"] == own.ga_n > 1


@pytest.mark.parametrize("n_tokens", [60, 700])
def test_adapters(short: Path, tmp_path: Path, n_tokens: int) -> None:
    """The same as the model that the adapter is merged into, and as without it where its scale is 0."""
    adapter, merged = with_adapter(short, tmp_path)
    prompt = text(n_tokens, 5)
    with serving(short) as plain, serving(merged) as expected, serving(short, "--lora", adapter) as server:
        without, changed = (complete(other, prompt, 16)["content"] for other in (plain, expected))
        assert without != changed
        assert complete(server, prompt, 16)["content"] == changed
        off = {"lora": [{"id": 0, "scale": 0.0}]}
        assert complete(server, prompt, 16, **off)["content"] == without
        assert complete(server, prompt, 16)["content"] == changed
        complete(server, text(n_tokens, 9), 4)  # in its slot
        assert complete(server, prompt, 16, **off)["content"] == without


def test_grammars(server: Server, short: Path) -> None:
    grammar = 'root ::= ("yes" | "no") " " [0-9]{3}'
    with Own(short) as own:
        for n_tokens in (60, 700):
            tokens = text(n_tokens, 6)
            answer: Any = own.llm.create_completion(
                tokens, max_tokens=20, temperature=0.0, grammar=LlamaGrammar.from_string(grammar, verbose=False)
            )
            assert re.fullmatch(r"(yes|no) \d{3}", answer["choices"][0]["text"])
            assert complete(server, tokens, 20, grammar=grammar)["content"] == answer["choices"][0]["text"]


def test_a_draft_model_changes_nothing(short: Path) -> None:
    with (
        serving(short, "--model-draft", short, "--spec-type", "draft-simple", "--spec-draft-n-max", 6) as server,
        Own(short) as own,
    ):
        for n_tokens in (60, 500):
            answer = complete(server, text(n_tokens, 4), 30)
            assert answer["content"] == own.complete(text(n_tokens, 4), 30)
            assert answer["timings"]["draft_n_accepted"] > 10


#
# how far it goes
#


def test_a_prompt_beyond_the_reach_is_refused(server: Server) -> None:
    answer = complete(server, text(N_CTX + 5))
    assert answer["status"] == 400
    assert answer["error"]["type"] == "exceed_context_size_error"
    assert (answer["error"]["n_prompt_tokens"], answer["error"]["n_ctx"]) == (N_CTX + 5, N_CTX)
    assert str(N_CTX) in answer["error"]["message"] and "--ctx" in answer["error"]["message"]


def test_nothing_is_cut_unless_that_was_asked_for(short: Path, server: Server) -> None:
    answer = complete(server, text(N_CTX - 20), 100, ignore_eos=True)
    assert answer["stop_type"] == "limit" and answer["tokens_predicted"] <= 21
    assert "discarded_n" not in answer["timings"]
    with serving(short, "--context-shift") as shifting:
        answer = complete(shifting, text(N_CTX - 20), 100, ignore_eos=True)
        assert answer["tokens_predicted"] == 100
        assert answer["truncated"] and answer["timings"]["discarded_n"] > 0


def test_a_slot_of_a_group_that_is_given(short: Path) -> None:
    with serving(short, ga_n=4, ga_w=32, n_ctx=900) as server:
        assert call(server, "/props")["self_extend"]["ga_n_max"] == 4
        with Own(short, ga_n=4, ga_w=32, n_ctx=900) as own:
            assert complete(server, text(600))["content"] == own.complete(text(600))
    with pytest.raises(SettingError, match="reach"):
        start(short, ga_n=2, n_ctx=N_CTX)


def test_groups_that_were_measured(short: Path) -> None:
    with serving(short, "--ga-groups", "400:4,1024:8") as server:
        for n_tokens, ga_n in [(300, 4), (600, 8), (100, 4)]:  # the last keeps no more than the window, and is short
            answer = complete(server, text(n_tokens, n_tokens), cache_prompt=False)
            assert answer["timings"]["ga_n"] == ga_n


#
# what it says
#


def test_what_is_said_of_the_extension(server: Server) -> None:
    complete(server, text(600), id_slot=0)
    props = call(server, "/props")
    assert props["default_generation_settings"]["n_ctx"] == N_CTX
    said = props["self_extend"]
    policy = GroupPolicy(L, GA_W, N_CTX)
    assert said["is_extended"] and "refused" not in said
    assert (said["n_ctx_train"], said["ga_w"], said["ga_n_max"]) == (L, GA_W, policy.ga_n_max)
    assert said["n_ctx_reach"] >= N_CTX and said["ga_map"] == "self-extend"
    assert (said["n_layer_fused"], said["n_layer_composed"]) == (2, 0)
    (model,) = call(server, "/v1/models")["data"]
    assert (model["meta"]["n_ctx"], model["meta"]["n_ctx_train"]) == (N_CTX, L)
    assert model["meta"]["self_extend"] == said
    (slot,) = call(server, "/slots")
    assert slot["self_extend"] == {"ga_n": policy.begin(608), "n_ctx_train": L}
    metrics = call(server, "/metrics")
    for line in (f"llamacpp:n_ctx_train {L}", f'llamacpp:ga_n{{slot="0"}} {policy.begin(608)}'):
        assert line in metrics.splitlines()


def test_progress_while_a_long_text_is_read(short: Path) -> None:
    with serving(short, "--batch-size", 64) as server:
        body = {"prompt": text(600), "n_predict": 2, "stream": True, "return_progress": True}
        request = urllib.request.Request(server.url + "/completion", json.dumps(body).encode())
        with urllib.request.urlopen(request, timeout=120) as answer:
            events = [
                json.loads(line[6:]) for line in answer.read().decode().splitlines() if line.startswith("data: {")
            ]
    steps = [event["prompt_progress"] for event in events if "prompt_progress" in event]
    assert len(steps) > 5 and all(step["total"] == 600 for step in steps)
    assert [step["processed"] for step in steps] == sorted(step["processed"] for step in steps)


def test_a_model_that_cannot_be_extended_says_so(tmp_path: Path) -> None:
    model = unsupported.make(tmp_path / "bloom.gguf", "bloom", make_tiny().vocabulary())
    with serving(model, n_ctx=2048) as server:
        props = call(server, "/props")
        assert complete(server, text(20))["tokens_predicted"] == 8
    said = props["self_extend"]
    assert not said["is_extended"] and "ALiBi" in said["refused"]
    assert props["default_generation_settings"]["n_ctx"] == said["n_ctx_train"] < 2048


def test_inside_the_window_it_is_the_plain_model(short: Path) -> None:
    with serving(short, n_ctx=L) as server:
        said = call(server, "/props")["self_extend"]
        assert said == {"is_extended": False, "n_ctx_train": L, "n_ctx_reach": L, "ga_n_max": 1}
        assert complete(server, text(50))["timings"].get("ga_n") is None


#
# starting and ending
#


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--ga-n", "0"], "ga_n is 0, it must be at least 1"),
        (["--ga-n", "-3"], "--ga-n is '-3', it must be a number"),
        (["--ga-n", "99999999999999999999"], "it must be a number from 0 to"),
        (["--ga-w", "much"], "--ga-w is 'much'"),
        (["--ga-map", "linear"], "--ga-map is 'linear', it must be one of self-extend"),
        (["--ga-groups", "5"], "--ga-groups is '5', it must be like"),
        (["--ga-groups", "5:x"], "a group size of --ga-groups is 'x'"),
        (["--ga-groups", "500:4,400:2"], "must be above that of the step before, 500"),
        (["--nonsense"], "invalid argument: --nonsense"),
    ],
)
def test_options_that_are_wrong(short: Path, options: list[str], words: str) -> None:
    with pytest.raises(ServerError, match=re.escape(words)):
        start(short, n_ctx=512, options=options, timeout=120)


def test_a_process_that_ends_leaves_nothing(short: Path, tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    with serving(short, log=log) as server:
        process = psutil.Process(server._process.pid)
        assert call(server, "/health") == {"status": "ok"}
    assert not process.is_running() and not server.is_running
    assert "listening on" in log.read_text()
    server.close()  # again
    with serving(short) as server:
        own = server.log
        server._process.kill()
        server.join()
    assert not own.exists()


def test_a_port_that_is_taken(short: Path) -> None:
    with serving(short) as server, pytest.raises(ServerError, match="ended with status 1"):
        start(short, n_ctx=512, port=int(server.url.rsplit(":", 1)[1]), timeout=120)


def test_what_takes_too_long(short: Path) -> None:
    with pytest.raises(ServerError, match="not ready after"):
        start(short, n_ctx=512, timeout=0)
