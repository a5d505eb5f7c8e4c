"""Published weights: read safely, and put onto a model strictly."""
