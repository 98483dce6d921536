from __future__ import annotations

import resource
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from comfy_files import bfl_transformer, weights_of
from diffusers import FluxPipeline, FluxTransformer2DModel
from safetensors.torch import load_file

from fluxtune.config.model import ModelConfig
from fluxtune.errors import BaseModelError, StorageError, UsageError, VerificationError
from fluxtune.events import Event, Progress, Warning, ignore
from fluxtune.exporting import fusing
from fluxtune.exporting.extraction import extract
from fluxtune.exporting.fusing import Fused, fuse
from fluxtune.exporting.methods import Checkpoint
from fluxtune.flux.base import Base, open_base
from fluxtune.lora.adapter import LoraLayer
from fluxtune.lora.low_rank import distance
from fluxtune.tensor_writing import Spec, write_tensors

Layers = dict[str, LoraLayer]
Fuse = Callable[..., Fused]


@pytest.fixture
def base(tiny_flux: Path) -> Base:
    """The tiny FLUX."""
    return open_base(ModelConfig(base=str(tiny_flux)))


@pytest.fixture
def layers(tiny_flux: Path) -> Layers:
    """A LoRA of every matrix of its transformer."""
    generator = torch.Generator().manual_seed(4)
    return {
        f"transformer.{name.removesuffix('.weight')}": LoraLayer(
            torch.randn(3, weight.shape[1], generator=generator) * 0.1,
            torch.randn(weight.shape[0], 3, generator=generator) * 0.1,
            0.5,
        )
        for name, weight in weights_of(tiny_flux, "transformer").items()
        if weight.ndim == 2
    }


def changed(tiny_flux: Path, layers: Layers, weight: float = 1.0) -> dict[str, torch.Tensor]:
    """What the transformer's weights should be, by the formula."""
    made = weights_of(tiny_flux, "transformer")
    for path, layer in layers.items():
        name = f"{path.removeprefix('transformer.')}.weight"
        made[name] = made[name] + weight * layer.scale * layer.b @ layer.a
    return made


def test_a_folder_of_diffusers_holds_the_base_model_with_the_lora_in_it(
    base: Base, layers: Layers, tiny_flux: Path, tmp_path: Path
) -> None:
    events: list[Event] = []
    fused = fuse(base, [(layers, 0.8)], Checkpoint.DIFFUSERS, tmp_path / "fused", "fp32", events.append)
    wanted = changed(tiny_flux, layers, 0.8)
    transformer = FluxTransformer2DModel.from_pretrained(tmp_path / "fused" / "transformer")
    for name, parameter in transformer.named_parameters():
        assert torch.allclose(parameter, wanted[name], atol=1e-6), name
    assert fused.changed == len(layers)
    assert fused.error is not None and fused.error < 1e-6
    assert any(isinstance(event, Progress) and event.task.startswith("write") for event in events)
    # The other parts are there too, so that it is a model of its own.
    FluxPipeline.from_pretrained(tmp_path / "fused")
    assert open_base(ModelConfig(base=str(tmp_path / "fused"))).family is base.family


def test_it_is_split_into_shards_with_an_index(base: Base, layers: Layers, tiny_flux: Path, tmp_path: Path) -> None:
    fused = fuse(base, [(layers, 1.0)], Checkpoint.DIFFUSERS, tmp_path / "fused", "bf16", ignore, shard_bytes=200_000)
    assert len(fused.files) > 2
    assert all(file.is_file() and file.stat().st_size < 220_000 for file in fused.files)
    transformer = FluxTransformer2DModel.from_pretrained(tmp_path / "fused" / "transformer")
    wanted = changed(tiny_flux, layers)
    assert all(torch.equal(each, wanted[name].bfloat16()) for name, each in transformer.named_parameters())


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp8"])
def test_a_single_file_has_the_published_checkpoints_names_and_fused_rows(
    dtype: str, base: Base, layers: Layers, tiny_flux: Path, tmp_path: Path
) -> None:
    fuse(base, [(layers, 1.0)], Checkpoint.COMFYUI, tmp_path / "fused.safetensors", dtype, ignore)
    wanted = bfl_transformer(changed(tiny_flux, layers))
    stored = load_file(tmp_path / "fused.safetensors")
    assert set(stored) == set(wanted)
    for name, tensor in wanted.items():
        kind = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp8": torch.float8_e4m3fn}[dtype]
        kind = torch.bfloat16 if dtype == "fp8" and tensor.ndim != 2 else kind
        assert stored[name].dtype == kind, name
        assert torch.allclose(stored[name].float(), tensor.to(kind).float(), atol=1e-6), name


def test_a_single_file_opens_as_a_base_model(base: Base, layers: Layers, tiny_flux: Path, tmp_path: Path) -> None:
    file = tmp_path / "fused.safetensors"
    fuse(base, [(layers, 1.0)], Checkpoint.COMFYUI, file, "fp32", ignore)
    again = open_base(ModelConfig(base=str(tiny_flux), transformer=str(file)))
    # And a LoRA can be fused into that.
    fuse(again, [(layers, -1.0)], Checkpoint.COMFYUI, tmp_path / "back.safetensors", "fp32", ignore)
    wanted = bfl_transformer(weights_of(tiny_flux, "transformer"))
    stored = load_file(tmp_path / "back.safetensors")
    assert all(torch.allclose(stored[name], tensor, atol=1e-5) for name, tensor in wanted.items())


def test_several_loras_add_up(base: Base, layers: Layers, tiny_flux: Path, tmp_path: Path) -> None:
    half = dict(list(layers.items())[::2])
    fuse(base, [(layers, 0.5), (half, 2.0)], Checkpoint.COMFYUI, tmp_path / "f.safetensors", "fp32", ignore)
    both = {
        path: LoraLayer(each.a, each.b, each.scale * (2.5 if path in half else 0.5)) for path, each in layers.items()
    }
    wanted = bfl_transformer(changed(tiny_flux, both))
    stored = load_file(tmp_path / "f.safetensors")
    assert all(torch.allclose(stored[name], tensor, atol=1e-6) for name, tensor in wanted.items())


def test_a_lora_of_another_model_is_refused_before_anything_is_written(base: Base, tmp_path: Path) -> None:
    other = {"transformer.transformer_blocks.0.attn.to_q": LoraLayer(torch.ones(1, 7), torch.ones(7, 1), 1.0)}
    with pytest.raises(BaseModelError, match=r"changes transformer.*to_q \[7, 7\], and .* has \[64, 64\] there"):
        fuse(base, [(other, 1.0)], Checkpoint.COMFYUI, tmp_path / "f.safetensors", "fp32", ignore)
    assert not list(tmp_path.iterdir())


def test_a_weight_that_reads_back_otherwise_leaves_nothing(
    base: Base, layers: Layers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = fusing.TensorWriter.put

    def damaged(writer: fusing.TensorWriter, name: str, tensor: torch.Tensor, row: int = 0) -> None:
        put(writer, name, tensor * 1.1 if name == "transformer_blocks.0.attn.to_q.weight" else tensor, row)

    monkeypatch.setattr(fusing.TensorWriter, "put", damaged)
    with pytest.raises(VerificationError, match=r"to_q\.weight reads back otherwise") as raised:
        fuse(base, [(layers, 1.0)], Checkpoint.DIFFUSERS, tmp_path / "fused", "fp32", ignore)
    assert raised.value.where == str(tmp_path / "fused")
    assert not list(tmp_path.iterdir())


def test_a_single_file_that_reads_back_otherwise_is_not_written(
    base: Base, layers: Layers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = fusing.TensorWriter.put

    def damaged(writer: fusing.TensorWriter, name: str, tensor: torch.Tensor, row: int = 0) -> None:
        put(writer, name, tensor * 1.1 if "img_attn.proj.weight" in name else tensor, row)

    file = tmp_path / "fused.safetensors"
    file.write_bytes(b"what was there")
    monkeypatch.setattr(fusing.TensorWriter, "put", damaged)
    with pytest.raises(VerificationError, match=r"to_out\.0\.weight reads back otherwise") as raised:
        fuse(base, [(layers, 1.0)], Checkpoint.COMFYUI, file, "fp32", ignore)
    assert raised.value.where == str(file)
    assert file.read_bytes() == b"what was there"
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(("dtype", "weight"), [("fp16", 1e9), ("fp8", 1e9), ("bf16", 1e300)])
def test_values_beyond_the_precision_are_refused(
    dtype: str, weight: float, base: Base, layers: Layers, tmp_path: Path
) -> None:
    with pytest.raises(VerificationError, match="has values up to"):
        fuse(base, [(layers, weight)], Checkpoint.COMFYUI, tmp_path / "fused.safetensors", dtype, ignore)
    assert not list(tmp_path.iterdir())


def test_what_was_fused_can_be_extracted_again(base: Base, layers: Layers, tmp_path: Path) -> None:
    fuse(base, [(layers, 1.0)], Checkpoint.DIFFUSERS, tmp_path / "tuned", "fp32", ignore)
    tuned = open_base(ModelConfig(base=str(tmp_path / "tuned")))
    found = extract(base, tuned, 3, ignore)
    assert set(found.layers) == set(layers)
    assert max(distance(layer, found.layers[path]) for path, layer in layers.items()) < 1e-3
    assert max(found.errors.values()) < 1e-3
    less = extract(base, tuned, 1, ignore)
    for path, layer in layers.items():
        assert distance(layer, less.layers[path]) == pytest.approx(less.errors[path], abs=1e-3)
        assert less.errors[path] > 0.1


def test_what_a_lora_cannot_hold_is_said_of_an_extracted_one(base: Base, tiny_flux: Path, tmp_path: Path) -> None:
    transformer = FluxTransformer2DModel.from_pretrained(tiny_flux / "transformer")
    with torch.no_grad():
        transformer.proj_out.bias += 1.0
        transformer.proj_out.weight += 1.0
    pipeline = FluxPipeline.from_pretrained(tiny_flux, transformer=transformer)
    pipeline.save_pretrained(tmp_path / "tuned")
    events: list[Event] = []
    found = extract(base, open_base(ModelConfig(base=str(tmp_path / "tuned"))), 2, events.append)
    assert list(found.layers) == ["transformer.proj_out"]
    assert found.beside == ["proj_out.bias"]
    (warning,) = [event for event in events if isinstance(event, Warning)]
    assert "proj_out.bias" in warning.message


def test_two_models_that_are_the_same_hold_no_lora(base: Base) -> None:
    with pytest.raises(UsageError, match="are the same"):
        extract(base, base, 2, ignore)


def test_a_file_with_rows_that_were_not_written_is_refused_and_not_left(tmp_path: Path) -> None:
    specs = {"a": Spec(torch.float32, (4, 2)), "b": Spec(torch.bfloat16, (3,))}
    with pytest.raises(StorageError, match="1 tensors are not whole, the first is a"):

        def fill(writer: fusing.TensorWriter) -> None:
            writer.put("a", torch.ones(2, 2), row=1)
            writer.put("b", torch.ones(3))

        write_tensors(tmp_path / "x.safetensors", specs, {}, fill)
    assert not list(tmp_path.iterdir())


def test_a_file_larger_than_what_it_is_made_of_takes_little_memory(tmp_path: Path) -> None:
    rows, number = 4096, 24
    specs = {f"t{index}": Spec(torch.float32, (rows, 1024)) for index in range(number)}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def fill(writer: fusing.TensorWriter) -> None:
        for name in specs:
            writer.put(name, torch.full((rows, 1024), float(name[1:])))

    write_tensors(tmp_path / "x.safetensors", specs, {"format": "pt"}, fill)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert (tmp_path / "x.safetensors").stat().st_size > 400_000_000
    assert grown < 150
    stored = load_file(tmp_path / "x.safetensors")
    assert float(stored["t23"].mean()) == 23.0
