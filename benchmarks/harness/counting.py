"""Counts kernels: how many launches some work needs.

The count is read off MLX's graph and depends on no device and no clock. Functions of `mx.fast`
are one kernel where they are fused, but on a CPU their graph is expanded, so they are replaced
by stand-ins of one node while the graph is built, and the model does as on a GPU. Views are not
counted. A reshape counts as a view even where it has to copy, which flatters whoever reshapes
transposed arrays.
"""

import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import mlx.core as mx

from jvlm_mlx.model.ops import mlx_kernels_only

VIEWS = frozenset(
    ("AsStrided", "Broadcast", "BroadcastAxes", "Copy", "Depends", "ExpandDims", "Flatten",
     "NumberOfElements", "Reshape", "Slice", "Split", "Squeeze", "StopGradient", "Transpose",
     "Unflatten", "View")
)  # fmt: skip
_LABEL = re.compile(r'label ="([^"]*)"')


def count_kernels(build: Callable[[], Any]) -> Counter[str]:
    """Return how often each kernel is launched when the arrays that `build` returns are computed.

    Args:
        build: makes a graph from evaluated arrays and returns its outputs.
    """
    with _one_node_kernels():
        outputs = build()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "graph.dot"
        mx.export_to_dot(str(file), outputs)
        labels = _LABEL.findall(file.read_text())
    return Counter(label for label in labels if label not in VIEWS)


@contextmanager
def _one_node_kernels() -> Iterator[None]:
    def attention(q: mx.array, k: mx.array, v: mx.array, **_: Any) -> mx.array:
        # The node depends on queries, keys and values, as the kernel does.
        return mx.depends([mx.erfinv(q)], [k, v])[0]

    def one(x: mx.array, *_: Any, **__: Any) -> mx.array:
        return mx.erfinv(x)

    def dequantize(
        packed: mx.array, scales: mx.array, biases: mx.array, group_size: int, **_: Any
    ) -> mx.array:
        unpacked = mx.depends([mx.erfinv(scales)], [packed, biases])[0][..., None]
        return mx.flatten(mx.broadcast_to(unpacked, (*scales.shape, group_size)), -2)

    with (
        mock.patch.object(mx, "dequantize", dequantize),
        mock.patch.object(mx.fast, "scaled_dot_product_attention", attention),
        mock.patch.object(mx.fast, "rms_norm", one),
        mock.patch.object(mx.fast, "layer_norm", one),
        mock.patch.object(mx.fast, "rope", one),
        # What a GPU is asked to do is counted, wherever the counting runs.
        mlx_kernels_only(),
    ):
        yield
