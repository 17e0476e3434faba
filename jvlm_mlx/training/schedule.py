"""The learning rate of every step: up in the warm-up, then down to the floor."""

import math

from .training_config import ModuleConfig


def learning_rate(part: ModuleConfig, step: int, steps: int) -> float:
    """Return the learning rate of a step.

    The warm-up grows in a straight line and ends with the highest rate; the first step is
    already above zero. The last step has the floor.

    Args:
        part: with warm-up, decay and floor.
        step: counted from 0.
        steps: of the whole run.
    """
    if step < part.warmup_steps:
        return part.learning_rate * (step + 1) / part.warmup_steps
    # From 0 at the first step after the warm-up to 1 at the last of the run.
    done = (step - part.warmup_steps) / max(1, steps - 1 - part.warmup_steps)
    left = {
        "cosine": 0.5 * (1 + math.cos(math.pi * min(done, 1.0))),
        "linear": 1 - min(done, 1.0),
        "constant": 1.0,
    }[part.decay]
    return part.learning_rate * (part.floor + (1 - part.floor) * left)
