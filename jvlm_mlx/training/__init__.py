"""Training: all weights or adapters, part by part, with checkpoints to go on from.

`data` reads what is learned from. In the order of a run: `setup` makes a model ready, `feed`
hands out batches, `loss` says how wrong the model is, `step` mends it, `run` does so again and
again.
"""

from .data_feed import Feed, LoaderConfig, training_feed, validation_feed
from .setup import prepare_model
from .step_report import StepReport
from .trainer import TrainingResult, train
from .training_config import AdapterOptions, ModuleConfig, TrainingConfig

__all__ = [
    "AdapterOptions",
    "Feed",
    "LoaderConfig",
    "ModuleConfig",
    "StepReport",
    "TrainingConfig",
    "TrainingResult",
    "prepare_model",
    "train",
    "training_feed",
    "validation_feed",
]
