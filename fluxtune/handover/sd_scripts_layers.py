"""Which layers sd-scripts trains: it gives parts of the blocks ranks of their own, 0 for none.

After networks/lora_flux.py of kohya-ss/sd-scripts. Its single blocks have one matrix for query, key, value and MLP.
"""

from __future__ import annotations

from fluxtune.handover import layers
from fluxtune.handover.given import Given
from fluxtune.handover.rules import Values, Wanted

_PARTS = ("img_attn_dim", "txt_attn_dim", "img_mlp_dim", "txt_mlp_dim", "img_mod_dim", "txt_mod_dim", "single_dim",
          "single_mod_dim")  # fmt: skip
_LAYERS = {
    "img_attn_dim": ["transformer_blocks.*.attn.to_*"],
    "txt_attn_dim": ["transformer_blocks.*.attn.add_*", "transformer_blocks.*.attn.to_add_out"],
    "img_mlp_dim": ["transformer_blocks.*.ff.net.*"],
    "txt_mlp_dim": ["transformer_blocks.*.ff_context.net.*"],
    "img_mod_dim": ["transformer_blocks.*.norm1.linear"],
    "txt_mod_dim": ["transformer_blocks.*.norm1_context.linear"],
    "single_dim": [
        "single_transformer_blocks.*.attn.to_[qkv]",
        "single_transformer_blocks.*.proj_mlp",
        "single_transformer_blocks.*.proj_out",
    ],
    "single_mod_dim": ["single_transformer_blocks.*.norm.linear"],
}
"""What each of its parts is called here."""

_ATTENTION = ("img_attn_dim", "txt_attn_dim", "single_dim")
_AND_MLP = (*_ATTENTION, "img_mlp_dim", "txt_mlp_dim")


def write(wanted: Wanted) -> Values:
    """The arguments of its network for our targets."""
    rank, targets = wanted["lora.rank"], wanted["lora.targets"]
    if targets == "all-linear":
        return {"network_args": [f"in_dims={[rank] * 5}".replace(" ", "")]}
    if targets == layers.BLOCKS:
        return {"network_args": []}
    chosen = {"attention": _ATTENTION, "attention+mlp": _AND_MLP}.get(targets) if isinstance(targets, str) else None
    if chosen is None:
        chosen = tuple(part for part in _PARTS if set(_LAYERS[part]) & set(targets)) or _AND_MLP
    return {"network_args": [f"{part}={rank if part in chosen else 0}" for part in _PARTS]}


def read(given: Given) -> Values:
    """Our targets for the arguments of its network."""
    rank = given.whole("network_dim", 4)
    arguments = [word.strip() for word in given.words("network_args") if "=" in word]
    named_ones = dict(word.split("=", 1) for word in arguments)
    embedders = named_ones.pop("in_dims", None)
    ranks = {part: given.number_in("network_args", named_ones.pop(part, rank)) or 0 for part in _PARTS}
    if len({each for each in ranks.values() if each}) > 1:
        given.warn("network_args", "parts have ranks of their own there; here all layers have lora.rank")
    blocks = named_ones.pop("train_blocks", "all")
    chosen = [part for part in _PARTS if ranks[part]]
    chosen = [part for part in chosen if blocks == "all" or part.startswith("single") is (blocks == "single")]
    if named_ones.pop("train_t5xxl", "False") == "True":
        given.warn("network_args", "text encoders are not trained here")
    if named_ones.pop("split_qkv", "False") == "True":
        given.note("network_args", "query, key and value have adapters of their own here, as with split_qkv")
    for name, value in named_ones.items():
        given.warn("network_args", f"{name}={value} of the network has no counterpart here")
    if set(chosen) == set(_PARTS):
        return {"lora.targets": "all-linear" if embedders else list(layers.BLOCKS)}
    if set(chosen) == set(_AND_MLP):
        return {"lora.targets": "attention+mlp"}
    return {"lora.targets": [pattern for part in chosen for pattern in _LAYERS[part]]}
