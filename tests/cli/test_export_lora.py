"""`fluxtune export` of LoRA files: what people read, what programs read, and the exit codes."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from fluxtune.lora.adapter import LoraLayer
from fluxtune.lora.files import read_metadata
from fluxtune.lora.low_rank import distance
from fluxtune.lora.reading import read_lora_file

Fluxtune = Callable[..., Any]
LAYERS = {
    "transformer_blocks.0.attn.to_q": (64, 64),
    "transformer_blocks.0.attn.to_v": (64, 64),
    "single_transformer_blocks.1.proj_mlp": (64, 256),
    "proj_out": (64, 64),
}


def lora(file: Path, seed: int = 1, **metadata: str) -> Path:
    """A LoRA of some layers of the tiny FLUX, in diffusers' names."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for path, (width, height) in LAYERS.items():
        tensors[f"transformer.{path}.lora_A.weight"] = torch.randn(4, width, generator=generator)
        tensors[f"transformer.{path}.lora_B.weight"] = torch.randn(height, 4, generator=generator)
    save_file(tensors, file, {"modelspec.title": "zorvex", **metadata})
    return file


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """``zorvex.safetensors`` in the working folder."""
    return lora(tmp_path / "zorvex.safetensors", **{"modelspec.trigger_phrase": "zorvex"})


def layers(file: Path) -> dict[str, LoraLayer]:
    return dict(read_lora_file(file).layers)


def test_a_file_is_converted_without_naming_a_subcommand(fluxtune: Fluxtune, source: Path, tmp_path: Path) -> None:
    outcome = fluxtune("export", "zorvex.safetensors", "--format", "kohya", "--dtype", "fp32")
    assert (outcome.code, outcome.out) == (0, "zorvex-kohya.safetensors\n")
    assert "verified: no layer is off by more than" in outcome.err
    assert "warning: zorvex-kohya.safetensors: diffusers passes over 1 layers outside the blocks" in outcome.err
    keys = set(load_file(tmp_path / "zorvex-kohya.safetensors"))
    assert "lora_unet_double_blocks_0_img_attn_qkv.alpha" in keys
    assert all(key.startswith("lora_unet_") for key in keys)


def test_options_may_stand_before_the_file(fluxtune: Fluxtune, source: Path) -> None:
    assert fluxtune("export", "--format", "comfyui", "zorvex.safetensors").out == "zorvex-comfyui.safetensors\n"


def test_a_file_named_like_a_subcommand_is_written_with_its_folder(fluxtune: Fluxtune, tmp_path: Path) -> None:
    lora(tmp_path / "merge")
    (tmp_path / "merge").rename(tmp_path / "inspect.safetensors")
    assert fluxtune("export", "./inspect.safetensors", "--output", "made.safetensors").code == 0


def test_for_programs_the_last_line_is_the_result(fluxtune: Fluxtune, source: Path) -> None:
    records = fluxtune("export", "zorvex.safetensors", "-f", "onetrainer", "--json").records()
    assert (records[-1]["event"], records[-1]["command"]) == ("result", "export")
    data = records[-1]["data"]
    assert (data["file"], data["format"], data["layers"]) == ("zorvex-onetrainer.safetensors", "onetrainer", 4)
    assert 0 < data["error"] < 0.02


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("missing.safetensors",), 2, "no such LoRA file"),
        (("zorvex.safetensors", "--output", "zorvex.safetensors"), 2, "the output is the file that is read"),
        (("zorvex.safetensors", "--output", "made.ckpt"), 2, "written as .safetensors, not as .ckpt"),
        (("zorvex.safetensors", "--format", "nobody"), 2, "nobody"),
        (("zorvex.safetensors", "--rank", "2", "--energy", "0.9"), 2, "cannot go together"),
        (("zorvex.safetensors", "--energy", "2"), 2, "is no share"),
        (("zorvex.safetensors", "--size", "small"), 2, "is no size"),
        (("zorvex.safetensors", "--size", "10"), 2, "rank 1 of every layer takes"),
        (("zorvex.safetensors", "--metadata", "colour=red"), 2, "is no field and its value"),
        (("zorvex.safetensors", "--metadata", "thumbnail=none.png"), 2, "no such picture"),
        (("zorvex.safetensors", "--metadata", "thumbnail=text.safetensors"), 2, "text.safetensors"),
        (("resize", "zorvex.safetensors"), 2, "not said how small"),
        (("merge", "zorvex.safetensors"), 2, "--output is not given"),
        (("merge", "zorvex.safetensors:nan", "-o", "made.safetensors"), 2, "is no scale"),
        (("merge", "zorvex.safetensors", "-o", "made.safetensors", "--rank", "4"), 2, "--method svd"),
        (("fuse", "zorvex.safetensors"), 2, "--output is not given"),
        (("fuse", "zorvex.safetensors", "-o", "made", "--dtype", "fp8"), 2, "diffusers loads no fp8 folders"),
        (("extract", "a", "b"), 2, "--output is not given"),
        (("inspect", "text.safetensors"), 6, "damaged"),
        (("zorvex.safetensors", "--output", ""), 2, "is no file's name"),
        (("merge", "zorvex.safetensors", "--output", ""), 2, "is no file's name"),
        (("zorvex.safetensors", "--scale", "nan"), 2, "nan is no scale"),
        (("merge", "zorvex.safetensors", "narrow.safetensors", "-o", "made.safetensors"), 5, "for different models"),
        (("merge", "zorvex.safetensors", "narrow.safetensors", "-o", "made.safetensors", "-m", "ties"), 5, "[8, 8]"),
        (("zorvex.safetensors", "-f", "ai-toolkit", "--scale", "1e-9"), 8, "too small for float16"),
        (("zorvex.safetensors", "--dtype", "bf16", "--scale", "1e-40"), 8, "too small for bfloat16"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_cannot_be_done_is_said_and_leaves_nothing(
    fluxtune: Fluxtune, source: Path, tmp_path: Path, arguments: tuple[str, ...], code: int, message: str
) -> None:
    (tmp_path / "text.safetensors").write_text("no tensors here")
    narrow = {f"transformer.transformer_blocks.0.attn.to_q.lora_{half}.weight": torch.ones(8, 8) for half in "AB"}
    save_file(narrow, tmp_path / "narrow.safetensors")
    before = sorted(path.name for path in tmp_path.iterdir())
    outcome = fluxtune("export", *arguments)
    assert (outcome.code, message in outcome.err) == (code, True), outcome.err
    assert "hint:" in outcome.err and "this is a bug" not in outcome.err
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_a_file_is_made_smaller(fluxtune: Fluxtune, source: Path, tmp_path: Path) -> None:
    outcome = fluxtune("export", "resize", "zorvex.safetensors", "--rank", "2", "--output", "small.safetensors")
    assert outcome.code == 0
    assert "cut down, at most" in outcome.err
    assert {layer.a.shape[0] for layer in layers(tmp_path / "small.safetensors").values()} == {2}


def test_two_files_become_one_with_their_weights(fluxtune: Fluxtune, source: Path, tmp_path: Path) -> None:
    other = lora(tmp_path / "other.safetensors", seed=2)
    outcome = fluxtune(
        "export",
        "merge",
        "zorvex.safetensors:0.8",
        "other.safetensors:-0.5",
        "-o",
        "both.safetensors",
        "--dtype",
        "fp32",
    )
    assert (outcome.code, outcome.out) == (0, "both.safetensors\n")
    first, second, both = layers(source), layers(other), layers(tmp_path / "both.safetensors")
    for path, layer in both.items():
        change = layer.scale * layer.b @ layer.a
        wanted = 0.8 * first[path].b @ first[path].a - 0.5 * second[path].b @ second[path].a
        assert torch.allclose(change, wanted, atol=1e-4)


def test_a_merge_has_weights_by_group(fluxtune: Fluxtune, source: Path, tmp_path: Path) -> None:
    outcome = fluxtune(
        "export", "merge", "zorvex.safetensors:0.5,single=0.5,outside=0", "-o", "made.safetensors", "--dtype", "fp32"
    )
    assert outcome.code == 0
    first, made = layers(source), layers(tmp_path / "made.safetensors")
    for path, scale in (("transformer_blocks.0.attn.to_q", 0.5), ("single_transformer_blocks.1.proj_mlp", 0.25)):
        layer, seen = first[f"transformer.{path}"], made[f"transformer.{path}"]
        assert distance(LoraLayer(layer.a, layer.b, scale), seen) < 1e-6
    assert not made["transformer.proj_out"].b.any()


def test_a_denoising_step_is_compared_on_wish(fluxtune: Fluxtune, source: Path, tiny_flux: Path) -> None:
    outcome = fluxtune("export", "zorvex.safetensors", "-f", "kohya", "--base", str(tiny_flux), "--denoise", "--json")
    data = outcome.records()[-1]["data"]
    assert 0 < data["denoised_error"] < 0.03
    assert "denoise" in [record.get("name") for record in outcome.records()]
    outcome = fluxtune("export", "zorvex.safetensors", "-f", "diffusers", "--base", str(tiny_flux), "--denoise")
    assert "diffusers reads the same; a denoising step is off by" in outcome.err


def test_a_dora_is_exported_with_its_base(fluxtune: Fluxtune, source: Path, tiny_flux: Path, tmp_path: Path) -> None:
    tensors = load_file(source)
    tensors["transformer.transformer_blocks.0.attn.to_q.lora_magnitude_vector.weight"] = torch.linspace(0.5, 2.0, 64)
    save_file(tensors, tmp_path / "dora.safetensors")
    for arguments in (("dora.safetensors",), ("resize", "dora.safetensors", "-r", "4"), ("merge", "dora.safetensors")):
        refused = fluxtune("export", *arguments, "-o", "made.safetensors")
        assert refused.code == 5 and "depends on the base model's own weights" in refused.err
        assert "hint: make a plain LoRA of it: fluxtune export FILE --base MODEL" in refused.err
        assert fluxtune("export", *arguments, "-o", "made.safetensors", "--base", str(tiny_flux)).code == 0
    wanted = layers(tmp_path / "made.safetensors")
    assert distance(layers(source)["transformer.proj_out"], wanted["transformer.proj_out"]) < 0.01
    path = "transformer.transformer_blocks.0.attn.to_q"
    assert distance(layers(source)[path], wanted[path]) > 0.1


@pytest.mark.parametrize("method", ["svd", "ties", "dare", "dare-ties"])
def test_a_merge_can_keep_the_rank(fluxtune: Fluxtune, source: Path, tmp_path: Path, method: str) -> None:
    lora(tmp_path / "other.safetensors", seed=2)
    arguments = ["export", "merge", "zorvex.safetensors", "other.safetensors", "-m", method, "-o", "both.safetensors"]
    assert fluxtune(*arguments).code == 0
    both = layers(tmp_path / "both.safetensors")
    assert {layer.a.shape[0] for layer in both.values()} == {4}
    # The same command makes the same file.
    (tmp_path / "both.safetensors").rename(tmp_path / "first.safetensors")
    assert fluxtune(*arguments).code == 0
    assert (tmp_path / "both.safetensors").read_bytes()[-1000:] == (tmp_path / "first.safetensors").read_bytes()[-1000:]


def test_ties_of_a_lora_with_itself_keeps_its_largest_values(fluxtune: Fluxtune, source: Path, tmp_path: Path) -> None:
    fluxtune("export", "merge", "zorvex.safetensors:0.5", "zorvex.safetensors:0.5", "-m", "ties", "--density", "1",
             "--dtype", "fp32", "-o", "both.safetensors")  # fmt: skip
    both = layers(tmp_path / "both.safetensors")
    # Weighted half and half, what agrees in sign is averaged: the LoRA itself, at half its strength or all of it.
    scales = {
        round(float((both[path].b @ both[path].a).norm() / (layer.b @ layer.a).norm()), 3)
        for path, layer in layers(source).items()
    }
    assert len(scales) == 1
    scale = scales.pop()
    for path, layer in layers(source).items():
        assert distance(LoraLayer(layer.a, layer.b, scale), both[path]) < 1e-3


def test_a_file_says_what_its_maker_wants(fluxtune: Fluxtune, source: Path, tmp_path: Path) -> None:
    Image.new("RGB", (64, 64), "red").save(tmp_path / "red.png")
    said = ["--metadata", "author=Ada = she", "--metadata", "trigger=", "--metadata", "thumbnail=red.png"]
    assert fluxtune("export", "zorvex.safetensors", *said, "-o", "said.safetensors").code == 0
    header = read_metadata(tmp_path / "said.safetensors")
    assert (header["modelspec.author"], header["modelspec.title"]) == ("Ada = she", "zorvex")
    assert header["modelspec.thumbnail"].startswith("data:image/jpeg;base64,")
    assert "modelspec.trigger_phrase" not in header
    # What was said is still said by a file that is made of that one.
    assert fluxtune("export", "merge", "said.safetensors", "--metadata", "tags=pet", "-o", "one.safetensors").code == 0
    assert read_metadata(tmp_path / "one.safetensors")["modelspec.tags"] == "pet"
    fluxtune("export", "said.safetensors", "-f", "kohya", "-o", "kohya.safetensors")
    assert read_metadata(tmp_path / "kohya.safetensors")["modelspec.author"] == "Ada = she"


def test_words_of_captions_are_kept_only_when_that_is_asked(fluxtune: Fluxtune, tmp_path: Path) -> None:
    lora(tmp_path / "theirs.safetensors", ss_tag_frequency='{"10_dog": {"a dog": 3}}', ss_output_name="dog")
    for flags in ([], ["--keep-captions"]):
        assert fluxtune("export", "theirs.safetensors", *flags, "-o", "made.safetensors").code == 0
        header = read_metadata(tmp_path / "made.safetensors")
        assert ("ss_tag_frequency" in header, header["ss_output_name"]) == (bool(flags), "dog")


def test_a_lora_is_described(fluxtune: Fluxtune, source: Path) -> None:
    out = fluxtune("export", "inspect", "zorvex.safetensors").out
    assert "diffusers, 4 LoRA layers, float32, for flux1" in out
    assert "trigger     zorvex" in out
    assert "double attention       2  4           4" in out
    assert "change by single block   █" in out


def test_the_description_of_a_dora_says_what_needs_its_base(
    fluxtune: Fluxtune, source: Path, tiny_flux: Path, tmp_path: Path
) -> None:
    tensors = load_file(source)
    tensors["transformer.transformer_blocks.0.attn.to_q.lora_magnitude_vector.weight"] = torch.linspace(0.5, 2.0, 64)
    save_file(tensors, tmp_path / "dora.safetensors")
    alone = fluxtune("export", "inspect", "dora.safetensors")
    assert alone.code == 0, alone.err
    assert "3 LoRA, 1 DoRA layers" in alone.out and "64 of them magnitudes of DoRA" in alone.out
    assert "weights of the model that it was trained on: --base MODEL" in alone.out
    assert "change by" not in alone.out
    beside = fluxtune("export", "inspect", "dora.safetensors", "--base", str(tiny_flux))
    assert "change by double block  █" in beside.out and "--base" not in beside.out
    data = fluxtune("export", "inspect", "dora.safetensors", "--json").records()[-1]["data"]
    assert (data["kinds"], data["magnitudes"]) == ({"LoRA": 3, "DoRA": 1}, 64)
    assert set(data["blocks"].values()) == {None}


def test_a_description_for_programs_has_the_hashes(fluxtune: Fluxtune, source: Path) -> None:
    data = fluxtune("export", "inspect", "zorvex.safetensors", "--json").records()[-1]["data"]
    assert data["hashes"]["autov2"] == data["hashes"]["sha256"][:10].upper()
    assert data["blocks"].keys() == {"double 0", "single 1", "outside"}
    assert data["groups"][0]["ranks"] == {"4": 2}


def test_a_header_with_another_hash_is_told(fluxtune: Fluxtune, source: Path, tmp_path: Path) -> None:
    fluxtune("export", "zorvex.safetensors", "-o", "right.safetensors")
    assert "in the place of AutoV3" not in fluxtune("export", "inspect", "right.safetensors").out
    # As some trainers wrote it: the hash of nothing.
    lora(tmp_path / "wrong.safetensors", sshs_model_hash=hashlib.sha256(b"").hexdigest())
    assert "says e3b0c44298fc in the place of AutoV3" in fluxtune("export", "inspect", "wrong.safetensors").out


def test_the_hashes_are_those_of_the_published_definitions(fluxtune: Fluxtune, source: Path) -> None:
    data = fluxtune("export", "inspect", "zorvex.safetensors", "--json").records()[-1]["data"]
    content = source.read_bytes()
    tensors = content[8 + int.from_bytes(content[:8], "little") :]
    assert data["hashes"] == {
        "sha256": hashlib.sha256(content).hexdigest(),
        "autov2": hashlib.sha256(content).hexdigest()[:10].upper(),
        "autov3": hashlib.sha256(tensors).hexdigest()[:12].upper(),
    }


def test_names_and_headers_cannot_speak_to_the_terminal(fluxtune: Fluxtune, tmp_path: Path) -> None:
    lora(tmp_path / "zorvex.safetensors", **{"modelspec.title": "\x1b]0;taken\x07[bold]"})
    out = fluxtune("export", "inspect", "zorvex.safetensors").out
    assert "\x1b" not in out and "\\x1b]0;taken\\x07[bold]" in out


def test_a_model_is_fused_and_the_lora_extracted_from_it(
    fluxtune: Fluxtune, source: Path, tiny_flux: Path, tmp_path: Path
) -> None:
    outcome = fluxtune(
        "export", "fuse", "zorvex.safetensors", "--base", str(tiny_flux), "--dtype", "fp32", "-o", "fused"
    )
    assert (outcome.code, outcome.out) == (0, "fused\n")
    assert "every changed weight was read back" in outcome.err
    outcome = fluxtune(
        "export", "extract", str(tiny_flux), "fused", "--rank", "4", "--dtype", "fp32", "-o", "again.safetensors"
    )
    assert (outcome.code, outcome.out) == (0, "again.safetensors\n")
    again = layers(tmp_path / "again.safetensors")
    assert max(distance(layer, again[path]) for path, layer in layers(source).items()) < 1e-3


def test_a_lora_is_extracted_from_a_single_file(
    fluxtune: Fluxtune, source: Path, tiny_flux: Path, tmp_path: Path
) -> None:
    fluxtune("export", "fuse", "zorvex.safetensors", "--base", str(tiny_flux), "--format", "comfyui", "--dtype", "fp32",
             "-o", "fused.safetensors")  # fmt: skip
    outcome = fluxtune("export", "extract", str(tiny_flux), "fused.safetensors", "-r", "4", "-o", "again.safetensors")
    assert outcome.code == 0
    assert set(layers(tmp_path / "again.safetensors")) == set(layers(source))


def test_no_file_of_a_model_that_is_read_is_written_over(
    fluxtune: Fluxtune, source: Path, tiny_flux: Path, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_flux, model)
    fused = ("export", "fuse", "zorvex.safetensors", "--base", "model", "--format", "comfyui", "--dtype", "fp32")
    assert fluxtune(*fused, "-o", "tuned.safetensors").code == 0
    weights = next((model / "transformer").glob("*.safetensors"))
    before = {file: file.read_bytes() for file in (weights, tmp_path / "tuned.safetensors")}
    extract = ("export", "extract", "model", "tuned.safetensors", "--rank", "4")
    for command, output in (
        (extract, "tuned.safetensors"),
        (extract, weights),
        (extract, model / "transformer" / "new.safetensors"),
        (("export", "extract", tiny_flux, "model", "--rank", "4"), weights),
        (("export", "zorvex.safetensors", "--base", "model"), weights),
        (("export", "merge", "zorvex.safetensors", "--base", "model"), weights),
        (fused, weights),
    ):
        outcome = fluxtune(*map(str, (*command, "--output", output)))
        assert outcome.code == 2, outcome.err
        assert "would be a part of the base model" in outcome.err or "the file that is read" in outcome.err
    assert {file: file.read_bytes() for file in before} == before
    assert not (model / "transformer" / "new.safetensors").exists()
    # Beside the model's parts there is room for a LoRA.
    assert fluxtune("export", "zorvex.safetensors", "--base", "model", "-o", "model/zorvex.safetensors").code == 0


@pytest.mark.parametrize(
    ("name", "header", "message"),
    [
        ("transformer_blocks.59.attn.to_q", {}, "changes block 59 of transformer_blocks, and the published models"),
        ("single_transformer_blocks.38.attn.to_q", {}, "changes block 38 of single_transformer_blocks"),
        ("transformer_blocks.0.attn.to_q", {"ss_base_model_version": "sdxl_base_v1-0"}, "is for sdxl_base_v1-0"),
        ("transformer_blocks.0.attn.to_q", {"modelspec.architecture": "Flux.2-dev/lora"}, "is for Flux.2-dev/lora"),
    ],
)
def test_a_lora_of_another_family_is_not_exported(
    fluxtune: Fluxtune, tmp_path: Path, name: str, header: dict[str, str], message: str
) -> None:
    tensors = {f"transformer.{name}.lora_{half}.weight": torch.ones(64, 64) for half in "AB"}
    save_file(tensors, tmp_path / "other.safetensors", header or None)
    for command in ("convert", "merge"):
        outcome = fluxtune("export", command, "other.safetensors", "-o", "made.safetensors")
        assert (outcome.code, message in outcome.err) == (5, True), outcome.err
    assert not (tmp_path / "made.safetensors").exists()


@pytest.mark.parametrize("header", ["flux1", "Flux.1-dev/lora", "flux", "flux-dev/lora", "flux_kontext"])
def test_a_lora_of_the_family_is_known_by_every_spelling(fluxtune: Fluxtune, tmp_path: Path, header: str) -> None:
    lora(tmp_path / "mug.safetensors", ss_base_model_version=header)
    assert fluxtune("export", "mug.safetensors").code == 0


def test_a_lora_that_changes_nothing_is_told(fluxtune: Fluxtune, source: Path, tmp_path: Path) -> None:
    assert "changes nothing" not in fluxtune("export", "zorvex.safetensors").err
    tensors = {name: each * (0 if "lora_B" in name else 1) for name, each in load_file(source).items()}
    save_file(tensors, tmp_path / "fresh.safetensors")
    outcome = fluxtune("export", "fresh.safetensors")
    assert outcome.code == 0
    assert "warning: fresh.safetensors: this LoRA changes nothing: every layer's change is zero" in outcome.err


def test_a_file_that_was_not_named_is_not_written_over(fluxtune: Fluxtune, source: Path, tmp_path: Path) -> None:
    other = tmp_path / "zorvex-kohya.safetensors"
    other.write_bytes(b"somebody else's")
    for command in (("convert",), ("resize", "--rank", "2")):
        outcome = fluxtune("export", *command, "zorvex.safetensors", "--format", "kohya")
        assert (outcome.code, "this is there already" in outcome.err) == (2, True)
    assert other.read_bytes() == b"somebody else's"
    assert fluxtune("export", "zorvex.safetensors", "--format", "kohya", "--output", other.name).code == 0
