"""Saved conversations: whole, and checked before anything of them is used."""

import copy
import json
import os
import random
import threading
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save

import jvlm_mlx
from jvlm_mlx import ChatSession, GenerationCaches
from jvlm_mlx.errors import JvlmError, RequestError, SessionError
from tests.helpers.conversations import OPTIONS, say


@pytest.fixture
def images(golden_folder):
    return {name: golden_folder / "images" / f"{name}.png" for name in ("shapes", "dot", "square")}


@pytest.fixture
def saved(tiny, images, tmp_path):
    session = ChatSession(*tiny, "Be brief.", **OPTIONS)
    say(session, "What?", images["dot"])
    say(session, "And?", images["square"])
    session.save(tmp_path / "talk.session")
    return session, tmp_path / "talk.session"


@pytest.fixture(scope="module")
def whole(tiny, golden_folder, tmp_path_factory):
    """The bytes of a saved conversation."""
    session = ChatSession(*tiny, "Be brief.", **OPTIONS)
    say(session, "What?", golden_folder / "images" / "dot.png")
    say(session, "And?", golden_folder / "images" / "square.png")
    path = tmp_path_factory.mktemp("whole") / "talk.session"
    session.save(path)
    return path.read_bytes()


@pytest.fixture
def file(whole, tmp_path):
    """A saved conversation that nobody holds in memory."""
    (tmp_path / "talk.session").write_bytes(whole)
    return tmp_path / "talk.session"


def test_a_saved_session_resumes(tiny, saved):
    session, path = saved
    loaded = ChatSession.load(path, *tiny)
    assert [m["role"] for m in loaded.history] == [m["role"] for m in session.history]
    assert loaded.system == "Be brief."
    answer, response = say(session, "Go on")
    again, loaded_response = say(loaded, "Go on")
    assert again == answer
    assert loaded_response.cached_tokens == response.cached_tokens > response.image_tokens
    assert loaded.caches.stats()["features"].misses == 0
    with pytest.raises(RequestError, match="max_tokens"):
        ChatSession.load(path, *tiny, max_tokens=0)


def test_features_may_have_another_type_than_the_cache(golden_folder, images, tmp_path):
    """Where modules compute in types of their own."""
    loaded = jvlm_mlx.load(golden_folder / "tiny", dtype="decoder=bfloat16")
    session = ChatSession(*loaded, **OPTIONS)
    say(session, "What?", images["dot"])
    session.save(tmp_path / "talk.session")
    again = ChatSession.load(tmp_path / "talk.session", *loaded)
    assert say(again, "Go on")[0] == say(session, "Go on")[0]


def test_a_session_is_saved_over_itself(tiny, saved):
    _, path = saved
    loaded = ChatSession.load(path, *tiny)
    say(loaded, "Go on")
    loaded.save(path)
    assert len(ChatSession.load(path, *tiny).history) == 6
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_session_loaded_by_another_thread(tiny, saved):
    session, path = saved
    loaded = []

    def load():
        try:
            loaded.append(ChatSession.load(path, *tiny))
        finally:
            mx.clear_streams()

    thread = threading.Thread(target=load)
    thread.start()
    thread.join()
    assert say(loaded[0], "Go on")[0] == say(session, "Go on")[0]


def test_evicted_prefixes_are_neither_saved_nor_needed(tiny, saved):
    session, path = saved
    session.caches.clear()
    size = path.stat().st_size
    session.save(path)
    assert path.stat().st_size < size
    loaded = ChatSession.load(path, *tiny)
    answer, response = say(loaded, "Go on")
    assert response.cached_tokens == 0
    assert answer == say(session, "Go on")[0]


def test_empty_sessions_are_saved_too(tiny, tmp_path):
    ChatSession(*tiny).save(tmp_path / "empty")
    assert ChatSession.load(tmp_path / "empty", *tiny).history == []


def test_damaged_files_are_refused_by_name(tiny, file, whole, tmp_path):
    with pytest.raises(SessionError, match=r"nowhere does not exist"):
        ChatSession.load(tmp_path / "nowhere", *tiny)
    for length in (0, 7, 100, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:length])
        with pytest.raises(SessionError, match=r"talk\.session is truncated") as caught:
            ChatSession.load(file, *tiny)
        assert "\n" not in str(caught.value)
    mx.save_safetensors(str(tmp_path / "other.safetensors"), {"a": mx.zeros(1)})
    with pytest.raises(SessionError, match="no saved conversation"):
        ChatSession.load(tmp_path / "other.safetensors", *tiny)


def test_pipes_and_folders_are_no_saved_conversations(tiny, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(SessionError, match="is no regular file"):
            ChatSession.load(path, *tiny)


def rewrite(path, change):
    with safe_open(path, "numpy") as opened:
        content = json.loads(opened.metadata()["session"])
    tensors = mx.load(str(path), format="safetensors")
    change(content, tensors)
    target = path.with_name("changed.safetensors")
    mx.save_safetensors(str(target), tensors, {"session": json.dumps(content)})
    return target


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content, _: content.update(version=2), "version 2.* update"),
        (lambda content, _: content.update(format="x"), "no saved conversation"),
        (lambda content, _: content.pop("messages"), "damaged"),
        (lambda content, _: content["images"][0]["settings"].update(new=1), "damaged"),
        (lambda _, tensors: tensors.pop("layers.1.keys"), "damaged"),
        (lambda _, tensors: tensors.pop("images.1"), "damaged"),
    ],
)
def test_files_that_do_not_fit_are_refused(tiny, file, change, message):
    with pytest.raises(SessionError, match=rf"changed\.safetensors.* {message}"):
        ChatSession.load(rewrite(file, change), *tiny)


def test_files_of_another_model_are_refused(tiny, file, golden_folder):
    other, processor = jvlm_mlx.load(golden_folder / "tiny")
    layer = other.decoder.layers[0].mlp.down
    layer.weight = layer.weight * 1.5
    with pytest.raises(SessionError, match=r"talk\.session.* another model \(the same size, but"):
        ChatSession.load(file, other, processor)
    half = jvlm_mlx.load(golden_folder / "tiny", dtype="float16")
    with pytest.raises(SessionError, match=r"layers of 64 in float32'; in use: .* in float16"):
        ChatSession.load(file, *half)


def test_a_file_that_cannot_be_written_changes_nothing(saved, tmp_path, monkeypatch):
    session, path = saved
    whole = path.read_bytes()
    with pytest.raises(SessionError, match="cannot be written"):
        session.save(tmp_path / "no folder" / "x")

    def fail(*_):
        raise RuntimeError("no space left")

    monkeypatch.setattr(mx, "save_safetensors", fail)
    with pytest.raises(SessionError, match="no space left"):
        session.save(path)
    assert path.read_bytes() == whole
    assert [file.name for file in path.parent.iterdir()] == [path.name]


# --- files of strangers


ADDRESS = {"type": "image_url", "image_url": {"url": "http://127.0.0.1:9/x.png"}}
PATH = {"type": "image", "url": "file:///etc/hosts"}


def field(*path, value):
    """Return a change that sets the value at a path of keys in the content."""

    def change(content, _):
        for key in path[:-1]:
            content = content[key]
        content[path[-1]] = value

    return change


def tensor(name, change):
    """Return a change of one tensor."""
    return lambda _, tensors: tensors.update({name: change(tensors.get(name))})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (tensor("images.0", lambda one: one[:1]), r"image 1 has shape \(1, 64\)"),
        (tensor("images.0", lambda one: one.astype(mx.float16)), "float16"),
        (tensor("images.0", lambda one: one * mx.nan), "not finite"),
        (tensor("layers.0.keys", lambda one: one[..., 1:, :]), "layers.0.keys has shape"),
        (tensor("layers.0.values", lambda _: mx.zeros((3, 5))), r"layers.0.values.*\(3, 5\)"),
        (tensor("layers.3.keys", lambda _: mx.zeros(2)), "nothing refers to"),
        (field("num_layers", value=0), "nothing refers to"),
        (field("num_layers", value=10**18), "of 1000000000000000000 layers"),
        (field("messages", 0, "content", 0, value=ADDRESS), "neither text nor a saved image"),
        (field("messages", 0, "content", 0, value=PATH), "fields"),
        (field("messages", 0, "content", 0, "image", value=1), "not the next"),
        (field("messages", 0, "content", value=[]), "not the next"),
        (field("messages", 0, "role", value="system"), "has role 'system'"),
        (field("messages", 1, "content", value="\ud800"), "no valid text"),
        (lambda content, _: content["messages"].pop(), "no answer"),
        (field("images", 0, "settings", "overlap_margins", value=[1, 1]), "settings"),
        (field("images", 0, "settings", "max_crops", value=10**9), "max_crops"),
        (field("images", 0, "token_ids", "patch", value=-5), "token_ids"),
        (field("images", 0, "layout", "grid", value=[9, 9]), "layout"),
        (field("images", 0, "layout", "resized_size", value=[0, 14]), "resized"),
        (field("images", 0, "layout", "num_tokens", value=2), "layout"),
        (field("options", "max_tokens", value=-1), "max_tokens"),
        (field("options", "model", value="x"), "no option 'model'"),
        (field("options", "grammar", value={}), "no option 'grammar'"),
        (field("key", "lengths", 0, value=0), "the key"),
        (field("system", value=["x"]), "system of the conversation"),
    ],
)
def test_what_the_model_does_not_expect_is_refused(tiny, file, change, message):
    with pytest.raises(SessionError, match=rf"changed\.safetensors is damaged: .*{message}") as one:
        ChatSession.load(rewrite(file, change), *tiny)
    assert "\n" not in str(one.value)
    assert len(str(one.value)) < 400


def test_nothing_of_a_file_reaches_other_conversations(tiny, file, images):
    """The KV cache of a file is another image's: it is wrong for this one."""

    def exchange(content, tensors):
        for name in tensors:
            if name.startswith("layers."):
                tensors[name] = tensors[name][..., ::-1, :]

    caches = GenerationCaches()
    loaded = ChatSession.load(rewrite(file, exchange), *tiny, caches=caches)
    _, response = say(loaded, "Go on")
    assert response.cached_tokens > response.image_tokens
    assert caches.nbytes == 0
    question = ("What?", images["dot"])
    first, _ = say(ChatSession(*tiny, "Be brief.", caches=caches, **OPTIONS), *question)
    assert first == say(ChatSession(*tiny, "Be brief.", **OPTIONS), *question)[0]


def test_keys_and_values_of_another_conversation_are_not_used(tiny, file):
    def other_words(content, _):
        content["messages"][0]["content"][1]["text"] = "Who?"

    loaded = ChatSession.load(rewrite(file, other_words), *tiny)
    assert loaded.caches.nbytes == 0
    _, response = say(loaded, "Go on")
    assert response.cached_tokens == 0


ODD_VALUES = (
    None, True, -1, 0, 1, 2, 7, 10**15, 10**30, -(2**63), 0.5, 1e308, float("nan"), float("inf"),
    "", "x", "9" * 5000, "\ud800", "file:///etc/hosts", "http://127.0.0.1:9/", [], [[]], {}, [1],
    {"type": "image", "image": 0}, {"type": "image_url", "image_url": {"url": "data:,"}},
    {"role": "user", "content": "Hi"},
)  # fmt: skip


def mutate_json(chance, content):
    """Change, drop, add or repeat something anywhere in the content."""
    node = content
    while isinstance(node, dict | list) and node:
        keys = list(node) if isinstance(node, dict) else range(len(node))
        key = chance.choice(keys)
        if not isinstance(node[key], dict | list) or not node[key] or chance.random() < 0.2:
            break
        node = node[key]
    else:
        return
    action = chance.randrange(4)
    if action == 0:
        del node[key]
    elif action == 1 and isinstance(node, list):
        node.insert(key, copy.deepcopy(chance.choice(node)))
    elif action == 2 and isinstance(node, dict):
        node[chance.choice(("new", "stop", "kv_bits", "top_k", "max_memory"))] = node.pop(key)
    else:
        node[key] = chance.choice(ODD_VALUES)


def mutate_tensors(chance, tensors):
    name = chance.choice(list(tensors))
    array = tensors.pop(name)
    action = chance.randrange(7)
    if action == 0:
        tensors[chance.choice(("images.9", "layers.0", "x", f"{name} "))] = array
    elif action == 1:
        tensors[name] = array[: len(array) // 2]
    elif action == 2:
        tensors[name] = array.reshape(-1)
    elif action == 3:
        tensors[name] = array.astype(chance.choice((np.float16, np.float64, np.int32, bool)))
    elif action == 4:
        tensors[name] = np.full_like(array, chance.choice((np.nan, np.inf, 0)))
    elif action == 5:
        tensors[name] = np.concatenate([array, array], axis=chance.randrange(array.ndim))


def mutate_bytes(chance, data):
    data = bytearray(data)
    header = 8 + int.from_bytes(data[:8], "little")
    for _ in range(chance.choice((1, 3, 20))):
        data[chance.randrange(header)] = chance.randrange(256)
    return bytes(data[: chance.randrange(len(data))] if chance.random() < 0.2 else data)


def test_mutated_files_end_in_one_line(tiny, file):
    """400 files, each damaged somewhere else; what loads nevertheless can be talked to."""
    with safe_open(file, "numpy") as opened:
        content = json.loads(opened.metadata()["session"])
    tensors = load_file(file)
    chance = random.Random(5)
    refused, talked, messages = 0, 0, []
    for _ in range(400):
        changed, arrays = copy.deepcopy(content), dict(tensors)
        kind = chance.choice(("json", "json", "tensors", "bytes"))
        for _ in range(chance.choice((1, 1, 2, 5))):
            if kind == "json":
                mutate_json(chance, changed)
            elif kind == "tensors" and arrays:
                mutate_tensors(chance, arrays)
        data = save(arrays, {"session": json.dumps(changed)})
        file.write_bytes(mutate_bytes(chance, data) if kind == "bytes" else data)
        try:
            session = ChatSession.load(file, *tiny)
        except SessionError as error:
            messages.append(str(error))
            refused += 1
            continue
        try:
            next(session.ask("Go on", max_tokens=1))
            talked += 1
        except JvlmError as error:  # an option that does not fit the prompt, say
            messages.append(str(error))
    assert not [message for message in messages if "\n" in message or len(message) > 500]
    assert refused > 200
    assert talked > 5
