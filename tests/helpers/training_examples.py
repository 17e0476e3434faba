"""Files of training examples made for a test, and the processors they are read with."""

import json

import numpy as np
from PIL import Image

from jvlm_mlx.config.checkpoint_config import PromptConfig
from jvlm_mlx.processing.chat_template import ChatTemplate
from jvlm_mlx.processing.processor import Processor
from jvlm_mlx.progress import no_progress
from jvlm_mlx.training import TrainingConfig
from jvlm_mlx.training.data_loader import training_loader
from jvlm_mlx.training.dataset import read_examples
from jvlm_mlx.training.examples import read_sources
from jvlm_mlx.training.sampler import Sampler

CHATML = """\
{%- for message in messages -%}
<|im_start|>{{ message.role }}
{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content -%}
{{ image_prompt_token if part.type == 'image' else part.text }}
{%- endfor %}{% endif %}<|im_end|>
{% endfor -%}
{{ '<|im_start|>assistant\\n' if add_generation_prompt }}"""


def with_template(processor, source):
    """The same processor with another chat template."""
    tokenizer = processor.tokenizer
    template = ChatTemplate(
        source, PromptConfig(True), tokenizer.special_tokens, tokenizer.named_tokens
    )
    return Processor(tokenizer, template, processor.image_processor)


def image(path="a.png"):
    return {"type": "image", "path": path}


def text(content):
    return {"type": "text", "text": content}


def user(*content):
    """A question of text alone, or of parts."""
    is_text = len(content) == 1 and isinstance(content[0], str)
    return {"role": "user", "content": content[0] if is_text else list(content)}


def assistant(content):
    return {"role": "assistant", "content": content}


def example(*messages, **others):
    return {"messages": list(messages), **others}


def image_example(path="a.png", question="What color?", answer="red"):
    return example(user(image(path), text(question)), assistant(answer))


def text_example(question="How are you?", answer="Fine."):
    return example(user(question), assistant(answer))


def write_image(path, width=40, height=40, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(pixels).save(path)


def write_examples(path, examples):
    """Write examples; a text is written as it is."""
    lines = [one if isinstance(one, str) else json.dumps(one) for one in examples]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def write_mixture(folder, **sources):
    """Write examples and mixture of name=(kind, weight, examples); returns its path."""
    entries = []
    for name, (kind, weight, examples) in sources.items():
        write_examples(folder / f"{name}.jsonl", examples)
        entries.append({"name": name, "path": f"{name}.jsonl", "kind": kind, "weight": weight})
    path = folder / "mixture.json"
    path.write_text(json.dumps({"sources": entries}), encoding="utf-8")
    return path


def prepare(path, processor, max_seq_length=2000, decode_images=False, progress=no_progress,
            **limits):  # fmt: skip
    return read_examples(
        read_sources(path),
        processor,
        max_seq_length=max_seq_length,
        image_options=TrainingConfig(**limits).image_options,
        decode_images=decode_images,
        progress=progress,
    )


def config_of(**changes):
    return TrainingConfig(**{"bucket_batches": 2, "image_cache": 0} | changes)


def sampler_of(data, **changes):
    return Sampler(data, config_of(**changes))


def loader_of(data, **changes):
    return training_loader(data, config_of(**changes))


def assert_same_batch(one, other):
    for name in ("input_ids", "labels", "loss_mask"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    assert (one.pixel_values is None) == (other.pixel_values is None)
    if one.pixel_values is not None:
        for name in ("pixel_values", "image_masks", "image_input_idx"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
