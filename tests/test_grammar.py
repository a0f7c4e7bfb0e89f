"""Grammars: what cannot be used is refused with its place, and nothing that is asked with one ends the process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyselfextend import GrammarError, Llama, SettingError

from llama_cpp import LlamaGrammar, LogitsProcessorList, llama_grammar  # isort: skip  # after pyselfextend

LINES = "\n".join

#: A rule that begins with each of 40 others twice: 2**40 ways.
TWICE = LINES([*(f"a{i} ::= a{i + 1} | a{i + 1}" for i in range(40)), 'a40 ::= "a"', "root ::= a0"])
#: The same, where each way leaves something else to come.
DIFFERENT = LINES([*(f'a{i} ::= a{i + 1} "x" | a{i + 1} "y"' for i in range(20)), 'a20 ::= "a"', "root ::= a0"])

#: What is wrong with it, and where: the line and the column, None where it is not in one place.
REFUSED: dict[str, tuple[str, tuple[int, int] | None, str]] = {
    "syntax": ('root ::= "a" @', (1, 14), "expecting newline or end, found '@'"),
    "no definition": ('root ::= "a"\nfoo = "b"', (2, 5), "expecting ::=, found '='"),
    "a character before": ('root ::= "日本" )', (1, 15), "expecting newline or end, found '\\)'"),
    "carriage returns": ('root ::= "a"\r\nfoo ::= ,', (2, 9), "expecting newline or end, found ','"),
    "no end of a literal": ('root ::= "abc', (1, 14), "unexpected end of input"),
    "no end of a range": ("root ::= [abc", (1, 14), "unexpected end of input"),
    "no end of a group": ('root ::= ("a"', (1, 14), r"expecting '\)', found the end of the text"),
    "unknown escape": (r'root ::= "\q"', (1, 11), "unknown escape"),
    "half an escape": (r'root ::= "\x4"', (1, 13), "expecting 2 hex chars"),
    "nothing to repeat": ("root ::= *", (1, 11), "expecting preceding item"),
    "no root": ('foo ::= "a"', None, "there is no rule 'root'"),
    "root in another place": ('foo ::= root | "a"', None, "there is no rule 'root'"),
    "undefined rule": ('root ::= "foo" foo', (1, 16), "the rule 'foo' is not defined"),
    "empty": ("", None, "there is no rule 'root'"),
    "a comment alone": (" # root\n", None, "there is no rule 'root'"),
    "left recursion": ('root ::= "b" a\na ::= a "a" | "b"', (2, 1), "the rule 'a' begins with itself"),
    "left recursion, indirect": ('root ::= a "x"\na ::= root', None, "begins with itself"),
    "left recursion, hidden": ('root ::= "b" a\na ::= b a "x" | "y"\nb ::= c\nc ::= ""', (2, 1), "begins with itself"),
    "never begins": ('root ::= "b" x\nx ::= a x\na ::= b\nb ::= ""', (2, 1), "the rule 'x' cannot begin"),
    "deep": ("root ::= " + "(" * 10**5 + '"a"' + ")" * 10**5, (1, 1010), "more than 1000 parentheses"),
    "a long chain": (LINES([*(f"a{i} ::= a{i + 1}" for i in range(10**5)), f'a{10**5} ::= "a"', "root ::= a0"]),
                     None, "begins with a chain of more than"),
    "too many ways": (TWICE, None, "can begin in too many ways"),
    "too many stacks": (DIFFERENT, None, "can begin in too many ways"),
    "repeated too often": ('root ::= "a"{1000000000}', (1, 1), "number of repetitions exceeds"),
    "no number": ('root ::= "a"{' + "9" * 30 + "}", (1, 1), "a number is too large"),
    "long when repeated": ('root ::= "' + "a" * 10**5 + '"{2000}', (1, 100012), "what is repeated is too long"),
    "plus upon plus": ('root ::= "a"' + "+" * 10**5, None, "what is repeated is too long"),
    "no token": ("root ::= <think>", (1, 1), "invalid token '<think>'"),
    "no token, over lines": ("root ::= <a\nb" + "c" * 500 + ">", (1, 1), "invalid token '<a b"),
    "a NUL": ('root ::= "a\0"', (1, 12), r"cannot have the character '\\x00'"),
    "no UTF-8": ('root ::= "\udc80"', (1, 11), r"cannot have the character '\\udc80'"),
}  # fmt: skip

#: Grammars which the model is kept to, and the text that can only follow.
FOLLOWED = {
    'root ::= "yes"': "yes",
    'root ::= ("ab"){3}': "ababab",
    'root ::= ("a"*){0} "b"': "b",
    'root ::= ("a"{0} "b"?){0} "日本"': "日本",
    "root ::= " + "(" * 256 + '"a"' + ")" * 256: "a",
    "root ::= <[70]> <[71]>": "CD",  # tokens of the model
    'root ::= ""': "",
    "root ::= []": "",
    LINES([*(f"a{i} ::= a{i + 1}" for i in range(2000)), 'a2000 ::= "a"', "root ::= a0"]): "a",
}

#: Grammars that no token of the model continues.
STUCK = [r"root ::= [^\x00-\U7FFFFFFF]", "root ::= <[999999]>", r'root ::= "ab" [^\x00-\U7FFFFFFF]']

#: Each a may be the one before any of 150 characters: 150 readings, then 22,500.
MANY_WAYS = "root ::= " + " | ".join(f'"a" root "\\u{0x4E00 + i:04x}"' for i in range(150))

NO_TOKEN = "^the grammar cannot be followed: no token of the model"


@pytest.fixture(scope="module", params=[1, 4])
def llm(request: pytest.FixtureRequest, tiny_model: Path) -> Any:
    with Llama(str(tiny_model), ga_n=request.param, n_ctx=256, verbose=False, n_threads=1) as llm:
        yield llm


def complete(llm: Llama, grammar: Any, **kwargs: Any) -> str:
    completion: Any = llm.create_completion("Hello", max_tokens=12, grammar=grammar, **{"temperature": 0.0, **kwargs})
    return str(completion["choices"][0]["text"])


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_its_place(llm: Llama, name: str) -> None:
    text, place, message = REFUSED[name]
    at = "" if place is None else f" at line {place[0]}, column {place[1]}"
    with pytest.raises(GrammarError, match=f"^the grammar cannot be used{at}.*: .*{message}") as caught:
        complete(llm, LlamaGrammar.from_string(text))
    assert isinstance(caught.value, (ValueError, SettingError))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300
    assert complete(llm, LlamaGrammar.from_string('root ::= "yes"')) == "yes"


@pytest.mark.parametrize("grammar", [5, 'root ::= "a"', b"", object(), LlamaGrammar(_grammar=b"a"), LlamaGrammar])  # type: ignore[arg-type]
def test_what_is_no_grammar(llm: Llama, grammar: Any) -> None:
    with pytest.raises(GrammarError, match="type"):
        complete(llm, grammar)


@pytest.mark.parametrize("text", FOLLOWED)
@pytest.mark.parametrize("kwargs", [{"temperature": 0.0}, {"temperature": 0.9}, {"mirostat_mode": 2}])
def test_followed(llm: Llama, text: str, kwargs: dict[str, Any]) -> None:
    assert complete(llm, LlamaGrammar.from_string(text), **{"temperature": 1.0, **kwargs}) == FOLLOWED[text]


@pytest.mark.parametrize("name", [name for name in dir(llama_grammar) if name.endswith("_GBNF")])
def test_the_grammars_that_llama_cpp_brings(llm: Llama, name: str) -> None:
    """What upstream's own sampler does with them is what ours does."""
    text = getattr(llama_grammar, name)
    assert complete(llm, LlamaGrammar.from_string(text)) == upstream(llm, text)


def upstream(llm: Llama, text: str) -> str:
    """The same completion with llama.cpp's own sampler of grammars."""
    llm.reset()
    out, tokens = b"", llm.tokenize(b"Hello")
    sampler = super(Llama, llm)._init_sampler(temp=0.0, repeat_penalty=1.0, grammar=LlamaGrammar.from_string(text))
    for _ in range(12):
        llm.eval(tokens)
        tokens = [sampler.sample(llm._ctx, -1)]
        if tokens[0] == llm.token_eos():
            break
        out += llm.detokenize(tokens)
    return out.decode("utf-8", "ignore")


@pytest.mark.parametrize("text", STUCK)
@pytest.mark.parametrize("kwargs", [{"temperature": 0.0}, {"temperature": 0.9}, {"mirostat_mode": 2}])
def test_no_token_goes_on(llm: Llama, text: str, kwargs: dict[str, Any]) -> None:
    with pytest.raises(GrammarError, match=NO_TOKEN):
        complete(llm, LlamaGrammar.from_string(text), **{"temperature": 1.0, **kwargs})
    assert complete(llm, LlamaGrammar.from_string('root ::= "yes"')) == "yes"


def test_no_token_goes_on_in_a_stream(llm: Llama) -> None:
    stream = llm.create_completion("Hello", max_tokens=12, grammar=LlamaGrammar.from_string(STUCK[-1]), stream=True)
    with pytest.raises(GrammarError, match=NO_TOKEN):
        list(stream)


def test_a_processor_that_leaves_nothing_that_fits(llm: Llama) -> None:
    def leave(_: Any, logits: Any) -> Any:
        left = np.full_like(logits, -np.inf)
        left[llm.tokenize(b"x", add_bos=False)[-1]] = 0
        return left

    with pytest.raises(GrammarError, match=NO_TOKEN):
        complete(llm, LlamaGrammar.from_string('root ::= "yes"'), logits_processor=LogitsProcessorList([leave]))


def test_readings_that_grow_with_each_token(llm: Llama) -> None:
    with pytest.raises(GrammarError, match="can be read in too many ways: the text so far has 22500 readings"):
        llm.create_completion("Hello", max_tokens=40, grammar=LlamaGrammar.from_string(MANY_WAYS))


def test_a_sampler_can_be_reset_and_copied(llm: Llama) -> None:
    llm.reset()
    llm.eval(llm.tokenize(b"Hello"))
    sampler = llm._init_sampler(temp=0.0, grammar=LlamaGrammar.from_string('root ::= "ab"'))
    assert llm.detokenize([sampler.sample(llm._ctx, -1)]) == b"a"
    copy = sampler.clone()
    assert llm.detokenize([copy.sample(llm._ctx, -1)]) == b"b"
    sampler.reset()
    assert llm.detokenize([sampler.sample(llm._ctx, -1)]) == b"a"
    assert llm.detokenize([sampler.sample(llm._ctx, -1)]) == b"b"


@pytest.mark.parametrize("n", [100, 300, 800])
def test_schemas_of_long_texts(llm: Llama, n: int) -> None:
    """llama_cpp writes a pair of parentheses for each character that may be left out."""
    grammar = LlamaGrammar.from_json_schema(f'{{"type": "string", "maxLength": {n}}}')
    assert complete(llm, grammar).startswith('"')
