"""Chat templates that do not compile: the model opens, and a chat with one says what is wrong with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .. import _native
from ..errors import ModelFileError

_library = _native.load()  # before llama_cpp, which it imports with our library

from llama_cpp.llama_chat_format import Jinja2ChatFormatter  # noqa: E402

__all__ = ["Metadata", "add_broken"]

DEFAULT = "tokenizer.chat_template"
BROKEN = "_broken_templates"  # by key, of an instance that is being made


class Metadata:
    """``Llama.metadata``: while llama_cpp's constructor makes chats of them, without templates that do not compile."""

    def __set__(self, llm: Any, metadata: Mapping[str, str]) -> None:
        llm.__dict__["metadata"] = metadata
        llm.__dict__[BROKEN] = {
            key: reason
            for key, text in metadata.items()
            if (key == DEFAULT or key.startswith(f"{DEFAULT}.")) and (reason := _reason(text))
        }

    def __get__(self, llm: Any, owner: type | None = None) -> Any:
        if llm is None:
            return self
        try:
            metadata = llm.__dict__["metadata"]
        except KeyError:
            raise AttributeError("metadata") from None
        broken = llm.__dict__.get(BROKEN)
        return {key: text for key, text in metadata.items() if key not in broken} if broken else metadata


def add_broken(llm: Any, *, chat_format: str | None = None, chat_handler: Any = None, **_: Any) -> None:
    """After llama_cpp's constructor, with its arguments: chats for the templates that it did not see, which refuse."""
    broken = llm.__dict__.pop(BROKEN, {})
    for key, reason in broken.items():
        name = "chat_template.default" if key == DEFAULT else key.removeprefix("tokenizer.")
        llm._chat_handlers[name] = _refusal(f"{key} of {llm.model_path} does not compile: {reason}")
    if DEFAULT in broken and chat_format is None and chat_handler is None:
        llm.chat_format = "chat_template.default"  # llama_cpp took one that is not the model's


def _reason(template: str) -> str:
    """Why a template does not compile; empty if it does."""
    try:
        Jinja2ChatFormatter(template=template, eos_token="", bos_token="")
    except Exception as error:  # a template is a program of the model's author; the compiler can raise anything
        return " ".join(f"{error}".split()) or type(error).__name__
    return ""


def _refusal(message: str) -> Any:
    def handler(**_: Any) -> Any:
        raise ModelFileError(message)

    return handler
