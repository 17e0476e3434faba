"""The benchmark of follow-ups: a version answers in a process of its own, or is told of."""

import pytest

from benchmarks.follow_up import ROOT, _Version


def test_a_version_is_timed(golden_folder):
    image = golden_folder / "images" / "dot.png"
    version = _Version(ROOT, str(golden_folder / "tiny"), image)
    seconds = version.turn()
    version.close()
    assert len(seconds) == 4
    assert all(0 < one < 60 for one in seconds)


def test_a_version_that_cannot_run(golden_folder, tmp_path):
    with pytest.raises(RuntimeError, match="ended early"):
        _Version(ROOT, str(tmp_path), golden_folder / "images" / "dot.png")
