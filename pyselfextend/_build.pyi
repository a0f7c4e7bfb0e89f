from typing import Final

VERSION: Final[str]
BUILD_ID: Final[str]
LLAMA_CPP_PYTHON: Final[str]
LLAMA_CPP_SHA256: Final[str]
LLAMA_CPP_COMMIT: Final[str]
PATCHES: Final[str]
PATCHES_SHA256: Final[str]
HAS_PAGE: Final[bool]
