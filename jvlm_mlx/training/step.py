"""One update of the weights: gradients of a few batches, clipping, AdamW."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from mlx.utils import tree_unflatten

from ..checkpoint.weights import as_float
from ..config.dtypes import FLOAT_DTYPES
from ..errors import TrainingError
from ..model import Model
from .dropout import batch_key, set_keys, use_keyed_dropout
from .gradient_checkpointing import checkpointed_layers
from .loss import Inputs, loss_sum
from .optimizer import Arrays, PartOptimizer, flat, gradient_norm
from .processes import Processes
from .training_config import TrainingConfig

_ADVICE = "begin again with a lower learning rate or a longer warm-up"


@dataclass(frozen=True)
class StepResult:
    """What one update came to."""

    loss: float
    """Mean cross entropy of all targets, before the update."""
    gradient_norm: float
    """Length of all gradients together, before clipping."""
    learning_rates: dict[str, float]
    """By part."""


class Trainer:
    """A model in training: float32 weights, moments, and the number of updates so far."""

    def __init__(self, model: Model, config: TrainingConfig, processes: Processes) -> None:
        """Take what can be trained in a model, and start with empty moments.

        Args:
            model: with `freeze` called on all that shall stay as it is; in float32, or in
                `config.dtype` where it is frozen.
            config: of the run.
            processes: that train this model together.
        """
        self.model = model
        self.config = config
        self._processes = processes
        self.parameters: Arrays = {
            path: array.astype(mx.float32)
            for path, array in flat(model.trainable_parameters()).items()
        }
        mx.eval(self.parameters)
        self.optimizer = PartOptimizer(config, self.parameters)
        # An adapter's few numbers are float32 in any case, as mlx-lm has it.
        self._dtype = FLOAT_DTYPES[config.dtype].mlx if config.adapter is None else mx.float32
        differentiate = mx.value_and_grad(self._loss)
        self._differentiate = mx.compile(differentiate) if config.compile else differentiate
        # One kernel for all that AdamW does to a parameter.
        state = self.optimizer.state
        self._update = mx.compile(self._clip_and_update, inputs=state, outputs=state)
        adapter = config.adapter
        self._dropouts = use_keyed_dropout(model, adapter.dropout if adapter else 0.0)
        self.put_back()

    def put_back(self) -> None:
        """Give the model the weights as they are now, in the dtype that it computes in.

        Differentiation leaves placeholders behind in it.
        """
        self.model.update(_tree(self._cast(self.parameters)))

    def _cast(self, parameters: Arrays) -> Arrays:
        return {path: array.astype(self._dtype) for path, array in parameters.items()}

    def _loss(self, parameters: Arrays, inputs: Inputs, share: mx.array, key: mx.array) -> mx.array:
        set_keys(self._dropouts, key)
        self.model.update(_tree(self._cast(parameters)))
        return loss_sum(self.model, inputs) * share

    def gradients(self, batches: Sequence[Inputs], number: int) -> tuple[mx.array, Arrays]:
        """Return mean loss and gradients over the targets of all batches together.

        One batch is computed after the other, so memory is that of one.

        Args:
            batches: from `loss.prepare`.
            number: of the step, which dropout follows from.
        """
        # Every target counts the same, in whichever batch it stands.
        targets = sum(len(inputs["targets"]) for inputs in batches)
        share = mx.array(1.0 / self._processes.sum(targets))
        loss, gradients = mx.array(0.0), dict[str, mx.array]()
        self.model.train()
        try:
            with checkpointed_layers(self.model, self.config.gradient_checkpointing):
                for place, inputs in enumerate(batches):
                    if place:
                        # Activations of the last batch are free before the next one begins.
                        mx.eval(loss, gradients)
                    batch = place * self._processes.count + self._processes.rank
                    key = batch_key(self.config.seed, number, batch)
                    more, added = self._differentiate(self.parameters, inputs, share, key)
                    loss = loss + more
                    gradients = {
                        path: gradients[path] + array if gradients else array
                        for path, array in added.items()
                    }
        finally:
            self.model.eval()
            self.put_back()
        return loss, gradients

    def _clip_and_update(self, gradients: Arrays, parameters: Arrays) -> tuple[mx.array, Arrays]:
        norm = gradient_norm(gradients)
        if self.config.max_grad_norm is not None:
            factor = mx.minimum(1.0, self.config.max_grad_norm / (norm + 1e-6))
            gradients = {path: array * factor for path, array in gradients.items()}
        return norm, self.optimizer.apply(gradients, parameters)

    def step(self, batches: Sequence[Inputs], number: int) -> StepResult:
        """Update the weights once.

        Args:
            batches: from `loss.prepare`, this process's share of their rows; all of them in all
                processes together make up this update.
            number: of the step, counted from 0.

        Raises:
            TrainingError: loss or gradients are no finite numbers any more.
        """
        rates = self.optimizer.set_learning_rates(number)
        loss, gradients = self._processes.add(*self.gradients(batches, number))
        norm, self.parameters = self._update(gradients, self.parameters)
        # Nothing else holds the old arrays, so the new ones can take their memory.
        del gradients
        self.put_back()
        mx.eval(loss, norm, self.parameters, self.optimizer.state)
        result = StepResult(as_float(loss), as_float(norm), rates)
        if not mx.isfinite(loss + norm).item():
            raise TrainingError(
                f"step {number + 1}: the loss is {result.loss} and the gradient's length"
                f" {result.gradient_norm}; {_ADVICE}"
            )
        return result

    def check_weights(self, step: int) -> None:
        """Refuse weights that must not be written: the loss has not been measured with them yet.

        Args:
            step: number of updates, for the message.

        Raises:
            TrainingError: a weight is no finite number any more.
        """
        for path, array in self.parameters.items():
            # One after the other, so that what is compared takes little memory.
            if not mx.isfinite(array).all().item():
                raise TrainingError(
                    f"step {step}: {path} is not finite any more, so nothing is written; {_ADVICE}"
                )

    def loss(self, batches: Iterable[Inputs]) -> float:
        """Return the mean loss over the targets of all batches, without learning from them."""
        total, targets = 0.0, 0
        for inputs in batches:
            total += as_float(loss_sum(self.model, inputs))
            targets += len(inputs["targets"])
        return total / targets


def _tree(parameters: Arrays) -> Any:
    return tree_unflatten(list(parameters.items()))
