from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from fluxtune.config.lora import LoraConfig
from fluxtune.errors import ConfigError, ExitCode
from fluxtune.flux.families import FLUX1
from fluxtune.lora.adapter import adapter_parameters, attach
from fluxtune.lora.targets import target_layers

# Layers of one block, by the names of interop tables: what each group adapts.
ATTENTION = {
    *(f"attn.{name}" for name in ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj")),
    "attn.to_add_out",
}
MLP = {"ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2"}
SINGLE_ATTENTION = {"attn.to_q", "attn.to_k", "attn.to_v"}


def in_blocks(double: set[str], single: set[str]) -> set[str]:
    """Full paths in the two double and two single blocks of the tiny FLUX."""
    return {f"transformer_blocks.{block}.{name}" for block in range(2) for name in double} | {
        f"single_transformer_blocks.{block}.{name}" for block in range(2) for name in single
    }


def targets(transformer: nn.Module, wanted: Any) -> set[str]:
    return set(target_layers(transformer, LoraConfig(targets=wanted), FLUX1))


def test_attention_means_the_projections_of_both_kinds_of_block(transformer: nn.Module) -> None:
    assert targets(transformer, "attention") == in_blocks(ATTENTION, SINGLE_ATTENTION)


def test_attention_and_mlp_adds_the_feed_forward_layers_but_not_the_final_projection(transformer: nn.Module) -> None:
    expected = in_blocks(ATTENTION | MLP, SINGLE_ATTENTION | {"proj_mlp", "proj_out"})
    assert targets(transformer, "attention+mlp") == expected
    assert "proj_out" not in expected


def test_all_linear_means_every_linear_layer(transformer: nn.Module) -> None:
    linears = {path for path, module in transformer.named_modules() if isinstance(module, nn.Linear)}
    assert targets(transformer, "all-linear") == linears
    assert {"proj_out", "x_embedder", "transformer_blocks.0.norm1.linear"} <= linears


def test_a_pattern_matches_whole_paths(transformer: nn.Module) -> None:
    assert targets(transformer, ["proj_out"]) == {"proj_out"}
    assert targets(transformer, ["transformer_blocks.1.attn.to_[qk]"]) == {
        "transformer_blocks.1.attn.to_q",
        "transformer_blocks.1.attn.to_k",
    }


def test_only_the_named_layers_get_an_adapter(transformer: Any) -> None:
    attach(transformer, LoraConfig(targets=["proj_out"]), FLUX1, seed=0)
    assert set(adapter_parameters(transformer)) == {"proj_out.lora_A", "proj_out.lora_B"}


def test_every_pattern_without_a_match_is_told_at_once(transformer: nn.Module) -> None:
    with pytest.raises(ConfigError) as error:
        targets(transformer, ["*.attn.to_q", "attn.to_q", "blocks.*"])
    assert [problem.message for problem in error.value.problems] == [
        "the pattern 'attn.to_q' matches no linear layer of the model",
        "the pattern 'blocks.*' matches no linear layer of the model",
    ]
    assert error.value.exit_code == ExitCode.USAGE


def test_naming_no_layer_at_all_is_refused(transformer: nn.Module) -> None:
    with pytest.raises(ConfigError, match="nothing would be trained"):
        targets(transformer, [])
