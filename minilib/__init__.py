"""minilib: backdoors in neural networks, how to find them and how to unlearn them."""

from .provenance import VERSION as __version__
from .provenance import hello

__all__ = ["__version__", "hello"]
