"""Files of other trainers, as they are in the wild: all are read, and every layer changes as its formula says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign_files import CLIP_Q, FILES, Foreign
from safetensors.torch import save_file

from fluxtune.config.lora import LoraConfig
from fluxtune.config.model import ModelConfig
from fluxtune.errors import BaseModelError
from fluxtune.exporting.conversion import Wanted, convert
from fluxtune.flux.base import open_base
from fluxtune.flux.families import FLUX1
from fluxtune.lora.adapter import LoraLayer, attach, start_from
from fluxtune.lora.attached import set_acting
from fluxtune.lora.conventions import LoraFormat
from fluxtune.lora.decoding import LYCORIS_RANK, decoded
from fluxtune.lora.opened import open_lora
from fluxtune.lora.reading import read_lora_file, read_start
from fluxtune.lora.use import LoraUse

Velocity = Callable[[Any], torch.Tensor]
Fresh = Callable[[], Any]


@pytest.fixture(params=FILES)
def foreign(request: pytest.FixtureRequest) -> Foreign:
    return FILES[request.param]()


@pytest.fixture
def file(foreign: Foreign, tmp_path: Path) -> Path:
    save_file(foreign.tensors, tmp_path / "foreign.safetensors", foreign.header or None)
    return tmp_path / "foreign.safetensors"


def change(layer: LoraLayer) -> torch.Tensor:
    return layer.scale * layer.b @ layer.a


def with_weights_changed(transformer: Any, foreign: Foreign) -> Any:
    with torch.no_grad():
        for path, each in foreign.changes.items():
            if path.startswith("transformer."):
                transformer.get_submodule(path.removeprefix("transformer.")).weight += each
    return transformer


def test_every_layer_changes_as_the_formula_says(foreign: Foreign, file: Path) -> None:
    read = read_lora_file(file)
    assert set(read.layers) == set(foreign.changes)
    for path, wanted in foreign.changes.items():
        assert float((change(read.layers[path]) - wanted).norm() / wanted.norm()) < 1e-5, path
    assert not read.errors


def test_it_acts_on_the_model_as_weights_changed_by_the_formula(
    foreign: Foreign, file: Path, tiny_flux: Path, fresh: Fresh, velocity: Velocity
) -> None:
    lora = open_lora(LoraUse(file), open_base(ModelConfig(base=str(tiny_flux))))
    acting = {
        path.removeprefix("transformer."): layer
        for path, layer in lora.acting().items()
        if path.startswith("transformer.")
    }
    adapted = fresh()
    set_acting(adapted, {"foreign": acting})
    expected = velocity(with_weights_changed(fresh(), foreign))
    assert torch.allclose(velocity(adapted), expected, atol=1e-4)
    assert not torch.allclose(expected, velocity(fresh()), atol=1e-3)
    assert lora.changes_text == (CLIP_Q in foreign.changes)


def test_training_starts_from_it(foreign: Foreign, file: Path, fresh: Fresh, velocity: Velocity) -> None:
    if CLIP_Q in foreign.changes:
        with pytest.raises(BaseModelError, match="text encoders, which are not trained"):
            read_start(file)
        return
    layers = read_start(file)
    config = LoraConfig(rank=64, alpha=16, targets=list(layers))
    adapted = fresh()
    attach(adapted, config, FLUX1, seed=1)
    start_from(adapted, layers, config, FLUX1, str(file))
    assert torch.allclose(velocity(adapted), velocity(with_weights_changed(fresh(), foreign)), atol=1e-4)


@pytest.mark.parametrize("form", [LoraFormat.DIFFUSERS, LoraFormat.KOHYA])
def test_it_is_exported_and_changes_the_same(form: LoraFormat, foreign: Foreign, file: Path, tmp_path: Path) -> None:
    made = convert(file, Wanted(form, tmp_path / "made.safetensors", "fp32"))
    assert made.error is not None and made.error < 1e-6
    back = read_lora_file(made.file).layers
    assert set(back) == set(foreign.changes)
    for path, wanted in foreign.changes.items():
        assert float((change(back[path]) - wanted).norm() / wanted.norm()) < 1e-5, path


def test_a_lycoris_layer_of_true_width_is_read_with_its_error() -> None:
    generator = torch.Generator().manual_seed(1)
    name = "lora_unet_single_blocks_3_linear1"
    first = torch.randn(8, 8, generator=generator)
    second = torch.randn(2688, 4, generator=generator) @ torch.randn(4, 384, generator=generator)
    second += 0.01 * torch.randn(2688, 384, generator=generator)
    found = decoded({f"{name}.lokr_w1": first, f"{name}.lokr_w2": second}, FLUX1.layer_names, {})
    whole = torch.kron(first, second)
    rows = dict(
        zip(("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"), whole.split([3072] * 3 + [12288]), strict=True)
    )
    for part, wanted in rows.items():
        path = f"transformer.single_transformer_blocks.3.{part}"
        error = float((change(found.layers[path]) - wanted).norm() / wanted.norm())
        assert found.layers[path].a.shape[0] <= LYCORIS_RANK
        assert found.errors[path] == pytest.approx(error, rel=1e-3) and 0.001 < error < 0.1
