"""Which rows come in which batch, and what is in it."""

import hashlib
from collections import Counter

import mlx.core as mx
import numpy as np
import pytest

from jvlm_mlx.errors import DataError, RequestError
from jvlm_mlx.training.data_loader import Batches
from jvlm_mlx.training.sampler import FixedPlan, SamplerConfig
from tests.helpers.training_rows import (
    SETTINGS,
    assert_same_batch,
    assistant,
    batches_of,
    image,
    image_row,
    plan_of,
    prepare,
    row,
    text,
    text_row,
    user,
    write_image,
    write_mixture,
    write_rows,
)

STEPS = 2000


@pytest.fixture(scope="module")
def processor(tiny):
    return tiny[1]


@pytest.fixture
def folder(tmp_path):
    write_image(tmp_path / "a.png")
    write_image(tmp_path / "wide.png", width=300, height=90, seed=1)
    return tmp_path


@pytest.fixture
def mixed(folder, processor):
    """Two sources of images, 3 to 1, and two of words, 1 to 2; rows of many lengths."""
    return prepare(
        write_mixture(
            folder,
            scenes=("captions", 3, [image_row(answer="a " * n) for n in range(1, 31)]),
            pages=("instructions", 1, [image_row("wide.png", "?" * n) for n in range(1, 14)]),
            little=("text", 0.5, [text_row(str(n)) for n in range(5)]),
            much=("text", 1.0, [text_row("long " * n) for n in range(1, 40)]),
        ),
        processor,
    )


@pytest.fixture
def single(folder, processor):
    """24 rows of one source."""
    rows = [image_row(answer="a " * n) for n in range(1, 25)]
    return prepare(write_rows(folder / "rows.jsonl", rows), processor)


def keys(plan, steps):
    return [tuple(map(tuple, plan.rows(step).tolist())) for step in steps]


@pytest.mark.parametrize("single_source", [False, True])
@pytest.mark.parametrize("seed", [0, 1])
def test_shares_are_those_asked_for(single_source, seed, mixed):
    config = {"text_share": 0.15, "single_source": single_source, "seed": seed}
    plan = plan_of(mixed, bucket_batches=8, **config)
    counts = Counter(source for step in range(STEPS) for source, _ in plan.rows(step).tolist())
    expected = [0.85 * 3 / 4, 0.85 / 4, 0.15 / 3, 0.15 * 2 / 3]
    for source, share in enumerate(expected):
        # A low-discrepancy sequence is within a few draws of any share, at any time.
        draws = STEPS if single_source else STEPS * SETTINGS["batch_size"]
        assert counts[source] / (STEPS * SETTINGS["batch_size"]) == pytest.approx(
            share, abs=5 / draws
        )


def test_shares_are_met_at_all_times(mixed):
    plan = plan_of(mixed, text_share=0.5, single_source=True, bucket_batches=1)
    sources = [int(plan.rows(step)[0, 0]) for step in range(300)]
    is_text = np.array([source >= 2 for source in sources])
    for start in range(0, 280):
        assert 8 <= np.count_nonzero(is_text[start : start + 20]) <= 12


def test_batches_of_a_single_source(mixed):
    plan = plan_of(mixed, text_share=0.15, single_source=True, bucket_batches=8)
    of_batches = [set(plan.rows(step)[:, 0].tolist()) for step in range(100)]
    assert all(len(sources) == 1 for sources in of_batches)
    assert set.union(*of_batches) == {0, 1, 2, 3}
    turns = [min(sources) for sources in of_batches]
    windows = [turns[start : start + 8] for start in range(0, 96, 8)]
    assert any(window != sorted(window) for window in windows)
    other = plan_of(mixed, text_share=0.15, single_source=True, bucket_batches=8, seed=1)
    assert sorted(turns[:8]) != sorted(int(other.rows(step)[0, 0]) for step in range(8))


def test_mixed_batches(mixed):
    plan = plan_of(mixed, text_share=0.15, single_source=False, bucket_batches=1)
    kinds = [len(set(plan.rows(step)[:, 0].tolist())) for step in range(50)]
    assert max(kinds) > 2
    assert np.mean(kinds) > 1.5


@pytest.mark.parametrize("single_source", [False, True])
@pytest.mark.parametrize("bucket_batches", [1, 2])
def test_every_row_comes_once_before_any_comes_again(single_source, bucket_batches, single):
    plan = plan_of(single, single_source=single_source, bucket_batches=bucket_batches)
    assert plan.steps_per_epoch == 6
    epochs = [keys(plan, range(start, start + 6)) for start in (0, 6, 12)]
    for epoch in epochs:
        assert sorted(row for batch in epoch for _, row in batch) == list(range(24))
    # Other rows come together in every epoch.
    assert len({frozenset(map(frozenset, epoch)) for epoch in epochs}) == 3


@pytest.mark.parametrize("single_source", [False, True])
@pytest.mark.parametrize("batch_size", [1, 2, 3, 8, 24])
@pytest.mark.parametrize("bucket_batches", [4, 5, 16])
def test_every_epoch_of_a_single_file_has_all_its_rows(
    single_source, batch_size, bucket_batches, single
):
    config = {
        "single_source": single_source, "batch_size": batch_size, "bucket_batches": bucket_batches
    }  # fmt: skip
    plan = plan_of(single, **config)
    length = plan.steps_per_epoch
    epochs = [keys(plan, range(start, start + length)) for start in range(0, 3 * length, length)]
    for epoch in epochs:
        assert sorted(row for batch in epoch for _, row in batch) == list(range(24))
    # From any step on, the batches are the same.
    everything = [batch for epoch in epochs for batch in epoch]
    for start in range(0, 3 * length, 5):
        assert keys(plan_of(single, **config), range(start, 3 * length)) == everything[start:]


def test_a_batch_at_the_end_of_an_epoch_is_filled_with_rows_of_the_next(single):
    plan = plan_of(single, batch_size=5, bucket_batches=3)
    assert plan.steps_per_epoch == 5
    for epochs in (1, 2, 7):
        steps = range(5 * epochs)
        counts = Counter(row for step in steps for row in plan.rows(step)[:, 1].tolist())
        assert sum(counts.values()) == 25 * epochs
        assert set(counts.values()) <= {epochs, epochs + 1}


def test_the_order_of_a_weighted_mixture_is_that_of_earlier_versions(mixed):
    """A demo model and begun runs depend on it."""
    plan = plan_of(mixed, text_share=0.15, bucket_batches=16, seed=3)
    found = hashlib.sha256(np.concatenate([plan.rows(step) for step in range(90)]).tobytes())
    assert found.hexdigest() == ("39e7798b8dd911f6c5cd5aee5746b9630deae9cd037fe284d6a5f519a3394dee")


def test_sources_smaller_than_a_draw_come_again(folder, processor):
    data = prepare(write_rows(folder / "rows.jsonl", [image_row(), image_row()]), processor)
    plan = plan_of(data, batch_size=5, bucket_batches=3)
    counts = Counter(row for step in range(3) for row in plan.rows(step)[:, 1].tolist())
    assert sorted(counts.values()) == [7, 8]
    assert plan.steps_per_epoch == 1


@pytest.mark.parametrize("single_source", [False, True])
def test_batches_depend_on_seed_and_step_alone(single_source, mixed):
    config = {"text_share": 0.15, "single_source": single_source, "bucket_batches": 3}
    expected = keys(plan_of(mixed, **config), range(40))
    assert keys(plan_of(mixed, **config), reversed(range(40))) == expected[::-1]
    assert keys(plan_of(mixed, **config), range(17, 40)) == expected[17:]
    one_by_one = [keys(plan_of(mixed, **config), [step])[0] for step in range(40)]
    assert one_by_one == expected
    assert keys(plan_of(mixed, seed=1, **config), range(40)) != expected
    far = 3_000_000
    assert keys(plan_of(mixed, **config), [far]) == keys(plan_of(mixed, **config), [far])


def test_rows_of_like_size_share_a_batch(mixed, folder, processor):
    def padding(bucket_batches):
        batches = batches_of(mixed, text_share=0.3, bucket_batches=bucket_batches)
        made = [batches[step] for step in range(48)]
        tokens = sum(batch.input_ids.size - batch.num_tokens for batch in made)
        tiles = sum(
            batch.image_input_idx.shape[0] * batch.image_input_idx.shape[1]
            - np.count_nonzero((batch.image_input_idx >= 0).any(axis=2))
            for batch in made
            if batch.image_input_idx is not None
        )
        return tokens, tiles

    tokens, tiles = padding(1)
    tokens_bucketed, tiles_bucketed = padding(16)
    assert tokens_bucketed < tokens / 4
    assert tiles_bucketed < tiles / 4


def test_fixed_order(mixed):
    plan = FixedPlan(mixed, 4, 2)
    everything = keys(plan, range(plan.steps_per_epoch))
    assert keys(FixedPlan(mixed, 4, 2), range(plan.steps_per_epoch)) == everything
    rows = [row for batch in everything for row in batch]
    expected = [
        (number, place)
        for number, source in enumerate(mixed.sources)
        for place in range(len(source.rows))
    ]
    assert sorted(rows) == expected
    for start in range(0, len(rows), 8):
        assert sorted(rows[start : start + 8]) == expected[start : start + 8]
    with pytest.raises(IndexError):
        plan.rows(plan.steps_per_epoch)
    assert keys(FixedPlan(mixed, 1, 1), range(len(rows))) == [(one,) for one in expected]


def test_text_share_must_fit_the_sources(mixed, single, folder, processor):
    words = prepare(write_rows(folder / "words.jsonl", [text_row()]), processor)
    plan_of(words, text_share=1.0)
    plan_of(single, text_share=0.0)
    for data, share, line in (
        (single, 0.15, "no source has rows without images"),
        (mixed, 0.0, "rows without images that would never be used"),
        (mixed, 1.0, "rows with images that would never be used"),
        (words, 0.15, "no source has images"),
    ):
        with pytest.raises(DataError, match=f"text_share is .*{line}"):
            plan_of(data, text_share=share)


@pytest.mark.parametrize(
    "wrong",
    [{"batch_size": 0}, {"bucket_batches": 0}, {"seed": -1}, {"text_share": 1.5}],
    ids=str,
)
def test_settings_out_of_range(wrong):
    with pytest.raises(RequestError, match=next(iter(wrong))):
        SamplerConfig(**SETTINGS | wrong)


def test_other_numbers_out_of_range(single):
    with pytest.raises(RequestError, match="pad_to_multiple 0"):
        batches_of(single, pad_to_multiple=0)
    with pytest.raises(RequestError, match="cache_bytes -1"):
        batches_of(single, cache_bytes=-1)
    with pytest.raises(RequestError, match="ahead 0"):
        batches_of(single).prefetch(0, 1, ahead=0)
    with pytest.raises(IndexError):
        batches_of(single)[-1]


@pytest.fixture
def different(folder, processor):
    """Four rows in one batch: no image, one, two, and two turns."""
    rows = [
        text_row(),
        image_row("wide.png"),
        row(user(image(), image("wide.png"), text("Which?")), assistant("the first")),
        row(user(image(), text("What?")), assistant("a"), user("Sure?"), assistant("yes")),
    ]
    data = prepare(write_rows(folder / "rows.jsonl", rows), processor)
    return data, Batches(data, FixedPlan(data, 4, 1), pad_to_multiple=64, cache_bytes=0)[0]


def test_shapes_of_a_batch(different):
    data, batch = different
    lengths = sorted(row.length for source in data.sources for row in source.rows)
    assert batch.input_ids.shape == (4, -(-lengths[-1] // 64) * 64)
    assert batch.input_ids.dtype == batch.labels.dtype == np.int32
    assert batch.pixel_values.dtype == np.float32
    assert batch.image_masks.shape == batch.pixel_values.shape[:3]
    assert batch.image_input_idx.dtype == np.int32
    assert batch.num_tokens == sum(lengths)
    assert batch.num_targets == np.count_nonzero(batch.loss_mask)
    np.testing.assert_array_equal(batch.loss_mask, batch.labels >= 0)
    assert not batch.loss_mask[:, 0].any()
    padding_token = data.processor.tokenizer.bos_token_id
    for ids, mask, length in zip(batch.input_ids, batch.loss_mask, lengths, strict=True):
        assert np.all(ids[length:] == padding_token)
        assert not mask[length:].any()
    patch = data.processor.tokenizer.image_token_ids.patch
    for ids, positions in zip(batch.input_ids, batch.image_input_idx, strict=True):
        np.testing.assert_array_equal(
            np.sort(positions[positions >= 0]), np.flatnonzero(ids == patch)
        )


def test_rows_of_a_batch_are_computed_as_in_generation(different, tiny):
    data, batch = different
    model, processor = tiny
    logits = np.array(
        model(
            batch.input_ids,
            pixel_values=batch.pixel_values,
            image_masks=batch.image_masks,
            image_input_idx=batch.image_input_idx,
        ).astype(mx.float32)
    )
    asked = [
        [user("How are you?")],
        [user(image("a.png"), text("What?")), assistant("a"), user("Sure?")],
        [user(image("wide.png"), text("What color?"))],
        [user(image("a.png"), image("wide.png"), text("Which?"))],
    ]
    folder = data.sources[0].path.parent
    for place, messages in enumerate(asked):
        for message in messages:
            for part in message["content"]:
                if isinstance(part, dict) and "path" in part:
                    part["path"] = str(folder / part["path"])
        alone = np.array(model(**processor.from_messages(messages)).astype(mx.float32))[0]
        # Sums over other shapes are rounded otherwise.
        np.testing.assert_allclose(logits[place, : len(alone)], alone, atol=1e-3, rtol=1e-3)
        assert batch.loss_mask[place, len(alone)]
        assert not batch.loss_mask[place, len(alone) - 1]


def test_batch_without_images(folder, processor):
    data = prepare(write_rows(folder / "words.jsonl", [text_row()] * 3), processor)
    batch = batches_of(data, text_share=1.0)[0]
    assert batch.pixel_values is batch.image_masks is batch.image_input_idx is None
    assert batch.sources == ("words",) * 4


def test_images_are_kept_up_to_a_limit(mixed, folder):
    plain = batches_of(mixed, text_share=0.15)
    expected = [plain[step] for step in range(20)]
    kept = batches_of(mixed, text_share=0.15, cache_bytes=2**24)
    for _ in range(2):
        for step, batch in enumerate(expected):
            assert_same_batch(kept[step], batch)
    config = mixed.processor.image_processor.config
    bytes_of_tile = 4 * config.patch_grid[0] * config.patch_grid[1] * config.patch_values
    small, large = (source.rows[0].num_tiles * bytes_of_tile for source in mixed.sources[:2])
    assert small < large
    assert kept.bytes_kept == small + large
    room = batches_of(mixed, text_share=0.15, cache_bytes=large)
    for step in range(20):
        room[step]
    assert 0 < room.bytes_kept <= large
    for file in folder.glob("*.png"):
        file.unlink()
    assert_same_batch(kept[3], expected[3])
    with pytest.raises(DataError, match="cannot be opened"):
        plain[3]
