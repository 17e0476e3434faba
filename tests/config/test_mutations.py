"""Whatever a stranger's config files say, they are read or refused in one short line."""

import copy
import itertools
import json
import math
import random

from jvlm_mlx.config.checkpoint_config import CheckpointConfig
from jvlm_mlx.errors import CheckpointError
from jvlm_mlx.model import parameter_shapes

VALUES = (
    None, True, False, 0, -1, 1, 2, 3, 10**6, 2**31, 10**19, -(10**19), 1e-300, 1e300, 5e-324, 0.5,
    math.nan, math.inf, "", "x" * 1000, "\ud800", "silu", "rms", "yarn", [], [1], [1, 2], ["a"],
    [[]], [0, 0], [-1, -1], [10**9, 10**9], [True, True], [1.5, 2.5], {}, {"a": 1},
)  # fmt: skip
GENERATION = {"eos_token_id": [1], "do_sample": True, "temperature": 0.7, "top_p": 0.9, "top_k": 3}
SCALING = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
           "original_max_position_embeddings": 64}  # fmt: skip


def places(node, path=()):
    for key, value in node.items():
        yield (*path, key)
        if isinstance(value, dict):
            yield from places(value, (*path, key))


def mutated(files, generator):
    files = copy.deepcopy(files)
    for _ in range(generator.choice((1, 1, 1, 2, 4))):
        *sections, key = generator.choice([path for path in places(files) if len(path) > 1])
        node = files
        for section in sections:
            node = node[section]
        if generator.random() < 0.15:
            del node[key]
        else:
            node[key] = copy.deepcopy(generator.choice(VALUES))
    return files


def test_mutated_configs_are_read_or_refused_in_one_line(golden_folder):
    names = "config.json", "preprocessor_config.json", "processor_config.json"
    files = {name: json.loads((golden_folder / "tiny" / name).read_text()) for name in names}
    files["generation_config.json"] = GENERATION
    files["config.json"]["text_config"]["rope_scaling"] = SCALING
    generator, read, refusals = random.Random(0), 0, []
    for _ in range(1500):
        try:
            config = CheckpointConfig.read(mutated(files, generator))
            shapes = itertools.islice(parameter_shapes(config.model), 500)
            assert all(side > 0 for _, shape in shapes for side in shape)
        except CheckpointError as error:
            refusals.append(str(error))
        else:
            read += 1
    assert read > 100
    assert len(refusals) > 100
    assert max(map(len, refusals)) < 400
    assert not any("\n" in refusal for refusal in refusals)
