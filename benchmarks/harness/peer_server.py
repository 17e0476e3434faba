"""mlx-vlm's server on the weights of this project's checkpoint, in a process of its own.

    python -m benchmarks.harness.peer_server --model demo --port 8081

The peer loads no checkpoint: its model is built of this project's arrays, and its own processor
gets this checkpoint's tokenizer, template and image settings. What answers then is mlx-vlm alone.
It needs `pip install mlx-vlm==0.7.10 fastapi python-multipart`.
"""

import argparse
from pathlib import Path
from typing import Any

import mlx.core as mx
import uvicorn

import jvlm_mlx
from jvlm_mlx.checkpoint.hub import locate_checkpoint
from jvlm_mlx.processing.processor import Processor

from .peer import make_peer


def make_peer_processor(processor: Processor, folder: Path) -> Any:
    """Return the peer's processor with the settings of a checkpoint."""
    from mlx_vlm.models.jina_vlm.image_processor import ImageProcessor
    from mlx_vlm.models.jina_vlm.processing_jinavlm import JinaVLMProcessor
    from mlx_vlm.tokenizer_utils import load_tokenizer
    from mlx_vlm.utils import StoppingCriteria
    from transformers import PreTrainedTokenizerFast

    class EvaluatedProcessor(JinaVLMProcessor):
        """Hands over arrays that are computed: MLX computes none that another thread began."""

        def __call__(self, *arguments: Any, **keywords: Any) -> Any:
            result = super().__call__(*arguments, **keywords)
            mx.eval([value for value in result.values() if isinstance(value, mx.array)])
            return result

    special = dict(processor.tokenizer.named_tokens)
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), **special)
    template = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    made = EvaluatedProcessor(tokenizer, chat_template=template)
    config, ids = processor.image_processor.config, processor.tokenizer.image_token_ids
    made._image_proc = ImageProcessor(
        base_input_size=config.tile_size,
        patch_size=config.patch_size,
        max_crops=config.max_crops,
        min_pixels=config.min_pixels,
        max_pixels=config.max_pixels,
        overlap_margins=config.overlap_margins,
        patch_token_id=ids.patch,
        start_token_id=ids.start,
        end_token_id=ids.end,
        column_token_id=ids.column,
    )
    # As mlx-vlm's `load_processor` ends.
    made.detokenizer = load_tokenizer(folder, return_tokenizer=False)(tokenizer)
    tokenizer.stopping_criteria = StoppingCriteria(
        sorted(processor.tokenizer.stop_token_ids), tokenizer
    )
    return made


def main() -> None:
    """Serve until the process is ended."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.harness.peer_server")
    parser.add_argument("--model", default="demo", help="folder, repository or demo")
    parser.add_argument("--port", type=int, required=True)
    arguments = parser.parse_args()
    from mlx_vlm.server import app, generation

    def load(*_: Any) -> tuple[Any, Any, Any]:
        # In the peer's own thread, which is the only one that can compute what is made here.
        model, processor = jvlm_mlx.load(arguments.model)
        peer = make_peer(model)
        peer.config.eos_token_id = sorted(processor.tokenizer.stop_token_ids)
        folder = locate_checkpoint(arguments.model)
        return peer, make_peer_processor(processor, folder), peer.config

    generation.load_model_resources = load
    uvicorn.run(app, host="127.0.0.1", port=arguments.port, log_level="warning")


if __name__ == "__main__":
    main()
