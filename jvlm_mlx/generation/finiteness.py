"""What happens when a module's numbers are too large for float16, or are no numbers at all.

One infinity among the activations makes an answer of `!!!!!!`. So features and first logits are
checked, and a module that overflows float16 changes to bfloat16, which has the range of float32
and takes as much memory.
"""

import logging
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten, tree_map

from ..errors import CheckpointError
from ..model import Model
from .model_identity import keep_identity

logger = logging.getLogger(__name__)

_NAMES = {"vision_tower": "vision tower", "lm_head": "head"}


class Overflow(Exception):  # noqa: N818 - a signal, not an error
    """Leaves work whose results are not finite."""


def widen(model: Model, *modules: str) -> None:
    """Change the float16 weights of modules to bfloat16, and say so.

    Args:
        model: changed in place; on the worker, so no step is under way.
        modules: attributes of the model; those it does not have are passed over.

    Raises:
        CheckpointError: none of them is in float16, so a wider type does not help.
    """
    present = [name for name in modules if name in model]
    names = " and ".join(_NAMES.get(name, name) for name in present)
    weights: Any = tree_flatten([model[name].parameters() for name in present])
    if not any(array.dtype == mx.float16 for _, array in weights):
        raise CheckpointError(
            f"the {names} of this checkpoint gives numbers that are not finite; its weights are"
            " damaged: `jvlm convert verify` names the tensors, then download it again"
        )

    def change() -> None:
        for name in present:
            model[name].update(tree_map(_wider, model[name].parameters()))
            mx.eval(model[name].parameters())

    keep_identity(model, change)
    logger.warning("the %s overflowed in float16; from now on it computes in bfloat16", names)


def _wider(array: mx.array) -> mx.array:
    return array.astype(mx.bfloat16) if array.dtype == mx.float16 else array
