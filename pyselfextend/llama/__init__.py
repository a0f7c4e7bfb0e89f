"""``Llama``: llama-cpp-python's class of the same name, with a longer context."""

from .model import CACHE_TYPES, Llama

__all__ = ["CACHE_TYPES", "Llama"]
