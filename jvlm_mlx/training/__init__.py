"""Training: all weights or adapters, part by part, with checkpoints to go on from.

`data` reads what is learned from. In the order of a run: `setup` makes a model ready, `feed`
hands out batches, `loss` says how wrong the model is, `step` mends it, `run` does so again and
again.
"""

from .data_feed import Feed, FeedSettings, training_feed, validation_feed
from .step_report import StepReport
from .trainer import TrainingResult, train
from .training_config import AdapterSettings, PartSettings, TrainingSettings
from .setup import prepare_model

__all__ = [
    "AdapterSettings",
    "Feed",
    "FeedSettings",
    "PartSettings",
    "StepReport",
    "TrainingResult",
    "TrainingSettings",
    "prepare_model",
    "train",
    "training_feed",
    "validation_feed",
]
