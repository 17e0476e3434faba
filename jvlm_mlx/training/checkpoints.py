"""What a run writes: checkpoints that load like any other, and what it takes to go on from one."""

import copy
import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import mlx.core as mx

from ..checkpoint.adapters import CONFIG_NAME, WEIGHTS_NAME, AdapterConfig
from ..checkpoint.saving import CONFIG
from ..config.dtypes import BY_MLX
from ..config.json_file import read_json
from ..config.model_config import ModelConfig
from ..conversion.plan import Output
from ..errors import TrainingError
from .adapter_card import trained_card
from .optimizer import Arrays

RUN_FOLDER = "training"
"""Folder of the output that holds checkpoints, recipe and metrics."""
_STEP_NAME = re.compile(r"step-(\d{8})")
_WRITING = ".writing"


def write_weights(folder: Path, arrays: Arrays) -> None:
    """Write tensors under their paths, in shards of the usual size.

    Raises:
        OSError: the disk is full.
    """
    outputs = [
        (Output(path, tuple(array.shape), BY_MLX[array.dtype].code),)
        for path, array in arrays.items()
    ]
    with ShardWriter(folder, split_into_shards(outputs, MAX_SHARD_BYTES)) as writer:
        for path, array in arrays.items():
            writer.write(path, 0, as_bytes(mx.contiguous(array)))
        writer.finish()


def write_model(source: Path, folder: Path, config: ModelConfig, arrays: Arrays, how: str) -> None:
    """Write a whole checkpoint in this project's layout.

    Args:
        source: folder of the checkpoint that training began with; tokenizer, template and
            processor are copied from it.
        folder: an empty one.
        config: of the model, as it was loaded.
        arrays: all parameters by path, none of them quantized.
        how: what was done to the weights, for the model card.

    Raises:
        OSError: the disk is full.
    """
    write_weights(folder, arrays)
    copy_files(source, folder)
    (folder / CARD).write_text(trained_card(source, how), encoding="utf-8")
    config_json = trained_config(read_json(source / CONFIG), config, arrays)
    # Comes last: a folder without it is no checkpoint.
    (folder / CONFIG).write_text(config_text(config_json), encoding="utf-8")


def write_adapter(folder: Path, config: AdapterConfig, arrays: Arrays, num_layers: int) -> None:
    """Write adapters as mlx-lm does.

    Args:
        folder: an empty one.
        config: of the adapters.
        arrays: of the adapters, by path in the model.
        num_layers: of the decoder, for mlx-lm.

    Raises:
        OSError: the disk is full.
    """
    try:
        mx.save_safetensors(str(folder / WEIGHTS_NAME), arrays, {"format": "mlx"})
    except RuntimeError as error:
        raise OSError(str(error)) from error
    config.write(folder, num_layers=num_layers)


def trained_config(
    config_json: dict[str, Any], config: ModelConfig, arrays: Arrays
) -> dict[str, Any]:
    """Return config.json of a trained model: the source's, with what has changed."""
    config_json = copy.deepcopy(config_json)
    # Its weights are no longer the original's, so nothing that was measured about them holds.
    for key in ("quantization", "quantization_config", KEY):
        config_json.pop(key, None)
    block = config_json["vision_config"]["block_config"]
    width = arrays["vision_tower.layers.0.mlp.down.weight"].shape[-1]
    if width != config.tower.block.mlp.intermediate_size:
        # Padding of an earlier quantization is gone.
        block["ffn_config"]["size"] = width
    attention = config_json["text_config"]["block_config"]["attn_config"]
    biases = config.decoder.block.attention.projection_biases
    for key, bias in zip(("q_bias", "k_bias", "v_bias"), biases, strict=True):
        attention[key] = bias
    dtype_key = "dtype" if "dtype" in config_json else "torch_dtype"
    config_json[dtype_key] = BY_MLX[arrays["decoder.norm.weight"].dtype].name
    return config_json


@contextmanager
def appearing_folder(target: Path) -> Iterator[Path]:
    """Give an empty folder that takes the target's name when all went well, and not before.

    Raises:
        TrainingError: it cannot be written.
    """
    work = target.with_name(f"{target.name}{_WRITING}")
    try:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        yield work
        shutil.rmtree(target, ignore_errors=True)
        work.rename(target)
    except OSError as error:
        raise TrainingError(f"{target} cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)


def put_beside(work: Path, output: Path) -> None:
    """Move finished files into the output folder, the one that makes it whole last."""
    for file in sorted(work.iterdir(), key=lambda file: file.name in (CONFIG, CONFIG_NAME)):
        file.replace(output / file.name)
    work.rmdir()


def step_folder(output: Path, step: int) -> Path:
    """Return where the checkpoint after so many steps stands."""
    return output / RUN_FOLDER / f"step-{step:08}"


def saved_steps(output: Path) -> list[int]:
    """Return after how many steps there are complete checkpoints, in ascending order."""
    folder = output / RUN_FOLDER
    if not folder.is_dir():
        return []
    matches = (_STEP_NAME.fullmatch(entry.name) for entry in folder.iterdir())
    return sorted(int(match[1]) for match in matches if match)


def remove_old(output: Path, keep: int) -> None:
    """Remove all but the newest checkpoints."""
    for step in saved_steps(output)[:-keep]:
        with suppress(OSError):
            shutil.rmtree(step_folder(output, step))


def write_json(file: Path, value: Any) -> None:
    """Write a file as a whole or not at all."""
    work = file.with_name(file.name + _WRITING)
    work.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    work.replace(file)
