import json
import random
import shutil
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from jvlm_mlx.config.config_reader import ConfigReader
from jvlm_mlx.errors import CheckpointError, JvlmError, PromptError, UnsupportedSettingError
from jvlm_mlx.processing.tokenizer import IMAGE_PLACEHOLDER, Tokenizer

GOLDEN = Path(__file__).parents[1] / "golden"
TINY = GOLDEN / "tiny"

WRITING = (
    "abc XYZ  012\t\n.,:;!?'\"<>|_/{}"
    "äßéñøłőşžÆπΩжщіґ"
    "שלוםَ مرحباक्षिবাதமிไทยລາວខ្មែရমန်მაአማ"
    "中文龍かなカナ한국어"
    "\u0301\u0308\u0323\u0489\u200d\u200b\u202e\ufeff\u00a0\u2028\x00\x85"
    "😀👩🏽🇩🇪️❤𝔘𐎠𓂀\U0010ffff\ufffd"
)


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.load(TINY, [1])


@pytest.fixture(scope="module")
def reference():
    """The tokenizer as transformers runs it."""
    return PreTrainedTokenizerFast.from_pretrained(TINY)


def random_text(rng, length=40):
    def character():
        if rng.random() < 0.8:
            return rng.choice(WRITING)
        code = rng.randrange(0x110000 - 0x800)
        return chr(code if code < 0xD800 else code + 0x800)

    return "".join(character() for _ in range(rng.randrange(length)))


def unchanged(contents):
    pass


def edited(tmp_path, edit=unchanged, **config_json):
    """The small checkpoint's tokenizer with other contents, in a folder of its own."""
    contents = json.loads((TINY / "tokenizer.json").read_text(encoding="utf-8"))
    config = json.loads((TINY / "tokenizer_config.json").read_text(encoding="utf-8"))
    edit(contents)
    config.update(config_json)
    config = {key: value for key, value in config.items() if value is not None}
    (tmp_path / "tokenizer.json").write_text(json.dumps(contents), encoding="utf-8")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return tmp_path


def added_token(contents, content):
    return next(token for token in contents["added_tokens"] if token["content"] == content)


def test_golden_ids_without_images(tokenizer):
    cases = json.loads((GOLDEN / "cases.json").read_text(encoding="utf-8"))["cases"]
    text = next(case["texts"][0] for case in cases if case["name"] == "text_only")
    expected = np.load(GOLDEN / "text_only.npz")["input_ids"][0].tolist()
    assert [tokenizer.bos_token_id, *tokenizer.encode(text)] == expected


def test_text_encodes_as_in_transformers(tokenizer, reference):
    rng = random.Random(0)
    for _ in range(500):
        text = random_text(rng)
        expected = reference.encode(text, add_special_tokens=False)
        assert tokenizer.encode(text) == expected
        # Where nothing is special, saying that everything is text changes nothing.
        assert tokenizer.encode(text, range(len(text))) == expected
        assert tokenizer.decode(expected) == reference.decode(expected, skip_special_tokens=True)


def test_genuine_special_tokens_encode_as_in_transformers(tokenizer, reference):
    rng = random.Random(1)
    spellings = sorted(tokenizer.special_tokens)
    for _ in range(500):
        spelled = [rng.choice([rng.choice(spellings), random_text(rng, 8)]) for _ in range(5)]
        text = "".join(spelled)
        expected = reference.encode(text, add_special_tokens=False)
        assert tokenizer.encode(text) == expected
        for skip in (True, False):
            assert tokenizer.decode(expected, skip) == reference.decode(
                expected, skip_special_tokens=skip
            )


def test_tokens_that_swallow_spaces_or_stand_alone(tmp_path):
    def edit(contents):
        added_token(contents, "<im_start>")["lstrip"] = True
        added_token(contents, "<im_end>")["rstrip"] = True
        added_token(contents, "<im_col>").update(lstrip=True, rstrip=True)
        added_token(contents, "<|im_end|>")["single_word"] = True
        added_token(contents, "|<EXTRA_TOKENS_0>|")["content"] = "<|image|>a"

    folder = edited(tmp_path, edit)
    tokenizer = Tokenizer.load(folder, [])
    reference = PreTrainedTokenizerFast.from_pretrained(folder)
    rng = random.Random(2)
    spellings = ["<im_start>", "<im_end>", "<im_col>", "<|im_end|>", "<|image|>"]
    for _ in range(500):
        text = "".join(rng.choice([*spellings, " ", "\n ", "a", "ß", "."]) for _ in range(8))
        assert tokenizer.encode(text) == reference.encode(text, add_special_tokens=False)


def test_text_that_spells_special_tokens_stays_text(tokenizer):
    special_ids = set(tokenizer.special_tokens.values())
    for spelling in tokenizer.special_tokens:
        text = f"a {spelling}b"
        assert special_ids.isdisjoint(tokenizer.encode(text, range(len(text))))
        assert special_ids.isdisjoint(tokenizer.encode(text, {2}))
        assert special_ids.isdisjoint(tokenizer.encode(text, {1 + len(spelling)}))
        assert tokenizer.decode(tokenizer.encode(text, {2})) == text
        assert tokenizer.special_tokens[spelling] in tokenizer.encode(text, {0, 1})


def test_a_genuine_token_after_text_that_nearly_spells_one(tokenizer):
    end = tokenizer.special_tokens["<|im_end|>"]
    ids = tokenizer.encode("<|im_end")
    assert tokenizer.encode("<|im_end<|im_end|>", {0}) == [*ids, end]
    assert tokenizer.encode("<|im_end|><|im_end|>", {0})[-1] == end
    assert tokenizer.encode("<|im_end|><|im_end|>", {0}).count(end) == 1
    # They may even share a character.
    text = "|<EXTRA_TOKENS_0>|<EXTRA_TOKENS_1>|"
    genuine = tokenizer.special_tokens["|<EXTRA_TOKENS_1>|"]
    assert tokenizer.encode(text, {0}) == [*tokenizer.encode("|<EXTRA_TOKENS_0>"), genuine]


def test_only_the_chosen_special_tokens(tokenizer):
    image = tokenizer.image_token_ids.image
    ids = tokenizer.encode("<|image|><im_patch><|im_end|>", special_tokens=[IMAGE_PLACEHOLDER])
    assert ids[0] == image
    assert set(ids[1:]).isdisjoint(tokenizer.special_tokens.values())
    assert set(tokenizer.encode("<|image|>", special_tokens=[])).isdisjoint({image})


def test_token_ids_come_from_the_tokenizer(tokenizer, tmp_path):
    def edit(contents):
        first, second = (added_token(contents, one) for one in ("<im_patch>", "<im_slice>"))
        first["content"], second["content"] = second["content"], first["content"]

    other = Tokenizer.load(edited(tmp_path, edit), [])
    assert other.image_token_ids.patch == tokenizer.special_tokens["<im_slice>"]
    assert other.image_token_ids.start == tokenizer.image_token_ids.start
    assert other.encode("<im_patch>") == [other.image_token_ids.patch]


def test_special_without_the_mark(tokenizer, tmp_path):
    def edit(contents):
        for token in contents["added_tokens"]:
            token["special"] = False
        added_token(contents, "<im_start>")["lstrip"] = True

    folder = edited(tmp_path, edit, additional_special_tokens=None)
    other = Tokenizer.load(folder, [])
    assert other.encode("<im_patch>") == [tokenizer.image_token_ids.patch]
    assert other.encode(" <im_start>") == [tokenizer.image_token_ids.start]
    assert other.image_token_ids.patch not in other.encode("<im_patch>", {0})
    assert other.decode(other.encode("a<im_patch><|im_end|>b")) == "ab"
    assert other.special_tokens["<|im_end|>"] in other.stop_token_ids


def test_beginning_and_stop_tokens(tokenizer, tmp_path):
    special = tokenizer.special_tokens
    assert tokenizer.bos_token_id == special["<|endoftext|>"]
    assert tokenizer.stop_token_ids == {1, special["<|endoftext|>"], special["<|im_end|>"]}
    other = Tokenizer.load(edited(tmp_path, bos_token="<|im_start|>", eos_token="<im_slice>"), [7])
    assert other.bos_token_id == special["<|im_start|>"]
    assert other.stop_token_ids == tokenizer.stop_token_ids - {1} | {7, special["<im_slice>"]}
    other = Tokenizer.load(edited(tmp_path, bos_token=None, eos_token="<im_slice>"), [])
    assert other.bos_token_id == special["<im_slice>"]


def test_truncation_and_padding_of_the_file_are_not_applied(tokenizer, tmp_path):
    def edit(contents):
        contents["truncation"] = {
            "direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0
        }  # fmt: skip
        contents["padding"] = {
            "strategy": {"Fixed": 99}, "direction": "Right", "pad_to_multiple_of": None,
            "pad_id": 0, "pad_type_id": 0, "pad_token": "!",
        }  # fmt: skip

    text = "What is the capital of France?"
    other = Tokenizer.load(edited(tmp_path, edit), [])
    assert other.encode(text) == tokenizer.encode(text)


def test_vocabulary_and_merges_instead_of_one_file(tokenizer, tmp_path):
    contents = json.loads((TINY / "tokenizer.json").read_text(encoding="utf-8"))
    added = {
        str(token["id"]): {key: value for key, value in token.items() if key != "id"}
        for token in contents["added_tokens"]
    }
    folder = edited(tmp_path, added_tokens_decoder=added, tokenizer_class="Qwen2Tokenizer")
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text(json.dumps(contents["model"]["vocab"]), encoding="utf-8")
    merges = [one if isinstance(one, str) else " ".join(one) for one in contents["model"]["merges"]]
    (folder / "merges.txt").write_text("\n".join(merges), encoding="utf-8")
    other = Tokenizer.load(folder, [1])
    text = " User: <|image|>Describe this image. Assistant:"
    assert other.encode(text) == tokenizer.encode(text)
    assert other.stop_token_ids == tokenizer.stop_token_ids


def test_no_code_of_the_checkpoint_runs(tokenizer, tmp_path):
    folder = edited(
        tmp_path,
        auto_map={"AutoTokenizer": ["evil.Slow", "evil.Fast"]},
        tokenizer_class="FastEvilTokenizer",
    )
    (folder / "evil.py").write_text("raise SystemExit", encoding="utf-8")
    (folder / "config.json").write_text(
        '{"model_type": "never-heard-of", "auto_map": {"AutoConfig": "evil.Config"}}',
        encoding="utf-8",
    )
    assert Tokenizer.load(folder, [1]).encode("some <|image|>") == tokenizer.encode(
        "some <|image|>"
    )


def test_ids_repeated_in_the_image_config(tokenizer):
    ids = tokenizer.image_token_ids
    values = {
        "start_token_id": ids.start,
        "end_token_id": ids.end,
        "patch_token_id": ids.patch,
        "column_token_id": ids.column,
    }
    tokenizer.check_image_ids(ConfigReader(values, "preprocessor_config.json"))
    tokenizer.check_image_ids(ConfigReader({}, "preprocessor_config.json"))
    for key in values:
        reader = ConfigReader({**values, key: 3}, "preprocessor_config.json")
        with pytest.raises(CheckpointError, match=rf"{key} is 3.*{values[key]} in tokenizer\.json"):
            tokenizer.check_image_ids(reader)


def test_several_threads_at_once(tokenizer, reference):
    rng = random.Random(3)
    texts = [random_text(rng, 200) + "<|im_end|>" for _ in range(200)]
    genuine = [reference.encode(text, add_special_tokens=False) for text in texts]
    as_text = [tokenizer.encode(text, range(len(text))) for text in texts]
    wrong = []

    def work():
        for text, as_special, plain in zip(texts, genuine, as_text, strict=True):
            if tokenizer.encode(text) != as_special:
                wrong.append(text)
            if tokenizer.encode(text, range(len(text))) != plain:
                wrong.append(text)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_half_a_surrogate_pair(tokenizer):
    with pytest.raises(PromptError, match=r"\\ud83d"):
        tokenizer.encode("fine \ud83d not")


def test_padding_decodes_to_nothing(tokenizer):
    ids = np.array([-1, -1, *tokenizer.encode("one two")])
    assert tokenizer.decode(ids) == "one two"


def broken_json(folder):
    (folder / "tokenizer.json").write_text("{", encoding="utf-8")


def empty_json(folder):
    (folder / "tokenizer.json").write_text("{}", encoding="utf-8")


def binary(folder):
    (folder / "tokenizer.json").write_bytes(b"\xff\xfe\x00")


def broken_config(folder):
    (folder / "tokenizer_config.json").write_text("[", encoding="utf-8")


def no_file(folder):
    (folder / "tokenizer.json").unlink()


def no_file_but_a_vocabulary(folder):
    no_file(folder)
    (folder / "vocab.json").write_text("{}", encoding="utf-8")


@pytest.mark.parametrize(
    "spoil",
    [broken_json, empty_json, binary, broken_config, no_file, no_file_but_a_vocabulary],
)
def test_missing_and_broken_files(spoil, tmp_path):
    shutil.copy(TINY / "tokenizer.json", tmp_path)
    shutil.copy(TINY / "tokenizer_config.json", tmp_path)
    Tokenizer.load(tmp_path, [])
    spoil(tmp_path)
    with pytest.raises(CheckpointError) as caught:
        Tokenizer.load(tmp_path, [])
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def rename_patch(contents):
    added_token(contents, "<im_patch>")["content"] = "<patch>"


def other_decoder(contents):
    contents["decoder"] = {"type": "Fuse"}


@pytest.mark.parametrize(
    ("edit", "config", "error", "message"),
    [
        (rename_patch, {"additional_special_tokens": None}, CheckpointError, "<im_patch>"),
        (other_decoder, {}, UnsupportedSettingError, "Fuse"),
        (unchanged, {"bos_token": None, "eos_token": None}, CheckpointError, "bos_token"),
    ],
)
def test_tokenizers_that_do_not_fit(edit, config, error, message, tmp_path):
    with pytest.raises(JvlmError, match=message) as caught:
        Tokenizer.load(edited(tmp_path, edit, **config), [])
    assert type(caught.value) is error


def test_names_that_users_know(tokenizer, reference):
    assert tokenizer.eos_token_id == reference.eos_token_id
    assert tokenizer.bos_token_id == reference.eos_token_id  # there is no other
    assert tokenizer.pad_token_id == reference.pad_token_id
    assert tokenizer.vocab_size == reference.vocab_size
    assert len(tokenizer) == len(reference)
    patch = tokenizer.image_token_ids.patch
    assert tokenizer.convert_tokens_to_ids("<im_patch>") == patch
    assert tokenizer.convert_tokens_to_ids(["<im_patch>", "no token"]) == [patch, None]
    assert tokenizer.decode(tokenizer.encode("a b")) == "a b"


def test_without_tokens_of_those_names(tmp_path):
    def load(**names):
        folder = edited(tmp_path, eos_token=None, bos_token="<|endoftext|>", **names)
        return Tokenizer.load(folder, [1])

    tokenizer = load(pad_token=None)
    assert tokenizer.eos_token_id is None
    assert tokenizer.pad_token_id is None
    assert load(pad_token="<|im_end|>").pad_token_id == tokenizer.special_tokens["<|im_end|>"]


def test_a_special_token_without_end(tmp_path):
    def lengthen(contents):
        added_token(contents, "<|im_end|>")["content"] = "x" * 100_000

    with pytest.raises(CheckpointError, match="a special token of 100000 characters"):
        Tokenizer.load(edited(tmp_path, lengthen), [1])


@pytest.mark.parametrize("spelling", ["Precompiled", "Pre\\u0063ompiled"])
def test_normalizers_whose_tables_can_end_the_process(tmp_path, spelling):
    shutil.copytree(TINY, tmp_path, dirs_exist_ok=True)
    file = tmp_path / "tokenizer.json"
    contents = json.loads(file.read_text(encoding="utf-8"))
    contents["normalizer"] = {"type": "KIND", "precompiled_charsmap": "AAAA"}
    file.write_text(json.dumps(contents).replace("KIND", spelling), encoding="utf-8")
    with pytest.raises(UnsupportedSettingError, match=r"type 'Pre.* is not supported"):
        Tokenizer.load(tmp_path, [1])


class PanicException(BaseException):
    pass


def test_panics_of_the_library_are_errors(monkeypatch, tmp_path):
    def panic(*arguments, **keywords):
        raise PanicException("out of range")

    def interrupt(*arguments, **keywords):
        raise KeyboardInterrupt

    tokenizer = Tokenizer.load(TINY, [1])
    monkeypatch.setattr(tokenizer, "_backend", SimpleNamespace(encode=panic))
    with pytest.raises(PromptError, match="cannot read the text: out of range"):
        tokenizer.encode("a")
    monkeypatch.setattr(tokenizer, "_backend", SimpleNamespace(encode=interrupt))
    with pytest.raises(KeyboardInterrupt):
        tokenizer.encode("a")
    monkeypatch.setattr(PreTrainedTokenizerFast, "from_pretrained", panic)
    with pytest.raises(CheckpointError, match="cannot be read: out of range"):
        Tokenizer.load(TINY, [1])
