"""The loss: cross entropy of the tokens of answers, and of nothing else."""

from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import numpy.typing as npt

from ..errors import RequestError
from ..model import Model
from .data_loader import TrainingBatch

Inputs = dict[str, mx.array]
"""Arrays of one batch, all indices worked out."""

MAX_LOGITS = 2**26
"""Logits that are computed at a time: 256 MB of float32, however many targets a batch has."""


def prepare(model: Model, batch: TrainingBatch) -> Inputs:
    """Return a batch as the arrays that `loss_sum` computes with.

    All that depends on masks and indices is computed here, on the host.

    Returns:
        `input_ids` (B, L); `positions` (N,) of the flattened B L hidden states that predict a
        target; `targets` (N,); and with images `tiles` (T, P, patch values), `masks` (T, P),
        `patches` and `inside` (W, p), `sources` (B, L) as in `model.windows`.

    Raises:
        RequestError: no token is to be learned, or one that the model can never produce.
    """
    ids = batch.input_ids
    # A token is predicted one place before it; the first of an example by nothing.
    rows, columns = np.nonzero(batch.loss_mask[:, 1:])
    targets = batch.labels[rows, columns + 1]
    _check_targets(targets, model.config.decoder.vocab_size)
    arrays: dict[str, npt.NDArray[Any]] = {
        "input_ids": ids,
        "positions": (rows * ids.shape[1] + columns).astype(np.int32),
        "targets": targets.astype(np.int32),
    }
    if batch.pixel_values is not None:
        assert batch.image_masks is not None
        assert batch.image_input_idx is not None
        batch_size, tiles = batch.image_input_idx.shape[:2]
        plan = model.plan(batch.image_input_idx, ids.shape[1], batch_size * tiles)
        if plan.groups:
            (group,) = plan.groups
            # (B, T, P, V) -> (B T, P, V) and (B, T, P) -> (B T, P), of which the used are taken
            pixel_values = batch.pixel_values.reshape(-1, *batch.pixel_values.shape[2:])
            image_masks = batch.image_masks.reshape(-1, batch.image_masks.shape[-1])
            arrays |= {
                "tiles": pixel_values[group.tiles],
                "masks": image_masks[group.tiles],
                "patches": group.patches,
                "inside": group.inside,
                "sources": plan.sources,
            }
    return {name: mx.array(array) for name, array in arrays.items()}


def _check_targets(targets: npt.NDArray[Any], vocab_size: int) -> None:
    if not len(targets):
        raise RequestError("a batch has no token to learn: every answer in it is empty or cut off")
    if (wrong := targets[(targets < 0) | (targets >= vocab_size)]).size:
        raise RequestError(
            f"token {wrong[0]} cannot be an answer: the model produces tokens from 0 to"
            f" {vocab_size - 1}, and added tokens like those of images only in prompts"
        )


def loss_sum(model: Model, inputs: Inputs) -> mx.array:
    """Return the cross entropy of a batch, summed over its targets, in float32: ().

    Hidden states are gathered first, so logits exist for targets alone.
    """
    embeddings = model.decoder.embed(inputs["input_ids"])
    if "tiles" in inputs:
        features = model.connector(
            model.vision_tower(inputs["tiles"]),
            inputs["masks"],
            inputs["patches"],
            inputs["inside"],
        )
        embeddings = model.merge(embeddings, features, inputs["sources"])
    # Padding is behind an example's tokens, where causal attention never looks.
    hidden = model.decoder(embeddings)
    # (B, L, hidden_size) -> (B L, hidden_size) -> (N, hidden_size)
    hidden = mx.flatten(hidden, 0, 1)[inputs["positions"]]
    return _cross_entropy(model, hidden, inputs["targets"])


def _cross_entropy(model: Model, hidden: mx.array, targets: mx.array) -> mx.array:
    head = _head(model)

    def chunk_loss(parameters: Any, hidden: mx.array, targets: mx.array) -> mx.array:
        head.update(parameters)
        logits = model.head(hidden).astype(mx.float32)  # (n, vocabulary)
        return nn.losses.cross_entropy(logits, targets, reduction="sum")

    parameters = head.trainable_parameters()
    step = max(1, MAX_LOGITS // model.config.decoder.vocab_size)
    if len(targets) <= step:
        return chunk_loss(parameters, hidden, targets)
    total = mx.array(0.0)
    for start in range(0, len(targets), step):
        # Kept for the backward pass, all logits would be in memory at once. Targets are bound, as
        # integers cannot be arguments of what is differentiated.
        some = partial(chunk_loss, targets=targets[start : start + step])
        total = total + mx.checkpoint(some)(parameters, hidden[start : start + step])
    return total


def _head(model: Model) -> Any:
    return model.lm_head if "lm_head" in model else model.decoder.embedding
