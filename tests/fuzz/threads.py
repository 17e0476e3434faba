"""A campaign of threads: many ask at once, cancel, close, drop and hand over answers.

    python -m tests.fuzz.threads --threads 16 --requests 200
    python -m tests.fuzz.threads --model demo --threads 10 --requests 100

Prints counts by event. The exit code is 1 if an answer differs from the one that was given alone,
if anything is raised but what is expected, if nothing moves for a minute, if streams, device or
random state of the asking threads have changed, or if memory grows.
"""

import argparse
import contextlib
import faulthandler
import gc
import random
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import mlx.core as mx

import jvlm_mlx
from jvlm_mlx import GenerationCaches, generate, stream_generate
from jvlm_mlx.generation import device

IMAGES = Path(__file__).parents[1] / "golden" / "images"
TINY = Path(__file__).parents[1] / "golden" / "tiny"
OPTIONS = {"max_tokens": 12, "stop_token_ids": (), "repetition_guard": False}
REQUESTS = (
    ("Hi", None),
    ("What is the capital of France?", None),
    ("One, two, three", None),
    ("What is this?", IMAGES / "dot.png"),
    ("What is this?", IMAGES / "square.png"),
)
EVENTS = ("finish", "close", "drop", "cancel", "cycle", "hand over", "another's end")
STUCK_SECONDS = 60
GROWTH_BYTES = 2**19
"""Of the device's memory: pages, and the caches of the last requests."""


class _Cycle:
    """Keeps its answer, and itself: only the garbage collector can free it."""

    def __init__(self, answer):
        self.me, self.answer = self, answer


class Campaign:
    """Threads that share a model and its caches.

    Args:
        loaded: model and processor.
    """

    def __init__(self, loaded):
        self.counts = Counter()
        self.errors = []
        self._loaded = loaded
        self._expected = {
            request: generate(*loaded, *request, **OPTIONS).token_ids for request in REQUESTS
        }
        self._caches = GenerationCaches(max_bytes=2**20)
        self._shared = []
        self._moved = time.monotonic()

    def run(self, threads, requests, seed=0):
        """Let threads do so many requests each, and wait for them."""
        workers = [
            threading.Thread(target=self._guarded, args=(seed + number, requests), daemon=True)
            for number in range(threads)
        ]
        for worker in workers:
            worker.start()
        while any(worker.is_alive() for worker in workers):
            time.sleep(0.05)
            if time.monotonic() - self._moved > STUCK_SECONDS:
                faulthandler.dump_traceback()
                self.errors.append(f"nothing has moved for {STUCK_SECONDS} s")
                return

    def memory(self):
        """Return the bytes that the device holds when nobody asks."""
        self._shared.clear()
        gc.collect()
        device.synchronize()  # what was dropped has been stored
        self._caches.clear()
        mx.clear_cache()
        return mx.get_active_memory()

    def _guarded(self, seed, requests):
        try:
            with _untouched():
                chance = random.Random(seed)
                for _ in range(requests):
                    self._one(chance)
                    self._moved = time.monotonic()
        except BaseException as error:
            self.errors.append(f"{type(error).__name__}: {error}")

    def _one(self, chance):
        """Ask, take some tokens, and let something happen."""
        request = chance.choice(REQUESTS)
        event = chance.choice(EVENTS)
        self.counts[event] += 1
        cancel = threading.Event()
        caches = chance.choice((self._caches, None))
        answer = stream_generate(
            *self._loaded, *request, cancel=cancel, caches=caches,
            prompt_lookup=chance.choice((True, False)), **OPTIONS,
        )  # fmt: skip
        tokens = [next(answer).token for _ in range(chance.randrange(6))]
        if event == "finish":
            self._check(request, tokens, answer)
        elif event == "close":
            answer.close()
        elif event == "cancel":
            cancel.set()
            reasons = [response.finish_reason for response in answer]
            if reasons != ["cancelled"]:
                raise AssertionError(f"{reasons} after a cancel")
        elif event == "cycle":
            _Cycle(answer)
        elif event == "hand over":
            self._shared.append((request, tokens, answer))
            with contextlib.suppress(IndexError):
                self._check(*self._shared.pop(chance.randrange(4)))
        elif event == "another's end":
            closer = threading.Thread(target=answer.close)
            closer.start()
            closer.join(STUCK_SECONDS)

    def _check(self, request, tokens, answer):
        """Take the rest of an answer, perhaps begun in another thread."""
        tokens = tokens + [response.token for response in answer]
        if tuple(tokens) != self._expected[request]:
            raise AssertionError(f"{request[0]!r} was answered {tokens}")


@contextlib.contextmanager
def _untouched():
    """Check that this thread's streams, device and random state are as they were."""
    stream = mx.new_stream(mx.cpu)
    with mx.stream(stream):
        mx.random.seed(7)
        numbers = mx.random.uniform(shape=(3,)).tolist()
        mx.random.seed(7)
        before = mx.default_stream(mx.default_device()), mx.default_device()
        yield
        if (mx.default_stream(mx.default_device()), mx.default_device()) != before:
            raise AssertionError("the default stream or device has changed")
        if mx.random.uniform(shape=(3,)).tolist() != numbers:
            raise AssertionError("the random state has changed")


def main():
    """Run, report, and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.threads", description=__doc__)
    parser.add_argument("--model", default=str(TINY), help="folder, or demo")
    parser.add_argument("--threads", type=int, default=16)
    parser.add_argument("--requests", type=int, default=200, help="of each thread")
    parser.add_argument("--flat", type=int, default=5000, help="requests over which memory is flat")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    campaign = Campaign(jvlm_mlx.load(arguments.model))
    start = time.monotonic()
    campaign.run(arguments.threads, arguments.requests, arguments.seed)
    # What the first requests made stays: pools, compiled functions, the collector's generations.
    before = campaign.memory()
    campaign.run(4, arguments.flat // 4, arguments.seed + arguments.threads)
    growth = campaign.memory() - before
    if growth > GROWTH_BYTES:
        campaign.errors.append(f"memory grew by {growth / 2**20:.1f} MB")
    counts = ", ".join(f"{event} {count}" for event, count in sorted(campaign.counts.items()))
    print(counts)
    print("\n".join(campaign.errors))
    print(
        f"{sum(campaign.counts.values())} requests, {len(campaign.errors)} findings, memory"
        f" {growth / 1024:+.0f} KB over {arguments.flat}, {time.monotonic() - start:.0f} s"
    )
    return 1 if campaign.errors else 0


if __name__ == "__main__":
    sys.exit(main())
