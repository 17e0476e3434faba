"""Which examples come in which batch."""

from collections import Counter

import numpy as np
import pytest

from jvlm_mlx.errors import DataError
from jvlm_mlx.training.sampler import ordered_batches
from tests.helpers.training_examples import (
    config_of,
    image_example,
    prepare,
    sampler_of,
    text_example,
    write_examples,
    write_mixture,
)

BATCHES = 2000


@pytest.fixture
def both(folder, processor):
    """One file with 16 examples with images and 8 without."""
    examples = [image_example(answer="a " * n) for n in range(1, 17)]
    examples += [text_example("b " * n) for n in range(1, 9)]
    return prepare(write_examples(folder / "both.jsonl", examples), processor)


def batches(sampler, numbers):
    return [tuple(sampler[number].tolist()) for number in numbers]


def sources_of(data, indices):
    return [data.examples[index].source for index in indices]


@pytest.mark.parametrize("single_source", [False, True])
@pytest.mark.parametrize("seed", [0, 1])
def test_fractions_are_those_asked_for(single_source, seed, mixed):
    sampler = sampler_of(
        mixed, text_fraction=0.15, single_source=single_source, seed=seed, bucket_batches=8
    )
    counts = Counter(
        source for number in range(BATCHES) for source in sources_of(mixed, sampler[number])
    )
    expected = [0.85 * 3 / 4, 0.85 / 4, 0.15 / 3, 0.15 * 2 / 3]
    for source, fraction in enumerate(expected):
        found = counts[source] / (BATCHES * 4)
        # Counts of an epoch are off by less than a draw, up or down at random, in 90 epochs.
        draws = 22 if single_source else 88
        assert found == pytest.approx(fraction, abs=4 * 0.5 / draws / np.sqrt(BATCHES / 22))


def test_every_epoch_has_all_fractions(mixed):
    sampler = sampler_of(mixed, text_fraction=0.5)
    length = sampler.batches_per_epoch
    for epoch in range(20):
        numbers = range(epoch * length, (epoch + 1) * length)
        counts = Counter(s for number in numbers for s in sources_of(mixed, sampler[number]))
        draws = length * 4
        for source, fraction in enumerate([0.375, 0.125, 1 / 6, 1 / 3]):
            assert abs(counts[source] - fraction * draws) < 1


def test_a_source_of_little_weight_comes_in_its_turn(folder, processor):
    data = prepare(
        write_mixture(
            folder,
            often=("captions", 99, [image_example()] * 3),
            rarely=("captions", 1, [image_example(answer="b")]),
        ),
        processor,
    )
    sampler = sampler_of(data, batch_size=2, bucket_batches=1)
    counts = Counter(s for number in range(2000) for s in sources_of(data, sampler[number]))
    assert 20 <= counts[1] <= 60


def test_batches_of_a_single_source(mixed):
    options = {"text_fraction": 0.15, "single_source": True, "bucket_batches": 8}
    sampler = sampler_of(mixed, **options)
    of_batches = [set(sources_of(mixed, sampler[number])) for number in range(100)]
    assert all(len(sources) == 1 for sources in of_batches)
    assert set.union(*of_batches) == {0, 1, 2, 3}
    turns = [min(sources) for sources in of_batches]
    assert turns[:22] != sorted(turns[:22])
    other = sampler_of(mixed, **options, seed=1)
    assert turns[:22] != [sources_of(mixed, other[number])[0] for number in range(22)]


def test_single_source_batches_come_first(mixed):
    sampler = sampler_of(
        mixed, text_fraction=0.5, single_source_iters=15, grad_accumulation_steps=2
    )
    kinds = [len(set(sources_of(mixed, sampler[number]))) for number in range(60)]
    assert set(kinds[:30]) == {1}
    assert np.mean(kinds[30:]) > 1.5


def test_mixed_batches(mixed):
    sampler = sampler_of(mixed, text_fraction=0.15, bucket_batches=1)
    kinds = [len(set(sources_of(mixed, sampler[number]))) for number in range(50)]
    assert max(kinds) > 2
    assert np.mean(kinds) > 1.5


@pytest.mark.parametrize("single_source", [False, True])
@pytest.mark.parametrize(
    ("batch_size", "bucket_batches"), [(1, 4), (2, 5), (3, 16), (4, 1), (4, 2), (8, 5), (24, 4)]
)
def test_every_epoch_of_a_single_file_has_all_its_examples(
    single_source, batch_size, bucket_batches, single
):
    options = {
        "single_source": single_source, "batch_size": batch_size, "bucket_batches": bucket_batches
    }  # fmt: skip
    sampler = sampler_of(single, **options)
    length = sampler.batches_per_epoch
    assert length == 24 // batch_size
    epochs = [
        batches(sampler, range(start, start + length)) for start in range(0, 3 * length, length)
    ]
    for epoch in epochs:
        assert sorted(index for batch in epoch for index in batch) == list(range(24))
    if batch_size > 1 and batch_size * bucket_batches < 24:
        # Other examples come together in every epoch, unless all are sorted by length.
        assert len({frozenset(map(frozenset, epoch)) for epoch in epochs}) == 3
    # From any batch on, the batches are the same.
    everything = [batch for epoch in epochs for batch in epoch]
    for start in range(0, 3 * length, 5):
        assert (
            batches(sampler_of(single, **options), range(start, 3 * length)) == (everything[start:])
        )


def test_every_epoch_of_a_file_of_both_kinds_has_all_its_examples(both):
    sampler = sampler_of(both)
    for start in (0, 6, 12):
        found = [index for number in range(start, start + 6) for index in sampler[number]]
        assert sorted(found) == list(range(24))


def test_a_file_of_both_kinds_can_be_drawn_by_fraction_or_apart(both):
    counts = Counter(
        bool(both.examples[index].images)
        for number in range(60)
        for index in sampler_of(both, text_fraction=0.5)[number]
    )
    assert counts[True] == pytest.approx(120, abs=10)
    sampler = sampler_of(both, single_source=True)
    for number in range(30):
        assert len({bool(both.examples[index].images) for index in sampler[number]}) == 1


def test_a_batch_at_the_end_of_an_epoch_is_filled_with_examples_of_the_next(single):
    sampler = sampler_of(single, batch_size=5, bucket_batches=3)
    assert sampler.batches_per_epoch == 5
    for epochs in (1, 2, 7):
        counts = Counter(i for number in range(5 * epochs) for i in sampler[number].tolist())
        assert sum(counts.values()) == 25 * epochs
        assert set(counts.values()) <= {epochs, epochs + 1}


def test_sources_smaller_than_a_batch_come_again(folder, processor):
    examples = [image_example(), image_example()]
    data = prepare(write_examples(folder / "two.jsonl", examples), processor)
    sampler = sampler_of(data, batch_size=5, bucket_batches=3)
    counts = Counter(index for number in range(3) for index in sampler[number].tolist())
    assert sorted(counts.values()) == [7, 8]
    assert sampler.batches_per_epoch == 1


@pytest.mark.parametrize("single_source", [False, True])
def test_batches_depend_on_seed_and_number_alone(single_source, mixed):
    options = {"text_fraction": 0.15, "single_source": single_source, "bucket_batches": 3}
    expected = batches(sampler_of(mixed, **options), range(40))
    assert batches(sampler_of(mixed, **options), reversed(range(40))) == expected[::-1]
    assert batches(sampler_of(mixed, **options), range(17, 40)) == expected[17:]
    one_by_one = [batches(sampler_of(mixed, **options), [number])[0] for number in range(40)]
    assert one_by_one == expected
    assert batches(sampler_of(mixed, seed=1, **options), range(40)) != expected
    far = 3_000_000
    assert batches(sampler_of(mixed, **options), [far]) == (
        batches(sampler_of(mixed, **options), [far])
    )
    with pytest.raises(IndexError):
        sampler_of(mixed, **options)[-1]


def test_ordered_batches(mixed):
    config = config_of(batch_size=4, bucket_batches=2)
    everything = [batch.tolist() for batch in ordered_batches(mixed, config)]
    assert everything == [batch.tolist() for batch in ordered_batches(mixed, config)]
    indices = [index for batch in everything for index in batch]
    assert sorted(indices) == list(range(len(mixed.examples)))
    for start in range(0, len(indices), 8):
        assert sorted(indices[start : start + 8]) == list(
            range(start, min(start + 8, len(indices)))
        )
    one_by_one = ordered_batches(mixed, config_of(batch_size=1, bucket_batches=1))
    assert [batch.tolist() for batch in one_by_one] == [[index] for index in range(len(indices))]


def test_text_fraction_must_fit_the_sources(mixed, single, both, folder, processor):
    texts = prepare(write_examples(folder / "texts.jsonl", [text_example()]), processor)
    sampler_of(texts, text_fraction=1.0)
    sampler_of(single, text_fraction=0.0)
    for data, fraction, line in (
        (single, 0.15, "no source has examples without images"),
        (mixed, 0.0, "examples without images that would never be used"),
        (both, 0.0, "examples without images that would never be used"),
        (mixed, 1.0, "examples with images that would never be used"),
        (texts, 0.15, "no source has images"),
    ):
        with pytest.raises(DataError, match=f"text_fraction is .*{line}"):
            sampler_of(data, text_fraction=fraction)
