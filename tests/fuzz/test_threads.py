"""A short campaign of threads; `python -m tests.fuzz.threads` makes a long one."""

import mlx.core as mx
import pytest

from tests.fuzz.threads import GROWTH_BYTES, REQUESTS, Campaign


@pytest.fixture
def campaign(tiny):
    return Campaign(tiny)


def test_threads_that_ask_cancel_close_drop_and_share_answers(campaign):
    campaign.run(threads=8, requests=15)
    before = campaign.memory()
    campaign.run(threads=4, requests=40, seed=100)
    assert campaign.errors == []
    assert campaign.memory() <= before + GROWTH_BYTES
    assert len(campaign.counts) == 7


def test_an_answer_that_differs_is_found(campaign):
    campaign._expected = dict.fromkeys(REQUESTS, ())
    campaign.run(threads=1, requests=30)
    assert "was answered" in campaign.errors[0]


def test_a_touched_random_state_is_found(campaign, monkeypatch):
    monkeypatch.setattr(Campaign, "_one", lambda *_: mx.random.uniform())
    campaign.run(threads=1, requests=1)
    assert campaign.errors == ["AssertionError: the random state has changed"]
