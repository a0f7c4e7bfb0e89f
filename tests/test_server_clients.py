"""Others' clients of the server, past the trained window: openai and langchain-openai.

A tiny model answers: what its words are does not matter, that they come as the clients expect them does.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from serving import NEEDS_SERVER, L, call, serving, short_model

from pyselfextend.server import Server, start

openai = pytest.importorskip("openai", reason="openai is not installed")

pytestmark = NEEDS_SERVER

LONG = "one two three four five six seven eight nine ten. " * 20  # some 700 tokens
MESSAGES: Any = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": LONG}]
CITY = {"type": "object", "properties": {"city": {"type": "string", "enum": ["Lisbon", "Oslo"]}}, "required": ["city"]}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return short_model(tmp_path_factory.mktemp("clients"))


@pytest.fixture(scope="module")
def server(model: Path) -> Iterator[Server]:
    with serving(model, "--alias", "tiny", "--jinja", n_ctx=2048) as server:
        yield server


@pytest.fixture(scope="module")
def client(server: Server) -> Any:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def test_chat(client: Any) -> None:
    answer = client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=12, temperature=0)
    assert answer.usage.prompt_tokens > 2 * L and answer.usage.completion_tokens <= 12
    assert answer.choices[0].finish_reason in ("stop", "length")
    assert answer.timings["ga_n"] > 1
    again = client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=12, temperature=0)
    assert again.choices[0].message.content == answer.choices[0].message.content
    assert again.usage.prompt_tokens_details.cached_tokens >= answer.usage.prompt_tokens - 1


def test_streams(client: Any) -> None:
    given: Any = {"model": "tiny", "messages": MESSAGES, "max_tokens": 12, "temperature": 0}
    whole = client.chat.completions.create(**given)
    chunks = list(client.chat.completions.create(**given, stream=True, stream_options={"include_usage": True}))
    said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert said == whole.choices[0].message.content
    assert chunks[-1].usage.prompt_tokens == whole.usage.prompt_tokens


def test_completions_and_log_probabilities(client: Any) -> None:
    answer = client.completions.create(model="tiny", prompt=LONG, max_tokens=5, temperature=0, logprobs=3)
    assert answer.usage.prompt_tokens > 2 * L
    chat = client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=5, logprobs=True, top_logprobs=4)
    assert all(len(token.top_logprobs) == 4 for token in chat.choices[0].logprobs.content)


def test_answers_of_a_form(client: Any) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "city", "schema": CITY}}
    answer = client.chat.completions.create(model="tiny", messages=MESSAGES, response_format=form, max_tokens=60)
    assert json.loads(answer.choices[0].message.content)["city"] in ("Lisbon", "Oslo")


@pytest.mark.slow
def test_tool_calls(smollm2: Path) -> None:
    """SmolLM2, which is shown how, past a window that it is told to have: called, streamed, answered."""
    function = {"name": "weather", "description": "The weather in a city", "parameters": CITY}
    messages: Any = [{"role": "system", "content": "You answer with a call of weather, and nothing else."}]
    for i, city in enumerate(["Oslo", "Lisbon", "Oslo"]):
        called: Any = {"name": "weather", "arguments": json.dumps({"city": city})}
        messages += [
            {"role": "user", "content": f"What is the weather in {city}?"},
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [{"id": str(i), "type": "function", "function": called}],
            },
        ]
    messages.append({"role": "user", "content": "What is the weather in Lisbon?"})
    given: Any = {
        "model": "mine",
        "tools": [{"type": "function", "function": function}],
        "max_tokens": 60,
        "temperature": 0,
    }

    options = [
        "--chat-template-file",
        Path(__file__).with_name("tools.jinja"),
        "--override-kv",
        f"llama.context_length=int:{L}",
    ]
    with start(smollm2, n_ctx=2048, options=["--jinja", *options]) as server:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
        for choice in ("required", "auto"):
            answer = client.chat.completions.create(**given, messages=messages, tool_choice=choice)
            assert answer.choices[0].finish_reason == "tool_calls" and answer.timings["ga_n"] > 1
            (call,) = answer.choices[0].message.tool_calls
            assert (call.function.name, json.loads(call.function.arguments)) == ("weather", {"city": "Lisbon"})

        chunks = client.chat.completions.create(**given, messages=messages, stream=True)
        pieces = [piece for chunk in chunks for piece in (chunk.choices[0].delta.tool_calls or [])]
        assert json.loads("".join(piece.function.arguments or "" for piece in pieces)) == {"city": "Lisbon"}

        answered = {"role": "tool", "tool_call_id": call.id, "content": "Sunny, 24 degrees"}
        after = client.chat.completions.create(
            **given, messages=[*messages, answer.choices[0].message, answered], tool_choice="none"
        )
        assert after.choices[0].message.content
        assert after.usage.prompt_tokens_details.cached_tokens >= answer.usage.prompt_tokens - 10


def test_responses(client: Any) -> None:
    answer = client.responses.create(model="tiny", input=LONG, max_output_tokens=8)
    assert answer.usage.input_tokens > 2 * L


def test_a_prompt_beyond_the_reach(client: Any) -> None:
    with pytest.raises(openai.BadRequestError) as error:
        client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": LONG * 5}])
    assert error.value.status_code == 400
    assert error.value.body["type"] == "exceed_context_size_error" and error.value.body["n_ctx"] == 2048


def test_embeddings(model: Path) -> None:
    batch = ("--batch-size", 2048, "--ubatch-size", 2048)
    with serving(model, "--embeddings", "--pooling", "mean", *batch, n_ctx=2048) as server:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
        answer = client.embeddings.create(model="tiny", input=[LONG, "short"])
        assert len(answer.data) == 2 and answer.usage.prompt_tokens > 2 * L
        assert sum(x * x for x in answer.data[0].embedding) == pytest.approx(1, abs=1e-3)


def test_many_at_once(model: Path) -> None:
    with serving(model, n_ctx=1024, n_parallel=2) as server:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
        answer = client.chat.completions.create(model="tiny", messages=MESSAGES, n=2, max_tokens=6)
        assert len(answer.choices) == 2


def test_langchain(server: Server) -> None:
    langchain = pytest.importorskip("langchain_openai", reason="langchain-openai is not installed")
    chat = langchain.ChatOpenAI(base_url=f"{server.url}/v1", api_key="none", model="tiny", max_retries=0, temperature=0)
    answer = chat.invoke([("system", "Be brief."), ("human", LONG)], max_tokens=8)
    assert answer.usage_metadata["input_tokens"] > 2 * L
    assert "".join(piece.content for piece in chat.stream([("human", LONG)], max_tokens=8))


def test_anthropic_protocol(server: Server) -> None:
    body = {"model": "tiny", "max_tokens": 6, "messages": [{"role": "user", "content": LONG}]}
    answer = call(server, "/v1/messages", body)
    assert answer["type"] == "message" and answer["usage"]["output_tokens"] <= 6
