import json
import random
import shutil
from pathlib import Path

import pytest

from jvlm_mlx.processing.tokenizer import Tokenizer

TINY = Path(__file__).parents[1] / "golden" / "tiny"


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.load(TINY, [])


def segments(tokenizer, ids):
    detokenizer = tokenizer.detokenizer()
    parts = []
    for token in ids:
        detokenizer.add_token(token)
        parts.append(detokenizer.last_segment)
    detokenizer.finalize()
    parts.append(detokenizer.last_segment)
    assert "".join(parts) == detokenizer.text
    assert detokenizer.tokens == list(ids)
    return parts


def test_text_appears_as_soon_as_it_is_complete(tokenizer):
    ids = tokenizer.encode("a👍é")
    assert len(ids) == 7  # the small vocabulary spells these characters byte by byte
    assert segments(tokenizer, ids) == ["a", "", "", "", "👍", "", "é", ""]


def test_one_leading_space_belongs_to_the_template(tokenizer):
    assert "".join(segments(tokenizer, tokenizer.encode(" red"))) == "red"
    assert "".join(segments(tokenizer, tokenizer.encode("  red "))) == " red "
    assert "".join(segments(tokenizer, tokenizer.encode("red"))) == "red"


def test_special_tokens_are_left_out(tokenizer):
    ids = tokenizer.encode("<|im_start|> one<|im_end|> <im_patch>two<|endoftext|>")
    assert "".join(segments(tokenizer, ids)) == "one two"


def test_special_tokens_between_the_bytes_of_a_character(tokenizer):
    ids = tokenizer.encode("é")
    ids.insert(1, tokenizer.special_tokens["<|im_end|>"])
    assert "".join(segments(tokenizer, ids)) == tokenizer.decode(ids) == "é"


def test_a_character_that_is_never_completed(tokenizer):
    ids = tokenizer.encode("👍")[:3]
    assert segments(tokenizer, ids) == ["", "", "", "\ufffd"]
    assert tokenizer.decode(ids) == "\ufffd"


def test_any_tokens_give_what_decoding_all_at_once_gives(tokenizer):
    rng = random.Random(0)
    # Up to a little above the vocabulary of 518: a padded head can sample such ids.
    for highest in (256, 530):
        for _ in range(500):
            ids = [rng.randrange(highest) for _ in range(rng.randrange(20))]
            expected = tokenizer.decode(ids).removeprefix(" ")
            assert "".join(segments(tokenizer, ids)) == expected


def test_an_added_token_in_plain_spelling(tmp_path):
    contents = json.loads((TINY / "tokenizer.json").read_text(encoding="utf-8"))
    contents["added_tokens"][0].update(content="→ é", special=False)
    (tmp_path / "tokenizer.json").write_text(json.dumps(contents), encoding="utf-8")
    shutil.copy(TINY / "tokenizer_config.json", tmp_path)
    tokenizer = Tokenizer.load(tmp_path, [])
    ids = tokenizer.encode("a→ éb")
    assert len(ids) == 3
    assert segments(tokenizer, ids) == ["a", "→ é", "b", ""]
    assert tokenizer.decode(ids) == "a→ éb"


@pytest.mark.parametrize("token", [-1, 518, 10**6, 2**31, 2**40])
def test_ids_without_a_token(tokenizer, token):
    assert "".join(segments(tokenizer, [token, *tokenizer.encode("one"), token])) == "one"


def test_one_for_each_request(tokenizer):
    first, second = tokenizer.detokenizer(), tokenizer.detokenizer()
    for token in tokenizer.encode("one"):
        first.add_token(token)
    assert (first.text, second.text) == ("one", "")
    first.reset()
    first.finalize()
    assert (first.text, first.tokens, first.last_segment) == ("", [], "")
