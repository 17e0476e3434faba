"""What the conversion tests share: small checkpoints to convert, and how to look at results."""

import json

import mlx.core as mx
import numpy as np
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import jvlm_mlx
from benchmarks.random_checkpoint import small_config, write_random_checkpoint

TEXT = " User: What is the capital of France? Assistant:"


def grouped_config(tied=False):
    """A small model whose layers all fit groups of 32, but for the tower's MLP of 100."""
    config = small_config()
    vision, text = config["vision_config"], config["text_config"]
    vision["hidden_size"], vision["n_layers"], vision["vit_layers"] = 64, 5, [-3, -4]
    vision["block_config"]["attn_config"] |= {"n_heads": 4, "head_dim": 16}
    vision["block_config"]["ffn_config"]["size"] = 100
    connector = vision["vl_connector_config"]
    connector["attn_pooling_config"] |= {"n_heads": 4, "head_dim": 16}
    connector["mlp_projector_config"]["size"] = 96
    text["n_layers"] = text["num_hidden_layers"] = 4
    config["tie_word_embeddings"] = text["tie_word_embeddings"] = tied
    return config


def write_grouped(folder, tied=False, **options):
    return write_random_checkpoint(folder, grouped_config(tied), **{"dtype": "float32"} | options)


def tensors_of(folder):
    """All stored tensors of a folder as mlx arrays, by name."""
    return {
        name: array
        for file in sorted(folder.glob("*.safetensors"))
        for name, array in mx.load(str(file)).items()
    }


def names_of(folder):
    names = set()
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="numpy") as opened:
            names |= set(opened.keys())
    return names


def bytes_of(folder):
    """Contents of all files of a folder, by name."""
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def entries_of(folder):
    return sorted(entry.name for entry in folder.iterdir())


def config_of(folder):
    return json.loads((folder / "config.json").read_text(encoding="utf-8"))


def edit_json(file, change):
    content = json.loads(file.read_text(encoding="utf-8"))
    change(content)
    file.write_text(json.dumps(content), encoding="utf-8")


def edit_config(folder, change):
    edit_json(folder / "config.json", change)


def edit_weights(folder, change, name="model.safetensors"):
    tensors = load_file(folder / name)
    change(tensors)
    save_file(tensors, folder / name)


def inputs_of(processor, golden_folder):
    """Model inputs of a text, and of an image with text."""
    image = golden_folder / "images" / "square.png"
    return [
        processor(text=[TEXT]),
        processor(text=[" User: <|image|>What? Assistant:"], images=[[image]], max_crops=1),
    ]


def answers(folder, golden_folder, dtype=None):
    """Logits of a text, and of an image with text."""
    model, processor = jvlm_mlx.load(folder, dtype=dtype)
    return [
        np.array(model(**inputs).astype(mx.float32))
        for inputs in inputs_of(processor, golden_folder)
    ]


def same_answers(one, other):
    return all(np.array_equal(ours, theirs) for ours, theirs in zip(one, other, strict=True))


def mlp_size_of(folder):
    return config_of(folder)["vision_config"]["block_config"]["ffn_config"]["size"]


def decoder_attention(config):
    return config["text_config"]["block_config"]["attn_config"]
