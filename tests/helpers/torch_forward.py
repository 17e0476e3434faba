"""The network once more, in PyTorch and from tensors as released: what gradients must be.

Written for the small checkpoint alone: whatever its config switches off is not here.
"""

import torch
from torch.nn.functional import cross_entropy, gelu, layer_norm, linear, pad, silu, softmax


def mean_loss(tensors, config, batch):
    """Mean cross entropy of a batch's labels.

    Args:
        tensors: float64 tensors by their names in the released layout.
        config: contents of config.json.
        batch: a `TrainingBatch`.
    """
    network = _Network(tensors, config)
    features = network.features(batch.pixel_values, batch.image_masks)
    total = 0.0
    for row, ids in enumerate(batch.input_ids):
        embeddings = network.embed(torch.tensor(ids))
        positions = torch.tensor(batch.image_input_idx[row]).long()
        kept = positions >= 0
        added = torch.zeros_like(embeddings)
        added[positions[kept]] = features[row][kept]
        logits = network.decode(embeddings + added)
        labels = torch.tensor(batch.labels[row]).long()
        labels[~torch.tensor(batch.loss_mask[row])] = -100
        total = total + cross_entropy(logits[:-1], labels[1:], reduction="sum")
    return total / int(batch.loss_mask.sum())


class _Network:
    def __init__(self, tensors, config):
        self.tensors = tensors
        self.vision, self.text = config["vision_config"], config["text_config"]

    def __getitem__(self, name):
        return self.tensors[name]

    def features(self, pixel_values, image_masks):
        """(B, T, P, V) -> (B, T, windows, decoder's width)."""
        states = []
        p = "model.vision_model."
        x = torch.tensor(pixel_values).double()
        x = linear(x, self[f"{p}patch_embed.proj.weight"], self[f"{p}patch_embed.proj.bias"])
        x = x + self[f"{p}pos_embed"]
        for layer in range(self.vision["n_layers"]):
            name = f"{p}layers.{layer}."
            x = x + self._tower_attention(name + "attn.", self._layer_norm(x, name + "attn_lnorm"))
            hidden = self._layer_norm(x, name + "ffn_lnorm")
            hidden = gelu(self._linear(hidden, name + "ffn.up"), approximate="tanh")
            x = x + self._linear(hidden, name + "ffn.down")
            states.append(x)
        states.append(self._layer_norm(x, f"{p}post_lnorm"))
        x = torch.cat([states[place] for place in self.vision["vit_layers"]], dim=-1)
        name = f"{p}vl_connector."
        masks = torch.tensor(image_masks)
        padding = self[f"{name}pad_embed"]
        x = (
            x
            + padding[0] * (masks == 0)[..., None]
            + padding[1] * ((masks != 0) & (masks < 1))[..., None]
        )
        return self._connect(name, x)

    def _connect(self, name, x):
        side = int(x.shape[2] ** 0.5)
        batch, tiles, _, width = x.shape
        x = x.reshape(batch, tiles, side, side, width)
        x = pad(x, (0, 0, 0, side % 2, 0, side % 2))
        half = x.shape[2] // 2
        x = x.reshape(batch, tiles, half, 2, half, 2, width).transpose(3, 4)
        x = x.reshape(batch, tiles, half * half, 4, width)
        config = self.vision["vl_connector_config"]["attn_pooling_config"]
        heads, size = config["n_heads"], config["head_dim"]
        pooling = name + "pooling."
        q = linear(x.mean(dim=3), self[pooling + "q_w.weight"], self[pooling + "q_b"])
        biases = torch.cat([self[pooling + "k_b"], self[pooling + "v_b"]])
        k, v = linear(x, self[pooling + "kv_w.weight"], biases).chunk(2, dim=-1)
        q = q.unflatten(-1, (heads, 1, size))
        k, v = (one.unflatten(-1, (heads, size)).transpose(3, 4) for one in (k, v))
        weights = softmax(q @ k.transpose(-1, -2) * size**-0.5, dim=-1)
        x = self._linear((weights @ v).flatten(3), pooling + "out")
        value, gate = linear(x, self[name + "projector.up.weight"]).chunk(2, dim=-1)
        return linear(silu(gate) * value, self[name + "projector.down.weight"])

    def _tower_attention(self, name, x):
        heads = self.vision["block_config"]["attn_config"]["n_heads"]
        biases = torch.cat([self[f"{name}{kind}_b"] for kind in "qkv"])
        qkv = linear(x, self[name + "qkv_w.weight"], biases)
        q, k, v = (one.unflatten(-1, (heads, -1)).transpose(2, 3) for one in qkv.chunk(3, dim=-1))
        weights = softmax(q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5, dim=-1)
        return self._linear((weights @ v).transpose(2, 3).flatten(3), name + "out")

    def embed(self, ids):
        """(L,) -> (L, width), from both tables."""
        name = "model.language_model.embedding."
        table = torch.cat([self[name + "embedding"], self[name + "new_embedding"]])
        return table[ids.long()]

    def decode(self, x):
        """(L, width) -> (L, vocabulary)."""
        for layer in range(self.text["n_layers"]):
            name = f"model.language_model.layers.{layer}."
            hidden = self._rms_norm(x, name + "attn_lnorm")
            x = x + self._decoder_attention(name + "attn.", hidden)
            hidden = self._rms_norm(x, name + "ffn_lnorm")
            value, gate = linear(hidden, self[name + "ffn.up.weight"]).chunk(2, dim=-1)
            x = x + linear(silu(gate) * value, self[name + "ffn.down.weight"])
        x = self._rms_norm(x, "model.language_model.ln_f")
        return linear(x, self["lm_head.weight"])

    def _decoder_attention(self, name, x):
        config = self.text["block_config"]["attn_config"]
        heads, groups, size = (config[key] for key in ("n_heads", "n_kv_heads", "head_dim"))
        qkv = linear(x, self[name + "qkv_w.weight"]).unflatten(-1, (heads + 2 * groups, size))
        q, k, v = qkv.transpose(0, 1).split((heads, groups, groups))
        q = self._rotate(self._rms_norm(q, name + "q_lnorm"))
        k = self._rotate(self._rms_norm(k, name + "k_lnorm"))
        k, v = (one.repeat_interleave(heads // groups, dim=0) for one in (k, v))
        scores = q @ k.transpose(-1, -2) * size**-0.5
        later = torch.ones_like(scores, dtype=torch.bool).triu(1)
        weights = softmax(scores.masked_fill(later, -torch.inf), dim=-1)
        return linear((weights @ v).transpose(0, 1).flatten(1), self[name + "out.weight"])

    def _rotate(self, x):
        length, size = x.shape[-2:]
        rates = self.text["rope_theta"] ** -(torch.arange(0, size, 2).double() / size)
        angles = torch.arange(length).double()[:, None] * rates
        first, second = x.chunk(2, dim=-1)
        cos, sin = angles.cos(), angles.sin()
        return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)

    def _linear(self, x, name):
        return linear(x, self[f"{name}.weight"], self[f"{name}.bias"])

    def _layer_norm(self, x, name):
        return layer_norm(x, x.shape[-1:], self[f"{name}.weight"], self[f"{name}.bias"], 1e-6)

    def _rms_norm(self, x, name):
        return x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * self[f"{name}.weight"]
