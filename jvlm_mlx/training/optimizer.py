"""AdamW for each part of the model, with a learning rate of its own."""

from collections.abc import Mapping
from typing import Any

import mlx.core as mx
from mlx.optimizers import AdamW
from mlx.utils import tree_flatten

from .modules import decays, part_of
from .schedule import learning_rate
from .training_config import TrainingConfig

Arrays = dict[str, mx.array]


class PartOptimizer:
    """AdamW over all trained parameters, grouped by part and by whether they decay.

    Parameters and gradients are flat: arrays by path. So is the state, which is saved and
    brought back as it is.
    """

    def __init__(self, config: TrainingConfig, parameters: Mapping[str, mx.array]) -> None:
        """Group the parameters and start with empty moments.

        Args:
            config: of the run.
            parameters: all trained parameters by path.
        """
        self._config = config
        self._groups: dict[tuple[str, bool], list[str]] = {}
        for path, array in parameters.items():
            self._groups.setdefault((part_of(path), decays(path, array.ndim)), []).append(path)
        self._optimizers: dict[tuple[str, bool], AdamW] = {}
        for group, paths in self._groups.items():
            # The rate is set before every step.
            optimizer = AdamW(
                learning_rate=0.0,
                betas=list(config.betas),
                eps=config.eps,
                weight_decay=config.weight_decay if group[1] else 0.0,
                bias_correction=True,
            )
            optimizer.init({path: parameters[path] for path in paths})
            self._optimizers[group] = optimizer

    def set_learning_rates(self, step: int) -> dict[str, float]:
        """Set every part's rate for a step, counted from 0, and return the rates by part."""
        rates = {
            part: learning_rate(self._config.part(part), step, self._config.steps)
            for part in self._config.trained_parts
        }
        for (part, _), optimizer in self._optimizers.items():
            optimizer.learning_rate = rates[part]
        return rates

    def apply(self, gradients: Mapping[str, mx.array], parameters: Arrays) -> Arrays:
        """Return the parameters after a step, in the order they came in; not evaluated."""
        changed: Arrays = {}
        for group, paths in self._groups.items():
            changed |= self._optimizers[group].apply_gradients(
                {path: gradients[path] for path in paths}, parameters
            )
        return {path: changed[path] for path in parameters}

    @property
    def state(self) -> list[Any]:
        """Moments, steps and rates of all groups, as mlx keeps them: changed in place."""
        return [optimizer.state for optimizer in self._optimizers.values()]

    def arrays(self) -> Arrays:
        """Return moments and number of steps by flat names, to be saved."""
        arrays: Arrays = {}
        for (part, decay), optimizer in self._optimizers.items():
            arrays[f"{part}.{_kind(decay)}.step"] = optimizer.step
            for path in self._groups[part, decay]:
                for moment in ("m", "v"):
                    arrays[f"{path}.{moment}"] = optimizer.state[path][moment]
        return arrays

    def load(self, arrays: Mapping[str, mx.array]) -> None:
        """Continue with what `arrays` returned in an earlier run.

        Raises:
            KeyError: an array is missing.
            ValueError: an array has another shape.
        """
        for name, present in self.arrays().items():
            if arrays[name].shape != present.shape:
                raise ValueError(f"{name}: expected {present.shape}, found {arrays[name].shape}")
        for (part, decay), optimizer in self._optimizers.items():
            optimizer.state["step"] = arrays[f"{part}.{_kind(decay)}.step"]
            for path in self._groups[part, decay]:
                optimizer.state[path] = {m: arrays[f"{path}.{m}"] for m in ("m", "v")}


def _kind(decay: bool) -> str:
    return "decayed" if decay else "plain"


def gradient_norm(gradients: Mapping[str, mx.array]) -> mx.array:
    """Return the length of all gradients together, in float32: ()."""
    squares = [mx.sum(mx.square(array.astype(mx.float32))) for array in gradients.values()]
    return mx.sqrt(mx.sum(mx.stack(squares)))


def flat(tree: Any) -> Arrays:
    """Return the arrays of a tree by path."""
    flattened: Any = tree_flatten(tree)
    return dict(flattened)
