"""Loading: layouts, strictness, and one clear line for everything that can be wrong."""

import json
import logging
import shutil
import signal
import subprocess
import sys
import time

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from safetensors.numpy import load_file, save_file

import jvlm_mlx
from jvlm_mlx.checkpoint.hub import locate_checkpoint
from jvlm_mlx.checkpoint.loader import read_config
from jvlm_mlx.checkpoint.reader import CheckpointFiles
from jvlm_mlx.checkpoint.weights import Checkpoint
from jvlm_mlx.errors import CheckpointError, JvlmError, RequestError, UnsupportedSettingError
from tests.helpers.converting import edit_json, edit_weights

WEIGHTS = "model.safetensors"
TEXT = " User: What is the capital of France? Assistant:"


def shard(folder, count=3):
    """Split the single file into shards with an index."""
    tensors = load_file(folder / WEIGHTS)
    weight_map = {}
    for index in range(count):
        name = f"model-{index + 1:05}-of-{count:05}.safetensors"
        part = {key: tensors[key] for key in sorted(tensors)[index::count]}
        save_file(part, folder / name)
        weight_map |= dict.fromkeys(part, name)
    (folder / WEIGHTS).unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def logits(loaded, text=TEXT):
    model, processor = loaded
    return np.array(model(**processor(text=[text])))


def refusal(folder, kind=CheckpointError):
    with pytest.raises(kind) as caught:
        jvlm_mlx.load(folder)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_shards_are_the_same_model(tiny, checkpoint):
    shard(checkpoint)
    np.testing.assert_array_equal(logits(jvlm_mlx.load(checkpoint)), logits(tiny))


def test_several_files_without_an_index_are_the_same_model(tiny, checkpoint):
    shard(checkpoint)
    (checkpoint / "model.safetensors.index.json").unlink()
    np.testing.assert_array_equal(logits(jvlm_mlx.load(checkpoint)), logits(tiny))


def test_missing_generation_config_is_fine(checkpoint, tiny):
    (checkpoint / "generation_config.json").unlink()
    _, processor = jvlm_mlx.load(checkpoint)
    assert processor.tokenizer.stop_token_ids == tiny[1].tokenizer.stop_token_ids


def test_stop_ids_come_from_every_config_file(checkpoint):
    edit_json(
        checkpoint / "generation_config.json", lambda config: config.update(eos_token_id=[7, 9])
    )
    _, processor = jvlm_mlx.load(checkpoint)
    assert processor.tokenizer.stop_token_ids == {7, 9, 510, 511}


def test_tables_are_joined_and_unused_layers_are_not_kept(tiny):
    model, _ = tiny
    assert len(model.vision_tower.layers) == 9  # of 11: features are layers 8 and 2
    assert "final_norm" not in model.vision_tower
    assert model.decoder.embedding.weight.shape == (512 + 16, 64)


def test_unused_layers_are_not_read(checkpoint, tiny):
    def spoil(tensors):
        for name in tensors:
            if "vision_model.layers.10." in name or "vision_model.post_lnorm" in name:
                tensors[name] = np.full_like(tensors[name], np.nan)

    edit_weights(checkpoint, spoil)
    np.testing.assert_array_equal(logits(jvlm_mlx.load(checkpoint)), logits(tiny))


def test_unused_layers_may_be_absent(checkpoint, tiny):
    def drop(tensors):
        for name in list(tensors):
            if "vision_model.layers.9." in name or "vision_model.post_lnorm" in name:
                del tensors[name]

    edit_weights(checkpoint, drop)
    np.testing.assert_array_equal(logits(jvlm_mlx.load(checkpoint)), logits(tiny))


def test_zero_decoder_biases_may_be_absent(checkpoint, tiny):
    def drop(tensors):
        for name in list(tensors):
            if "language_model" in name and name.endswith(("q_b", "k_b", "v_b")):
                assert not tensors.pop(name).any()

    edit_weights(checkpoint, drop)
    np.testing.assert_array_equal(logits(jvlm_mlx.load(checkpoint)), logits(tiny))


def test_decoder_biases_that_are_not_zero_are_used(checkpoint, tiny):
    def set_bias(tensors):
        tensors["model.language_model.layers.1.attn.v_b"][:] = 0.5

    edit_weights(checkpoint, set_bias)
    assert np.abs(logits(jvlm_mlx.load(checkpoint)) - logits(tiny)).max() > 1e-2


@pytest.mark.parametrize(
    ("section", "module"),
    [
        ("block_config.attn_config", "vision_tower.layers.0.attention.qkv"),
        ("vl_connector_config.attn_pooling_config", "connector.pooling.kv"),
    ],
)
@pytest.mark.parametrize("zeros", [True, False])
def test_biases_that_config_has_not_are_added_unless_zero(
    checkpoint, tiny, named_case, section, module, zeros
):
    """Of tower and pooling too: the reference implementation stores and adds them regardless."""

    def switch_off(config):
        attention = config["vision_config"]
        for key in section.split("."):
            attention = attention[key]
        attention.update(q_bias=False, k_bias=False, v_bias=False)

    def clear(tensors):
        for name in tensors:
            inside = ".pooling." in name if "pooling" in module else ".attn." in name
            if inside and name.endswith(("q_b", "k_b", "v_b")):
                tensors[name][:] = 0

    inputs = dict(named_case("shapes").inputs(tiny[1]))
    arguments = [inputs[name] for name in ("pixel_values", "image_masks", "image_input_idx")]
    expected = tiny[0].encode_images(*arguments)
    if zeros:
        edit_weights(checkpoint, clear)
        expected = jvlm_mlx.load(checkpoint)[0].encode_images(*arguments)
    edit_json(checkpoint / "config.json", switch_off)
    model, _ = jvlm_mlx.load(checkpoint)
    found = model.encode_images(*arguments)
    assert (f"{module}.bias" in dict(tree_flatten(model.parameters()))) == (not zeros)
    np.testing.assert_allclose(found, expected, atol=0 if not zeros else 1e-5)


def test_tied_head_is_the_first_embedding_table(checkpoint):
    def tie(tensors):
        tensors["lm_head.weight"] = tensors["model.language_model.embedding.embedding"].copy()

    edit_weights(checkpoint, tie)
    untied = logits(jvlm_mlx.load(checkpoint))
    edit_weights(checkpoint, lambda tensors: tensors.pop("lm_head.weight"))
    edit_json(checkpoint / "config.json", lambda config: config.update(tie_word_embeddings=True))
    tied = logits(jvlm_mlx.load(checkpoint))
    assert tied.shape == untied.shape
    # One matrix product with a table of 528 rows instead of 512.
    assert np.abs(tied - untied).max() < 1e-5


@pytest.mark.parametrize("name", ["embedding", "weight"])
@pytest.mark.parametrize("value", ["absent", None])
def test_no_added_tokens_table(checkpoint, tiny, name, value):
    """A checkpoint may keep all its tokens in one table, which then has another name."""

    def join(tensors):
        table = "model.language_model.embedding."
        joined = [tensors.pop(table + "embedding"), tensors.pop(table + "new_embedding")]
        tensors[table + name] = np.concatenate(joined)

    edit_weights(checkpoint, join)

    def one_table(config):
        config["text_config"].update(additional_vocab_size=None, embedding_size=528)
        if value == "absent":
            del config["text_config"]["additional_vocab_size"]

    edit_json(checkpoint / "config.json", one_table)
    np.testing.assert_array_equal(logits(jvlm_mlx.load(checkpoint)), logits(tiny))


def test_no_pad_embed(checkpoint, named_case, tiny):
    def unmarked(config):
        config["vision_config"]["vl_connector_config"]["padding_embed_type"] = None

    edit_json(checkpoint / "config.json", unmarked)
    assert "pad_embed" in refusal(checkpoint)  # the tensor is there, but has no place
    name = "model.vision_model.vl_connector.pad_embed"
    edit_weights(checkpoint, lambda tensors: tensors.pop(name))
    without, processor = jvlm_mlx.load(checkpoint)
    inputs = named_case("shapes").inputs(processor)
    arguments = inputs.pixel_values, inputs.image_masks, inputs.image_input_idx
    features = np.array(without.encode_images(*arguments))
    marked = np.array(tiny[0].encode_images(*arguments))
    # Only the last tile has padding.
    last = np.count_nonzero(inputs.image_input_idx[0, -1] >= 0)
    np.testing.assert_array_equal(features[:-last], marked[:-last])
    assert np.abs(features[-last:] - marked[-last:]).max() > 1e-2


@pytest.mark.parametrize(
    ("block", "change"),
    [
        ("text_config", {"attn_config": {"q_lnorm": False, "k_lnorm": False}}),
        ("text_config", {"attn_config": {"o_bias": True}}),
        ("text_config", {"ffn_config": {"activation_type": "gelu"}}),
        ("text_config", {"ffn_config": {"bias": True}}),
        ("vision_config", {"ffn_config": {"activation_type": "silu"}}),
        ("vision_config", {"attn_config": {"k_bias": False, "fp32": True}}),
    ],
)
def test_other_settings_build_and_run(checkpoint, block, change):
    """Settings the release does not use are honored: they change the answer."""
    before = logits(jvlm_mlx.load(checkpoint)) if block == "text_config" else None

    def edit(config):
        for section, values in change.items():
            config[block]["block_config"][section].update(values)

    edit_json(checkpoint / "config.json", edit)

    attention, mlp = change.get("attn_config", {}), change.get("ffn_config", {})
    biased: tuple[str, ...] = ()
    if attention.get("o_bias"):
        biased = (".attn.out.weight",)
    elif mlp.get("bias"):
        biased = (".ffn.up.weight", ".ffn.down.weight")

    def add_and_drop(tensors):
        prefix = "model.language_model." if block == "text_config" else "model.vision_model."
        for name in [name for name in tensors if name.startswith(prefix + "layers")]:
            if name.endswith(biased) and biased:
                bias = np.full(len(tensors[name]), 0.3, np.float32)
                tensors.setdefault(name.replace("weight", "bias"), bias)
            if attention.get("q_lnorm") is False and ("q_lnorm" in name or "k_lnorm" in name):
                del tensors[name]
            if attention.get("k_bias") is False and name.endswith("k_b"):
                del tensors[name]

    edit_weights(checkpoint, add_and_drop)
    after = logits(jvlm_mlx.load(checkpoint))
    assert np.isfinite(after).all()
    if before is not None:
        assert np.abs(after - before).max() > 1e-3


def test_scaled_embeddings_and_rope_scaling_change_the_answer(checkpoint, tiny):
    reference = logits(tiny)
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
               "high_freq_factor": 4.0, "original_max_position_embeddings": 64}  # fmt: skip
    for change in ({"normalize_input_embeds": True}, {"rope_scaling": scaling}):
        edit_json(
            checkpoint / "config.json", lambda c, change=change: c["text_config"].update(change)
        )
        assert np.abs(logits(jvlm_mlx.load(checkpoint)) - reference).max() > 1e-3


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("vision_config.use_cls_token", True),
        ("vision_config.pre_lnorm", True),
        ("vision_config.block_config.postnorm", True),
        ("vision_config.block_config.attn_lscale_init", 0.1),
        ("vision_config.vl_connector_config.pooling_type", "max"),
        ("vision_config.vl_connector_config.projector_type", "linear"),
        ("text_config.rope", False),
        ("text_config.partial_rotary_factor", 0.5),
        ("text_config.block_config.attn_config.clip_qkv", 8.0),
        ("text_config.block_config.attn_config.sliding_window", 4096),
        ("text_config.block_config.attn_config.v_lnorm", True),
        ("text_config.block_config.ffn_config.activation_type", "relu"),
        ("text_config.block_config.ffn_config.inner_lnorm", True),
        ("text_config.block_config.lnorm_config.with_affine", False),
        ("model_type", "llava"),
    ],
)
def test_unsupported_settings_are_refused_by_name(checkpoint, path, value):
    def edit(config):
        *sections, key = path.split(".")
        for section in sections:
            config = config[section]
        config[key] = value

    edit_json(checkpoint / "config.json", edit)
    message = refusal(checkpoint, UnsupportedSettingError)
    assert f"config.json.{path} = {value!r}" in message


def test_unsupported_rope_is_refused_by_name(checkpoint):
    edit_json(
        checkpoint / "config.json",
        lambda config: config["text_config"].update(rope_scaling={"rope_type": "spiral"}),
    )
    assert "spiral" in refusal(checkpoint, UnsupportedSettingError)


def test_unknown_settings_are_listed_once(checkpoint, caplog):
    edit_json(checkpoint / "config.json", lambda config: config.update(color="blue"))
    with caplog.at_level(logging.WARNING, logger="jvlm_mlx"):
        jvlm_mlx.load(checkpoint)
    assert [record.getMessage() for record in caplog.records] == [
        "settings without effect here: config.json.color"
    ]


def test_known_settings_are_not_listed(golden_folder, caplog):
    with caplog.at_level(logging.WARNING, logger="jvlm_mlx"):
        for layout in ("tiny", "tiny-mlx", "tiny-mlx-4bit"):
            jvlm_mlx.load(golden_folder / layout)
    assert not caplog.records


def test_settings_that_contradict_each_other(checkpoint):
    edit_json(checkpoint / "preprocessor_config.json", lambda config: config.update(pooling_h=3))
    assert "preprocessor_config.json" in refusal(checkpoint)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda t: t.pop("lm_head.weight"), ["lm_head.weight is missing", "(512, 64)"]),
        (
            lambda t: t.update({"model.extra": np.zeros((3, 2), np.float32)}),
            ["model.extra", "model.safetensors", "(3, 2)", "no place"],
        ),
        (
            lambda t: t.update({"lm_head.weight": t["lm_head.weight"][:, :60].copy()}),
            ["lm_head.weight", "model.safetensors", "(512, 60)", "(512, 64)"],
        ),
        (
            lambda t: t.update({"model.vision_model.layers.0.attn.q_b": np.zeros(9, np.float32)}),
            ["vision_model.layers.0.attn.q_b", "(9,)", "(48,)"],
        ),
    ],
)
def test_missing_surplus_and_misshapen_tensors_are_named(checkpoint, change, expected):
    edit_weights(checkpoint, change)
    message = refusal(checkpoint)
    assert all(part in message for part in expected), message


def test_several_problems_are_counted(checkpoint):
    def drop(tensors):
        for name in ("lm_head.weight", "model.language_model.ln_f.weight"):
            del tensors[name]

    edit_weights(checkpoint, drop)
    assert "(and 1 more)" in refusal(checkpoint)


def test_other_models_are_recognized_as_such(checkpoint):
    save_file({"transformer.wte": np.zeros((2, 2), np.float32)}, checkpoint / WEIGHTS)
    assert "no Jina-VLM" in refusal(checkpoint)


@pytest.mark.parametrize("size", [4, 1000, 1_000_000])
def test_truncated_weights(checkpoint, size):
    file = checkpoint / WEIGHTS
    file.write_bytes(file.read_bytes()[:size])
    message = refusal(checkpoint)
    assert WEIGHTS in message
    assert "truncated" in message


def test_index_that_names_an_absent_shard(checkpoint):
    shard(checkpoint)
    (checkpoint / "model-00002-of-00003.safetensors").unlink()
    assert "model-00002-of-00003.safetensors" in refusal(checkpoint)


def test_index_that_is_wrong_about_a_tensor(checkpoint):
    shard(checkpoint)
    index = checkpoint / "model.safetensors.index.json"

    def move(content):
        content["weight_map"]["lm_head.weight"] = "model-00003-of-00003.safetensors"

    edit_json(index, move)
    assert "lm_head.weight" in refusal(checkpoint)


@pytest.mark.parametrize(
    "name", ["config.json", "preprocessor_config.json", "tokenizer.json", WEIGHTS]
)
def test_missing_files_are_named(checkpoint, name):
    (checkpoint / name).unlink()
    assert name in refusal(checkpoint)


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "tokenizer.json"])
def test_broken_files_are_named(checkpoint, name):
    (checkpoint / name).write_text('{"half": ')
    message = refusal(checkpoint)
    assert name in message or "tokenizer" in message


def test_wrong_quantization_shapes_are_refused(tmp_path, golden_folder):
    folder = tmp_path / "quantized"
    shutil.copytree(golden_folder / "tiny-mlx-4bit", folder)

    def spoil(tensors):
        for kind in ("scales", "biases"):
            name = f"language_model.lm_head.{kind}"
            tensors[name] = tensors[name][:, :1].copy()
            tensors[name] = np.repeat(tensors[name], 3, axis=1)

    edit_weights(folder, spoil)
    assert "language_model.lm_head.weight" in refusal(folder)


def test_folders_and_repositories_that_are_not_there(tmp_path):
    for name in (tmp_path / "absent", str(tmp_path / "absent"), "./absent", "justaname", "a/b/c"):
        with pytest.raises(CheckpointError, match="there is no folder"):
            jvlm_mlx.load(name)
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(CheckpointError, match="is a file"):
        jvlm_mlx.load(file)
    with pytest.raises(CheckpointError, match="no revision"):
        locate_checkpoint(tmp_path, revision="main")


@pytest.mark.parametrize("name", ["~nosuch/model", "x" * 300, "owner/" + "x" * 300])
def test_names_that_cannot_be_looked_up_are_one_line(name):
    assert name[:50] in refusal(name)


def test_hub_offline_without_cache(tmp_path):
    """A fresh process, so that the Hub library reads the environment given here."""
    code = "import jvlm_mlx; jvlm_mlx.load('somebody/something')"
    for environment in (
        {"HF_HUB_OFFLINE": "1"},
        {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_ETAG_TIMEOUT": "1"},
    ):
        finished = subprocess.run(
            [sys.executable, "-c", code],
            env={"PATH": "", "HF_HOME": str(tmp_path), **environment},
            capture_output=True,
            text=True,
            check=False,
        )
        last = finished.stderr.strip().splitlines()[-1]
        assert last.startswith("jvlm_mlx.errors.CheckpointError: somebody/something")


def test_hub_downloads_only_what_is_needed(monkeypatch, golden_folder, tiny):
    asked = {}

    def snapshot_download(repository, **arguments):
        asked.update(arguments, repository=repository)
        return str(golden_folder / "tiny")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    loaded = jvlm_mlx.load("somebody/something", revision="v1")
    np.testing.assert_array_equal(logits(loaded), logits(tiny))
    assert (asked["repository"], asked["revision"]) == ("somebody/something", "v1")
    assert not any(pattern in ("*", "*.py", "*.json") for pattern in asked["allow_patterns"])
    assert {"config.json", "tokenizer.json", "*.safetensors"} <= set(asked["allow_patterns"])


def test_one_type_for_all_floats(tmp_path, golden_folder, named_case):
    """A single float32 norm would make all that follows it float32."""
    folder = shutil.copytree(golden_folder / "tiny", tmp_path / "mixed")
    tensors = {
        name: tensor if name.endswith("layers.1.attn_lnorm.weight") else tensor.astype(mx.bfloat16)
        for name, tensor in mx.load(str(folder / "model.safetensors")).items()
    }
    mx.save_safetensors(str(folder / "model.safetensors"), tensors)
    assert {tensor.dtype for tensor in tensors.values()} == {mx.float32, mx.bfloat16}
    model, processor = jvlm_mlx.load(folder)
    assert {str(array.dtype) for array in _leaves(model.parameters())} == {"mlx.core.bfloat16"}
    assert model(**named_case("shapes").inputs(processor)).dtype == mx.bfloat16


def test_modules_have_types_of_their_own(golden_folder):
    dtype = {"tower": "float16", "decoder": "bfloat16"}
    for given in (dtype, "tower=float16,decoder=bfloat16"):
        model, _ = jvlm_mlx.load(golden_folder / "tiny-mlx-4bit", dtype=given)
        found = {
            module: {
                array.dtype
                for array in _leaves(model[module].parameters())
                if mx.issubdtype(array.dtype, mx.floating)
            }
            for module in ("vision_tower", "connector", "decoder", "lm_head")
        }
        assert found == {
            "vision_tower": {mx.float16},
            "connector": {mx.float32},
            "decoder": {mx.bfloat16},
            "lm_head": {mx.bfloat16},
        }


def test_dtype_is_converted_and_checked(golden_folder):
    model, _ = jvlm_mlx.load(golden_folder / "tiny-mlx-4bit", dtype="float16")
    dtypes = {str(array.dtype) for array in _leaves(model.parameters())}
    assert dtypes == {"mlx.core.float16", "mlx.core.uint32"}
    assert model.dtype == mx.float16
    for wrong in ("int8", mx.int32):
        with pytest.raises(RequestError, match="dtype"):
            jvlm_mlx.load(golden_folder / "tiny", dtype=wrong)


def _leaves(tree):
    if isinstance(tree, mx.array):
        return [tree]
    children = tree.values() if isinstance(tree, dict) else tree
    return [leaf for child in children for leaf in _leaves(child)]


def test_progress_counts_bytes_to_the_end(golden_folder):
    calls = []
    jvlm_mlx.load(golden_folder / "tiny", progress=lambda event: calls.append(event[1:3]))
    assert calls[0][0] == 0
    assert calls[-1][0] == calls[-1][1] > 1_000_000
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)


def test_nothing_is_twice_in_memory(tmp_path, golden_folder):
    """Joining the tables of a large vocabulary must not leave the parts behind."""
    model, _ = jvlm_mlx.load(golden_folder / "tiny")
    held = sum(array.nbytes for array in _leaves(model.parameters()))
    del model
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    model, _ = jvlm_mlx.load(golden_folder / "tiny")
    largest = model.decoder.embedding.weight.nbytes
    assert mx.get_active_memory() - before < held * 1.05
    assert mx.get_peak_memory() - before < held + 3 * largest


def test_every_error_has_one_base():
    for error in (CheckpointError, UnsupportedSettingError, RequestError):
        assert issubclass(error, JvlmError)


def test_importing_and_loading_leave_the_process_as_it_was(golden_folder):
    code = (
        "import os, resource, sys\n"
        "setrlimit = resource.setrlimit\n"
        "state = lambda: (resource.getrlimit(resource.RLIMIT_NOFILE), dict(os.environ))\n"
        "before = state()\n"
        "import jvlm_mlx\n"
        "assert state() == before\n"
        "jvlm_mlx.load(sys.argv[1])\n"
        "assert 'mlx_lm' in sys.modules  # its import is what changes a process\n"
        "assert state() == before\n"
        "assert resource.setrlimit is setrlimit"
    )
    subprocess.run([sys.executable, "-c", code, golden_folder / "tiny"], check=True)


def test_no_interrupt_is_lost_while_weights_are_read(golden_folder):
    """Python loses those that come while the message of a failed `int` is put together."""
    folder = golden_folder / "tiny"
    checkpoint = Checkpoint.open(CheckpointFiles(folder), read_config(folder).model)
    rung = []

    def ring(*_):
        rung.append(True)
        raise KeyboardInterrupt

    start = time.perf_counter()
    checkpoint.build()
    seconds = time.perf_counter() - start
    before = signal.signal(signal.SIGALRM, ring)
    interrupted = 0
    try:
        for count in range(200):
            try:
                signal.setitimer(signal.ITIMER_REAL, seconds * (count + 1) / 201)
                checkpoint.build()
                signal.setitimer(signal.ITIMER_REAL, 0)
            except KeyboardInterrupt:
                interrupted += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert interrupted == len(rung) > 20
