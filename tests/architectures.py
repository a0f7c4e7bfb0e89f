"""Write docs/architectures.md: what SelfExtend makes of each architecture that the tests have a model of.

    python tests/architectures.py

Every cell is what the engine answered. A test fails if the file is not what this writes.
"""

from __future__ import annotations

import importlib.util
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import unsupported
from context import Context, open_model

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "architectures.md"

HEAD = """# Architectures

Written by `python tests/architectures.py` from what the engine answers; the tests compare it.

## Supported

For each of these a tiny model with random weights is compared with a reference at every position
([tests/test_engine_parity.py](../tests/test_engine_parity.py)). The layers that are extended are those without a
sliding window of their own; the others are llama.cpp's. *Roll-back* is whether a sequence can be cut anywhere without
evaluating kept tokens again, and *shift* whether tokens can be moved to other positions (`Llama.context_shift`).
Where the keys are normalized with weights after RoPE they cannot be turned to another position without loss: a
roll-back deeper than the near part then evaluates the kept tokens again. llama.cpp does not shift M-RoPE, and its own
shift is not exact for layers with a window where RoPE has a magnitude (YaRN). With sliding windows, both need
`swa_full=True`, which is llama.cpp's default.

| architecture | what its model is about | layers extended | roll-back | shift |
| --- | --- | --- | --- | --- |
"""

REFUSED = """
## Refused

When a context with `ga_n` above 1 is created, with these messages. With `ga_n=1` they are plain models as ever.

| architecture | message |
| --- | --- |
"""


def make_tiny() -> ModuleType:
    """models/make_tiny.py, which is not in a package."""
    if "make_tiny" not in sys.modules:
        spec = importlib.util.spec_from_file_location("make_tiny", ROOT / "models" / "make_tiny.py")
        assert spec is not None
        assert spec.loader is not None
        sys.modules["make_tiny"] = importlib.util.module_from_spec(spec)  # dataclasses look it up
        spec.loader.exec_module(sys.modules["make_tiny"])
    return sys.modules["make_tiny"]


def supported(paths: dict[str, Path]) -> Iterator[str]:
    """A row for each tiny model."""
    for name, tiny in make_tiny().MODELS.items():
        with open_model(paths[name]) as model, Context(model, 4, 64, n_ubatch=32) as ctx:
            info = ctx.library.get_info(ctx.ctx)
            assert info is not None
            ctx.logits([5] * 600)
            answers = ["yes" if yes else "no" for yes in (ctx.remove(0, 300), ctx.can_shift())]
        yield f"| `{tiny.arch}` | {tiny.about} | {info.n_layer_fused} of {tiny.n_layer} | {' | '.join(answers)} |"


def refused(folder: Path) -> Iterator[str]:
    """A row for each architecture that is not supported."""
    from pyselfextend import Llama, SettingError

    for arch in unsupported.LAYERS:
        path = unsupported.make(folder / f"{arch}.gguf", arch)
        try:
            Llama(str(path), n_ctx=64, ga_n=2, ga_w=8, verbose=False).close()
        except SettingError as error:
            yield f"| `{arch}` | {error} |"


def page(paths: dict[str, Path], folder: Path) -> str:
    """The text of the file. paths: of the tiny models by name; folder: for the models that are refused."""
    return HEAD + "\n".join(supported(paths)) + "\n" + REFUSED + "\n".join(refused(folder)) + "\n"


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        PAGE.parent.mkdir(exist_ok=True)
        PAGE.write_text(page(make_tiny().make_all(Path(folder)), Path(folder)), encoding="utf-8")
    print(PAGE)


if __name__ == "__main__":
    main()
