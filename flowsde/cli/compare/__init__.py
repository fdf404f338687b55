"""Compare methods on the embedded model: many captions, a held-out checker, intervals.

    rows, _ = compare.plan(["bon", "rbf"], nfe=[50, 100])
    study = compare.Study(compare.captions(25), seeds=2)
    measured = compare.measure(rows, study, folder)
    table = compare.summarise(rows, measured)

`flowsde compare` adds files, plots and a page. What has been measured is kept in the folder part by
part, so that the same call resumes, and one with more rows, prompts or seeds measures only those.
"""

from flowsde.cli.compare.measure import Measured, Study, captions, measure, measured_already
from flowsde.cli.compare.rows import Row, labels, plan
from flowsde.cli.compare.summary import summarise

__all__ = [
    "Measured",
    "Row",
    "Study",
    "captions",
    "labels",
    "measure",
    "measured_already",
    "plan",
    "summarise",
]
