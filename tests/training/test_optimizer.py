"""Learning rates by module, weight decay, clipping: what one step does to the weights."""

import mlx.core as mx
import numpy as np
import pytest

from jvlm_mlx.errors import RequestError
from jvlm_mlx.training import TrainingConfig
from jvlm_mlx.training.optimizer import ModuleOptimizer, schedule
from jvlm_mlx.training.training_config import MODULES, Rates, decays, module_of
from tests.helpers.training_case import make_config


def rates_of(rates, iters, count):
    """Learning rates of the first iterations, as the optimizer computes them."""
    function = schedule(rates, iters)
    return [function(mx.array(step, mx.uint64)).item() for step in range(count)]


def test_warm_up_is_a_straight_line_that_ends_at_the_highest_rate():
    found = rates_of(Rates(1.0, 4, "constant", 0.0), 10, 6)
    assert found == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0, 1.0], rel=1e-6)  # float32


@pytest.mark.parametrize(
    ("decay", "middle"), [("cosine", 0.1 + 0.9 * 0.5), ("linear", 0.55), ("constant", 1.0)]
)
@pytest.mark.parametrize("warmup", [0, 1, 2])
def test_decay_ends_at_the_floor(decay, middle, warmup):
    found = rates_of(Rates(2.0, warmup, decay, 0.1), warmup + 11, warmup + 12)
    assert found[warmup] == 2.0
    assert found[warmup + 5] == pytest.approx(2 * middle)  # half of what follows the warm-up
    assert found[warmup + 10 :] == pytest.approx([2.0 if decay == "constant" else 0.2] * 2)
    assert found[warmup:] == sorted(found[warmup:], reverse=True)


def test_a_warm_up_as_long_as_the_run_is_no_error():
    assert rates_of(Rates(1.0, 5, "cosine", 0.1), 5, 5)[4] == pytest.approx(1.0)
    assert rates_of(Rates(1.0, 9, "cosine", 0.1), 1, 1)[0] == pytest.approx(1 / 9)


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
    assert module_of(path) == owner


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
        learning_rate=1e-3,
        vision_tower_warmup_iters=3,
        connector_learning_rate=1e-2,
        connector_warmup_iters=1,
        decoder_learning_rate=2e-3,
        weight_decay=0.1,
        betas=(0.8, 0.9),
        eps=1e-3,
    )
    weights = random_arrays(0)
    parameters = as_mlx(weights)
    optimizer = ModuleOptimizer(config, config.iters, parameters)
    first = {path: np.zeros(shape) for path, shape in PATHS.items()}
    second = {path: np.zeros(shape) for path, shape in PATHS.items()}
    for step in range(4):
        gradients = random_arrays(step + 1)
        parameters = optimizer.apply(as_mlx(gradients), parameters)
        rates = optimizer.learning_rates
        assert rates["vision_tower"] == pytest.approx(1e-3 * min(1, (step + 1) / 3))
        for path, gradient in gradients.items():
            rate = rates[module_of(path)]
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


def test_the_state_resumes_where_it_was_saved():
    parameters = as_mlx(random_arrays(0))
    one, other = (ModuleOptimizer(make_config(), 10, parameters) for _ in range(2))
    for step in range(2):
        parameters = one.apply(as_mlx(random_arrays(step + 1)), parameters)
    other.load(one.arrays())
    results = []
    for optimizer in (one, other):
        results.append(optimizer.apply(as_mlx(random_arrays(9)), parameters))
    for path in PATHS:
        assert mx.array_equal(results[0][path], results[1][path])


def test_a_state_of_other_parameters_is_refused():
    optimizer = ModuleOptimizer(make_config(), 10, as_mlx(random_arrays(0)))
    arrays = optimizer.arrays()
    name = next(name for name in arrays if name.endswith("decoder.norm.weight.m"))
    with pytest.raises(ValueError, match=rf"{name}: expected \(2,\), found \(3,\)"):
        optimizer.load(arrays | {name: mx.zeros((3,))})
    with pytest.raises(KeyError, match=name):
        optimizer.load({other: array for other, array in arrays.items() if other != name})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"connector_learning_rate": 0.0}, "connector_learning_rate is 0.0; expected a finite"),
        ({"learning_rate": float("inf")}, "learning_rate is inf; expected a finite"),
        ({"decoder_learning_rate": float("nan")}, "decoder_learning_rate is nan; expected"),
        ({"decoder_warmup_iters": -1}, "decoder_warmup_iters is -1; expected a whole number"),
        ({"decoder_decay": "exponential"}, "decay is 'exponential'; expected one of cosine"),
        ({"vision_tower_floor": 1.5}, "vision_tower_floor is 1.5; expected a number from 0 to 1"),
        ({"floor": float("nan")}, "floor is nan"),
        ({"iters": 0}, "iters is 0; expected a whole number from 1"),
        ({"iters": -3}, "iters is -3"),
        ({"iters": 10**9}, "iters is 1000000000"),
        ({"iters": "many"}, "iters is 'many'; expected a whole number"),
        ({"iters": True}, "iters is True; expected a whole number"),
        ({"iters": 3, "epochs": 1.0}, "either iters or epochs"),
        ({"iters": None, "epochs": 0.0}, "epochs is 0.0"),
        ({"grad_accumulation_steps": 0}, "grad_accumulation_steps is 0"),
        ({"batch_size": 10**12}, "batch_size is 1000000000000; expected a whole number from 1"),
        ({"bucket_batches": 10**9}, "bucket_batches is 1000000000"),
        ({"rank": 10**30}, "rank is 1000000"),
        ({"rank": 0}, "rank is 0"),
        ({"scale": float("nan")}, "scale is nan"),
        ({"scale": 10**400}, "scale is"),
        ({"dropout": 1.0}, "dropout is 1.0; expected a number of at least 0 and below 1"),
        ({"dtype": "float16"}, "dtype is 'float16'; expected one of float32, bfloat16"),
        ({"betas": (0.9, 1.0)}, "betas is"),
        ({"betas": (0.9,)}, "betas is .*expected a list of 2"),
        ({"betas": (float("nan"), 0.9)}, "betas is"),
        ({"eps": float("inf")}, "eps is inf"),
        ({"weight_decay": float("nan")}, "weight_decay is nan"),
        ({"max_grad_norm": -1.0}, "max_grad_norm is -1.0"),
        ({"image_cache": -1}, "image_cache is -1"),
        ({"image_cache": 1.5}, "image_cache is 1.5"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**64}, "seed is 18446744073709551616"),
        ({"text_fraction": 1.5}, "text_fraction is 1.5"),
        ({"compile": 1}, "compile is 1; expected true or false"),
        ({"freeze": ("head",)}, "freeze is .*each one of vision_tower"),
        ({"freeze": MODULES}, "every module is frozen"),
        (
            {"fine_tune_type": "lora", "freeze": ("decoder",)},
            "every module with adapters is frozen",
        ),
        ({"fine_tune_type": "lora", "lora_modules": ()}, "lora_modules is"),
        ({"fine_tune_type": "lora", "lora_keys": []}, "lora_keys is"),
        ({"nonsense": 1}, "'nonsense' is no option of training"),
    ],
)
def test_options_that_make_no_sense_are_refused(changes, message):
    with pytest.raises(RequestError, match=message) as refused:
        make_config().changed(changes)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 250


def test_rates_of_a_module_count_more_than_those_of_all():
    config = TrainingConfig(
        learning_rate=1e-3, warmup_iters=7, connector_learning_rate=5e-3,
        connector_warmup_iters=3, vision_tower_decay="linear", decoder_floor=0.5,
        decay="constant",
    )  # fmt: skip
    tower, connector, decoder = (config.rates(module, 1000) for module in MODULES)
    assert (connector.learning_rate, connector.warmup_iters) == (5e-3, 3)
    assert (decoder.learning_rate, decoder.warmup_iters) == (1e-3, 7)
    assert (tower.decay, connector.decay) == ("linear", "constant")
    assert (tower.floor, decoder.floor) == (0.1, 0.5)


def test_the_connector_learns_faster_and_warms_up_sooner_by_default():
    full = TrainingConfig(fine_tune_type="full")
    tower, connector, decoder = (full.rates(module, 1000) for module in MODULES)
    assert connector.learning_rate > decoder.learning_rate > tower.learning_rate
    assert (connector.warmup_iters, decoder.warmup_iters) == (10, 100)
    adapters = TrainingConfig()
    assert adapters.rates("connector", 10).learning_rate == (
        adapters.rates("decoder", 10).learning_rate
    )


def test_options_can_be_changed_and_listed():
    assert TrainingConfig().non_defaults() == {}
    changed = TrainingConfig().changed({"betas": [0.8, 0.9], "learning_rate": 1})
    assert changed.non_defaults() == {"betas": (0.8, 0.9), "learning_rate": 1.0}
