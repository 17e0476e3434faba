"""Which model something was computed with: within this process, and across saved files."""

import hashlib
import secrets
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt
from mlx.utils import tree_flatten

from ..checkpoint.adapters import adapted_layers, adapter_scales
from ..model import Model
from . import device

_ATTRIBUTE = "_identity"


@dataclass
class _Identity:
    """Held by the model object; holds as long as its weights are the same arrays."""

    arrays: tuple["weakref.ref[mx.array]", ...]
    """No ids: a new array may have an old one's address. No arrays: they would be kept alive."""
    scales: tuple[float, ...]
    """Factor of each adapter, which is no parameter."""
    key: str
    digest: str | None = None
    """Of all bytes; worked out when it is asked for."""


def model_key(model: Model) -> str:
    """Return what caches in this process know a model by.

    It belongs to the model object, so two models never share anything. A model whose weights
    have been replaced since gets another one, as does one whose adapters count more or less.
    Arrays written into in place are not noticed.
    """
    return _identity(model).key


def model_digest(model: Model) -> str:
    """Return a digest of a model's config, adapters and every byte of its weights.

    It is the same in every process, and worked out once: it takes about a second per 2 GB.
    """
    device.take_over(model)
    identity = _identity(model)
    if identity.digest is None:
        parameters = _parameters(model)
        described = [(path, array.shape, str(array.dtype)) for path, array in parameters]
        scales = tuple((path, adapter.scale) for path, adapter in adapted_layers(model).items())
        digest = hashlib.sha256(repr((model.config, described, scales)).encode())
        for _, array in parameters:
            digest.update(device.run(partial(_bytes, array)).data)
        identity.digest = digest.hexdigest()
    return identity.digest


def describe(model: Model) -> str:
    """Return a short description of a model, for people to tell it from others."""
    decoder = model.config.decoder
    quantized = any(path.endswith(".scales") for path, _ in _parameters(model))
    dtype = str(model.dtype).removeprefix("mlx.core.")
    return (
        f"{decoder.num_hidden_layers} layers of {decoder.hidden_size} in {dtype}"
        f"{', quantized' if quantized else ''}"
    )


def keep_identity(model: Model, change: Callable[[], None]) -> None:
    """Run what replaces weights by the same ones in another type: caches know the model still."""
    identity = _identity(model)
    change()
    identity.arrays = tuple(map(weakref.ref, model.arrays()))


def _identity(model: Model) -> _Identity:
    """Return the identity of a model as it is now; a new one only on the worker, so one alone."""
    arrays, scales = model.arrays(), adapter_scales(model)
    identity: _Identity | None = vars(model).get(_ATTRIBUTE)
    if (
        identity is not None
        and identity.scales == scales
        and len(identity.arrays) == len(arrays)
        and all(known() is one for known, one in zip(identity.arrays, arrays, strict=True))
    ):
        return identity
    if not device.on_worker():
        return device.run(partial(_identity, model))
    identity = _Identity(tuple(map(weakref.ref, arrays)), scales, secrets.token_hex(16))
    vars(model)[_ATTRIBUTE] = identity
    return identity


def _parameters(model: Model) -> list[tuple[str, mx.array]]:
    named: Any = tree_flatten(model.parameters())
    return sorted(named, key=itemgetter(0))


def _bytes(array: mx.array) -> npt.NDArray[np.uint8]:
    return np.array(mx.contiguous(array.reshape(-1)).view(mx.uint8), copy=False)
