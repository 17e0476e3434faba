"""The caches by themselves: what leaves first, what keys hold, and what an interruption leaves."""

import mlx.core as mx
import pytest

from jvlm_mlx.generation.caches import FeatureCache, LayerState, PrefixCache
from jvlm_mlx.generation.prompt import ImageSpan, PromptKey


def test_the_feature_cache_drops_the_least_recently_used():
    cache = FeatureCache(3 * 400)
    for name in "abc":
        cache.put("model", name, mx.zeros((10, 10)))
    assert cache.get("model", "a") is not None
    cache.put("model", "d", mx.zeros((10, 10)))
    assert [cache.get("model", name) is not None for name in "abcd"] == [True, False, True, True]
    assert cache.get("other", "a") is None
    cache.put("model", "huge", mx.zeros((100, 100)))
    cache.put("model", "d", mx.zeros((10, 10)))
    stats = cache.stats()
    assert (stats.entries, stats.nbytes, stats.evictions) == (3, 1200, 1)


def states(length):
    return [LayerState(mx.zeros((1, 1, length, 4)), mx.zeros((1, 1, length, 4)))]


def test_keys_hold_images_as_one_element():
    tokens = [1, 2, *[9] * 5, 3, *[9] * 5, *[9] * 4]
    spans = [ImageSpan(2, 5, "a"), ImageSpan(8, 5, "b"), ImageSpan(13, 4, "c")]
    key = PromptKey.of(tokens, spans)
    assert key.elements == (1, 2, "a", 3, "b", "c")
    assert key.num_tokens == len(tokens)
    for tokens_read, elements in ((0, 0), (2, 2), (6, 2), (7, 3), (12, 4), (13, 5), (99, 6)):
        assert len(key.within(tokens_read)) == elements
    assert key.extended([7, 7]).num_tokens == len(tokens) + 2


def test_prefixes_always_leave_something_to_prefill():
    cache = PrefixCache(10**6)
    key = PromptKey.of([1, 9, 9, 9], [ImageSpan(1, 3, "a")])
    cache.insert("model", key, states(4))
    found, layers = cache.fetch("model", key)
    assert found.elements == (1,)
    assert layers[0].keys.shape[2] >= found.num_tokens
    assert cache.fetch("other", key)[0].elements == ()
    longer = PromptKey.of([1, 9, 9, 9, 5, 6], [ImageSpan(1, 3, "a")])
    assert cache.fetch("model", longer)[0].elements == (1, "a")
    other = PromptKey.of([1, 9, 9, 9, 5, 6], [ImageSpan(1, 3, "b")])
    assert cache.fetch("model", other)[0].elements == (1,)


def test_a_cache_that_is_entered_again_stays_whole(monkeypatch):
    """A finalizer, which Python may run anywhere, asks for another prompt's prefix."""
    cache = PrefixCache(10**6)
    key, other = PromptKey.of([1, 2, 3], []), PromptKey.of([4, 5, 6], [])
    cache.insert("model", key, states(3))
    search = cache._prompts.fetch_nearest_cache

    def enter_again(*arguments):
        cache.insert("model", other, states(3))
        assert cache.fetch("model", key)[0].elements == ()
        return search(*arguments)

    monkeypatch.setattr(cache._prompts, "fetch_nearest_cache", enter_again)
    assert cache.fetch("model", key)[0].elements == (1, 2)
    assert cache.stats().entries == 1


def test_a_cache_that_is_interrupted_starts_again(monkeypatch):
    cache = PrefixCache(10**6)
    key = PromptKey.of([1, 2, 3], [])
    cache.insert("model", key, states(3))

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(cache._prompts._trie, "add", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cache.insert("model", key.extended([4]), states(4))
    assert (cache.nbytes, cache.stats().entries) == (0, 0)
    cache.insert("model", key, states(3))
    assert cache.fetch("model", key)[0].elements == (1, 2)


@pytest.mark.parametrize(("active", "entries"), [(800, 3), (1_000, 2), (1_400, 1), (9_000, 0)])
def test_caches_shrink_when_memory_runs_out(monkeypatch, active, entries):
    """The system recommends 1,000 bytes, of which 900 are used before anything must leave."""
    monkeypatch.setattr(mx, "device_info", lambda: {"max_recommended_working_set_size": 1_000})
    monkeypatch.setattr(mx, "get_active_memory", lambda: 0)
    features, prefixes = FeatureCache(10**6), PrefixCache(10**6)
    for number in range(3):
        if number == 2:
            monkeypatch.setattr(mx, "get_active_memory", lambda: active)
        features.put("model", str(number), mx.zeros((10, 10)))
        layer = LayerState(mx.zeros((1, 1, 10, 5)), mx.zeros((1, 1, 10, 5)))
        prefixes.insert("model", PromptKey.of([number] * 10, []), [layer])
    assert features.stats().entries == prefixes.stats().entries == entries


def test_prefixes_leave_in_order():
    entry = states(10)
    nbytes = sum(array.nbytes for array in entry[0])
    cache = PrefixCache(2 * nbytes)
    keys = [PromptKey.of([number] * 10, []) for number in (1, 2, 3)]
    for key in keys:
        cache.insert("model", key, entry)
    assert [len(cache.fetch("model", key)[0]) for key in keys] == [0, 9, 9]
    cache.insert("model", PromptKey.of([4] * 100, []), states(100))
    stats = cache.stats()
    assert (stats.entries, stats.nbytes, stats.evictions) == (2, 2 * nbytes, 1)
    # A longer prompt replaces its prefix.
    cache.insert("model", keys[1].extended([7]), entry)
    assert cache.stats().entries == 2
