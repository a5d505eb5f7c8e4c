"""The train step and the loop over it."""
