"""Learning rates by part, weight decay, clipping: what one step does to the weights."""

import mlx.core as mx
import numpy as np
import pytest

from jvlm_mlx import RequestError
from jvlm_mlx.training.modules import decays, part_of
from jvlm_mlx.training.optimizer import PartOptimizer, gradient_norm
from jvlm_mlx.training.schedule import learning_rate
from tests.helpers.training_case import make_config, part


def test_warm_up_is_a_straight_line_that_ends_at_the_highest_rate():
    config = part(learning_rate=1.0, warmup_steps=4, decay="constant")
    rates = [learning_rate(config, step, 10) for step in range(6)]
    assert rates == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("decay", "middle"), [("cosine", 0.1 + 0.9 * 0.5), ("linear", 0.55), ("constant", 1.0)]
)
def test_decay_ends_at_the_floor(decay, middle):
    config = part(learning_rate=2.0, warmup_steps=2, decay=decay, floor=0.1)
    rates = [learning_rate(config, step, 13) for step in range(13)]
    assert rates[2] == 2.0
    assert rates[7] == pytest.approx(2 * middle)  # half of the ten steps after the warm-up
    assert rates[12] == pytest.approx(2.0 if decay == "constant" else 0.2)
    assert rates[2:] == sorted(rates[2:], reverse=True)


def test_a_warm_up_as_long_as_the_run_is_no_error():
    config = part(learning_rate=1.0, warmup_steps=5, decay="cosine")
    assert learning_rate(config, 4, 5) == 1.0


@pytest.mark.parametrize(
    ("path", "owner"),
    [
        ("vision_tower.position_embedding", "vision_tower"),
        ("connector.pad_embed", "connector"),
        ("decoder.embedding.weight", "decoder"),
        ("lm_head.weight", "decoder"),
    ],
)
def test_embeddings_and_head_belong_to_the_decoder(path, owner):
    assert part_of(path) == owner


def test_only_matrices_of_layers_decay(tiny):
    from mlx.utils import tree_flatten

    model, _ = tiny
    decayed = {path for path, array in tree_flatten(model.parameters()) if decays(path, array.ndim)}
    matrices = {
        f"{path}.weight"
        for path, module in model.named_modules()
        if type(module).__name__ == "Linear"
    }
    assert decayed == matrices
    assert decays("decoder.layers.0.mlp.up.lora_a", 2)
    assert not decays("decoder.layers.0.mlp.up.m", 1)


PATHS = {
    "vision_tower.layers.0.mlp.up.weight": (3, 2),
    "connector.pooling.q.bias": (3,),
    "decoder.layers.0.mlp.up.weight": (2, 2),
    "decoder.norm.weight": (2,),
}


def random_arrays(seed):
    generator = np.random.default_rng(seed)
    return {path: generator.standard_normal(shape) for path, shape in PATHS.items()}


def as_mlx(arrays):
    return {path: mx.array(array.astype(np.float32)) for path, array in arrays.items()}


def test_steps_equal_adamw_by_its_definition():
    config = make_config(
        vision_tower=part(learning_rate=1e-3, warmup_steps=3),
        connector=part(learning_rate=1e-2, warmup_steps=1),
        decoder=part(learning_rate=2e-3, warmup_steps=0),
        weight_decay=0.1,
        betas=(0.8, 0.9),
        eps=1e-3,
    )
    weights = random_arrays(0)
    parameters = as_mlx(weights)
    optimizer = PartOptimizer(config, parameters)
    first = {path: np.zeros(shape) for path, shape in PATHS.items()}
    second = {path: np.zeros(shape) for path, shape in PATHS.items()}
    for step in range(4):
        gradients = random_arrays(step + 1)
        rates = optimizer.set_learning_rates(step)
        parameters = optimizer.apply(as_mlx(gradients), parameters)
        assert rates["vision_tower"] == pytest.approx(1e-3 * min(1, (step + 1) / 3))
        for path, gradient in gradients.items():
            rate = rates[part_of(path)]
            decay = 0.1 if path.endswith("up.weight") else 0.0
            first[path] = 0.8 * first[path] + 0.2 * gradient
            second[path] = 0.9 * second[path] + 0.1 * gradient**2
            mean = first[path] / (1 - 0.8 ** (step + 1))
            square = second[path] / (1 - 0.9 ** (step + 1))
            weights[path] = weights[path] * (1 - rate * decay) - rate * mean / (
                np.sqrt(square) + 1e-3
            )
    for path, expected in weights.items():
        # Four steps in float32.
        np.testing.assert_allclose(np.array(parameters[path]), expected, atol=1e-6, err_msg=path)


def test_the_state_goes_on_where_it_was_saved():
    parameters = as_mlx(random_arrays(0))
    one, other = (PartOptimizer(make_config(), parameters) for _ in range(2))
    for step in range(2):
        one.set_learning_rates(step)
        parameters = one.apply(as_mlx(random_arrays(step + 1)), parameters)
    other.load(one.arrays())
    results = []
    for optimizer in (one, other):
        optimizer.set_learning_rates(2)
        results.append(optimizer.apply(as_mlx(random_arrays(9)), parameters))
    for path in PATHS:
        assert mx.array_equal(results[0][path], results[1][path])


def test_a_state_of_other_parameters_is_refused():
    parameters = as_mlx(random_arrays(0))
    optimizer = PartOptimizer(make_config(), parameters)
    arrays = optimizer.arrays()
    with pytest.raises(ValueError, match=r"decoder\.norm\.weight\.m: expected \(2,\), found"):
        optimizer.load(arrays | {"decoder.norm.weight.m": mx.zeros((3,))})


def test_the_norm_is_over_all_parts():
    gradients = as_mlx(random_arrays(1))
    everything = np.concatenate([np.array(array).ravel() for array in gradients.values()])
    expected = np.linalg.norm(everything)
    assert gradient_norm(gradients).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"connector": part(learning_rate=0.0)}, "connector: learning rate 0.0 must be above 0"),
        ({"decoder": part(warmup_steps=-1)}, "decoder: -1 warm-up steps"),
        ({"decoder": part(decay="exponential")}, "decay exponential is not one of cosine"),
        ({"vision_tower": part(floor=1.5)}, "vision_tower: floor 1.5"),
        ({"steps": 0}, "steps 0 must be at least 1"),
        ({"accumulate": 0}, "accumulate 0 must be at least 1"),
        ({"dtype": "float16"}, "dtype float16 is not one of float32, bfloat16"),
        ({"betas": (0.9, 1.0)}, "betas"),
        ({"max_grad_norm": -1.0}, "max_grad_norm -1.0 must be above 0"),
        (
            {name: part(trainable=False) for name in ("vision_tower", "connector", "decoder")},
            "every part is frozen",
        ),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes, message):
    with pytest.raises(RequestError, match=message):
        make_config(**changes)
