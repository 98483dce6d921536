from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest
import torch
from merge_oracle import merged, rows
from safetensors.torch import load_file, safe_open

from fluxtune.errors import UsageError, VerificationError
from fluxtune.events import Event, Warning
from fluxtune.exporting import conversion
from fluxtune.exporting.conversion import Wanted, convert, write
from fluxtune.exporting.resizing import Size
from fluxtune.lora.adapter import LoraLayer
from fluxtune.lora.conventions import LoraFormat
from fluxtune.lora.low_rank import distance
from fluxtune.lora.reading import read_lora_file

WIDTH = 32
Layers = dict[str, LoraLayer]
METADATA = {
    "modelspec.architecture": "flux-1-dev/lora",
    "modelspec.title": "zorvex",
    "modelspec.trigger_phrase": "zorvex",
    "ss_sd_model_name": "/home/somebody/models/flux1-dev.safetensors",
    "ss_output_name": "C:\\Users\\somebody\\zorvex",
    "ss_dataset_dirs": '{"/home/somebody/photos": 3}',
    "ss_steps": "300",
    "lora_adapter_metadata": '{"transformer.r": 4, "transformer.lora_alpha": 8}',
}


@pytest.fixture
def layers() -> Layers:
    """Every layer of one double and one single block."""
    generator = torch.Generator().manual_seed(5)
    widths = {"ff.net.2": 4 * WIDTH, "ff_context.net.2": 4 * WIDTH}
    made = {}
    for path, _, _, height in rows(1, 1):
        if "blocks" in path:
            width = next((each for name, each in widths.items() if path.endswith(f".{name}")), WIDTH)
            width = 5 * WIDTH if path.startswith("single") and path.endswith("proj_out") else width
            a = torch.randn(4, width, generator=generator)
            made[f"transformer.{path}"] = LoraLayer(a, torch.randn(height * WIDTH, 4, generator=generator), 0.5)
    return made


@pytest.fixture
def source(layers: Layers, tmp_path: Path) -> Path:
    """A LoRA file of kohya's names."""
    written = write(layers, METADATA, Wanted(LoraFormat.KOHYA, tmp_path / "source.safetensors", "fp32"))
    return written.file


def worst(layers: Layers, file: Path) -> float:
    back = read_lora_file(file).layers
    assert set(back) == set(layers)
    return max(distance(layer, back[path]) for path, layer in layers.items())


@pytest.mark.parametrize(("first", "second"), product(LoraFormat, LoraFormat))
def test_files_go_from_every_format_to_every_format(
    first: LoraFormat, second: LoraFormat, layers: Layers, tmp_path: Path
) -> None:
    one = write(layers, METADATA, Wanted(first, tmp_path / "one.safetensors", "fp32"))
    other = convert(one.file, Wanted(second, tmp_path / "other.safetensors", "fp32"))
    assert worst(layers, other.file) < 1e-6
    assert other.error is not None and other.error < 1e-6
    assert other.layers == len(layers)


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_a_file_of_less_precision_is_as_near_as_its_precision_allows(
    dtype: str, layers: Layers, source: Path, tmp_path: Path
) -> None:
    made = convert(source, Wanted(LoraFormat.DIFFUSERS, tmp_path / "made.safetensors", dtype))
    error = worst(layers, made.file)
    assert 0 < error < {"bf16": 1e-2, "fp16": 2e-3}[dtype]
    assert made.error == pytest.approx(error, rel=0.5)


def test_a_scale_multiplies_every_layers_change(layers: Layers, source: Path, tmp_path: Path) -> None:
    made = convert(source, Wanted(LoraFormat.KOHYA, tmp_path / "made.safetensors", "fp32", scale=0.25))
    changes, before = (merged(load_file(file), 1, 1) for file in (made.file, source))
    for name, change in changes.items():
        assert torch.allclose(change, 0.25 * before[name], rtol=1e-5)


def test_the_header_says_what_is_true_of_the_new_file_and_holds_no_path(source: Path, tmp_path: Path) -> None:
    made = convert(source, Wanted(LoraFormat.DIFFUSERS, tmp_path / "made.safetensors"))
    with safe_open(made.file, framework="pt") as file:
        header = dict(file.metadata())
    assert "somebody" not in str(header)
    assert "lora_adapter_metadata" not in header
    assert header["ss_sd_model_name"] == "flux1-dev.safetensors"
    assert header["ss_output_name"] == "zorvex"
    assert header["modelspec.trigger_phrase"] == "zorvex"
    assert (header["ss_network_dim"], header["ss_network_alpha"]) == ("4", "4")
    content = made.file.read_bytes()
    import hashlib

    length = int.from_bytes(content[:8], "little")
    assert header["modelspec.hash_sha256"] == f"0x{hashlib.sha256(content[8 + length :]).hexdigest()}"


def test_a_file_that_reads_back_otherwise_is_not_written(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(layers: Layers, *others: object) -> object:
        halved = {path: LoraLayer(each.a, each.b, each.scale / 2) for path, each in layers.items()}
        return encoded(halved, *others)  # type: ignore[arg-type]

    encoded = conversion.encoded
    monkeypatch.setattr(conversion, "encoded", half)
    with pytest.raises(VerificationError, match="would be changed otherwise") as error:
        convert(source, Wanted(LoraFormat.DIFFUSERS, tmp_path / "made.safetensors"))
    assert error.value.where == str(tmp_path / "made.safetensors")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source.safetensors"]


@pytest.mark.parametrize("size", [Size(rank=2), Size(energy=0.8), Size(bytes=12_000)], ids=["rank", "energy", "bytes"])
def test_a_file_is_cut_down_and_says_what_was_lost(size: Size, layers: Layers, source: Path, tmp_path: Path) -> None:
    made = convert(source, Wanted(LoraFormat.DIFFUSERS, tmp_path / "made.safetensors", "fp32", size=size))
    back = read_lora_file(made.file).layers
    errors = {path: distance(layer, back[path]) for path, layer in layers.items()}
    assert made.cut == pytest.approx(max(errors.values()), rel=1e-3)
    for path, layer in layers.items():
        values = torch.linalg.svdvals(layer.scale * layer.b.double() @ layer.a.double())
        kept = back[path].a.shape[0]
        best = float((values[kept:].square().sum() / values.square().sum()).sqrt())
        assert errors[path] == pytest.approx(best, abs=1e-4)
        if size.energy is not None:
            assert best**2 <= 0.2 + 1e-9
            assert float(values[kept - 1 :].square().sum() / values.square().sum()) > 0.2 - 1e-9
    if size.bytes is not None:
        weights = sum(2 * layer.a.numel() + 2 * layer.b.numel() for layer in back.values())
        assert made.cut > 0 and 10_500 < weights <= 12_000


@pytest.mark.parametrize("form", LoraFormat)
def test_a_size_is_that_of_the_file_also_where_layers_are_fused(form: LoraFormat, source: Path, tmp_path: Path) -> None:
    made = convert(source, Wanted(form, tmp_path / "made.safetensors", size=Size(bytes=12_000)))
    weights = sum(2 * tensor.numel() for name, tensor in load_file(made.file).items() if not name.endswith(".alpha"))
    assert 10_500 < weights <= 12_000


def test_a_size_that_cannot_be_reached_is_refused(source: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="rank 1 of every layer takes"):
        convert(source, Wanted(LoraFormat.DIFFUSERS, tmp_path / "made.safetensors", size=Size(bytes=100)))


def test_what_a_format_has_no_names_for_is_refused_before_anything_is_written(layers: Layers, tmp_path: Path) -> None:
    layers["text_encoder_2.encoder.block.0.layer.0.SelfAttention.q"] = LoraLayer(torch.ones(2, 8), torch.ones(8, 2), 1)
    with pytest.raises(UsageError, match="no names for 1 layers") as error:
        write(layers, {}, Wanted(LoraFormat.DIFFUSERS, tmp_path / "made.safetensors"))
    assert error.value.hint == "take comfyui or kohya or onetrainer"
    assert not list(tmp_path.iterdir())


def test_what_readers_pass_over_is_said(layers: Layers, tmp_path: Path) -> None:
    layers["transformer.x_embedder"] = LoraLayer(torch.ones(2, 8), torch.ones(32, 2), 1.0)
    events: list[Event] = []
    write(layers, {}, Wanted(LoraFormat.KOHYA, tmp_path / "made.safetensors"), events.append)
    (warning,) = [event for event in events if isinstance(event, Warning)]
    assert warning.message == "diffusers passes over 1 layers outside the blocks: transformer.x_embedder"


def test_another_ending_than_safetensors_is_refused(source: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"not as \.ckpt"):
        convert(source, Wanted(LoraFormat.KOHYA, tmp_path / "made.ckpt"))


def test_a_file_without_a_header_gets_a_title_and_one_that_no_reader_takes_stays_behind(
    layers: Layers, tmp_path: Path
) -> None:
    said = {"modelspec.thumbnail": "/home/somebody/pictures/zorvex.png", "modelspec.resolution": "large"}
    written = write(layers, said, Wanted(LoraFormat.DIFFUSERS, tmp_path / "mug.safetensors"))
    with safe_open(written.file, framework="pt") as file:
        header = file.metadata()
    assert header["modelspec.title"] == "mug"
    assert "modelspec.thumbnail" not in header and "modelspec.resolution" not in header
    kept = {"modelspec.title": "Mug", "modelspec.thumbnail": "data:image/png;base64,AA", "modelspec.resolution": "8x8"}
    written = write(layers, kept, Wanted(LoraFormat.DIFFUSERS, tmp_path / "mug.safetensors"))
    with safe_open(written.file, framework="pt") as file:
        assert kept.items() <= file.metadata().items()
