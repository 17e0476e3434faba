"""The threads that conversion works with: results, errors, and an end in every case."""

import threading

import mlx.core as mx
import pytest

from jvlm_mlx.checkpoint.row_reader import row_blocks
from jvlm_mlx.conversion.workers import work_through


def threads():
    return threading.active_count()


def test_every_job_is_done_once():
    before = threads()
    assert sorted(work_through(range(100), lambda job: job * job, workers=3)) == [
        job * job for job in range(100)
    ]
    assert threads() == before


def test_arrays_are_computed_in_the_threads():
    def total(size):
        return mx.arange(size).sum().item()

    assert sorted(work_through([3, 4, 5], total, workers=2)) == [3, 6, 10]
    # The caller's own stream is untouched.
    assert mx.ones(3).sum().item() == 3


@pytest.mark.parametrize("workers", [1, 4])
def test_the_first_error_ends_the_work(workers):
    before = threads()
    started = []

    def work(job):
        started.append(job)
        if job == 10:
            raise ValueError("job 10")
        return job

    with pytest.raises(ValueError, match="job 10"):
        list(work_through(range(100_000), work, workers=workers))
    assert len(started) < 1000
    assert threads() == before


def test_an_error_among_the_jobs_is_raised_too():
    def jobs():
        yield 1
        raise LookupError("no more")

    with pytest.raises(LookupError, match="no more"):
        list(work_through(jobs(), lambda job: job, workers=2))


def test_leaving_early_starts_no_more_work():
    before = threads()
    started = []
    results = work_through(range(100_000), lambda job: started.append(job), workers=2)
    next(results)
    results.close()
    assert len(started) < 1000
    assert threads() == before


@pytest.mark.parametrize(
    ("shape", "values", "expected"),
    [
        ((10, 4), 12, [(0, 3), (3, 6), (6, 9), (9, 10)]),
        ((2, 100), 12, [(0, 1), (1, 2)]),
        ((1000,), 12, [(0, 1000)]),
        ((), 12, [(0, 1)]),
    ],
)
def test_blocks_of_rows(shape, values, expected):
    assert row_blocks(shape, values) == expected
