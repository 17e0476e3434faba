"""The two pieces that tower, connector and decoder are all built of: norms and MLPs."""

import math
from collections.abc import Callable
from functools import partial

import mlx.core as mx
import mlx.nn as nn

from ..config.blocks import MLPConfig, NormConfig
from . import cpu

Activation = Callable[[mx.array], mx.array]


@partial(mx.compile, shapeless=True)
def _gelu_tanh(x: mx.array) -> mx.array:
    # (1 + tanh(u)) / 2 is sigmoid(2 u): one function call, and a chain that is short enough to
    # be one kernel. In float32 whatever the input is, as the original's is.
    y = x.astype(mx.float32)
    inner = math.sqrt(8 / math.pi) * y * (1 + 0.044715 * (y * y))
    return (y * mx.sigmoid(inner)).astype(x.dtype)


def gelu_tanh(x: mx.array) -> mx.array:
    """Return the tanh-approximated GELU, of the same shape and dtype."""
    return cpu.gelu_tanh(x) if cpu.is_cpu_float32(x) else _gelu_tanh(x)


ACTIVATIONS: dict[str, Activation] = {
    "silu": nn.silu,
    "gelu": nn.gelu,
    "gelu_pytorch_tanh": gelu_tanh,
}


def make_norm(size: int, config: NormConfig) -> nn.Module:
    """Return a LayerNorm or RMSNorm over the last axis; both compute in float32."""
    if config.kind == "rms":
        return nn.RMSNorm(size, eps=config.eps)
    return nn.LayerNorm(size, eps=config.eps, bias=config.bias)


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

    def __init__(self, input_size: int, output_size: int, config: MLPConfig) -> None:
        super().__init__()
        halves = 2 if config.gated else 1
        self.up = nn.Linear(input_size, halves * config.intermediate_size, config.bias)
        self.down = nn.Linear(config.intermediate_size, output_size, config.bias)
        self._gated = config.gated
        self._activation = ACTIVATIONS[config.activation]
        self._gate = _GATES[config.activation]

    def __call__(self, x: mx.array) -> mx.array:
        """Map (..., input_size) to (..., output_size)."""
        x = self.up(x)
        if self._gated:
            value, gate = mx.split(x, 2, axis=-1)
            if cpu.is_cpu_float32(gate):
                if self._activation is nn.silu:
                    return self.down(cpu.silu_gate(gate, value))
                # A function with a gradient of its own cannot be compiled for any shape.
                return self.down(self._activation(gate) * value)
            return self.down(self._gate(gate, value))
        return self.down(self._activation(x))
