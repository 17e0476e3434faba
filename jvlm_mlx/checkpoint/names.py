"""The one place that knows how checkpoints name their tensors.

Three layouts occur:

- `original`: the released safetensors of the PyTorch implementation. Everything but the head
  is under `model.`, the connector inside the vision model, and the biases of queries, keys
  and values are separate vectors beside a fused weight.
- `mlx`: the existing MLX conversion. The connector is at the top, biases are fused, norms
  and gated projections have other names.
- `own`: this project's conversion. Names are the paths of the model's own parameters, and the
  two embedding tables are one.
"""

import dataclasses
import re
from collections.abc import Collection
from dataclasses import dataclass

ORIGINAL, MLX, OWN = "original", "mlx", "own"


@dataclass(frozen=True)
class Layout:
    """How one layout spells the paths of the model's parameters."""

    name: str
    renames: tuple[tuple[str, str], ...]
    """Regular expressions and replacements, applied in turn to a parameter's path."""
    joined: tuple[tuple[str, tuple[str, ...]], ...]
    """Endings of renamed paths that are stored in parts, joined along the first axis."""

    def sources(self, parameter: str) -> tuple[str, ...]:
        """Return the tensors, in order, that a parameter of the model is made of.

        Args:
            parameter: path in the model, like `decoder.layers.0.attention.qkv.weight`.
        """
        name = parameter
        for pattern, replacement in self.renames:
            name = re.sub(pattern, replacement, name)
        for ending, parts in self.joined:
            if name.endswith(ending):
                return tuple(name[: -len(ending)] + part for part in parts)
        return (name,)


_SHARED = (
    (r"^vision_tower\.", "vision_model."),
    (r"^connector\.", "vl_connector."),
    (r"^decoder\.", "language_model."),
    (r"\.patch_embedding\.", ".patch_embed.proj."),
    (r"\.position_embedding$", ".pos_embed"),
    (r"^(language_model)\.norm\.", r"\1.ln_f."),
    (r"\.attention\.", ".attn."),
    (r"\.mlp\.", ".ffn."),
)
_TABLES = (".embedding.weight", (".embedding.embedding", ".embedding.new_embedding"))

LAYOUTS = {
    ORIGINAL: Layout(
        name=ORIGINAL,
        renames=(
            *_SHARED,
            (r"^vl_connector\.", "vision_model.vl_connector."),
            (r"\.final_norm\.", ".post_lnorm."),
            (r"\.attention_norm\.", ".attn_lnorm."),
            (r"\.mlp_norm\.", ".ffn_lnorm."),
            (r"\.([qk])_norm\.", r".\1_lnorm."),
            (r"\.qkv\.weight$", ".qkv_w.weight"),
            (r"\.pooling\.(q|kv)\.weight$", r".pooling.\1_w.weight"),
            (r"\.pooling\.q\.bias$", ".pooling.q_b"),
            (r"^(vision_model|language_model)\.", r"model.\1."),
        ),
        joined=(
            (".qkv.bias", (".q_b", ".k_b", ".v_b")),
            (".kv.bias", (".k_b", ".v_b")),
            _TABLES,
        ),
    ),
    MLX: Layout(
        name=MLX,
        renames=(
            *_SHARED,
            (r"\.final_norm\.", ".post_norm."),
            (r"\.attention_norm\.", ".attn_norm."),
            (r"\.mlp_norm\.", ".ffn_norm."),
            # Gated projections are the decoder's and the connector's.
            (r"^(language_model\.layers\.\d+\.ffn|vl_connector\.projector)\.up\.", r"\1.gate_up."),
            (r"^lm_head\.", "language_model.lm_head."),
        ),
        joined=(_TABLES,),
    ),
    OWN: Layout(name=OWN, renames=(), joined=()),
}


def detect_layout(names: Collection[str]) -> Layout | None:
    """Return the layout that the tensors of a checkpoint have, or None for none of them."""
    prefixes = {"model.": ORIGINAL, "language_model.": MLX, "decoder.": OWN}
    found = [kind for prefix, kind in prefixes.items() if any(n.startswith(prefix) for n in names)]
    if not found:
        return None
    layout = LAYOUTS[found[0]]
    if any(name.endswith("language_model.embedding.weight") for name in names):
        # Where there are no added tokens, the one table may be named like any other layer's.
        joined = tuple(parts for parts in layout.joined if parts is not _TABLES)
        return dataclasses.replace(layout, joined=joined)
    return layout


MODULES = ("tower", "connector", "decoder", "embedding", "head")
_MODULE_PATTERNS = (
    ("connector", r"(^|\.)(vl_)?connector\."),
    ("tower", r"(^|\.)vision_(tower|model)\."),
    ("head", r"(^|\.)lm_head\."),
    ("embedding", r"(^|\.)(decoder|language_model)\.embedding\."),
    ("decoder", r"(^|\.)(decoder|language_model)\."),
)


def module_of(name: str) -> str | None:
    """Return the module, one of `MODULES`, that a tensor of any layout belongs to."""
    for module, pattern in _MODULE_PATTERNS:
        if re.search(pattern, name):
            return module
    return None
