"""The server, asked by somebody who means harm: a page in the browser, another machine, a client with strange requests.

After each request the server must still answer the plain one as before.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from serving import N_CTX, NEEDS_SERVER, ONE_THREAD, complete, serving, short_model, text
from test_grammar import MANY_WAYS, REFUSED, STUCK

from pyselfextend.commands.server_run import is_open
from pyselfextend.server import Server, start

pytestmark = NEEDS_SERVER

PROMPT = text(40)
SECRET = "kept from strangers"
EVIL = "http://evil.example"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the model, with a file beside the folder of saved slots."""
    folder = tmp_path_factory.mktemp("safety")
    (folder / "slots").mkdir()
    (folder / "beside").write_text(SECRET)
    return folder


@pytest.fixture(scope="module")
def servers(folder: Path) -> Iterator[list[Server]]:
    """The one that runs, if there is one."""
    short_model(folder)
    with ExitStack() as stack:
        found: list[Server] = []
        yield found
        for server in found:
            stack.callback(server.close)


@pytest.fixture
def server(servers: list[Server], folder: Path) -> Server:
    """A new one where a test has ended the last."""
    if not servers or not servers[-1].is_running:
        options = ["--slots", "--metrics", "--slot-save-path", f"{folder / 'slots'}/", "--n-predict", "8"]
        servers.append(start(folder / "model.gguf", n_ctx=N_CTX, options=[*ONE_THREAD, *options], timeout=120))
    return servers[-1]


@pytest.fixture
def usual(server: Server) -> Iterator[str]:
    """Answers the plain request, before and after."""
    answer = complete(server, PROMPT)["content"]
    yield answer
    assert server.is_running, server.last_lines()
    assert complete(server, PROMPT)["content"] == answer


def send(
    server: Server, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of a request that goes out as it is."""
    address = server.url.removeprefix("http://")
    connection = HTTPConnection(address, timeout=60)
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    try:
        connection.putrequest(
            method, path, skip_host=headers is not None and "Host" in headers, skip_accept_encoding=True
        )
        for name, value in (headers or {}).items():
            connection.putheader(name, value)
        if data is not None:
            connection.putheader("Content-Length", str(len(data)))
        connection.endheaders(data)
        answer = connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
    finally:
        connection.close()


REQUEST = {"prompt": PROMPT, "n_predict": 2}

#
# pages of strangers
#


@pytest.mark.parametrize(
    "origin",
    [
        EVIL,
        "null",
        "https://localhost.evil.example",
        "http://evil.example:8080",
        "file://",
        "http://127.0.0.1.evil.example",
        "http://localhost@evil.example",
        "x",
    ],
)
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/completion"),
        ("GET", "/slots"),
        ("OPTIONS", "/completion"),
        ("POST", "/slots/0?action=erase"),
        ("GET", "/"),
    ],
)
def test_pages_of_strangers(server: Server, usual: str, method: str, path: str, origin: str) -> None:
    """They could send a request without asking, as plain text, though the browser would keep the answer from them."""
    headers = {"Origin": origin, "Content-Type": "text/plain"}
    status, found, body = send(server, method, path, REQUEST if method == "POST" else None, headers)
    assert status == 403
    assert "access-control-allow-origin" not in found
    error = json.loads(body)["error"]
    assert "--api-key" in error["message"] and error["type"] == "permission_error"


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8080", "127.0.0.1.evil.example", "localhost.evil.example"]
)
def test_names_that_were_turned_to_this_machine(server: Server, usual: str, host: str) -> None:
    """DNS rebinding: to the browser it is the page's own server then, whose answers it hands over."""
    for path in ("/slots", "/props", "/"):
        assert send(server, "GET", path, headers={"Host": host})[0] == 403
    for origin in (f"http://{host}", ""):
        headers = {"Host": host, **({"Origin": origin} if origin else {})}
        assert send(server, "POST", "/completion", REQUEST, headers)[0] == 403


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1:1",
        "localhost",
        "LOCALHOST:80",
        "[::1]:8080",
        "192.168.1.5:8080",
        "mybox",
        "mybox.local:80",
        "host.docker.internal",
        "ui.localhost:3000",
    ],
)
def test_names_of_this_machine(server: Server, host: str) -> None:
    for headers in (
        {"Host": host},
        {"Host": host, "Origin": f"http://{host}"},
        {"Host": host, "Origin": "http://localhost:3000"},
    ):
        assert send(server, "POST", "/completion", REQUEST, headers)[0] == 200
    assert (
        send(server, "GET", "/props", headers={"Origin": "http://localhost:3000"})[1]["access-control-allow-origin"]
        == "http://localhost:3000"
    )


def test_pages_that_may_come(folder: Path) -> None:
    for option in (["--cors-origins", EVIL], ["--cors-origins", "*"]):
        with serving(folder / "model.gguf", *option) as server:
            for headers in ({"Origin": EVIL}, {"Host": "evil.example"}):
                assert send(server, "POST", "/completion", REQUEST, headers)[0] == 200


def test_a_key(folder: Path) -> None:
    """Nothing but the page and whether it is well is told without it, and with it strangers' pages are no danger."""
    with serving(folder / "model.gguf", "--api-key", "secret,other", "--slots", "--metrics") as server:
        for path in ("/props", "/slots", "/metrics", "/v1/models", "/lora-adapters", "/completion", "/nothing"):
            for headers in (
                {},
                {"Authorization": "Bearer wrong"},
                {"Authorization": "Bearer "},
                {"X-Api-Key": "secre"},
            ):
                assert send(server, "GET", path, headers=headers)[0] == 401, (path, headers)
        assert send(server, "POST", "/completion", REQUEST)[0] == 401
        assert send(server, "GET", "/health")[0] == 200
        for headers in ({"Authorization": "Bearer secret"}, {"X-Api-Key": "other"}):
            assert send(server, "POST", "/completion", REQUEST, {**headers, "Origin": EVIL})[0] == 200


def test_who_is_warned(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LLAMA_API_KEY", "LLAMA_ARG_API_KEY_FILE"):
        monkeypatch.delenv(name, raising=False)
    for host, options, expected in [
        ("127.0.0.1", [], False),
        ("127.1.2.3", [], False),
        ("::1", [], False),
        ("localhost", [], False),
        ("/run/x.sock", [], False),
        ("0.0.0.0", [], True),
        ("::", [], True),
        ("192.168.1.5", ["--jinja"], True),
        ("mybox", [], True),
        ("0.0.0.0", ["--api-key", "x"], False),
        ("0.0.0.0", ["--api-key=x"], False),
        ("0.0.0.0", ["--api-key-file", "x"], False),
    ]:
        assert is_open(host, options) == expected, (host, options)
    monkeypatch.setenv("LLAMA_API_KEY", "x")
    assert not is_open("0.0.0.0", [])


#
# files
#


@pytest.mark.parametrize("action", ["save", "restore"])
@pytest.mark.parametrize(
    "name",
    [
        "../beside",
        "/etc/passwd",
        "x/../../beside",
        "..",
        ".",
        "",
        "a/b",
        "..\\beside",
        "x\0y",
        "~/x",
        "%2e%2e/beside",
        "x" * 5000,
        7,
        None,
        ["x"],
    ],
)
def test_slot_files_stay_in_their_folder(server: Server, usual: str, folder: Path, action: str, name: Any) -> None:
    before = sorted(folder.rglob("*"))
    status, _, body = send(server, "POST", f"/slots/0?action={action}", {"filename": name})
    if name == "%2e%2e/beside":
        assert status >= 400
    else:
        assert status in (400, 500), body
    assert sorted(folder.rglob("*")) == before
    assert (folder / "beside").read_text() == SECRET


@pytest.mark.parametrize(
    "path",
    [
        "/../beside",
        "/../../../../etc/passwd",
        "/%2e%2e/%2e%2e/etc/passwd",
        "/..%2f..%2fetc/passwd",
        "//etc/passwd",
        "/./model.gguf",
        "/slots/../props?x=/etc/passwd",
        "/\\..\\beside",
        "/x%00.html",
    ],
)
def test_paths_that_lead_out(server: Server, usual: str, path: str) -> None:
    status, _, body = send(server, "GET", path)
    assert status in (400, 404), body
    assert SECRET.encode() not in body and b"root:" not in body


@pytest.mark.parametrize(
    "url",
    ["file:///etc/passwd", "http://127.0.0.1:{port}/", "data:image/png;base64,AAAA", "ftp://x/", "/etc/passwd", ""],
)
def test_addresses_in_a_chat_are_not_opened(server: Server, usual: str, url: str) -> None:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        listening.settimeout(0.2)
        content = [{"type": "image_url", "image_url": {"url": url.format(port=listening.getsockname()[1])}}]
        status, _, body = send(
            server, "POST", "/v1/chat/completions", {"messages": [{"role": "user", "content": content}]}
        )
        assert status in (400, 500) and b"root:" not in body
        with pytest.raises(TimeoutError):
            listening.accept()


def test_what_changes_the_server_is_off(server: Server, usual: str) -> None:
    for method, path in [
        ("POST", "/props"),
        ("GET", "/cors-proxy?url=http://127.0.0.1/"),
        ("POST", "/models/load"),
        ("GET", "/tools"),
        ("POST", "/tools"),
    ]:
        status, _, body = send(server, method, path, {} if method == "POST" else None)
        assert status >= 400, (path, body)


#
# too much
#


def test_bodies_without_end(server: Server, usual: str) -> None:
    """100 MiB are taken; what is announced as longer is refused before it is read."""
    for n_bytes in (101 << 20, 1 << 40, (1 << 64) - 1, 1 << 70):
        connection = HTTPConnection(server.url.removeprefix("http://"), timeout=60)
        connection.putrequest("POST", "/completion")
        connection.putheader("Content-Length", str(n_bytes))
        connection.endheaders()
        try:
            assert connection.getresponse().status in (400, 413)
        except ConnectionError:
            pass  # closed without a word
        finally:
            connection.close()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[" * 200_000,
        b'{"a":' * 200_000,
        b"\xff\xfe",
        b'{"prompt": "\xff\xff"}',
        b"null",
        b"[]",
        b'"x"',
        b"1e999",
        b'{"prompt": 1e400}',
        b'{"prompt": "x", "prompt": 3}',
    ],
)
@pytest.mark.parametrize(
    "path", ["/completion", "/v1/chat/completions", "/tokenize", "/v1/messages", "/v1/responses", "/apply-template"]
)
def test_bodies_that_are_no_request(server: Server, usual: str, path: str, body: bytes) -> None:
    assert send(server, "POST", path, body)[0] in (200, 400, 500, 501)


ITEMS = b'{"items":', b"3", b"}"
PROPERTIES = b'{"properties":{"a":', b"3", b"}}"
LISTS = b"[", b"3", b"]"


def deep(begin: bytes, middle: bytes, end: bytes, depth: int) -> bytes:
    return begin * depth + middle + end * depth


@pytest.mark.parametrize("depth", [400, 20_000, 400_000])
@pytest.mark.parametrize(
    ("path", "before", "what", "after"),
    [
        ("/completion", b'{"prompt":[5],"n_predict":2,"json_schema":', ITEMS, b"}"),
        ("/completion", b'{"prompt":', LISTS, b"}"),
        (
            "/v1/chat/completions",
            b'{"messages":[{"role":"user","content":"x"}],"response_format":{"type":"json_schema","json_schema":{"schema":',
            ITEMS,
            b"}}}",
        ),
        (
            "/v1/chat/completions",
            b'{"messages":[{"role":"user","content":"x"}],"tools":[{"type":"function","function":{"name":"f","parameters":',
            PROPERTIES,
            b"}}]}",
        ),
        (
            "/v1/chat/completions",
            b'{"messages":[{"role":"user","content":"x"}],"chat_template_kwargs":{"a":',
            LISTS,
            b"}}",
        ),
        ("/v1/chat/completions", b'{"messages":[{"role":"user","content":', LISTS, b"}]}"),
        ("/v1/responses", b'{"input":', LISTS, b"}"),
        ("/v1/messages", b'{"max_tokens":2,"messages":', LISTS, b"}"),
        ("/detokenize", b'{"tokens":', LISTS, b"}"),
    ],
)
def test_what_is_nested(
    server: Server, usual: str, path: str, before: bytes, what: tuple[bytes, bytes, bytes], after: bytes, depth: int
) -> None:
    """JSON, schemas, templates and grammars are read by functions that call themselves."""
    status, _, body = send(server, "POST", path, before + deep(*what, depth) + after)
    if depth > 500:
        assert status == 400 and b"nested more than 500" in body
    else:
        assert status in (200, 400, 500), body


def test_brackets_in_texts_are_no_nesting(server: Server) -> None:
    given = {"prompt": '"\\' + "[{" * 200, "n_predict": 1}
    assert send(server, "POST", "/completion", given)[0] == 200


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("name", sorted(REFUSED))
def test_grammars_that_are_refused(server: Server, usual: str, name: str, lazy: bool) -> None:
    """With the reason; llama.cpp ends the process for some, and follows others without end."""
    body = {**REQUEST, "grammar": REFUSED[name][0]}
    if lazy:
        body |= {"grammar_lazy": True, "grammar_triggers": [{"type": 2, "value": "a"}]}
    status, _, answer = send(server, "POST", "/completion", json.dumps(body).encode("utf-8", "surrogatepass"))
    if not REFUSED[name][0]:
        assert status == 200  # no grammar
    elif name == "no UTF-8":
        assert status in (400, 500)  # no JSON
    else:
        assert status == 400 and b"grammar cannot be used" in answer


@pytest.mark.parametrize("grammar", [*STUCK, MANY_WAYS])
def test_grammars_that_cannot_be_followed(server: Server, usual: str, grammar: str) -> None:
    """The answer is an error."""
    status, _, answer = send(server, "POST", "/completion", {**REQUEST, "n_predict": 8, "grammar": grammar})
    assert status == 500 and b"grammar" in answer


def nested(depth: int) -> Any:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


@pytest.mark.parametrize(
    "given",
    [
        {"json_schema": nested(300)},
        {"json_schema": {"$ref": "#"}},
        {"json_schema": {"$ref": "http://127.0.0.1:1/x"}},
        {"json_schema": {"$ref": "file:///etc/passwd"}},
        {"json_schema": {"type": "string", "pattern": "^(" * 500 + ")*" * 500 + "$"}},
        {"json_schema": {"type": "string", "minLength": 10**9}},
        {"json_schema": {"enum": []}},
        {"json_schema": 3},
        {"n_probs": 2**31 - 1},
        {"n_probs": -5},
        {"n_predict": 2**63},
        {"n_predict": -(2**31)},
        {"top_k": -(2**31)},
        {"temperature": -1e300},
        {"top_p": 1e308},
        {"mirostat": 99},
        {"seed": -(2**63)},
        {"id_slot": 10**9},
        {"id_slot": -7},
        {"logit_bias": [[10**9, 1.0], ["x" * 10000, False]]},
        {"logit_bias": {"-5": 1}},
        {"stop": [""] * 1000},
        {"stop": "x"},
        {"samplers": ["no"] * 100},
        {"samplers": "zzz"},
        {"n_keep": -(2**31)},
        {"repeat_last_n": -1},
        {"repeat_last_n": 2**31 - 1},
        {"dry_penalty_last_n": -1, "dry_multiplier": 1e30},
        {"lora": [{"id": 99, "scale": 1e30}]},
        {"lora": {"id": 0}},
        {"t_max_predict_ms": -5},
        {"n_indent": 2**31 - 1},
        {"n_cache_reuse": 1},
        {"n_cache_reuse": -5},
        {"response_fields": ["/../x"]},
        {"prompt": [-1, -2]},
        {"prompt": [10**6]},
        {"prompt": [2**40]},
        {"prompt": []},
        {"prompt": [[]]},
        {"prompt": [["x", 1, {}]]},
        {"prompt": ["x"] * 50},
        {"prompt": {"prompt_string": "x", "multimodal_data": ["AAAA"]}},
        {"prompt": ""},
        {"prompt": None},
        {"stream": "yes"},
        {"cache_prompt": "x"},
        {"n": 10**6},
        {"n_discard": -3},
        {"speculative.n_max": 10**6},
        {"min_keep": 10**9},
        {"dynatemp_range": 1e30},
        {"xtc_probability": -4},
        {"input_prefix": "\0"},
        {"ignore_eos": [1]},
        {"grammar_lazy": True},
        {"preserved_tokens": [1, "x"]},
        {"grammar_triggers": [{"type": 99, "value": "("}]},
        {"grammar": 'root ::= "a"', "grammar_lazy": True, "grammar_triggers": [{"type": 99, "value": "("}]},
        {"grammar": 'root ::= "a"', "grammar_lazy": True, "grammar_triggers": [{"type": 2, "value": "("}]},
        {
            "grammar": 'root ::= "a"',
            "grammar_lazy": True,
            "grammar_triggers": [{"type": 2, "value": "(" * 50000 + ")" * 50000}],
        },
        {
            "grammar": 'root ::= "a"',
            "grammar_lazy": True,
            "grammar_triggers": [{"type": 0, "value": "x", "token": 10**9}],
        },
    ],
    ids=lambda given: str(given)[:60],
)
def test_values_that_are_none(server: Server, usual: str, given: dict[str, Any]) -> None:
    status, _, body = send(server, "POST", "/completion", {**REQUEST, "n_predict": 3, "n_ctx": 1, **given})
    assert status in (200, 400, 500), body
    if status != 200:
        assert json.loads(body)["error"]["message"]


#
# anything
#

SCALARS = st.none() | st.booleans() | st.integers(-(2**65), 2**65) | st.floats() | st.text(max_size=20)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
FIELDS = {
    "/completion": """prompt temperature top_k top_p min_p n_predict stop stream grammar json_schema logit_bias n_probs
        id_slot samplers cache_prompt lora seed mirostat typical_p dry_sequence_breakers response_fields return_tokens
        n_keep n_cmpl""",
    "/v1/chat/completions": """messages tools tool_choice max_tokens stream stream_options response_format logprobs
        top_logprobs stop n chat_template_kwargs reasoning_format parallel_tool_calls add_generation_prompt""",
    "/v1/responses": "input instructions tools max_output_tokens stream text",
    "/v1/messages": "messages system max_tokens stop_sequences tools thinking stream",
    "/v1/embeddings": "input encoding_format dimensions",
    "/infill": "input_prefix input_suffix input_extra prompt",
    "/tokenize": "content add_special with_pieces parse_special",
    "/detokenize": "tokens",
    "/apply-template": "messages tools chat_template_kwargs",
    "/lora-adapters": "id scale",
    "/slots/0?action=save": "filename",
    "/slots/-1?action=restore": "filename",
    "/slots/99?action=erase": "filename",
    "/rerank": "query documents top_n",
}
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "assistant", "system", "tool", "x"]), "content": JSON | st.text(max_size=20)},
        optional={"tool_calls": JSON, "tool_call_id": JSON, "name": JSON, "reasoning_content": JSON},
    ),
    max_size=3,
)


@st.composite
def requests(draw: st.DrawFn) -> tuple[str, bytes]:
    """An endpoint, and a body whose fields have its names and any values."""
    path = draw(st.sampled_from(sorted(FIELDS)))
    names = FIELDS[path].split()
    chosen = draw(st.lists(st.sampled_from(names), max_size=4, unique=True))
    body: dict[str, Any] = {name: draw(MESSAGES if name == "messages" else JSON) for name in chosen}
    if draw(st.booleans()):
        body.setdefault(names[0], draw(MESSAGES) if names[0] == "messages" else "hello")
    data = json.dumps(body).encode()
    if draw(st.integers(0, 9)) == 0:  # damaged
        at = draw(st.integers(0, len(data)))
        data = data[:at] + draw(st.binary(max_size=3)) + data[at + draw(st.integers(0, 3)) :]
    return path, data


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(request=requests())
def test_anything(server: Server, request: tuple[str, bytes]) -> None:
    """Hypothesis's requests: each gets an answer that is JSON or a stream, and the server is there."""
    path, body = request
    status, _, answer = send(server, "POST", path, body)
    assert 200 <= status < 600
    if status >= 400:
        assert json.loads(answer)["error"]["message"] is not None
    assert server.is_running, server.last_lines()


def test_a_text_of_the_whole_slot(server: Server, usual: str) -> None:
    whole = text(N_CTX - 1, 7)  # begins otherwise than the plain one
    assert complete(server, whole, 1)["tokens_evaluated"] == N_CTX - 1
