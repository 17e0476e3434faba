"""Batches that are made in the background."""

import signal
import threading
import time

import pytest

from jvlm_mlx.errors import DataError
from jvlm_mlx.training.data_loader import DataLoader
from tests.helpers.training_examples import (
    assert_same_batch,
    config_of,
    loader_of,
    sampler_of,
)

THREAD = "training-batches"


def threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith(THREAD)]


def test_prefetch_gives_the_same_batches(single):
    batches = loader_of(single)
    with batches.prefetch(5, 12, ahead=3) as stream:
        made = list(stream)
        assert next(stream, None) is None
    assert len(made) == 7
    for step, batch in enumerate(made, 5):
        assert_same_batch(batch, batches[step])
    assert not threads()
    with batches.prefetch(3, 3, ahead=2) as stream:
        assert list(stream) == []


def test_prefetch_ends_when_it_is_left(single):
    batches = loader_of(single)
    with batches.prefetch(0, None, ahead=2) as stream:
        for _ in range(3):
            next(stream)
        assert len(threads()) == 1
    assert not threads()
    assert next(stream, None) is None
    stream.close()

    def leave():
        with batches.prefetch(0, None, ahead=2) as stream:
            next(stream)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        leave()
    assert not threads()


class Counting(DataLoader):
    """Counts the batches that are asked for; `on_step` may do something else first."""

    def __init__(self, data, on_step=lambda _: None):
        super().__init__(data, config_of(), sampler_of(data), 6)
        self.asked = []
        self.on_step = on_step

    def __getitem__(self, step):
        self.asked.append(step)
        self.on_step(step)
        return super().__getitem__(step)


def test_prefetch_works_ahead_and_no_further(single):
    made = threading.Semaphore(0)
    batches = Counting(single, lambda _: made.release())
    with batches.prefetch(0, None, ahead=3) as stream:
        assert not threads()
        next(stream)
        for _ in range(4):
            made.acquire()  # the one that was asked for, and three more
        next(stream)
        made.acquire()
    assert batches.asked == [0, 1, 2, 3, 4]


def test_prefetch_gives_up_what_has_not_begun(single):
    begun = threading.Event()

    def wait_for_close(step):
        if step == 1:
            begun.set()
            for _ in range(2000):
                if stream._closed:
                    return
                time.sleep(0.01)

    batches = Counting(single, wait_for_close)
    stream = batches.prefetch(0, None, ahead=4)
    next(stream)
    begun.wait()
    stream.close()
    assert batches.asked == [0, 1]
    assert not threads()


def test_prefetch_raises_what_went_wrong(single, folder):
    def lose_image(step):
        if step == 2:
            (folder / "a.png").unlink()

    batches = Counting(single, lose_image)
    stream = batches.prefetch(0, None, ahead=2)
    next(stream)
    next(stream)
    with pytest.raises(DataError, match=r"examples\.jsonl:\d+: .*a\.png' cannot be opened"):
        next(stream)
    assert not threads()
    assert next(stream, None) is None


def test_prefetch_ends_on_interrupt(single):
    def interrupt(step):
        if step == 1:
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    batches = Counting(single, interrupt)

    def train():
        with batches.prefetch(0, None, ahead=1) as stream:
            for _ in stream:
                pass

    with pytest.raises(KeyboardInterrupt):
        train()
    assert not threads()
