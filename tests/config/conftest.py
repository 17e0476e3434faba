import json

import pytest


@pytest.fixture(scope="session")
def config_json(golden_folder):
    return json.loads((golden_folder / "tiny" / "config.json").read_text())
