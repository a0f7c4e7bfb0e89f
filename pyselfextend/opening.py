"""Opening a model that is to be asked, without llama.cpp's log, and with one line where it cannot be."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import jinja2

from .errors import ModelFileError, SettingError
from .llama import Llama

import llama_cpp  # isort: skip  # after .llama, which makes it load our library

__all__ = ["open_quietly"]

NO_VOCAB = 0  # LLAMA_VOCAB_TYPE_NONE


def open_quietly(path: Path, n_ctx: int, **arguments: Any) -> Llama:
    """A ``Llama`` that can tokenize.

    Args:
        path: the GGUF file.
        n_ctx: context in tokens.
        arguments: the others of ``Llama``.

    Raises:
        ModelFileError: the file is not a model that llama.cpp can load, its chat template is damaged, it has no
            tokenizer, or there is no memory for the context.
        SettingError: the model cannot be extended like that.
    """
    with contextlib.redirect_stderr(io.StringIO()) as log:  # llama.cpp warns that n_ctx is beyond the trained context
        try:
            llm = Llama(str(path), n_ctx=n_ctx, verbose=False, **arguments)
        except SettingError:
            raise
        except jinja2.TemplateError as error:
            raise ModelFileError(f"{path} has a chat template that is damaged: {error}") from error
        except ValueError as error:
            if "llama_context" in str(error):  # the weights are loaded
                raise ModelFileError(
                    f"llama.cpp could not create a context of {n_ctx} tokens for {path}; most likely its cache takes "
                    "more memory than there is"
                ) from error
            reason = " ".join(log.getvalue().split())
            raise ModelFileError(f"{path} could not be loaded as a GGUF model: {reason or error}") from error
    if llama_cpp.llama_vocab_type(llama_cpp.llama_model_get_vocab(llm.model)) == NO_VOCAB:
        llm.close()
        raise ModelFileError(f"{path} has no tokenizer, so it cannot be asked")  # llama.cpp would abort
    return llm
