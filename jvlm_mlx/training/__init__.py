"""Training: all weights, or adapters beside them, from conversations about images.

In the order of a run: `examples` and `dataset` read and tokenize the data, `sampler` and
`data_loader` make batches of it, `model_setup` prepares the model, `loss`, `optimizer` and `step`
are one iteration, `trainer` repeats it, and `checkpoints` writes what comes of it.
"""

from .reports import StepReport
from .trainer import TrainingResult
from .training_config import TrainingConfig

__all__ = ["StepReport", "TrainingConfig", "TrainingResult"]
