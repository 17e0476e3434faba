"""Checkpoints of strangers: whatever is wrong is one short line, before memory is allocated."""

import json
import shutil
import struct

import mlx.core as mx
import numpy as np
import pytest
from safetensors.numpy import load_file

import jvlm_mlx
from jvlm_mlx.checkpoint.reader import CheckpointFiles, read_header
from jvlm_mlx.cli.main import EXIT_ERROR, run_subcommand
from jvlm_mlx.errors import CheckpointError, JvlmError
from tests.helpers.converting import edit_json, edit_weights

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
HEAD = "lm_head.weight"


def refusal(folder, **options):
    """Expect a refusal in one short line, and return it without the folder."""
    with pytest.raises(JvlmError) as caught:
        jvlm_mlx.load(folder, **options)
    message = str(caught.value).replace(str(folder), "")
    assert "\n" not in message
    assert len(message) < 400, message
    return message


def edit_header(file, change):
    """Replace the header of a safetensors file by what `change` makes of its JSON text."""
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = change(json.loads(data[8 : 8 + length]))
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])


def changed(name, **values):
    return lambda header: header | {name: header[name] | values}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (changed(HEAD, shape=[10**30, 2]), "an integer of 31 digits"),
        (changed(HEAD, shape=[2**40, 2**40]), "has shape"),
        (changed(HEAD, shape=[-512, -64]), "has no type, shape or place"),
        (changed(HEAD, shape=[True, 64]), "has no type, shape or place"),
        (changed(HEAD, shape="512"), "has no type, shape or place"),
        (changed(HEAD, shape=[512, 63]), "another size than its shape"),
        (changed(HEAD, dtype="F128"), "is stored as F128; supported: F32"),
        (changed(HEAD, dtype=None), "has no type, shape or place"),
        (changed(HEAD, data_offsets=[0]), "has no type, shape or place"),
        (changed(HEAD, data_offsets=[4, 131076]), "does not follow what is before it"),
        (changed(HEAD, data_offsets=[2**60, 2**60 + 131072]), "does not follow what is before it"),
        (lambda header: list(header), "its header is no JSON object"),
        (lambda header: header | {HEAD: 7}, "has no type, shape or place"),
        (lambda header: header | {"x" * 300: header[HEAD]}, "does not follow"),
        (lambda _: b"[" * 100_000, "nested deeper"),
        (lambda _: b"\xff\xfe" * 8, "not UTF-8"),
    ],
)
def test_damaged_headers(checkpoint, change, expected):
    edit_header(checkpoint / WEIGHTS, change)
    assert expected in refusal(checkpoint)


@pytest.mark.parametrize("claimed", [0, 1, 2**31, 2**62, 2**64 - 1])
def test_a_header_that_claims_another_size(checkpoint, claimed):
    file = checkpoint / WEIGHTS
    file.write_bytes(struct.pack("<Q", claimed) + file.read_bytes()[8:])
    message = refusal(checkpoint)
    assert f"its header has {claimed} bytes" in message


def test_headers_are_those_that_the_library_reads(checkpoint, golden_folder):
    for name in ("tiny", "tiny-mlx", "tiny-mlx-4bit"):
        file = golden_folder / name / WEIGHTS
        data, expected = file.read_bytes(), load_file(file)
        found = {tensor.name: tensor for tensor in read_header(file)}
        assert found.keys() == expected.keys()
        for key, array in expected.items():
            tensor = found[key]
            assert tensor.shape == array.shape
            assert data[tensor.start : tensor.start + tensor.nbytes] == array.tobytes()


@pytest.mark.parametrize(
    "name",
    [
        "../checkpoint/model.safetensors",
        "{folder}/model.safetensors",
        "..",
        "",
        "sub/model.safetensors",
        "zero\0byte",
        "\ud800",
        "link.safetensors",
    ],
)
def test_an_index_that_leads_out_of_the_folder(checkpoint, tmp_path, name):
    shutil.copy(checkpoint / WEIGHTS, tmp_path / "elsewhere.safetensors")
    (checkpoint / "link.safetensors").symlink_to(tmp_path / "elsewhere.safetensors")
    names = load_file(checkpoint / WEIGHTS)
    weight_map = dict.fromkeys(names, name.format(folder=checkpoint))
    (checkpoint / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    assert "weights must lie in the folder itself" in refusal(checkpoint)


@pytest.mark.parametrize(
    ("weight_map", "expected"),
    [
        ({HEAD: "x" * 300 + ".safetensors"}, "which model.safetensors.index.json names"),
        ({HEAD: 7}, "has no 7"),
        ({HEAD: ["a"] * 1000}, "which model.safetensors.index.json names"),
        ([], "has no weight_map"),
        ({"x" * 10_000: WEIGHTS}, "which has it not"),
    ],
)
def test_damaged_indexes(checkpoint, weight_map, expected):
    (checkpoint / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    assert expected in refusal(checkpoint)


def test_links_within_the_cache_of_the_hub_are_followed(tmp_path, golden_folder, tiny):
    """Every file of a snapshot is a link to a blob beside it."""
    blobs = tmp_path / "models--a--b" / "blobs"
    snapshot = tmp_path / "models--a--b" / "snapshots" / "0123"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, file in enumerate(sorted((golden_folder / "tiny").iterdir())):
        shutil.copy(file, blobs / str(number))
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")
    names = dict.fromkeys(load_file(snapshot / WEIGHTS), WEIGHTS)
    (snapshot / INDEX).write_text(json.dumps({"weight_map": names}))
    model, _ = jvlm_mlx.load(snapshot)
    assert mx.array_equal(model.lm_head.weight, tiny[0].lm_head.weight)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("text_config.n_layers", 10**6),
        ("text_config.n_layers", 2**31 - 1),
        ("vision_config.n_layers", 10**7),
        ("text_config.hidden_size", 2**31 - 1),
        ("vision_config.hidden_size", 10**9),
        ("text_config.vocab_size", 2**31 - 1),
        ("text_config.embedding_size", 2**31 - 1),
        ("text_config.additional_vocab_size", 2**31 - 1),
        ("text_config.block_config.ffn_config.size", 2**31 - 1),
        ("vision_config.block_config.ffn_config.size", 2**31 - 1),
        ("text_config.block_config.attn_config.n_heads", 2**30),
        ("text_config.block_config.attn_config.head_dim", 2**30),
        ("vision_config.block_config.attn_config.head_dim", 2**30),
        ("vision_config.vl_connector_config.attn_pooling_config.head_dim", 2**30),
        ("vision_config.vl_connector_config.mlp_projector_config.size", 2**30),
        ("vision_config.patch_size", 2**15),
        ("vision_config.input_size", [2**20, 2**20]),
        ("vision_config.vit_layers", [0] * 10**5),
        ("text_config.hidden_size", 10**40),
    ],
)
def test_sizes_that_no_tensor_has(checkpoint, path, value):
    """None of these may take seconds, or memory, or end the process."""

    def edit(config):
        *sections, key = path.split(".")
        for section in sections:
            config = config[section]
        config[key] = value
        if path == "vision_config.n_layers":
            config["vit_layers"] = [-1, 0]

    edit_json(checkpoint / "config.json", edit)
    before = mx.get_peak_memory()
    refusal(checkpoint)
    assert mx.get_peak_memory() - before < 50_000_000


@pytest.mark.parametrize("dtype", [np.uint8, np.uint32])
def test_integers_in_place_of_numbers(checkpoint, dtype):
    def change(tensors):
        tensors[HEAD] = tensors[HEAD].astype(dtype)

    edit_weights(checkpoint, change)
    assert f"{HEAD} in {WEIGHTS} is stored as U" in refusal(checkpoint)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_no_numbers_are_found_on_request(checkpoint, value):
    def change(tensors):
        tensors["model.language_model.layers.2.ffn.down.weight"][3, 5] = value

    edit_weights(checkpoint, change)
    jvlm_mlx.load(checkpoint)
    message = refusal(checkpoint, check_weights=True)
    assert "layers.2.ffn.down.weight has NaN or infinite values" in message


def test_the_flag_that_looks_for_them(checkpoint, capsys):
    def change(tensors):
        tensors[HEAD][0, 0] = np.nan

    edit_weights(checkpoint, change)
    flags = ["--model", str(checkpoint), "-p", "What?", "--check-weights"]
    assert run_subcommand("generate", flags) == EXIT_ERROR
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(f"error: {checkpoint / WEIGHTS}: {HEAD} has NaN or infinite values")


def test_values_too_large_for_float16_are_found_on_request(checkpoint):
    def change(tensors):
        tensors[HEAD][0, 0] = 1e6

    edit_weights(checkpoint, change)
    jvlm_mlx.load(checkpoint, check_weights=True)
    message = refusal(checkpoint, dtype="float16", check_weights=True)
    assert "too large for float16" in message


@pytest.mark.parametrize(
    ("name", "change", "expected"),
    [
        ("tokenizer_config.json", lambda c: c.update(bos_token="x" * 100_000), "bos_token"),
        ("tokenizer_config.json", lambda c: c.update(bos_token={"content": "x" * 9999}), "content"),
        ("special_tokens_map.json", lambda c: c.update({"eos_token": "x" * 100_000}), "eos_token"),
        ("tokenizer.json", lambda c: c["added_tokens"][0].update(content="x" * 9999), "content"),
        (
            "tokenizer.json",
            lambda c: c.update(
                normalizer={"type": "Replace", "content": "", "pattern": "x" * 10**5}
            ),
            "pattern is a text of 100000 characters",
        ),
    ],
)
def test_tokenizer_files_with_huge_texts(checkpoint, name, change, expected):
    file = checkpoint / name
    if not file.exists():
        file.write_text("{}")
    edit_json(file, change)
    assert expected in refusal(checkpoint)


def test_a_tokenizer_file_that_is_too_large(checkpoint):
    with (checkpoint / "tokenizer.json").open("rb+") as file:
        file.truncate(70_000_000)
    assert "at most 67108864 are read" in refusal(checkpoint)


def more_tokens(content):
    last = content["added_tokens"][-1]
    content["added_tokens"] += [
        last | {"content": f"<far-{number}>", "id": last["id"] + 1 + number}
        for number in range(600)
    ]


@pytest.mark.parametrize(
    "change",
    [
        more_tokens,
        lambda content: content["model"]["vocab"].update({"far": 2**31}),
        lambda content: content["model"]["vocab"].update({"far": 528}),
        lambda content: content["model"]["vocab"].update({"far": "x" * 1000}),
        lambda content: content["model"]["vocab"].update({"far": -1}),
    ],
)
def test_a_tokenizer_of_another_model(checkpoint, change):
    edit_json(checkpoint / "tokenizer.json", change)
    message = "the embedding has 528 rows; the tokenizer is of another model"
    assert message in refusal(checkpoint)


def test_loading_leaves_random_numbers_alone(golden_folder):
    mx.random.seed(7)
    expected = mx.random.uniform(shape=(3,)).tolist()
    mx.random.seed(7)
    jvlm_mlx.load(golden_folder / "tiny")
    jvlm_mlx.load(golden_folder / "tiny-mlx-4bit")
    assert mx.random.uniform(shape=(3,)).tolist() == expected


def test_many_loads_hold_no_memory(golden_folder):
    """Bars of the whole process; a load that kept 416 kB would be found after a few."""
    folder = golden_folder / "tiny-mlx-4bit"
    jvlm_mlx.load(folder)
    mx.clear_cache()
    before = mx.get_active_memory()
    for _ in range(20):
        jvlm_mlx.load(folder)
    mx.clear_cache()
    assert mx.get_active_memory() - before < 10_000


def test_a_file_that_disappears_is_one_line(checkpoint):
    files = CheckpointFiles(checkpoint)
    (checkpoint / WEIGHTS).unlink()
    with pytest.raises(CheckpointError, match="cannot be read"):
        files.take(HEAD)
    with pytest.raises(CheckpointError, match="cannot be read"):
        files.rows(HEAD, 0, 1)


def test_a_file_that_becomes_shorter_is_one_line(checkpoint):
    files = CheckpointFiles(checkpoint)
    tensor = max(files.tensors.values(), key=lambda tensor: tensor.start)
    with (checkpoint / WEIGHTS).open("rb+") as file:
        file.truncate(tensor.start)
    with pytest.raises(CheckpointError, match="ends within"):
        files.rows(tensor.name, 0, 1)
