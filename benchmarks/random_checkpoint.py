"""Write a checkpoint with random weights, whole and loadable, in a layout of your choice.

Without released weights at hand, everything that does not depend on what the weights mean can
be tried and timed on it: loading, conversion, memory, speed.

    python -m benchmarks.random_checkpoint OUT                 # released geometry, 5 GB
    python -m benchmarks.random_checkpoint OUT --layers 0.25   # a quarter of its layers
    python -m benchmarks.random_checkpoint OUT --small         # that of the tests, 1 MB
"""

import argparse
import copy
import dataclasses
import functools
import json
import math
import shutil
import string
import zlib
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

from jvlm_mlx.checkpoint.names import LAYOUTS, ORIGINAL
from jvlm_mlx.checkpoint.reader import row_blocks
from jvlm_mlx.checkpoint.structure import parameter_parts
from jvlm_mlx.checkpoint.writer import MAX_SHARD_BYTES, Output, ShardWriter, split_into_shards
from jvlm_mlx.config.config_reader import ConfigReader
from jvlm_mlx.config.dtypes import BY_CODE, FLOAT_DTYPES
from jvlm_mlx.config.model_config import ModelConfig
from jvlm_mlx.model import parameter_shapes

RELEASED = Path(__file__).parent / "released"
SMALL = Path(__file__).parents[1] / "tests" / "golden" / "tiny"

_COPIED = ("chat_template.jinja", "processor_config.json", "tokenizer_config.json")
_BLOCK_VALUES = 2**23
_END_OF_TEXT, _TURN_START, _TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"


def released_config(layers: float = 1.0) -> dict[str, Any]:
    """Return config.json of the release.

    Args:
        layers: fraction of the tower's and the decoder's layers to keep. With fewer tower layers
            the features are taken from layers that are still there.
    """
    config: dict[str, Any] = json.loads((RELEASED / "config.json").read_text(encoding="utf-8"))
    if layers < 1:
        text, vision = config["text_config"], config["vision_config"]
        text["n_layers"] = text["num_hidden_layers"] = max(1, round(layers * text["n_layers"]))
        vision["n_layers"] = max(4, round(layers * vision["n_layers"]))
        vision["vit_layers"] = [-4, -max(5, round(10 * layers))]
    return config


def small_config() -> dict[str, Any]:
    """Return config.json of the small checkpoint that the tests use."""
    config: dict[str, Any] = json.loads((SMALL / "config.json").read_text(encoding="utf-8"))
    return config


def write_random_checkpoint(
    folder: str | Path,
    config: dict[str, Any],
    *,
    layout: str = ORIGINAL,
    dtype: str = "bfloat16",
    seed: int = 0,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> Path:
    """Write a random checkpoint, a few megabytes at a time, and return its folder.

    It has every tensor that the layout has, also those that are never used (the tower's last
    layers) or zero (the reference implementation's decoder biases). Matrices keep the scale of what
    goes through them, so all activations are finite. The same arguments give the same bytes, and a
    tensor's values depend on its name, shape, type and the seed alone.

    A vocabulary below 100,000 tokens gets the tests' tokenizer, which has 518; a larger one gets
    the release's special tokens under their ids, and made-up tokens between them. ExampleImage
    config are the tests' or the release's, made to fit the config's tile size.

    Args:
        folder: to write to; must not hold a checkpoint yet.
        config: contents of config.json; see `released_config` and `small_config`.
        layout: `original`, `mlx` or `own`.
        dtype: `float32`, `float16` or `bfloat16`.
        seed: of the values.
        max_shard_bytes: size from which weights are split into several files.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    outputs = random_tensors(config, layout=layout, dtype=dtype)
    shards = split_into_shards([(output,) for output, _ in outputs], max_shard_bytes)
    with ShardWriter(folder, shards) as writer:
        for output, (mean, deviation) in outputs:
            table = _stored(mean + deviation * _normal_table(), output.dtype)
            source = np.random.SFC64([seed, zlib.crc32(output.name.encode())])
            generator = np.random.Generator(source)
            for start, stop in row_blocks(output.shape, _BLOCK_VALUES):
                indices = generator.integers(
                    0, len(table), (stop - start, *output.shape[1:]), dtype=np.uint16
                )
                writer.write(output.name, start, table[indices])
    write_config(folder, config)
    return folder


def random_tensors(
    config_json: dict[str, Any], *, layout: str = ORIGINAL, dtype: str = "bfloat16"
) -> list[tuple[Output, tuple[float, float]]]:
    """Return all tensors of a checkpoint, each with mean and deviation of its values."""
    config = ModelConfig.read(ConfigReader(copy.deepcopy(config_json), "config.json"))
    tower = config.tower
    # The model leaves out what no feature needs, so every state is made a feature here.
    states = tower.num_hidden_layers + tower.final_norm
    whole = dataclasses.replace(
        config, tower=dataclasses.replace(tower, feature_layers=(states - 1,))
    )
    if layout == ORIGINAL:
        whole = whole.with_biases("decoder")
    shapes = dict(parameter_shapes(config))
    # Only the connector is as wide as there are features.
    shapes = {
        path: shapes[path] if path.startswith("connector.") else shape
        for path, shape in parameter_shapes(whole)
    }
    return [
        (
            Output(source.name, source.shape, FLOAT_DTYPES[dtype].code),
            _distribution(path, shapes[path]),
        )
        for path in sorted(shapes)
        for source in parameter_parts(path, shapes[path], whole, LAYOUTS[layout])
    ]


def _distribution(path: str, shape: tuple[int, ...]) -> tuple[float, float]:
    if path.endswith("norm.weight"):
        return 1.0, 0.05
    if path.startswith("decoder.") and path.endswith(".bias"):
        return 0.0, 0.0
    if path.endswith(".weight"):
        return 0.0, shape[-1] ** -0.5
    return 0.0, 0.02


@functools.cache
def _normal_table() -> npt.NDArray[np.float64]:
    """Return 65,536 equally likely values: to draw from them is to draw 16 random bits."""
    normal = NormalDist()
    return np.array([normal.inv_cdf((index + 0.5) / 2**16) for index in range(2**16)])


def _stored(values: npt.NDArray[np.float64], dtype: str) -> npt.NDArray[Any]:
    if dtype != "BF16":
        return values.astype(BY_CODE[dtype].numpy)
    # A bfloat16 is the upper half of a float32; adding half of the lower one rounds.
    return ((values.astype(np.float32).view(np.uint32) + 0x8000) >> 16).astype(np.uint16)


def write_config(folder: Path, config: dict[str, Any]) -> None:
    """Write everything but weights: config, tokenizer and chat template."""
    for name in _COPIED:
        shutil.copyfile(SMALL / name, folder / name)
    _write_json(folder / "config.json", config)
    vision, vocab_size = config["vision_config"], config["text_config"]["vocab_size"]
    is_large = vocab_size > 100_000
    source = RELEASED if is_large else SMALL
    images = json.loads((source / "preprocessor_config.json").read_text(encoding="utf-8"))
    images |= {"base_input_size": vision["input_size"], "patch_size": vision["patch_size"]}
    tokenizer = json.loads((SMALL / "tokenizer.json").read_text(encoding="utf-8"))
    if is_large:
        tokenizer = large_tokenizer(tokenizer, vocab_size)
    ids = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    for role, token in (("start", "<im_start>"), ("end", "<im_end>"), ("patch", "<im_patch>"),
                        ("column", "<im_col>")):  # fmt: skip
        images[f"{role}_token_id"] = ids[token]
    _write_json(folder / "preprocessor_config.json", images)
    _write_json(folder / "tokenizer.json", tokenizer)
    end = ids[_END_OF_TEXT]
    _write_json(
        folder / "generation_config.json",
        {"bos_token_id": end, "eos_token_id": [end, ids[_TURN_END]], "pad_token_id": end},
    )


def large_tokenizer(small: dict[str, Any], vocab_size: int) -> dict[str, Any]:
    """Return the small tokenizer with made-up tokens up to the size of the release's.

    End of text and the start and end of turns have Qwen3's ids, and the tokens of images follow the
    vocabulary, as in the release.
    """
    tokenizer = copy.deepcopy(small)
    vocab = tokenizer["model"]["vocab"]
    special = {151643: _END_OF_TEXT, 151644: _TURN_START, 151645: _TURN_END}
    characters = string.ascii_lowercase
    for token_id in range(len(vocab), vocab_size):
        token = "Ġ" + "".join(characters[token_id // 26**index % 26] for index in range(4))
        while token in vocab:
            token += "s"
        vocab[special.get(token_id, token)] = token_id
    added = {token["content"]: token for token in small["added_tokens"]}
    last = max(added[token]["id"] for token in special.values())
    images = [token for token in small["added_tokens"] if token["id"] > last]
    tokenizer["added_tokens"] = [
        *(added[token] | {"id": token_id} for token_id, token in special.items()),
        *(token | {"id": vocab_size + index} for index, token in enumerate(images)),
    ]
    return tokenizer


def _write_json(file: Path, content: Any) -> None:
    file.write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")


def checkpoint_bytes(config: dict[str, Any], *, layout: str = ORIGINAL, dtype: str) -> int:
    """Return the size of all tensors that a random checkpoint would have."""
    return sum(output.nbytes for output, _ in random_tensors(config, layout=layout, dtype=dtype))


def main() -> None:
    """Write one from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=float, default=1.0, help="fraction of the layers to keep")
    parser.add_argument("--small", action="store_true", help="the tests' geometry")
    parser.add_argument("--layout", choices=LAYOUTS, default=ORIGINAL)
    parser.add_argument("--dtype", choices=FLOAT_DTYPES, default="bfloat16")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-shard-bytes", type=int, default=MAX_SHARD_BYTES)
    parser.add_argument("--tied", action="store_true", help="let the embedding be the head")
    arguments = parser.parse_args()
    config = small_config() if arguments.small else released_config(arguments.layers)
    config["tie_word_embeddings"] = arguments.tied
    config["text_config"]["tie_word_embeddings"] = arguments.tied
    write_random_checkpoint(
        arguments.folder,
        config,
        layout=arguments.layout,
        dtype=arguments.dtype,
        seed=arguments.seed,
        max_shard_bytes=arguments.max_shard_bytes,
    )
    size = checkpoint_bytes(config, layout=arguments.layout, dtype=arguments.dtype)
    print(f"{arguments.folder}: {size / math.pow(10, 9):.2f} GB")


if __name__ == "__main__":
    main()
