"""The chat template of a model, applied to a conversation."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from ..chat_frame import TODAY
from ..errors import EvalError
from ..llama import Llama

__all__ = ["apply_template", "template_of"]

logger = logging.getLogger("lm_eval.pyselfextend")  # below theirs: shown as they show their own

Message = dict[str, Any]


def template_of(llm: Llama) -> str:
    """The Jinja text of the model's own template.

    Raises:
        EvalError: it has none.
    """
    template = llm.metadata.get("tokenizer.chat_template")
    if template is None:
        raise EvalError(f"{llm.model_path} has no chat template; leave --apply_chat_template out")
    return str(template)


def apply_template(llm: Llama, messages: Sequence[Message], add_generation_prompt: bool) -> str:
    """A conversation as the model's template writes it, special tokens as text.

    Args:
        messages: with ``role`` and ``content``.
        add_generation_prompt: whether the beginning of an answer follows. False: the last message is one, and goes on.

    Raises:
        EvalError: there is no template, it refuses the conversation, or it changes a message that is to go on.
    """
    try:
        return _render(llm, messages, add_generation_prompt)
    except EvalError:
        others = [message for message in messages if message["role"] != "system"]
        if len(others) == len(messages):
            raise
        logger.warning("the chat template of %s takes no system message; it is left out", llm.model_path)
        return _render(llm, others, add_generation_prompt)


def _render(llm: Llama, messages: Sequence[Message], add_generation_prompt: bool) -> str:
    from llama_cpp.llama_chat_format import Jinja2ChatFormatter

    def text(token: int) -> str:
        return str(llm._model.token_get_text(token)) if token >= 0 else ""

    template = template_of(llm)
    try:
        formatter: Any = Jinja2ChatFormatter(
            template=template,
            bos_token=text(llm.token_bos()),
            eos_token=text(llm.token_eos()),
            add_generation_prompt=add_generation_prompt,
        )
        formatter.strftime_now = TODAY.strftime
        rendered = str(formatter(messages=list(messages)).prompt)
    except Exception as error:  # a template is a program of the model's author; it can raise anything
        raise EvalError(f"the chat template of {llm.model_path} fails: {' '.join(str(error).split())}") from error
    if add_generation_prompt:
        return rendered
    begun = str(messages[-1]["content"])
    before, found, after = rendered.rpartition(begun.strip())
    if not found:
        raise EvalError(f"the chat template of {llm.model_path} does not show the answer that is to go on")
    space = begun[len(begun.rstrip()) :]  # templates strip it, or do not
    return before + found + (space if after.startswith(space) else "")
