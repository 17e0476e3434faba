"""The network's config, read with one setting changed."""

import copy

from jvlm_mlx.config.config_reader import ConfigReader
from jvlm_mlx.config.model_config import ModelConfig

ABSENT = object()


def read_with(config_json, path, value):
    """Read config.json with a value in place of the one at a path like `text_config.rope_theta`,
    or without any if it is `ABSENT`."""
    config_json = copy.deepcopy(config_json)
    *sections, key = path.split(".")
    section = config_json
    for name in sections:
        section = section[name]
    if value is ABSENT:
        del section[key]
    else:
        section[key] = value
    return ModelConfig.read(ConfigReader(config_json, "config.json"))
