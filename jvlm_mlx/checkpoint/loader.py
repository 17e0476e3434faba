"""Loads a model and its processor."""

from pathlib import Path

import mlx.core as mx

from ..errors import RequestError
from ..processing.image_processor import ImageProcessor
from ..model import Model
from ..processing.processor import Processor
from ..config.checkpoint_config import CheckpointSettings
from ..config.config_reader import read_json
from ..processing.chat_template import ChatTemplate
from ..processing.tokenizer import Tokenizer
from .adapters import load_adapter
from .reader import CheckpointFiles
from .hub import DEFAULT_REPOSITORY, SETTINGS_FILES, locate_checkpoint
from .weights import Checkpoint, Progress

DTYPES = {"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16}


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
        progress: called with bytes done and bytes in all while weights are read.

    Raises:
        CheckpointError: with one line that says what is wrong with checkpoint or adapter.
    """
    wanted = as_dtype(dtype)
    folder = locate_checkpoint(path_or_repo, revision=revision, show_progress=show_progress)
    settings = read_settings(folder)
    processor = load_processor(folder, settings)
    checkpoint = Checkpoint.open(CheckpointFiles(folder), settings.model)
    model = checkpoint.build(wanted, progress)
    if adapter_path is not None:
        load_adapter(model, adapter_path)
    return model, processor


def as_dtype(dtype: str | mx.Dtype | None) -> mx.Dtype | None:
    """Return a dtype by its name.

    Raises:
        RequestError: it is none that models are computed in.
    """
    if dtype is None:
        return None
    for name, known in DTYPES.items():
        if dtype in (name, known):
            return known
    raise RequestError(f"dtype {dtype} is not one of {', '.join(DTYPES)}")


def read_settings(folder: Path) -> CheckpointSettings:
    """Read all settings of a checkpoint folder.

    Raises:
        CheckpointError: a file is missing or malformed, or a setting is not supported.
    """
    return CheckpointSettings.read(
        {
            name: read_json(folder / name)
            for name in SETTINGS_FILES
            if name == "config.json" or (folder / name).exists()
        }
    )


def load_processor(folder: Path, settings: CheckpointSettings) -> Processor:
    """Load tokenizer, chat template and picture settings; no weights.

    Raises:
        CheckpointError: the tokenizer is missing or does not fit the settings.
    """
    tokenizer = Tokenizer.load(folder, settings.stop_token_ids)
    tokenizer.check_image_ids(settings.image_processor)
    template = ChatTemplate.load(folder, settings.prompt, tokenizer)
    return Processor(tokenizer, template, ImageProcessor(settings.image, tokenizer.image_token_ids))
