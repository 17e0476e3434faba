"""The loss and its gradients: compared with differences, with one another, and with rules."""

import dataclasses

import mlx.core as mx
import numpy as np
import pytest

import jvlm_mlx
from jvlm_mlx import RequestError
from jvlm_mlx.training import loss as loss_module
from jvlm_mlx.training.loss import loss_sum, prepare
from tests.helpers.training_case import joined, make_loader, write_examples
from tests.helpers.training_case import make_trainer as new_trainer


@pytest.fixture(scope="module")
def loader(golden_folder, tmp_path_factory):
    _, processor = jvlm_mlx.load(golden_folder / "tiny")
    file = write_examples(tmp_path_factory.mktemp("examples"))
    # A seed whose first batch has examples with images and without.
    return make_loader(file, processor, text_fraction=0.5)


@pytest.fixture(scope="module")
def batch(loader):
    """Images and texts, with some patches that are padding."""
    batch = loader[0]
    assert batch.pixel_values is not None
    masks = batch.image_masks.copy()
    masks[:, 0, :20] = 0
    return dataclasses.replace(batch, image_masks=masks)


@pytest.fixture
def make_trainer(golden_folder):
    def make(folder=golden_folder / "tiny", **changes):
        return new_trainer(folder, **changes)[0]

    return make


def gradients_of(trainer, *batches):
    loss, gradients = trainer.gradients([prepare(trainer.model, batch) for batch in batches], 0)
    mx.eval(loss, gradients)
    return loss.item(), gradients


def assert_close(found, expected, tolerance):
    """Relative to the largest gradient of each parameter."""
    assert found.keys() == expected.keys()
    for path, array in expected.items():
        scale = float(mx.max(mx.abs(array))) + 1e-6
        difference = float(mx.max(mx.abs(found[path] - array)))
        assert difference <= tolerance * scale, path


DIFFERENTIATED = (
    "vision_tower.position_embedding",
    "vision_tower.patch_embedding.weight",
    "vision_tower.patch_embedding.bias",
    "vision_tower.layers.0.attention_norm.weight",
    "vision_tower.layers.0.attention_norm.bias",
    "vision_tower.layers.0.attention.qkv.weight",
    "vision_tower.layers.0.attention.qkv.bias",
    "vision_tower.layers.0.attention.out.weight",
    "vision_tower.layers.0.attention.out.bias",
    "vision_tower.layers.0.mlp_norm.weight",
    "vision_tower.layers.0.mlp.up.weight",
    "vision_tower.layers.0.mlp.up.bias",
    "vision_tower.layers.7.mlp.down.weight",
    "vision_tower.layers.7.mlp.down.bias",
    "connector.pad_embed",
    "connector.pooling.q.weight",
    "connector.pooling.q.bias",
    "connector.pooling.kv.weight",
    "connector.pooling.kv.bias",
    "connector.pooling.out.weight",
    "connector.pooling.out.bias",
    "connector.projector.up.weight",
    "connector.projector.down.weight",
    "decoder.embedding.weight",
    "decoder.layers.0.attention_norm.weight",
    "decoder.layers.0.attention.qkv.weight",
    "decoder.layers.0.attention.q_norm.weight",
    "decoder.layers.0.attention.k_norm.weight",
    "decoder.layers.0.attention.out.weight",
    "decoder.layers.0.mlp_norm.weight",
    "decoder.layers.2.mlp.up.weight",
    "decoder.layers.2.mlp.down.weight",
    "decoder.norm.weight",
    "lm_head.weight",
)


@pytest.fixture(scope="module")
def differentiated(golden_folder, batch):
    trainer, _ = new_trainer(golden_folder / "tiny")
    _, gradients = gradients_of(trainer, batch)
    return trainer, gradients


def slope(trainer, inputs, path, direction, size):
    """Change of the mean loss along a direction, from a step to either side."""
    losses = []
    for sign in (1, -1):
        changed = {path: trainer.parameters[path] + sign * size * direction}
        value = trainer._loss(
            trainer.parameters | changed, inputs, mx.array(1 / len(inputs["targets"])), None
        )
        losses.append(value.item())
    trainer.restore_parameters()
    return (losses[0] - losses[1]) / (2 * size)


@pytest.mark.parametrize("path", DIFFERENTIATED)
def test_gradients_equal_differences(differentiated, batch, path):
    trainer, gradients = differentiated
    inputs = prepare(trainer.model, batch)
    gradient = gradients[path]
    length = float(mx.linalg.norm(gradient))
    assert length > 1e-4, "a gradient of nothing would show nothing"
    # Downhill the loss changes fastest, and by the gradient's length. The step changes it by
    # about 0.02: enough beside rounding of 1e-6, little enough for curvature.
    along = gradient / length
    found = slope(trainer, inputs, path, along, min(0.01 / length, 0.02))
    assert found == pytest.approx(length, rel=0.02)
    # Across, so that no part of the gradient is missing: a random direction, mixed with it.
    random = mx.random.normal(gradient.shape, key=mx.random.key(1))
    across = along + random / mx.linalg.norm(random)
    expected = float(mx.sum(gradient * across))
    found = slope(trainer, inputs, path, across, min(0.01 / length, 0.02))
    assert found == pytest.approx(expected, rel=0.03)


def test_both_embedding_tables_and_both_padding_vectors_learn(differentiated):
    _, gradients = differentiated
    rows = mx.linalg.norm(gradients["decoder.embedding.weight"], axis=-1)
    vocabulary = differentiated[0].model.config.decoder.embedding_size
    assert mx.sum(rows[:vocabulary] > 0).item() > 5
    assert mx.sum(rows[vocabulary:] > 0).item() > 1
    assert mx.all(mx.linalg.norm(gradients["connector.pad_embed"], axis=-1) > 0).item()


def test_a_tied_head_adds_to_the_gradient_of_the_table(make_trainer, tmp_path, batch):
    from tests.helpers.converting import write_grouped

    trainer = make_trainer(write_grouped(tmp_path / "tied", tied=True))
    assert "lm_head.weight" not in trainer.parameters
    inputs = prepare(trainer.model, batch)
    path = "decoder.embedding.weight"
    _, gradients = gradients_of(trainer, batch)
    # Rows of tokens that are not read get their gradient from the head alone.
    unread = np.setdiff1d(np.arange(500), batch.input_ids)
    direction = mx.zeros_like(gradients[path])
    direction[mx.array(unread)] = gradients[path][mx.array(unread)]
    length = float(mx.linalg.norm(direction))
    assert length > 1e-2
    found = slope(trainer, inputs, path, direction / length, min(0.01 / length, 0.05))
    assert found == pytest.approx(length, rel=0.02)  # curvature and rounding, as above


def test_only_targets_count(make_trainer, batch):
    """The loss is the mean over labels, worked out from all logits."""
    trainer = make_trainer()
    loss, _ = gradients_of(trainer, batch)
    losses = []
    for row in range(len(batch.input_ids)):
        length = np.flatnonzero(batch.loss_mask[row])[-1] + 1
        logits = trainer.model(
            batch.input_ids[row : row + 1, :length],
            pixel_values=batch.pixel_values[row : row + 1],
            image_masks=batch.image_masks[row : row + 1],
            image_input_idx=batch.image_input_idx[row : row + 1],
        )
        logits = np.array(logits[0]).astype(np.float64)
        for place in np.flatnonzero(batch.loss_mask[row]):
            scores = logits[place - 1]
            losses.append(np.log(np.exp(scores).sum()) - scores[batch.labels[row, place]])
    assert len(losses) == batch.num_targets
    # Different kernels in float32, sums of hundreds of numbers.
    assert loss == pytest.approx(np.mean(losses), rel=1e-5)


def test_labels_may_differ_from_what_is_read_next(make_trainer, batch):
    trainer = make_trainer()
    labels = batch.labels.copy()
    row, place = np.argwhere(batch.loss_mask)[0]
    labels[row, place] = (labels[row, place] + 1) % 500
    inputs = prepare(trainer.model, dataclasses.replace(batch, labels=labels))
    position = row * labels.shape[1] + place - 1
    target = inputs["targets"][np.flatnonzero(np.array(inputs["positions"]) == position)[0]]
    assert target.item() == labels[row, place] != batch.input_ids[row, place]


def test_padding_behind_an_example_changes_nothing(make_trainer, loader):
    trainer = make_trainer()
    batch = loader[0]
    padded = dataclasses.replace(
        batch,
        input_ids=np.pad(batch.input_ids, ((0, 0), (0, 9)), constant_values=7),
        labels=np.pad(batch.labels, ((0, 0), (0, 9)), constant_values=-1),
        loss_mask=np.pad(batch.loss_mask, ((0, 0), (0, 9))),
    )
    loss, gradients = gradients_of(trainer, batch)
    padded_loss, padded_gradients = gradients_of(trainer, padded)
    assert padded_loss == pytest.approx(loss, rel=1e-6)  # another order of the same sums
    assert_close(padded_gradients, gradients, 1e-4)


def test_logits_in_chunks_give_the_same(make_trainer, batch, monkeypatch):
    trainer = make_trainer()
    loss, gradients = gradients_of(trainer, batch)
    monkeypatch.setattr(loss_module, "MAX_LOGITS", 3 * 512)
    chunk_loss, chunk_gradients = gradients_of(trainer, batch)
    assert chunk_loss == pytest.approx(loss, rel=1e-6)  # another order of the same sums
    assert_close(chunk_gradients, gradients, 1e-4)


def test_accumulation_equals_one_large_batch(make_trainer, batch, loader):
    trainer = make_trainer()
    # Examples with different numbers of targets: a mean of means would be another number.
    examples = [cut(batch, slice(row, row + 1)) for row in range(3)]
    assert len({row.num_targets for row in examples}) > 1
    loss, gradients = gradients_of(trainer, joined(examples))
    separate_loss, separate_gradients = gradients_of(trainer, *examples)
    assert separate_loss == pytest.approx(loss, rel=1e-6)  # another order of the same sums
    assert_close(separate_gradients, gradients, 1e-4)


def cut(batch, rows):
    cut = {
        field.name: getattr(batch, field.name)[rows]
        for field in dataclasses.fields(batch)
        if isinstance(getattr(batch, field.name), np.ndarray)
    }
    return dataclasses.replace(batch, **cut, num_targets=int(cut["loss_mask"].sum()))


def test_gradient_checkpointing_changes_nothing_but_memory(make_trainer, batch):
    loss, gradients = gradients_of(make_trainer(), batch)
    trainer = make_trainer(grad_checkpoint=True)
    layer = type(trainer.model.decoder.layers[0])
    again_loss, again_gradients = gradients_of(trainer, batch)
    assert again_loss == pytest.approx(loss, rel=1e-6)
    assert_close(again_gradients, gradients, 1e-5)  # sums of gradients in another order
    # The layers are themselves again.
    assert type(trainer.model.decoder.layers[0]) is layer


def test_compiled_batches_give_the_same(make_trainer, loader):
    plain, compiled = make_trainer(), make_trainer(compile=True)
    for number in range(2):
        batch = loader[number]
        loss, gradients = gradients_of(plain, batch)
        compiled_loss, compiled_gradients = gradients_of(compiled, batch)
        assert compiled_loss == pytest.approx(loss, rel=1e-6)
        assert_close(compiled_gradients, gradients, 1e-4)  # fused kernels round less often


def test_bfloat16_keeps_float32_weights(make_trainer, batch):
    loss, gradients = gradients_of(make_trainer(), batch)
    trainer = make_trainer(dtype="bfloat16")
    assert trainer.model.dtype == mx.bfloat16
    half_loss, half_gradients = gradients_of(trainer, batch)
    assert {array.dtype for array in half_gradients.values()} == {mx.float32}
    # Eight bits of each number through eleven layers.
    assert half_loss == pytest.approx(loss, rel=0.02)
    path = "lm_head.weight"
    cosine = mx.sum(half_gradients[path] * gradients[path]) / (
        mx.linalg.norm(half_gradients[path]) * mx.linalg.norm(gradients[path])
    )
    assert cosine.item() > 0.99
    before = trainer.parameters[path]
    trainer.step([prepare(trainer.model, batch)], 0)
    assert trainer.parameters[path].dtype == mx.float32
    # A change that bfloat16 weights would not keep.
    change = mx.max(mx.abs(trainer.parameters[path] - before)).item()
    assert 0 < change < 2e-3


def test_outputs_are_as_before_after_gradients(make_trainer, batch):
    trainer = make_trainer()
    inputs = prepare(trainer.model, batch)
    before = loss_sum(trainer.model, inputs).item()
    gradients_of(trainer, batch)
    assert not trainer.model.training
    assert loss_sum(trainer.model, inputs).item() == before


def test_an_added_token_cannot_be_an_answer(make_trainer, batch):
    trainer = make_trainer()
    labels = np.where(batch.loss_mask, 515, batch.labels)
    with pytest.raises(RequestError, match=r"token 515 cannot be an answer.*0 to 511"):
        prepare(trainer.model, dataclasses.replace(batch, labels=labels))


def test_a_batch_without_targets_is_refused(make_trainer, batch):
    trainer = make_trainer()
    nothing = dataclasses.replace(batch, loss_mask=np.zeros_like(batch.loss_mask))
    with pytest.raises(RequestError, match="no token to learn"):
        prepare(trainer.model, nothing)
