"""What a chat template puts around a message."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest

from pyselfextend import Llama, ModelFileError
from pyselfextend.chat_frame import chat_frame


def frame(path: Path, template: str | None) -> tuple[str, str]:
    with Llama(str(path), verbose=False) as llm:
        del llm.metadata["tokenizer.chat_template"]
        if template is not None:
            llm.metadata["tokenizer.chat_template"] = template
        return chat_frame(llm)


def test_chat_template(tiny_model: Path) -> None:
    with Llama(str(tiny_model), verbose=False) as llm:
        assert chat_frame(llm) == ("user: ", "\nassistant:")
    assert frame(tiny_model, None) == ("<s>", "\nAnswer:")


def test_it_is_what_a_chat_is_made_of(smollm2: Path) -> None:
    """llama-cpp-python's own way from messages to a prompt, for a template with a system message of its own."""
    from llama_cpp.llama_chat_format import Jinja2ChatFormatter

    with Llama(str(smollm2), verbose=False) as llm:
        formatter = Jinja2ChatFormatter(llm.metadata["tokenizer.chat_template"], "<|im_end|>", "<|im_start|>")
        prompt = formatter(messages=[{"role": "user", "content": "A question?"}]).prompt
        before, after = chat_frame(llm)
    assert "<|im_start|>system" in before
    assert before + "A question?" + after == prompt


def test_the_day_makes_no_difference(tiny_model: Path) -> None:
    before, _ = frame(tiny_model, "{{ strftime_now('%Y-%m-%d') }} {{ messages[0].content }}")
    assert date.fromisoformat(before.strip()) != date.today()


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% if %}", "fails: Expected an expression"),
        ("{{ raise_exception('System role\nneeded') }}", "fails: System role needed$"),
        ("{{ messages[1].content }}", "fails: "),
        ("{{ 1 / 0 }}", "fails: division by zero$"),
        ("nothing", "shows a user's message 0 times; it must show it once$"),
        ("{% for i in range(2) %}{{ messages[0].content }}{% endfor %}", "2 times; it must show it once$"),
    ],
)
def test_a_template_that_is_of_no_use(tiny_model: Path, template: str, message: str) -> None:
    with pytest.raises(ModelFileError, match=f"^the chat template of {tiny_model} .*{message}"):
        frame(tiny_model, template)
