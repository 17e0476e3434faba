"""Loads a model and its processor."""

from pathlib import Path

import mlx.core as mx

from ..config.checkpoint_config import CheckpointConfig
from ..config.dtypes import as_dtype
from ..config.json_file import read_json
from ..model import Model
from ..processing.chat_template import ChatTemplate
from ..processing.image_processor import ImageProcessor
from ..processing.processor import Processor
from ..processing.tokenizer import Tokenizer
from ..progress import Progress
from .adapters import load_adapter
from .hub import CONFIG_FILES, DEFAULT_REPOSITORY, locate_checkpoint
from .reader import CheckpointFiles
from .weights import Checkpoint


def load(
    path_or_repo: str | Path = DEFAULT_REPOSITORY,
    *,
    revision: str | None = None,
    dtype: str | mx.Dtype | None = None,
    adapter_path: str | Path | None = None,
    show_progress: bool | None = None,
    progress: Progress | None = None,
) -> tuple[Model, Processor]:
    """Load a checkpoint: the original, the existing MLX conversion, or this project's own.

    Everything is evaluated when this returns, so model and processor may be used from any
    thread.

    Args:
        path_or_repo: a local folder, or a repository of the Hugging Face Hub, which is
            downloaded into its cache first.
        revision: branch, tag or commit of a repository.
        dtype: `float32`, `float16` or `bfloat16`; None keeps what is stored.
        adapter_path: folder of adapters that were trained for this model.
        show_progress: whether downloads show bars on standard error; None: if it is a terminal.
        progress: told how many bytes of weights have been read (`loading`).

    Raises:
        CheckpointError: with one line that says what is wrong with checkpoint or adapter.
    """
    wanted = as_dtype(dtype)
    folder = locate_checkpoint(path_or_repo, revision=revision, show_progress=show_progress)
    config = read_config(folder)
    processor = load_processor(folder, config)
    checkpoint = Checkpoint.open(CheckpointFiles(folder), config.model)
    model = checkpoint.build(wanted, progress)
    if adapter_path is not None:
        load_adapter(model, adapter_path)
    return model, processor


def read_config(folder: Path) -> CheckpointConfig:
    """Read all config of a checkpoint folder.

    Raises:
        CheckpointError: a file is missing or malformed, or a setting is not supported.
    """
    return CheckpointConfig.read(
        {
            name: read_json(folder / name)
            for name in CONFIG_FILES
            if name == "config.json" or (folder / name).exists()
        }
    )


def load_processor(folder: Path, config: CheckpointConfig) -> Processor:
    """Load tokenizer, chat template and image config; no weights.

    Raises:
        CheckpointError: the tokenizer is missing or does not fit the config.
    """
    tokenizer = Tokenizer.load(folder, config.stop_token_ids)
    tokenizer.check_image_ids(config.image_processor)
    template = ChatTemplate.load(folder, config.prompt, tokenizer)
    return Processor(tokenizer, template, ImageProcessor(config.image, tokenizer.image_token_ids))
