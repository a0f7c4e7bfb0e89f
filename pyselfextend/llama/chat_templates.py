"""Chat templates of a model file that cannot be read: the model opens, and a chat says so."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from llama_cpp.llama_chat_format import Jinja2ChatFormatter

from ..errors import ModelFileError

__all__ = ["broken_templates", "refuse"]

KEY = "tokenizer.chat_template"


def broken_templates(metadata: Mapping[str, str]) -> dict[str, str]:
    """Keys of the chat templates in a file's metadata that are no templates, and why."""
    broken = {}
    for key, template in metadata.items():
        if key == KEY or key.startswith(f"{KEY}."):
            try:
                Jinja2ChatFormatter(template=template, eos_token="", bos_token="")
            except Exception as error:  # jinja2's own, and what the parser of Python's raises, a RecursionError
                broken[key] = f"{type(error).__name__}: {error}" if not str(error) else str(error)
    return broken


def handler_name(key: str) -> str:
    """llama_cpp's name of the chat format that a template is."""
    return "chat_template.default" if key == KEY else key.removeprefix("tokenizer.")


def refuse(path: str, key: str, reason: str) -> Callable[..., Any]:
    """A chat handler that says why there is none."""

    def handle(**_: Any) -> Any:
        raise ModelFileError(
            f"{path} has a chat template that is damaged ({key}: {reason}); give chat_format or chat_handler, or use "
            "create_completion()"
        )

    return handle
