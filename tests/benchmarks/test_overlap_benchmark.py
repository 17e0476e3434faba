"""The benchmark of overlap: the same answers; without it, times add up."""

import time

from benchmarks import overlap
from jvlm_mlx.generation import batching


def test_without_overlap_preparing_and_encoding_take_turns(tiny, golden_folder, monkeypatch):
    images = [(golden_folder / "images" / "dot.png").read_bytes()] * 4
    prepare = batching.prepare_prompt

    def slow(*arguments, **options):
        time.sleep(0.05)
        return prepare(*arguments, **options)

    monkeypatch.setattr(batching, "prepare_prompt", slow)
    options = {"batch_size": 4, "max_tokens": 1}
    with overlap.slower_device(0.05):
        _, answers = overlap.timed(*tiny, images, **options)
        with overlap.without_overlap():
            seconds, again = overlap.timed(*tiny, images, **options)
    assert answers == again
    assert seconds >= 0.4  # how much less it is with overlap is up to the machine
