"""Loads a model and its processor."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx

from ..config.checkpoint_config import CheckpointConfig
from ..config.dtypes import ModuleDtypes
from ..config.json_file import quoted, read_json
from ..config.model_config import MODEL_TYPES
from ..errors import CheckpointError, PromptError, UnsupportedSettingError
from ..model import Model
from ..processing.chat_template import ChatTemplate
from ..processing.image_processor import ImageProcessor
from ..processing.processor import Processor
from ..processing.tokenizer import Tokenizer
from ..progress import Progress
from ..units import bytes_text, total_memory
from .adapters import load_adapter
from .hub import CONFIG_FILES, DEFAULT_REPOSITORY, locate_checkpoint
from .reader import CheckpointFiles
from .validation import check_token_ids, check_tokenizer_files
from .weights import Checkpoint

logger = logging.getLogger(__name__)

MAX_FRACTION = 0.9
"""Of the memory there is, that weights may take without a warning: images, the KV cache and other
programs need the rest."""


def load(
    path_or_hf_repo: str | Path = DEFAULT_REPOSITORY,
    *,
    revision: str | None = None,
    dtype: str | mx.Dtype | Mapping[str, Any] | ModuleDtypes | None = None,
    adapter_path: str | Path | None = None,
    check_weights: bool = False,
    show_progress: bool | None = None,
    progress: Progress | None = None,
) -> tuple[Model, Processor]:
    """Load a checkpoint: the released one, the existing MLX conversion, or this project's own.

    Everything is evaluated when this returns, so model and processor may be used from any
    thread. The process's random state stays as it was.

    Args:
        path_or_hf_repo: a local folder, or a repository of the Hugging Face Hub, which is
            downloaded into its cache first.
        revision: branch, tag or commit of a repository.
        dtype: `float32`, `float16` or `bfloat16`; `auto` for what this machine is fastest in; a
            mapping, or text like `tower=float16,decoder=bfloat16`, for single modules (`tower`,
            `connector`, `decoder`). What is left open keeps the type that most weights have.
        adapter_path: folder of adapters that were trained for this model.
        check_weights: whether to look through all weights for NaN and infinite values.
        show_progress: whether downloads show bars on standard error; None: if it is a terminal.
        progress: called with how many bytes of weights have been read (`loading`).

    Raises:
        CheckpointError: with one line that says what is wrong with checkpoint or adapter.
        RequestError: memory ran out.
    """
    wanted = ModuleDtypes.read(dtype)
    folder = locate_checkpoint(path_or_hf_repo, revision=revision, show_progress=show_progress)
    config = read_config(folder)
    # Names, shapes and sizes first: what is no checkpoint costs no memory.
    checkpoint = Checkpoint.open(CheckpointFiles(folder), config.model)
    warn_of_size(checkpoint, wanted)
    processor = load_processor(folder, config)
    model = checkpoint.build(wanted, progress, check_weights=check_weights)
    if adapter_path is not None:
        load_adapter(model, adapter_path)
    return model, processor


def warn_of_size(checkpoint: Checkpoint, dtypes: ModuleDtypes) -> None:
    """Say before minutes of reading that the weights will leave no room, and what to do."""
    weights = checkpoint.loaded_bytes(dtypes)
    recommended = mx.device_info().get("max_recommended_working_set_size")
    if recommended:
        room, whose = int(recommended), "the system recommends for this GPU"
    else:
        room, whose = total_memory(), "this machine has"
    if weights > MAX_FRACTION * room:
        logger.warning(
            "the weights take %s, and %s %s: expect swapping, or that memory runs out;"
            " take fewer bits (jvlm convert -q) or close other programs",
            bytes_text(weights), bytes_text(room), whose,
        )  # fmt: skip


def read_config(folder: Path) -> CheckpointConfig:
    """Read all config of a checkpoint folder.

    Raises:
        CheckpointError: a file is missing or malformed, a setting is not supported, or the model
            is another one.
    """
    config_json = read_json(folder / "config.json")
    model_type = config_json.get("model_type") if isinstance(config_json, dict) else None
    if isinstance(model_type, str) and model_type not in MODEL_TYPES:
        raise UnsupportedSettingError(
            f"{folder} is another model: config.json.model_type = {quoted(model_type)}; this"
            f" package runs Jina-VLM ({' or '.join(MODEL_TYPES)})"
        )
    files = {name: folder / name for name in CONFIG_FILES[1:] if (folder / name).exists()}
    return CheckpointConfig.read(
        {"config.json": config_json} | {name: read_json(file) for name, file in files.items()}
    )


def load_processor(folder: Path, config: CheckpointConfig) -> Processor:
    """Load tokenizer, chat template and image config; no weights.

    Raises:
        CheckpointError: the tokenizer is missing or does not fit the config.
    """
    check_tokenizer_files(folder, config.model)
    tokenizer = Tokenizer.load(folder, config.generation.stop_token_ids)
    tokenizer.check_image_ids(config.image_processor)
    check_token_ids(tokenizer.special_tokens, config.model)
    template = ChatTemplate.load(folder, config.prompt, tokenizer)
    images = ImageProcessor(config.image, tokenizer.image_token_ids)
    processor = Processor(tokenizer, template, images)
    processor.generation_defaults = config.generation.options
    if processor.generation_defaults:
        values = ", ".join(
            f"{name}={value}" for name, value in processor.generation_defaults.items()
        )
        logger.warning(
            "generation_config.json sets %s where a request does not say otherwise", values
        )
    return processor


def check_template(folder: Path, processor: Processor) -> None:
    """Refuse a chat template that fails at an ordinary question, and so at everything.

    Raises:
        CheckpointError: with what is wrong with it.
    """
    text = {"type": "text", "text": "What is this?"}
    for content in ([text], [{"type": "image"}, text]):
        try:
            processor.apply_chat_template([{"role": "user", "content": content}])
        except PromptError as error:
            raise CheckpointError(f"{folder}: {error}") from error
