"""AdamW with a learning rate for each module of the model."""

from collections.abc import Callable, Mapping
from typing import Any

import mlx.core as mx
from mlx.optimizers import AdamW, MultiOptimizer, cosine_decay, join_schedules, linear_schedule
from mlx.utils import tree_flatten, tree_unflatten

from .training_config import Rates, TrainingConfig, decays, module_of

Arrays = dict[str, mx.array]
"""By path in the model."""
Schedule = Callable[[mx.array], mx.array]


def schedule(rates: Rates, iters: int) -> Schedule:
    """Return the learning rate as a function of the iteration, counted from 0.

    The warm-up is a straight line that ends with the highest rate; the first iteration is already
    above zero. The last one has the floor.
    """
    highest, warmup = rates.learning_rate, rates.warmup_iters
    length = max(1, iters - 1 - warmup)
    after: dict[str, Schedule] = {
        "cosine": cosine_decay(highest, length, highest * rates.floor),
        "linear": linear_schedule(highest, highest * rates.floor, length),
        "constant": lambda _: mx.array(highest),
    }
    # A warm-up of one iteration has the highest rate from the start.
    rise = linear_schedule(highest / max(1, warmup), highest, max(1, warmup - 1))
    return join_schedules([rise, after[rates.decay]], [warmup])


class ModuleOptimizer:
    """AdamW over all trained parameters, grouped by module and by whether they decay."""

    def __init__(self, config: TrainingConfig, iters: int, parameters: Arrays) -> None:
        """Start with empty moments of all parameters that are trained."""
        groups = sorted({_group(path, array) for path, array in parameters.items()})
        self._modules = [module for module, _ in groups]
        self._optimizer = MultiOptimizer(
            [
                AdamW(
                    schedule(config.rates(module, iters), iters),
                    betas=list(config.betas),
                    eps=config.eps,
                    weight_decay=config.weight_decay if decay else 0.0,
                    bias_correction=True,
                )
                for module, decay in groups
            ],
            [_belongs_to(group) for group in groups[:-1]],
        )
        self._optimizer.init(tree(parameters))

    def apply(self, gradients: Arrays, parameters: Arrays) -> Arrays:
        """Return the parameters after an update, in the order they came in; not evaluated.

        The order matters: processes add up their gradients one after the other.
        """
        changed = flat(self._optimizer.apply_gradients(tree(gradients), tree(parameters)))
        return {path: changed[path] for path in parameters}

    @property
    def learning_rates(self) -> dict[str, float]:
        """The rates of the last update by module."""
        return {
            module: float(optimizer.learning_rate.item())
            for module, optimizer in zip(self._modules, self._optimizer.optimizers, strict=True)
        }

    @property
    def state(self) -> list[Any]:
        """Moments, number of updates and rates of all groups, changed in place."""
        return [optimizer.state for optimizer in self._optimizer.optimizers]

    def arrays(self) -> Arrays:
        """Return the state by flat names, to be saved."""
        return flat(self._optimizer.state)

    def load(self, arrays: Mapping[str, mx.array]) -> None:
        """Continue with what `arrays` returned in an earlier run.

        Raises:
            KeyError: an array is missing.
            ValueError: an array has another shape.
        """
        present = self.arrays()
        for name, array in present.items():
            if arrays[name].shape != array.shape:
                raise ValueError(f"{name}: expected {array.shape}, found {arrays[name].shape}")
        loaded = tree({name: arrays[name] for name in present})
        for optimizer, state in zip(self._optimizer.optimizers, loaded["states"], strict=True):
            optimizer.state.update(state)


def _group(path: str, array: mx.array) -> tuple[str, bool]:
    return module_of(path), decays(path, array.ndim)


def _belongs_to(group: tuple[str, bool]) -> Callable[[str, mx.array], bool]:
    return lambda path, array: _group(path, array) == group


def flat(nested: Any) -> Arrays:
    """Return the arrays of a tree by path."""
    flattened: Any = tree_flatten(nested)
    return dict(flattened)


def tree(arrays: Mapping[str, mx.array]) -> Any:
    """Return arrays by path as a tree, like `Model.update` takes."""
    return tree_unflatten(list(arrays.items()))
