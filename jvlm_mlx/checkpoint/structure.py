"""How stored tensors make up the parameters of the model, and which of them are not needed."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ..config.json_file import quoted
from ..config.model_config import ModelConfig
from ..errors import CheckpointError
from .names import Layout, detect_layout
from .reader import CheckpointFiles


@dataclass(frozen=True)
class Part:
    """One stored tensor of a parameter."""

    name: str
    shape: tuple[int, ...]
    """Its expected shape."""
    optional: bool
    """Whether zeros take its place where it is absent."""


def find_layout(files: CheckpointFiles) -> Layout:
    """Return the layout of a checkpoint's tensors.

    Raises:
        CheckpointError: it is none of a Jina-VLM's.
    """
    layout = detect_layout(files.tensors)
    if layout is None:
        names = ", ".join(sorted(files.tensors)[:3])
        names = names if len(names) < 200 else quoted(names)
        raise CheckpointError(
            f"{files.folder} holds no Jina-VLM: its tensors are named {names}, ..."
        )
    return layout


def parameter_parts(
    path: str, shape: tuple[int, ...], config: ModelConfig, layout: Layout
) -> tuple[Part, ...]:
    """Return the stored tensors of a parameter of a shape, in order along its first axis."""
    names = layout.sources(path)
    if len(names) == 1:
        return (Part(names[0], shape, optional=False),)
    rows, biases = _part_rows(path, config)
    return tuple(
        # A projection whose bias is switched off, beside one whose bias is on.
        Part(name, (count, *shape[1:]), optional=not bias)
        for name, count, bias in zip(names, rows, biases, strict=True)
        if count
    )


def _part_rows(path: str, config: ModelConfig) -> tuple[Sequence[int], Sequence[bool]]:
    """Return the rows of each part of a joined parameter, and whether it must be there."""
    if path == "decoder.embedding.weight":
        decoder = config.decoder
        return (decoder.embedding_size, decoder.additional_vocab_size), (True, True)
    if path.startswith("connector."):
        pooling = config.connector.pooling
        return (pooling.key_value_size,) * 2, pooling.projection_biases[1:]
    block = config.tower.block if path.startswith("vision_tower.") else config.decoder.block
    sizes = (block.attention.query_size, *(block.attention.key_value_size,) * 2)
    return sizes, block.attention.projection_biases


def is_decoder_bias(path: str) -> bool:
    """Return whether a parameter is a bias of the decoder's queries, keys and values."""
    return path.startswith("decoder.") and path.endswith(".attention.qkv.bias")


def _undeclared_biases(config: ModelConfig, layout: Layout) -> Iterator[tuple[str, str]]:
    """Yield module and stored names of query, key and value biases that config has not.

    The reference implementation stores such biases for every attention, and adds them.
    """
    tower, decoder, pooling = config.tower, config.decoder, config.connector.pooling
    paths = []
    if not tower.block.attention.has_projection_bias:
        layers = range(tower.num_used_layers)
        paths += [("tower", f"vision_tower.layers.{n}.attention.qkv.bias") for n in layers]
    if not decoder.block.attention.has_projection_bias:
        layers = range(decoder.num_hidden_layers)
        paths += [("decoder", f"decoder.layers.{n}.attention.qkv.bias") for n in layers]
    if not pooling.projection_biases[0]:
        paths.append(("pooling", "connector.pooling.q.bias"))
    if not any(pooling.projection_biases[1:]):
        paths.append(("pooling", "connector.pooling.kv.bias"))
    for module, path in paths:
        for name in layout.sources(path):
            yield module, name


def modules_with_biases(files: CheckpointFiles, config: ModelConfig, layout: Layout) -> set[str]:
    """Return the modules with query, key or value biases that config has not and that are not 0.

    The released checkpoint carries zeros for its decoder: they need not be added.
    """
    return {
        module
        for module, name in _undeclared_biases(config, layout)
        if (tensor := files.tensors.get(name))
        and tensor.shape
        and np.any(files.rows(name, 0, tensor.shape[0]) != 0)
    }


def unused_tensors(config: ModelConfig, layout: Layout) -> Callable[[str], bool]:
    """Return what tells the names of tensors that may be there although nothing needs them."""
    tower = config.tower
    # Numbers are not listed: there may be as many as a config claims.
    pattern = layout.sources("vision_tower.layers.0.")[0].removesuffix("0.")
    norm = layout.sources("vision_tower.final_norm.")[0]
    has_norm = tower.final_norm and not tower.uses_final_norm
    biases = {name for _, name in _undeclared_biases(config, layout)}

    def is_unused(name: str) -> bool:
        # Biases by whole name: `qkv.biases` belongs to a quantized weight.
        if name in biases or (has_norm and name.startswith(norm)):
            return True
        number = name.removeprefix(pattern).partition(".")[0]
        return (
            name.startswith(pattern)
            and number.isdecimal()
            and len(number) < 10
            and tower.num_used_layers <= int(number) < tower.num_hidden_layers
        )

    return is_unused
