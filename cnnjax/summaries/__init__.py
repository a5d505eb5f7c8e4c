"""What a model is made of: the table as Keras prints it, costs, receptive fields, the frontier."""

from cnnjax.summaries.measure import receptive_field, receptive_fields
from cnnjax.summaries.summary import summary
from cnnjax.summaries.table import Layer, Summary

__all__ = ["Layer", "Summary", "receptive_field", "receptive_fields", "summary"]
