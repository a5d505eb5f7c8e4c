"""From logits and labels to a report, its intervals, and a journal of numbers while training.

>>> from cnnjax import metrics
>>> found = metrics.report([[2.0], [-1.0], [0.5], [-3.0]], [1, 0, 0, 0], ("cat", "dog"))
>>> found.accuracy, found.auc, found.confusion.tolist()
(0.75, 1.0, [[2, 1], [0, 1]])
"""

from cnnjax.metrics.intervals import bootstrap, interval
from cnnjax.metrics.journal import Journal, read
from cnnjax.metrics.means import MeansReport, means_report
from cnnjax.metrics.multilabel import MultiLabelReport, multilabel_report
from cnnjax.metrics.regression import RegressionReport, regression_report
from cnnjax.metrics.reports import ClassScores, Report, report

__all__ = [
    "ClassScores", "Journal", "MeansReport", "MultiLabelReport", "RegressionReport", "Report", "bootstrap", "interval",
    "means_report", "multilabel_report", "read", "regression_report", "report",
]  # fmt: skip
