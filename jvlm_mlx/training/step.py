"""One iteration: gradients of a few batches over all processes, clipping, AdamW."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.optimizers import clip_grad_norm

from ..config.dtypes import FLOAT_DTYPES
from ..errors import TrainingError
from ..model import Model
from ..process_group import ProcessGroup
from .loss import Inputs, loss_sum
from .model_setup import batch_key, checkpointed_layers, set_keys, use_keyed_dropout
from .optimizer import Arrays, ModuleOptimizer, flat, tree
from .training_config import TrainingConfig

_ADVICE = "begin again with a lower learning rate or a longer warm-up"


@dataclass(frozen=True)
class StepResult:
    """The outcome of one iteration."""

    loss: float
    """Mean cross entropy of all targets, before the update."""
    gradient_norm: float
    """Length of all gradients together, before clipping."""
    learning_rates: dict[str, float]
    """By module."""


class Trainer:
    """A model in training: float32 weights, moments, and the number of updates so far."""

    def __init__(
        self,
        model: Model,
        config: TrainingConfig,
        iters: int,
        group: ProcessGroup | None = None,
    ) -> None:
        """Take what can be trained in a model of `prepare_model`; start with empty moments."""
        self.model = model
        self.config = config
        self._group = group or ProcessGroup()
        # Copied by a multiplication: sums over arrays that lie in the memory of a file are rounded
        # otherwise on a CPU, and a resumed run would not be the uninterrupted one.
        self.parameters: Arrays = {
            path: array.astype(mx.float32) * 1
            for path, array in flat(model.trainable_parameters()).items()
        }
        mx.eval(self.parameters)
        self.optimizer = ModuleOptimizer(config, iters, self.parameters)
        # An adapter's few numbers are float32 in any case, as mlx-lm has it.
        self._dtype = FLOAT_DTYPES[config.dtype].mlx if config.is_full else mx.float32
        differentiate = mx.value_and_grad(self._loss)
        self._differentiate = mx.compile(differentiate) if config.compile else differentiate
        # One kernel for all that AdamW does to a parameter.
        state = self.optimizer.state
        self._update = mx.compile(self._clip_and_update, inputs=state, outputs=state)
        self._dropouts = use_keyed_dropout(model, 0.0 if config.is_full else config.dropout)
        self.restore_parameters()

    def all_parameters(self) -> Arrays:
        """Return trained and frozen parameters of the model by path."""
        return flat(self.model.parameters()) | self.parameters

    def restore_parameters(self) -> None:
        """Give the model the weights as they are now, in the dtype that it computes in.

        Differentiation leaves placeholders behind in it.
        """
        self.model.update(tree(self._cast(self.parameters)))

    def _cast(self, parameters: Arrays) -> Arrays:
        return {path: array.astype(self._dtype) for path, array in parameters.items()}

    def _loss(
        self, parameters: Arrays, inputs: Inputs, weight: mx.array, key: mx.array
    ) -> mx.array:
        set_keys(self._dropouts, key)
        self.model.update(tree(self._cast(parameters)))
        return loss_sum(self.model, inputs) * weight

    def gradients(self, batches: Sequence[Inputs], number: int) -> tuple[mx.array, Arrays]:
        """Return mean loss and gradients over the targets of all batches of all group.

        One batch is computed after the other, so memory is that of one.

        Args:
            batches: from `loss.prepare`, this process's part of each.
            number: of the iteration, which dropout follows from.
        """
        # Every target counts the same, in whichever batch and process it is. Gradients are then
        # averaged over the processes, hence the factor.
        group = self._group
        targets = group.sum(sum(len(inputs["targets"]) for inputs in batches))
        weight = mx.array(group.count / targets)
        loss, gradients = mx.array(0.0), dict[str, mx.array]()
        self.model.train()
        try:
            with checkpointed_layers(self.model, self.config.grad_checkpoint):
                for place, inputs in enumerate(batches):
                    if place:
                        # Activations of the last batch are free before the next one begins.
                        mx.eval(loss, gradients)
                    batch = place * group.count + group.rank
                    key = batch_key(self.config.seed, number, batch)
                    more, added = self._differentiate(self.parameters, inputs, weight, key)
                    loss = loss + more
                    gradients = {
                        path: gradients[path] + array if gradients else array
                        for path, array in added.items()
                    }
        finally:
            self.model.eval()
            self.restore_parameters()
        loss, gradients = nn.average_gradients([loss, tree(gradients)])
        return loss, flat(gradients)

    def _clip_and_update(self, gradients: Arrays, parameters: Arrays) -> tuple[mx.array, Arrays]:
        gradients, norm = clip_grad_norm(gradients, self.config.max_grad_norm or math.inf)
        return norm, self.optimizer.apply(gradients, parameters)

    def step(self, batches: Sequence[Inputs], number: int) -> StepResult:
        """Update the weights once, as iteration `number`, counted from 0.

        Raises:
            TrainingError: loss or gradients are not finite any more.
        """
        loss, gradients = self.gradients(batches, number)
        norm, self.parameters = self._update(gradients, self.parameters)
        # Nothing else holds the old arrays, so the new ones can take their memory.
        del gradients
        self.restore_parameters()
        mx.eval(loss, norm, self.parameters, self.optimizer.state)
        result = StepResult(_number(loss), _number(norm), self.optimizer.learning_rates)
        if not mx.isfinite(loss + norm).item():
            raise TrainingError(
                f"iteration {number + 1}: the loss is {result.loss} and the gradient's length"
                f" {result.gradient_norm}; {_ADVICE}"
            )
        return result

    def check_weights(self, number: int) -> None:
        """Refuse weights that must not be written: the loss has not been computed with them yet.

        Raises:
            TrainingError: a weight is not finite any more.
        """
        if path := first_not_finite(self.parameters):
            raise TrainingError(
                f"iteration {number}: {path} is not finite any more, so nothing is written;"
                f" {_ADVICE}"
            )

    def loss(self, batches: Iterable[Inputs]) -> float:
        """Return the mean loss over the targets of all batches, without learning from them."""
        total, targets = 0.0, 0
        for inputs in batches:
            total += _number(loss_sum(self.model, inputs))
            targets += len(inputs["targets"])
        return total / targets


def first_not_finite(arrays: Mapping[str, mx.array]) -> str | None:
    """Return the path of the first array with NaN or Inf in it, or None."""
    for path, array in arrays.items():
        # One after the other, so that what is compared takes little memory.
        if mx.issubdtype(array.dtype, mx.floating) and not mx.isfinite(array).all().item():
            return path
    return None


def _number(array: mx.array) -> float:
    value: Any = array.item()
    return float(value)
