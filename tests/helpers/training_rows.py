"""Files of training rows made for a test, and the processors they are read with."""

import json

import numpy as np
from PIL import Image

from jvlm_mlx.config.prompt_config import PromptConfig
from jvlm_mlx.processing.chat_template import ChatTemplate
from jvlm_mlx.processing.processor import Processor
from jvlm_mlx.training.data_limits import DataLimits
from jvlm_mlx.training.data_loader import Batches
from jvlm_mlx.training.mixture import read_mixture
from jvlm_mlx.training.prepare_data import prepare_data
from jvlm_mlx.training.sampler import MixturePlan, SamplerConfig

CHATML = """\
{%- for message in messages -%}
<|im_start|>{{ message.role }}
{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content -%}
{{ image_prompt_token if part.type == 'image' else part.text }}
{%- endfor %}{% endif %}<|im_end|>
{% endfor -%}
{{ '<|im_start|>assistant\\n' if add_generation_prompt }}"""
LIMITS = {"max_length": 2000, "max_crops": None, "min_pixels": None, "max_pixels": None}
SETTINGS = {
    "batch_size": 4,
    "seed": 0,
    "text_share": 0.0,
    "single_source": False,
    "bucket_batches": 2,
}


def with_template(processor, source):
    """The same processor with another chat template."""
    tokenizer = processor.tokenizer
    template = ChatTemplate(
        source, PromptConfig(True), tokenizer.special_tokens, tokenizer.named_tokens
    )
    return Processor(tokenizer, template, processor.image_processor)


def image(path="a.png"):
    return {"type": "image", "path": path}


def text(words):
    return {"type": "text", "text": words}


def user(*content):
    """A question of words alone, or of parts."""
    words = len(content) == 1 and isinstance(content[0], str)
    return {"role": "user", "content": content[0] if words else list(content)}


def assistant(words):
    return {"role": "assistant", "content": words}


def row(*messages, **others):
    return {"messages": list(messages), **others}


def image_row(path="a.png", question="What color?", answer="red"):
    return row(user(image(path), text(question)), assistant(answer))


def text_row(question="How are you?", answer="Fine."):
    return row(user(question), assistant(answer))


def write_image(path, width=40, height=40, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(pixels).save(path)


def write_rows(path, rows):
    """Write rows; a text is written as it is."""
    lines = [one if isinstance(one, str) else json.dumps(one) for one in rows]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def write_mixture(folder, **sources):
    """Write rows and mixture of name=(kind, weight, rows); returns the path of the mixture."""
    entries = []
    for name, (kind, weight, rows) in sources.items():
        write_rows(folder / f"{name}.jsonl", rows)
        entries.append({"name": name, "path": f"{name}.jsonl", "kind": kind, "weight": weight})
    path = folder / "mixture.json"
    path.write_text(json.dumps({"sources": entries}), encoding="utf-8")
    return path


def prepare(path, processor, decode_images=False, progress=None, **limits):
    return prepare_data(
        read_mixture(path),
        processor,
        DataLimits(**LIMITS | limits),
        decode_images=decode_images,
        progress=progress,
    )


def plan_of(data, **config):
    return MixturePlan(data, SamplerConfig(**SETTINGS | config))


def batches_of(data, pad_to_multiple=1, cache_bytes=0, **config):
    return Batches(
        data, plan_of(data, **config), pad_to_multiple=pad_to_multiple, cache_bytes=cache_bytes
    )


def assert_same_batch(one, other):
    for name in ("input_ids", "labels", "loss_mask"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    assert (one.pixel_values is None) == (other.pixel_values is None)
    if one.pixel_values is not None:
        for name in ("pixel_values", "image_masks", "image_input_idx"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    assert one.sources == other.sources
