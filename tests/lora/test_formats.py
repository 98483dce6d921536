from __future__ import annotations

from itertools import product

import pytest
import torch
from merge_oracle import merged, rows

from fluxtune.flux.families import FLUX1
from fluxtune.lora.adapter import LoraLayer
from fluxtune.lora.conventions import CONVENTIONS, LoraFormat
from fluxtune.lora.decoding import UnreadableLora, decoded
from fluxtune.lora.encoding import encoded
from fluxtune.lora.low_rank import distance, norm_of

WIDTH, DOUBLES, SINGLES = 32, 2, 2
NAMES = FLUX1.layer_names
Layers = dict[str, LoraLayer]
INPUTS = {
    "x_embedder": 16,
    "context_embedder": 24,
    "time_text_embed.timestep_embedder.linear_1": 8,
    "time_text_embed.guidance_embedder.linear_1": 8,
    "time_text_embed.text_embedder.linear_1": 12,
    "ff.net.2": 4 * WIDTH,
    "ff_context.net.2": 4 * WIDTH,
}


def input_width(path: str) -> int:
    if path.startswith("single_") and path.endswith("proj_out"):
        return 5 * WIDTH
    return next((width for name, width in INPUTS.items() if path == name or path.endswith(f".{name}")), WIDTH)


def layers_of(chosen: object = None, rank: int = 4, scale: float = 0.5) -> Layers:
    """Random layers for all rows of the tables, or those that ``chosen`` answers True for."""
    generator = torch.Generator().manual_seed(5)
    made = {}
    for path, _, _, height in rows(DOUBLES, SINGLES):
        if chosen is None or chosen(path):  # type: ignore[operator]
            out = 16 if path == "proj_out" else height * WIDTH
            a = torch.randn(rank, input_width(path), generator=generator)
            made[f"transformer.{path}"] = LoraLayer(a, torch.randn(out, rank, generator=generator), scale)
    return made


def written(layers: Layers, form: LoraFormat, max_rank: int | None = None) -> dict[str, torch.Tensor]:
    return encoded(layers, NAMES, CONVENTIONS[form], torch.float32, max_rank).tensors


def change(layer: LoraLayer) -> torch.Tensor:
    return layer.scale * layer.b.double() @ layer.a.double()


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    """Whether two files do the same to every layer, to a millionth."""
    return set(first) == set(second) and all(
        float((first[name] - second[name]).norm() / first[name].norm()) < 1e-6 for name in first
    )


@pytest.fixture
def expected() -> dict[str, torch.Tensor]:
    """What the layers of ``layers_of()`` add to the checkpoint, by the tables and the formula alone."""
    changes: dict[str, torch.Tensor] = {}
    heights = {"qkv": 3 * WIDTH, "linear1": 7 * WIDTH}
    table = {path: row for path, *row in rows(DOUBLES, SINGLES)}
    for path, layer in layers_of().items():
        theirs, offset, _ = table[path.removeprefix("transformer.")]
        own = change(layer)
        if path == "transformer.norm_out.linear":
            own = torch.cat([own[WIDTH:], own[:WIDTH]])
        height = heights.get(theirs.rpartition(".")[2], len(own))
        into = changes.setdefault(theirs, torch.zeros(height, own.shape[1], dtype=torch.float64))
        into[offset * WIDTH : offset * WIDTH + len(own)] += own
    return changes


@pytest.mark.parametrize("form", LoraFormat)
def test_every_format_does_to_the_checkpoint_what_the_tables_say(
    form: LoraFormat, expected: dict[str, torch.Tensor]
) -> None:
    assert same(merged(written(layers_of(), form), DOUBLES, SINGLES), expected)


@pytest.mark.parametrize(("first", "second"), product(LoraFormat, LoraFormat))
def test_a_round_trip_through_two_formats_keeps_every_layers_change(first: LoraFormat, second: LoraFormat) -> None:
    layers = layers_of()
    through = decoded(written(layers, first), NAMES, {}).layers
    back = decoded(written(through, second), NAMES, {}).layers
    assert set(back) == set(layers)
    assert max(distance(layer, back[path]) for path, layer in layers.items()) < 1e-6
    assert {layer.a.shape[0] for layer in back.values()} == {4}


@pytest.mark.parametrize("form", [LoraFormat.KOHYA, LoraFormat.COMFYUI])
@pytest.mark.parametrize(
    "left_out", ["attn.to_q", "attn.to_v", "proj_mlp", "attn.add_k_proj"], ids=lambda name: name.rpartition(".")[2]
)
def test_a_part_of_a_fused_layer_that_was_not_trained_stays_untrained(form: LoraFormat, left_out: str) -> None:
    layers = layers_of(lambda path: not path.endswith(left_out))
    back = decoded(written(layers, form), NAMES, {}).layers
    assert set(back) == set(layers)
    assert max(distance(layer, back[path]) for path, layer in layers.items()) < 1e-6


@pytest.mark.parametrize("form", LoraFormat)
def test_ranks_and_scales_of_their_own_are_kept(form: LoraFormat) -> None:
    layers = layers_of()
    for number, (path, layer) in enumerate(list(layers.items())):
        rank = 1 + number % 4
        layers[path] = LoraLayer(layer.a[:rank], layer.b[:, :rank], 0.25 * (1 + number % 3))
    back = decoded(written(layers, form), NAMES, {}).layers
    assert max(distance(layer, back[path]) for path, layer in layers.items()) < 1e-6
    assert same(
        merged(written(layers, form), DOUBLES, SINGLES),
        merged(written(layers, LoraFormat.DIFFUSERS), DOUBLES, SINGLES),
    )


def test_equal_scales_leave_the_weights_of_a_fused_file_untouched_to_the_bit() -> None:
    layers = layers_of(lambda path: path.startswith("transformer_blocks.0.attn.to_"), scale=0.3)
    tensors = written(layers, LoraFormat.KOHYA)
    down = tensors["lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight"]
    up = tensors["lora_unet_double_blocks_0_img_attn_qkv.lora_up.weight"]
    key = layers["transformer.transformer_blocks.0.attn.to_k"]
    assert torch.equal(down[4:8], key.a)
    assert torch.equal(up[WIDTH : 2 * WIDTH, 4:8], key.b)
    assert float(tensors["lora_unet_double_blocks_0_img_attn_qkv.alpha"]) == pytest.approx(0.3 * 12)


def test_a_file_of_diffusers_names_holds_no_alpha() -> None:
    assert not [key for key in written(layers_of(), LoraFormat.DIFFUSERS) if "alpha" in key]


def test_a_fused_layer_is_cut_down_to_a_rank_with_its_error() -> None:
    layers = layers_of()
    made = encoded(layers, NAMES, CONVENTIONS[LoraFormat.KOHYA], torch.float32, max_rank=6)
    key = "lora_unet_double_blocks_0_img_attn_qkv"
    whole = merged(written(layers, LoraFormat.KOHYA), DOUBLES, SINGLES)["double_blocks.0.img_attn.qkv"]
    cut = merged(made.tensors, DOUBLES, SINGLES)["double_blocks.0.img_attn.qkv"]
    values = torch.linalg.svdvals(whole)
    best = float(values[6:].square().sum().sqrt() / values.square().sum().sqrt())
    assert float((whole - cut).norm() / whole.norm()) == pytest.approx(best, rel=1e-4)
    assert made.errors[key] == pytest.approx(best, rel=1e-4)
    assert made.tensors[f"{key}.lora_down.weight"].shape[0] == 6


def foreign(layers: Layers, name: str) -> dict[str, torch.Tensor]:
    """A file as some trainer or program spells it, of attention layers."""
    tensors: dict[str, torch.Tensor] = {}
    for path, layer in layers.items():
        plain, folded = path.removeprefix("transformer."), layer.b * layer.scale
        match name:
            case "PeftModel":
                key, down, up = f"base_model.model.{plain}", ".lora_A.weight", ".lora_B.weight"
            case "adapter's name":
                key, down, up = path, ".lora_A.default.weight", ".lora_B.default.weight"
            case "bare":
                key, down, up = path, ".lora_A", ".lora_B"
            case "old diffusers":
                key, down, up = path, ".lora.down.weight", ".lora.up.weight"
            case "LyCORIS":
                key, down, up = f"lycoris_{plain.replace('.', '_')}", ".lora_down.weight", ".lora_up.weight"
            case "kohya with diffusers' names":
                key, down, up = f"lora_unet_{plain.replace('.', '_')}", ".lora_down.weight", ".lora_up.weight"
        tensors |= {key + down: layer.a, key + up: folded}
    return tensors


@pytest.mark.parametrize(
    "name", ["PeftModel", "adapter's name", "bare", "old diffusers", "LyCORIS", "kohya with diffusers' names"]
)
def test_other_spellings_are_read(name: str) -> None:
    layers = layers_of(lambda path: "attn" in path)
    back = decoded(foreign(layers, name), NAMES, {}).layers
    assert set(back) == set(layers)
    assert max(distance(layer, back[path]) for path, layer in layers.items()) < 1e-6


def test_a_file_of_xlabs_is_read() -> None:
    generator = torch.Generator().manual_seed(1)
    a = torch.randn(4, WIDTH, generator=generator)
    qkv, proj = torch.randn(3 * WIDTH, 4, generator=generator), torch.randn(WIDTH, 4, generator=generator)
    tensors = {
        "double_blocks.0.processor.qkv_lora1.down.weight": a,
        "double_blocks.0.processor.qkv_lora1.up.weight": qkv,
        "double_blocks.0.processor.proj_lora2.down.weight": a,
        "double_blocks.0.processor.proj_lora2.up.weight": proj,
        "single_blocks.1.processor.qkv_lora.down.weight": a,
        "single_blocks.1.processor.qkv_lora.up.weight": qkv,
    }
    found = decoded(tensors, NAMES, {})
    assert found.convention == "XLabs"
    changes = {path: change(layer) for path, layer in found.layers.items()}
    assert sorted(changes) == sorted(
        [f"transformer.transformer_blocks.0.attn.to_{name}" for name in "qkv"]
        + [f"transformer.single_transformer_blocks.1.attn.to_{name}" for name in "qkv"]
        + ["transformer.transformer_blocks.0.attn.to_add_out"]
    )
    whole = qkv.double() @ a.double()
    assert torch.allclose(changes["transformer.transformer_blocks.0.attn.to_v"], whole[2 * WIDTH :])
    assert torch.allclose(changes["transformer.transformer_blocks.0.attn.to_add_out"], proj.double() @ a.double())


@pytest.mark.parametrize("alpha", [None, 2.0])
def test_loha_becomes_a_plain_product_exactly(alpha: float | None) -> None:
    generator = torch.Generator().manual_seed(2)
    w1a, w2a = (torch.randn(WIDTH, 3, generator=generator) for _ in range(2))
    w1b, w2b = (torch.randn(3, WIDTH, generator=generator) for _ in range(2))
    name = "lora_unet_double_blocks_1_img_attn_proj"
    tensors = {
        f"{name}.hada_{half}": each
        for half, each in zip(("w1_a", "w1_b", "w2_a", "w2_b"), (w1a, w1b, w2a, w2b), strict=True)
    }
    if alpha is not None:
        tensors[f"{name}.alpha"] = torch.tensor(alpha)
    found = decoded(tensors, NAMES, {})
    layer = found.layers["transformer.transformer_blocks.1.attn.to_out.0"]
    whole = (w1a @ w1b) * (w2a @ w2b) * (1.0 if alpha is None else alpha / 3)
    assert found.kinds == {"LoHa": 1} and not found.errors
    assert torch.allclose(change(layer), whole.double(), atol=1e-4)
    assert layer.a.shape[0] == 9


@pytest.mark.parametrize("given", ["in full", "second low-rank", "both low-rank"])
def test_lokr_becomes_a_plain_product(given: str) -> None:
    generator = torch.Generator().manual_seed(3)
    w1a, w1b = torch.randn(4, 2, generator=generator), torch.randn(2, 4, generator=generator)
    w2a, w2b = torch.randn(8, 2, generator=generator), torch.randn(2, 8, generator=generator)
    name = "lycoris_single_transformer_blocks_0_attn_to_k"
    first = {"lokr_w1_a": w1a, "lokr_w1_b": w1b} if given == "both low-rank" else {"lokr_w1": w1a @ w1b}
    second = {"lokr_w2": w2a @ w2b} if given == "in full" else {"lokr_w2_a": w2a, "lokr_w2_b": w2b}
    tensors = {f"{name}.{half}": tensor for half, tensor in {**first, **second}.items()} | {
        f"{name}.alpha": torch.tensor(1.0)
    }
    layer = decoded(tensors, NAMES, {}).layers["transformer.single_transformer_blocks.0.attn.to_k"]
    scale = 1.0 if given == "in full" else 1.0 / 2
    whole = torch.kron(w1a @ w1b, w2a @ w2b).double() * scale
    assert float((change(layer) - whole).norm() / whole.norm()) < 1e-5


def test_a_lycoris_layer_of_a_high_rank_is_cut_down_and_says_how_much_is_lost() -> None:
    generator = torch.Generator().manual_seed(3)
    name = "lycoris_single_transformer_blocks_0_norm_linear"
    first, second = torch.randn(12, 12, generator=generator), torch.randn(16, 16, generator=generator)
    tensors = {f"{name}.lokr_w1": first, f"{name}.lokr_w2": second}
    found = decoded(tensors, NAMES, {})
    path = "transformer.single_transformer_blocks.0.norm.linear"
    whole = torch.kron(first, second).double()
    seen = float((change(found.layers[path]) - whole).norm() / whole.norm())
    assert found.layers[path].a.shape[0] == 128
    assert found.errors[path] == pytest.approx(seen, rel=1e-3)


def dora_of(weight: torch.Tensor, layer: LoraLayer, magnitude: torch.Tensor) -> torch.Tensor:
    """The weight that a DoRA makes, by the paper's formula, rows being directions."""
    changed = weight + layer.scale * layer.b @ layer.a
    return magnitude[:, None] * changed / changed.norm(dim=1, keepdim=True)


@pytest.mark.parametrize("suffix", [".dora_scale", ".lora_magnitude_vector"])
def test_a_dora_is_read_with_the_base_models_weights(suffix: str) -> None:
    layers = layers_of(lambda path: path == "transformer_blocks.0.attn.to_q")
    ((path, layer),) = layers.items()
    weight = torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(9))
    magnitude = weight.norm(dim=1) * 1.1
    tensors = written(layers, LoraFormat.DIFFUSERS)
    tensors[path + suffix] = magnitude[:, None] if suffix == ".dora_scale" else magnitude
    found = decoded(tensors, NAMES, {}, base_weight={path: weight}.__getitem__)
    wanted = dora_of(weight, layer, magnitude) - weight
    assert torch.allclose(change(found.layers[path]).float(), wanted, atol=1e-4)
    assert found.kinds == {"DoRA": 1}


def test_a_dora_without_the_base_model_is_refused_with_the_reason() -> None:
    layers = layers_of(lambda path: path == "transformer_blocks.0.attn.to_q")
    tensors = written(layers, LoraFormat.DIFFUSERS)
    tensors["transformer.transformer_blocks.0.attn.to_q.dora_scale"] = torch.ones(WIDTH, 1)
    with pytest.raises(UnreadableLora, match="depends on the base model's own weights"):
        decoded(tensors, NAMES, {})


def test_an_alpha_in_diffusers_header_counts_where_no_tensor_says_it() -> None:
    layers = layers_of(lambda path: "attn.to_" in path, scale=1.0)
    header = '{"transformer.r": 4, "transformer.lora_alpha": 8, "transformer.alpha_pattern": {"attn.to_v": 2}}'
    back = decoded(written(layers, LoraFormat.DIFFUSERS), NAMES, {"lora_adapter_metadata": header}).layers
    scales = {path.rpartition(".")[2]: layer.scale for path, layer in back.items()}
    assert (scales["to_q"], scales["to_v"]) == (2.0, 0.5)


def test_a_rank_stabilised_adapter_is_scaled_by_the_root_of_its_rank() -> None:
    layers = layers_of(lambda path: "attn.to_q" in path, scale=1.0)
    header = '{"transformer.r": 4, "transformer.lora_alpha": 8, "transformer.use_rslora": true}'
    back = decoded(written(layers, LoraFormat.DIFFUSERS), NAMES, {"lora_adapter_metadata": header}).layers
    assert {layer.scale for layer in back.values()} == {4.0}


def test_a_kohya_file_whose_header_states_an_alpha_too_is_scaled_once() -> None:
    layers = layers_of(lambda path: "attn.to_q" in path)
    header = '{"transformer.r": 4, "transformer.lora_alpha": 8}'
    back = decoded(written(layers, LoraFormat.KOHYA), NAMES, {"lora_adapter_metadata": header}).layers
    assert max(distance(layer, back[path]) for path, layer in layers.items()) < 1e-6


def test_a_file_stored_in_fp8_is_read() -> None:
    layers = layers_of(lambda path: "attn.to_q" in path)
    tensors = {key: tensor.to(torch.float8_e4m3fn) for key, tensor in written(layers, LoraFormat.DIFFUSERS).items()}
    back = decoded(tensors, NAMES, {}).layers
    assert 0 < max(distance(layer, back[path]) for path, layer in layers.items()) < 0.1


def test_a_lora_of_the_text_encoder_keeps_its_layers() -> None:
    generator = torch.Generator().manual_seed(1)
    path = "text_encoder.text_model.encoder.layers.3.mlp.fc1"
    layer = LoraLayer(torch.randn(2, 8, generator=generator), torch.randn(32, 2, generator=generator), 0.5)
    layers = {**layers_of(lambda path: "attn.to_q" in path), path: layer}
    for form in (LoraFormat.DIFFUSERS, LoraFormat.KOHYA, LoraFormat.COMFYUI, LoraFormat.ONETRAINER):
        assert distance(layer, decoded(written(layers, form), NAMES, {}).layers[path]) < 1e-6
    flattened = {
        "text_encoder.encoder.layers.3.mlp.fc1.lora_A.weight": layer.a,
        "text_encoder.encoder.layers.3.mlp.fc1.lora_B.weight": layer.b * 0.5,
    }
    assert distance(layer, decoded(flattened, NAMES, {}).layers[path]) < 1e-6
    assert "lora_te1_text_model_encoder_layers_3_mlp_fc1.lora_down.weight" in written(layers, LoraFormat.KOHYA)


def test_what_a_convention_has_no_names_for_is_told() -> None:
    path = "text_encoder.text_model.encoder.layers.3.mlp.fc1"
    layers = {path: LoraLayer(torch.ones(2, 8), torch.ones(32, 2), 1.0)}
    made = encoded(layers, NAMES, CONVENTIONS[LoraFormat.AI_TOOLKIT], torch.float32)
    assert (made.left_out, made.tensors) == ([path], {})


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({}, "holds no layers"),
        ({"transformer.proj_out.weight": torch.ones(2, 2)}, "1 of 1 tensors are no part of a LoRA"),
        ({"lora_unet_input_blocks_1_1_proj_in.lora_down.weight": torch.ones(2, 2)}, "no part of a LoRA of this family"),
        ({"transformer.proj_out.lora_A.weight": torch.ones(2, 2)}, r"has A \(down\) alone, which makes no layer"),
        ({"transformer.proj_out.alpha": torch.ones(())}, "an alpha alone"),
        (
            {
                "transformer.proj_out.lora_A.weight": torch.ones(2, 2),
                "transformer.proj_out.lora_B.weight": torch.ones(2, 3),
            },
            "A has 2 rows, and B has 3 columns",
        ),
        (
            {
                "transformer.proj_out.lora_A.weight": torch.ones(2),
                "transformer.proj_out.lora_B.weight": torch.ones(2, 2),
            },
            "a LoRA is made of matrices",
        ),
        (
            {
                "lora_unet_single_blocks_0_linear1.lora_down.weight": torch.ones(2, 2),
                "lora_unet_single_blocks_0_linear1.lora_up.weight": torch.ones(15, 2),
            },
            "15 rows for an input of 2: of this family it has 7 times as many",
        ),
        (
            {
                "lora_unet_single_blocks_0_linear1.lora_down.weight": torch.ones(2, 2),
                "lora_unet_single_blocks_0_linear1.lora_up.weight": torch.ones(28, 2),
            },
            "28 rows for an input of 2",
        ),
        (
            {
                f"transformer.proj_out.{name}": torch.ones(2, 2)
                for name in ("lora_A.weight", "lora_A.default.weight", "lora_B.weight")
            },
            "proj_out is there in two spellings",
        ),
        (
            {f"transformer.proj_out.{name}.weight": torch.ones(2, 2) for name in ("lora_A", "lora_B", "lora_down")},
            "proj_out is there in two spellings",
        ),
        (
            {
                f"transformer.transformer_blocks.{number}.attn.to_q.lora_{half}.weight": torch.ones(2, 2)
                for number in ("0", "00")
                for half in "AB"
            },
            "2 of 4 tensors are no part of a LoRA",
        ),
        (
            {
                key: torch.ones(2, 2)
                for name in ("transformer.proj_out", "base_model.model.proj_out")
                for key in (f"{name}.lora_A.weight", f"{name}.lora_B.weight")
            },
            "proj_out is there twice",
        ),
    ],
    ids=lambda value: value[:24] if isinstance(value, str) else "",
)
def test_what_is_no_lora_says_why(tensors: dict[str, torch.Tensor], message: str) -> None:
    with pytest.raises(UnreadableLora, match=message):
        decoded(tensors, NAMES, {})


def test_the_norm_of_a_change_is_found_without_forming_it() -> None:
    layer = layers_of()["transformer.proj_out"]
    assert norm_of(layer) == pytest.approx(float(change(layer).norm()))
