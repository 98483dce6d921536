"""A denoising step with a LoRA as it was read, against the same with what was written."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from comfy_files import weights_of

from fluxtune.config.model import ModelConfig
from fluxtune.errors import ExitCode, VerificationError
from fluxtune.events import ignore
from fluxtune.exporting import conversion
from fluxtune.exporting.conversion import Wanted, write
from fluxtune.exporting.denoising import compare_denoised
from fluxtune.flux.base import Base, open_base
from fluxtune.lora.adapter import LoraLayer
from fluxtune.lora.conventions import LoraFormat

Layers = dict[str, LoraLayer]


@pytest.fixture(scope="module")
def base(tiny_flux: Path) -> Base:
    return open_base(ModelConfig(base=str(tiny_flux)))


@pytest.fixture(scope="module")
def layers(tiny_flux: Path) -> Layers:
    """A weak LoRA of every matrix of the tiny FLUX."""
    generator = torch.Generator().manual_seed(4)
    return {
        f"transformer.{name.removesuffix('.weight')}": LoraLayer(
            torch.randn(3, weight.shape[1], generator=generator) * 0.1,
            torch.randn(weight.shape[0], 3, generator=generator) * 0.02,
            0.5,
        )
        for name, weight in weights_of(tiny_flux, "transformer").items()
        if weight.ndim == 2
    }


@pytest.mark.parametrize("form", LoraFormat)
@pytest.mark.parametrize(("dtype", "near"), [("fp32", 1e-4), ("bf16", 3e-2)])
def test_every_format_denoises_alike(
    form: LoraFormat, dtype: str, near: float, base: Base, layers: Layers, tmp_path: Path
) -> None:
    made = write(layers, {}, Wanted(form, tmp_path / "made.safetensors", dtype, denoise=base))
    assert made.denoised_error is not None and made.denoised_error < near


@pytest.mark.parametrize("form", [LoraFormat.DIFFUSERS, LoraFormat.KOHYA])
def test_a_file_that_denoises_otherwise_is_not_written(
    form: LoraFormat, base: Base, layers: Layers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def weaker(layers: Layers, *others: object) -> object:
        weak = {path: LoraLayer(each.a, each.b, each.scale * 0.99) for path, each in layers.items()}
        return encoded(weak, *others)  # type: ignore[arg-type]

    encoded = conversion.encoded
    monkeypatch.setattr(conversion, "encoded", weaker)
    wanted = Wanted(form, tmp_path / "made.safetensors", "fp32", verify=False, denoise=base)
    with pytest.raises(VerificationError, match=r"a denoising step with it comes out otherwise, by 1\.0e-02") as error:
        write(layers, {}, wanted)
    assert error.value.exit_code == ExitCode.VERIFICATION
    assert not list(tmp_path.iterdir())


def test_the_step_is_the_same_each_time(base: Base, layers: Layers, tmp_path: Path) -> None:
    made = write(layers, {}, Wanted(LoraFormat.KOHYA, tmp_path / "made.safetensors", "bf16"))
    first, second = (compare_denoised(made.file, layers, made.format, base, 0.05, ignore) for _ in range(2))
    assert first == second > 0
