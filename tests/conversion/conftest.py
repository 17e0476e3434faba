import shutil

import pytest


@pytest.fixture
def tiny_copy(golden_folder, tmp_path):
    """A copy of the small checkpoint, alone in its folder, that a test may spoil."""
    shutil.copytree(golden_folder / "tiny", tmp_path / "sources" / "tiny")
    return tmp_path / "sources" / "tiny"
