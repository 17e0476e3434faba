"""The CPU prepares the next images while the device encodes: in order, and one ahead at most."""

import threading
from functools import partial

import pytest

from jvlm_mlx import batch_generate, generate
from jvlm_mlx.generation import batching, image_encoding
from jvlm_mlx.generation.image_encoding import one_ahead
from jvlm_mlx.generation.prefill import Prefill
from jvlm_mlx.processing.image_processor import OpenedImage


def test_one_is_computed_ahead_and_no_more():
    begun = [threading.Event() for _ in range(4)]

    def cut(index):
        begun[index].set()
        return index

    order = []
    for index in one_ahead(partial(cut, index) for index in range(4)):
        # "Encoding" does not end before the next one has begun to be cut.
        assert index == 3 or begun[index + 1].wait(10)
        assert not any(event.is_set() for event in begun[index + 2 :])
        order.append(index)
    assert order == [0, 1, 2, 3]
    assert list(one_ahead([])) == []


def test_what_fails_ahead_fails_in_its_turn():
    values = one_ahead([lambda: 1, lambda: 1 / 0, lambda: 3])
    assert next(values) == 1
    with pytest.raises(ZeroDivisionError):
        next(values)


def test_the_next_image_is_cut_while_the_device_encodes(tiny, golden_folder, monkeypatch):
    images = [golden_folder / "images" / f"{name}.png" for name in ("dot", "square", "tall")]
    expected = generate(*tiny, "Compare.", images, max_tokens=4).token_ids
    begun, cut = [], OpenedImage.cut
    next_one = threading.Semaphore(0)

    def logged_cut(image):
        begun.append(image.name)
        next_one.release()
        return cut(image)

    overlaps = []

    def progress(event):
        # Called after the device is done with an image, before the next is handed over.
        if event.stage == "tiles" and 0 < event.done < event.total:
            overlaps.append(next_one.acquire(timeout=10))

    monkeypatch.setattr(OpenedImage, "cut", logged_cut)
    monkeypatch.setattr(image_encoding, "CPU_TILE_GROUP_SIZE", 4)  # as many groups as on a GPU
    found = generate(*tiny, "Compare.", images, max_tokens=4, progress=progress)
    assert found.token_ids == expected
    assert len(begun) == 3
    assert overlaps
    assert all(overlaps)


def test_the_next_request_is_prepared_while_the_device_works(tiny, monkeypatch):
    prepared = [threading.Event() for _ in range(3)]
    counts = iter(range(3))
    prepare, run = batching.prepare_prompt, Prefill.run
    overlapped = []

    def logged_prepare(*arguments, **more):
        prepared[next(counts)].set()
        return prepare(*arguments, **more)

    def slow_run(self, prompt):
        place = len(overlapped)
        # The device is not done with this prompt before the next one has been opened.
        overlapped.append(place == 2 or prepared[place + 1].wait(10))
        return run(self, prompt)

    monkeypatch.setattr(batching, "prepare_prompt", logged_prepare)
    monkeypatch.setattr(Prefill, "run", slow_run)
    requests = [{"prompt": prompt} for prompt in ("Hi", "Hello", "What?")]
    assert len(list(batch_generate(*tiny, requests, max_tokens=4, batch_size=3))) == 3
    assert overlapped == [True, True, True]
