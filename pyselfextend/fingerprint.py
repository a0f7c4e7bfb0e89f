"""Which model a file holds, without reading all of it. Imports nothing native."""

from __future__ import annotations

import hashlib
from pathlib import Path

from .errors import ModelFileError

__all__ = ["fingerprint"]

#: Places of a file that go into its fingerprint.
N_SAMPLES = 256


def fingerprint(path: Path) -> str:
    """A hash that two different models do not share: of the size of the file, its first MiB and samples of the rest.

    Raises:
        ModelFileError: the file cannot be read.
    """
    try:
        size = path.stat().st_size
        digest = hashlib.sha256(str(size).encode())
        with path.open("rb") as file:
            digest.update(file.read(2**20))
            for i in range(N_SAMPLES):
                file.seek(size * i // N_SAMPLES)
                digest.update(file.read(4096))
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read: {error.strerror}") from None
    return digest.hexdigest()[:16]
