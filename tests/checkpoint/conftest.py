import shutil

import pytest


@pytest.fixture
def checkpoint(tmp_path, golden_folder):
    """A copy of the small checkpoint that a test may spoil."""
    shutil.copytree(golden_folder / "tiny", tmp_path / "checkpoint")
    return tmp_path / "checkpoint"
