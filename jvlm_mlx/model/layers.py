"""The two pieces that tower, connector and decoder are all built of: norms and MLPs."""

from collections.abc import Callable
from functools import partial

import mlx.core as mx
import mlx.nn as nn

from ..settings.blocks import MLPSettings, NormSettings

Activation = Callable[[mx.array], mx.array]

ACTIVATIONS: dict[str, Activation] = {
    "silu": nn.silu,
    "gelu": nn.gelu,
    "gelu_pytorch_tanh": nn.gelu_approx,
}


def make_norm(size: int, settings: NormSettings) -> nn.Module:
    """Return a LayerNorm or RMSNorm over the last axis; both compute in float32."""
    if settings.kind == "rms":
        return nn.RMSNorm(size, eps=settings.eps)
    return nn.LayerNorm(size, eps=settings.eps, bias=settings.bias)


def _gate(activation: Activation, gate: mx.array, value: mx.array) -> mx.array:
    return activation(gate) * value


# One elementwise kernel each, for any shape.
_GATES = {
    name: mx.compile(partial(_gate, activation), shapeless=True)
    for name, activation in ACTIVATIONS.items()
}


class MLP(nn.Module):
    """Two projections around an activation.

    A gated MLP's `up` holds the value half first and the gate half second:
    `down(activation(second) * first)`. This is the order of the checkpoints, in the decoder and
    in the connector, and the reverse of what most fused MLPs do.
    """

    def __init__(self, input_size: int, output_size: int, settings: MLPSettings) -> None:
        super().__init__()
        halves = 2 if settings.gated else 1
        self.up = nn.Linear(input_size, halves * settings.intermediate_size, settings.bias)
        self.down = nn.Linear(settings.intermediate_size, output_size, settings.bias)
        self._gated = settings.gated
        self._activation = ACTIVATIONS[settings.activation]
        self._gate = _GATES[settings.activation]

    def __call__(self, x: mx.array) -> mx.array:
        """Map (..., input_size) to (..., output_size)."""
        x = self.up(x)
        if self._gated:
            value, gate = mx.split(x, 2, axis=-1)
            return self.down(self._gate(gate, value))
        return self.down(self._activation(x))
