"""``Llama``: llama-cpp-python's class of the same name, with a longer context."""

from .model import Llama  # first: it makes llama_cpp load our library

from .arguments import CACHE_TYPES  # isort: skip

__all__ = ["CACHE_TYPES", "Llama"]
