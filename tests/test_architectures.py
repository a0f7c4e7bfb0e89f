"""The page about architectures says what the engine answers."""

from __future__ import annotations

from pathlib import Path

import architectures


def test_the_page_is_what_the_engine_answers(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    assert architectures.PAGE.read_text(encoding="utf-8") == architectures.page(tiny_models, tmp_path), (
        "docs/architectures.md is not up to date: run python tests/architectures.py"
    )
