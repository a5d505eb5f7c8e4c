"""Published weights: read safely, put onto a model strictly, and what is published where."""

from cnnjax.weights.published import Published, find

__all__ = ["Published", "find"]
