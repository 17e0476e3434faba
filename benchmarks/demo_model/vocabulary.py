"""The demo's tokenizer: Qwen3's kind, with a vocabulary made from the demo's own sentences."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

from .architecture import VOCAB_SIZE

END_OF_TEXT = "<|endoftext|>"
_RESERVED = ("<|im_start|>", "<|im_end|>", END_OF_TEXT)
IMAGE_TOKENS = ("<im_start>", "<im_end>", "<im_patch>", "<im_col>", "<|image|>", "<im_slice>")
"""Added behind the vocabulary, in the release's order."""

# Words with the space in front of them, every digit by itself, runs of other signs.
_PIECES = r"\p{N}| ?[\p{L}\p{M}]+| ?[^\s\p{L}\p{M}\p{N}]+|\s+"

CHAT_TEMPLATE = """\
{%- for message in messages -%}
{%- if not loop.first or always_start_with_space -%}{{ ' ' }}{%- endif -%}
{{ (message['role'] | capitalize) + ': ' }}
{%- if message['content'] is string -%}{{ message['content'] }}
{%- else -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'image' -%}{{ image_prompt_token }}
{%- elif part['type'] == 'text' -%}{{ part['text'] }}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ ' Assistant:' }}{%- endif -%}
"""


def train_tokenizer(texts: Iterable[str]) -> Tokenizer:
    """Return a byte-level tokenizer with `VOCAB_SIZE` tokens and the six image tokens.

    Args:
        texts: sentences whose words become tokens. Any other text is spelled in bytes.
    """
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=VOCAB_SIZE - len(_RESERVED),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    filler = VOCAB_SIZE - len(_RESERVED) - tokenizer.get_vocab_size()
    tokenizer.add_special_tokens([AddedToken(f"<|unused_{n}|>") for n in range(filler)])
    tokenizer.add_special_tokens([AddedToken(token) for token in (*_RESERVED, *IMAGE_TOKENS)])
    return tokenizer


def write_tokenizer(folder: Path, tokenizer: Tokenizer) -> dict[str, int]:
    """Write tokenizer, its config and the chat template; return the ids of special tokens."""
    (folder / "tokenizer.json").write_text(tokenizer.to_str(pretty=True), encoding="utf-8")
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END_OF_TEXT,
        "eos_token": END_OF_TEXT,
        "pad_token": END_OF_TEXT,
        "clean_up_tokenization_spaces": False,
        "additional_special_tokens": list(IMAGE_TOKENS),
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    (folder / "processor_config.json").write_text(
        json.dumps({"processor_class": "JinaVLMProcessor", "always_start_with_space": True}),
        encoding="utf-8",
    )
    ids = tokenizer.get_vocab()
    return {token: ids[token] for token in (*_RESERVED, *IMAGE_TOKENS)}
