"""Puts the tensors of a checkpoint into a model: strictly, one by one, each once in memory."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from ..config.model_config import ModelConfig
from ..errors import CheckpointError
from ..model import Model
from ..progress import Progress, ProgressEvent
from .names import LAYOUTS, MLX, ORIGINAL, OWN, Layout, detect_layout
from .quantization import Quantization, infer_quantization, quantizable_layers, quantize_layers
from .reader import CheckpointFiles, StoredTensor


@dataclass(frozen=True)
class Part:
    """One stored piece of a parameter."""

    name: str
    shape: tuple[int, ...]
    """What the piece must look like."""
    optional: bool
    """Whether zeros take its place where it is absent."""


@dataclass(frozen=True)
class Checkpoint:
    """A folder's tensors together with the model they make up."""

    files: CheckpointFiles
    layout: Layout
    config: ModelConfig
    """As in config.json, but with the decoder biases that the tensors really have."""
    quantized: dict[str, Quantization]
    """Paths of the model's layers that are stored quantized."""
    parts: dict[str, tuple[Part, ...]]
    """What each parameter of the model is made of, along the first axis."""

    @classmethod
    def open(cls, files: CheckpointFiles, config: ModelConfig) -> "Checkpoint":
        """Recognize the layout and check every name and shape, before any data is read.

        Raises:
            CheckpointError: names follow no known layout, or a tensor is missing, surplus or
                misshapen: named with its file, expected and found shape.
        """
        layout = detect_layout(files.tensors)
        if layout is None:
            names = ", ".join(sorted(files.tensors)[:3])
            raise CheckpointError(
                f"{files.folder} holds no Jina-VLM: its tensors are named {names}, ..."
            )
        if _decoder_biases(files, config, layout):
            config = config.with_decoder_biases()
        model = Model(config)
        quantized = _find_quantized(model, files, layout)
        quantize_layers(model, quantized)
        parts = {
            path: parameter_parts(path, tuple(array.shape), config, layout)
            for path, array in parameters(model)
        }
        checkpoint = cls(files, layout, config, quantized, parts)
        checkpoint._check()
        return checkpoint

    def _check(self) -> None:
        tensors = self.files.tensors
        problems = []
        expected = {part.name: part for parts in self.parts.values() for part in parts}
        for name, part in expected.items():
            if name not in tensors:
                if not part.optional:
                    problems.append(f"{name} is missing; expected shape {part.shape}")
            elif tensors[name].shape != part.shape and not _fits(part, tensors[name]):
                problems.append(
                    f"{name} in {tensors[name].file.name} has shape {tensors[name].shape};"
                    f" expected {part.shape}"
                )
        unused = unused_tensors(self.config, self.layout)
        problems += [
            f"{name} in {tensor.file.name} of shape {tensor.shape} has no place in the model"
            for name, tensor in sorted(tensors.items())
            if name not in expected and not unused(name)
        ]
        if problems:
            more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
            raise CheckpointError(f"{self.files.folder}: {problems[0]}{more}")

    def take(self, path: str, dtype: mx.Dtype | None = None) -> mx.array:
        """Return a parameter of the model, joined from its parts but not read yet.

        Args:
            path: of the parameter.
            dtype: to convert floating-point values to; None keeps what is stored. Packed
                weights and 8-bit scales stay as they are.
        """
        arrays = []
        for part in self.parts[path]:
            if part.name in self.files.tensors:
                array = self.files.take(part.name)
                # Heads may be stored with the padding rows of the embedding table.
                arrays.append(array[: part.shape[0]])
            else:
                arrays.append(mx.zeros(part.shape, arrays[0].dtype if arrays else mx.float32))
        array = arrays[0] if len(arrays) == 1 else mx.concatenate(arrays)
        if dtype is not None and mx.issubdtype(array.dtype, mx.floating):
            array = array.astype(dtype)
        return array

    def build(self, dtype: mx.Dtype | None = None, progress: Progress | None = None) -> Model:
        """Return the model with all its weights in memory.

        Args:
            dtype: as for `take`.
            progress: told of every parameter that has been read.
        """
        model = Model(self.config)
        quantize_layers(model, self.quantized)
        paths = list(self.parts)
        total = sum(self._stored_bytes(path) for path in paths)
        done = 0
        if progress:
            progress(ProgressEvent("loading", 0, total, "B"))
        for path in paths:
            # Evaluated one by one: what a parameter is made from is free before the next is read.
            array = self.take(path, dtype)
            mx.eval(array)
            model.load_weights([(path, array)], strict=False)
            done += self._stored_bytes(path)
            if progress:
                progress(ProgressEvent("loading", done, total, "B"))
        # RoPE tables are no parameters, and what is not evaluated cannot be used from another
        # thread.
        mx.eval([list(module.values()) for module in model.modules()])
        model.eval()
        return model

    def _stored_bytes(self, path: str) -> int:
        return sum(
            stored_bytes(self.files.tensors[part.name])
            for part in self.parts[path]
            if part.name in self.files.tensors
        )


def parameters(model: nn.Module) -> Iterator[tuple[str, mx.array]]:
    """Yield path and array of every parameter."""
    yield from dict(tree_flatten(model.parameters())).items()


def stored_bytes(tensor: StoredTensor) -> int:
    """Size of a tensor's data in its file."""
    size = 1
    for side in tensor.shape:
        size *= side
    digits = "".join(c for c in tensor.dtype if c.isdigit()) or "8"
    return size * int(digits) // 8


def needed_names(config: ModelConfig, layout: Layout) -> set[str]:
    """Return the names of all tensors that a checkpoint without quantization must have."""
    return {
        part.name
        for path, array in parameters(Model(config))
        for part in parameter_parts(path, tuple(array.shape), config, layout)
        if not part.optional
    }


def parameter_parts(
    path: str, shape: tuple[int, ...], config: ModelConfig, layout: Layout
) -> tuple[Part, ...]:
    """Return the stored pieces of a parameter of a shape, in order along its first axis."""
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


def _fits(part: Part, tensor: StoredTensor) -> bool:
    """Allow a head with more rows than there are tokens: padding to a rounder table size."""
    is_head = part.name.endswith("lm_head.weight")
    return is_head and tensor.shape[1:] == part.shape[1:] and tensor.shape[0] > part.shape[0]


def _find_quantized(
    model: Model, files: CheckpointFiles, layout: Layout
) -> dict[str, Quantization]:
    found = {}
    for path, module in quantizable_layers(model):
        weight, scales, biases = (
            layout.sources(f"{path}.{kind}")[0] for kind in ("weight", "scales", "biases")
        )
        if scales in files.tensors and weight in files.tensors:
            found[path] = infer_quantization(
                files.tensors[weight],
                files.tensors[scales],
                biases in files.tensors,
                module.weight.shape[-1],
            )
    return found


def _decoder_biases(files: CheckpointFiles, config: ModelConfig, layout: Layout) -> bool:
    """Return whether the decoder has query, key or value biases that are not all zero.

    The released checkpoint carries zeros although its config say there are no biases.
    """
    if config.decoder.block.attention.has_projection_bias:
        return False
    for layer in range(config.decoder.num_hidden_layers):
        names = layout.sources(f"decoder.layers.{layer}.attention.qkv.bias")
        stored = [files.take(name) for name in names if name in files.tensors]
        if any(mx.any(array != 0).item() for array in stored):
            return True
    return False


def unused_tensors(config: ModelConfig, layout: Layout) -> Callable[[str], bool]:
    """Return what tells the names of tensors that may be there although nothing needs them."""
    tower = config.tower
    modules = [
        f"vision_tower.layers.{layer}."
        for layer in range(tower.num_used_layers, tower.num_hidden_layers)
    ]
    if tower.final_norm and not tower.uses_final_norm:
        modules.append("vision_tower.final_norm.")
    prefixes = tuple(layout.sources(path)[0] for path in modules)
    names: set[str] = set()
    if not config.decoder.block.attention.has_projection_bias:
        for layer in range(config.decoder.num_hidden_layers):
            names.update(layout.sources(f"decoder.layers.{layer}.attention.qkv.bias"))
    # Biases by whole name: `qkv.biases` belongs to a quantized weight.
    return lambda name: name in names or name.startswith(prefixes)


__all__ = ["LAYOUTS", "MLX", "ORIGINAL", "OWN", "Checkpoint", "Part", "stored_bytes"]
