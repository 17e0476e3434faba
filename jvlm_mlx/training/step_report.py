"""What one step came to, for metrics and progress."""

import dataclasses
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class StepReport:
    """One update."""

    step: int
    """Updates so far, this one included."""
    loss: float
    """Mean cross entropy of a target token, in nats, before the update."""
    validation_loss: float | None
    """The same over the validation rows, after the update; None where none was due."""
    gradient_norm: float
    """Before clipping."""
    learning_rates: dict[str, float]
    """By part."""
    target_tokens: int
    """Tokens that the loss is the mean of."""
    tokens_per_second: float
    """Tokens of all rows, padding left out, over the time of the whole step."""
    images_per_second: float
    seconds: float
    """Of the step, waiting for data included."""
    peak_memory: int
    """Most bytes that mlx has held so far."""

    def line(self) -> dict[str, Any]:
        """Return the report as a line of metrics."""
        values = dataclasses.asdict(self)
        if self.validation_loss is None:
            del values["validation_loss"]
        return values
