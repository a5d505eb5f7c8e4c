"""From logits and labels to a report, its intervals, and a journal of numbers while training.

>>> from cnnjax import metrics
>>> found = metrics.report([[2.0], [-1.0], [0.5], [-3.0]], [1, 0, 0, 0], ("cat", "dog"))
>>> found.accuracy, found.auc, found.confusion.tolist()
(0.75, 1.0, [[2, 1], [0, 1]])
"""

from cnnjax.metrics.intervals import bootstrap, interval
from cnnjax.metrics.journal import Journal, read
from cnnjax.metrics.reports import ClassScores, Report, report

__all__ = ["ClassScores", "Journal", "Report", "bootstrap", "interval", "read", "report"]
