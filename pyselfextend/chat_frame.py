"""What a model's chat template puts around a user's message."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

from .errors import ModelFileError

if TYPE_CHECKING:
    from .llama import Llama

__all__ = ["chat_frame"]

#: What a template that asks for the date is told: the same text must make the same prompt every day.
TODAY = datetime(2026, 1, 1)

MESSAGE = "\0"


def chat_frame(llm: Llama) -> tuple[str, str]:
    """What the model's chat template puts before and after a user's message, special tokens as text.

    A model without a template gets its beginning-of-sequence token, if it wants one, and "Answer:" on a new line.

    Raises:
        ModelFileError: the template fails, or does not show the message once and unchanged.
    """
    from llama_cpp.llama_chat_format import Jinja2ChatFormatter

    def text(token: int) -> str:
        return str(llm._model.token_get_text(token)) if token >= 0 else ""

    bos, eos = text(llm.token_bos()), text(llm.token_eos())
    template = llm.metadata.get("tokenizer.chat_template")
    if template is None:
        return (bos if llm._model.add_bos_token() else ""), "\nAnswer:"
    try:
        formatter: Any = Jinja2ChatFormatter(template=template, bos_token=bos, eos_token=eos)
        formatter.strftime_now = TODAY.strftime
        parts = formatter(messages=[{"role": "user", "content": MESSAGE}]).prompt.split(MESSAGE)
    except Exception as error:  # a template is a program of the model's author; it can raise anything
        raise ModelFileError(f"the chat template of {llm.model_path} fails: {' '.join(str(error).split())}") from error
    if len(parts) != 2:
        raise ModelFileError(
            f"the chat template of {llm.model_path} shows a user's message {len(parts) - 1} times; it must show it once"
        )
    before, after = parts
    return before, after
