"""Training data: from files of conversations to batches.

In the order of a row's way: `mixture` says which files, `rows` reads a line, `encoding` makes
tokens and labels of it, `prepare` checks all rows before training starts, `plan` says which rows
make up which batch, `pictures` and `batch` make arrays of them, `batches` hands them out.
"""

from .batch import TrainingBatch
from .batches import Batches, Prefetch
from .limits import DataLimits
from .mixture import Mixture, Source, read_mixture
from .plan import BatchPlan, BatchSettings, FixedPlan, MixturePlan
from .prepare import prepare_data
from .prepared import PreparedSource, TrainingData, TrainingRow

__all__ = [
    "BatchPlan",
    "BatchSettings",
    "Batches",
    "DataLimits",
    "FixedPlan",
    "Mixture",
    "MixturePlan",
    "Prefetch",
    "PreparedSource",
    "Source",
    "TrainingBatch",
    "TrainingData",
    "TrainingRow",
    "prepare_data",
    "read_mixture",
]
