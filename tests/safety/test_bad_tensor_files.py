"""Whatever reads a tensor file refuses each file of the zoo with one message, its place, a hint and its exit code."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file
from tensor_zoo import ZOO, assembled, mutated, parts

from fluxtune.captioning.load import load_model
from fluxtune.config.memory import MemoryConfig
from fluxtune.config.model import ModelConfig
from fluxtune.dataset.cache import Store
from fluxtune.errors import BaseModelError, ExitCode, FluxtuneError, StorageError
from fluxtune.events import Warning, ignore
from fluxtune.exporting.conversion import Wanted, convert
from fluxtune.exporting.inspection import inspect
from fluxtune.exporting.merging import Merging, merge_files
from fluxtune.flux.base import open_base
from fluxtune.flux.load import load_transformer, load_vae
from fluxtune.lora.conventions import LoraFormat
from fluxtune.lora.reading import read_start
from fluxtune.lora.use import LoraUse
from fluxtune.nano import captioner_folder
from fluxtune.sampling.loras import base_of, open_lora
from fluxtune.training.checkpoint import _stored

PLAIN = MemoryConfig(base_precision="fp32", text_precision="fp32")
LAYER = "transformer_blocks.0.attn.to_q"


class Reader(NamedTuple):
    """Something that reads a tensor file.

    Attributes:
        file: a whole one.
        read: reads it where it lies.
        damaged, pickled: exit codes of its refusals.
    """

    file: Path
    read: Callable[[], object]
    damaged: ExitCode
    pickled: ExitCode


def lora_in(file: Path, **changes: torch.Tensor) -> Path:
    """A LoRA for the tiny FLUX on one layer."""
    halves = {"lora_A": torch.ones(4, 64), "lora_B": torch.full((64, 4), 0.01)}
    tensors = {f"transformer.{LAYER}.{half}.weight": changes.get(half, values) for half, values in halves.items()}
    save_file(tensors, file, metadata={"format": "pt", "ss_sd_model_name": "nano"})
    return file


@pytest.fixture(scope="module")
def folder(tiny_flux: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model of this file's own, whose files are damaged and mended again."""
    return Path(shutil.copytree(tiny_flux, tmp_path_factory.mktemp("base") / "flux"))


READERS = (
    "sample --lora",
    "init_from",
    "export",
    "export merge",
    "export inspect",
    "base of a LoRA",
    "transformer",
    "VAE",
    "single file",
    "captioner",
    "state",
)


@pytest.fixture(params=READERS)
def reader(request: pytest.FixtureRequest, folder: Path, tmp_path: Path) -> Iterator[Reader]:
    lora, base = lora_in(tmp_path / "mug.safetensors"), open_base(ModelConfig(base=str(folder)))
    weights = {part: next((folder / part).glob("*.safetensors")) for part in ("transformer", "vae")}
    kept = {file: file.read_bytes() for file in weights.values()}
    single = Path(shutil.copy(weights["vae"], tmp_path / "ae.safetensors"))
    captioner = Path(shutil.copytree(captioner_folder(), tmp_path / "captioner"))
    made = tmp_path / "made.safetensors"
    of_base, of_lora = (ExitCode.BASE_MODEL, ExitCode.BASE_MODEL), (ExitCode.STORAGE, ExitCode.USAGE)
    yield {
        "sample --lora": Reader(lora, lambda: open_lora(LoraUse(lora), base), *of_lora),
        "init_from": Reader(lora, lambda: read_start(lora), *of_lora),
        "export": Reader(lora, lambda: convert(lora, Wanted(LoraFormat.KOHYA, made)), *of_lora),
        "export merge": Reader(
            lora, lambda: merge_files([LoraUse(lora)], Merging(), Wanted(LoraFormat.DIFFUSERS, made)), *of_lora
        ),
        "export inspect": Reader(lora, lambda: inspect(lora), *of_lora),
        "base of a LoRA": Reader(lora, lambda: base_of(lora), *of_lora),
        "transformer": Reader(
            weights["transformer"], lambda: load_transformer(base, PLAIN, torch.float32, "cpu"), *of_base
        ),
        "VAE": Reader(weights["vae"], lambda: load_vae(base, torch.float32, "cpu"), *of_base),
        "single file": Reader(single, lambda: open_base(ModelConfig(base=str(folder), vae=str(single))), *of_base),
        "captioner": Reader(
            captioner / "model.safetensors", lambda: load_model(captioner, "fp32", "cpu", ignore), *of_base
        ),
        "state": Reader(lora, lambda: _stored(lora), ExitCode.STORAGE, ExitCode.STORAGE),
    }[request.param]
    for file, content in kept.items():
        file.write_bytes(content)


def test_a_whole_file_is_read(reader: Reader) -> None:
    reader.read()


@pytest.mark.parametrize("animal", ZOO)
def test_each_reader_refuses_each_file_of_the_zoo(reader: Reader, animal: str) -> None:
    change, told = ZOO[animal]
    reader.file.write_bytes(change(reader.file.read_bytes()))
    with pytest.raises(FluxtuneError) as error:
        reader.read()
    assert told in error.value.message
    assert error.value.where == str(reader.file)
    assert error.value.hint
    assert error.value.exit_code == (reader.pickled if "a pickle" in told else reader.damaged)


@pytest.mark.parametrize("animal", ZOO)
def test_a_damaged_cache_file_is_told_deleted_and_made_again(tmp_path: Path, animal: str) -> None:
    change, told = ZOO[animal]
    Store(tmp_path).write("key", {"latents": torch.ones(3, 4), "more": torch.ones(2)})
    (shard,) = tmp_path.glob("*.safetensors")
    shard.write_bytes(change(shard.read_bytes()))
    events: list[Any] = []
    assert Store(tmp_path, events.append).missing(["key"]) == ["key"]
    assert [type(event) for event in events] == [Warning]
    assert told in events[0].message
    assert not shard.exists()


def test_a_lora_of_500_mutations_is_read_or_refused_in_one_message(tmp_path: Path) -> None:
    file = lora_in(tmp_path / "mug.safetensors")
    whole = file.read_bytes()
    outcomes: list[type] = []
    for seed in range(500):
        file.write_bytes(mutated(whole, seed))
        try:
            read_start(file)
            outcomes.append(dict)
        except FluxtuneError as error:
            assert error.where == str(file)
            assert error.hint
            outcomes.append(type(error))
    assert {StorageError, BaseModelError, dict} <= set(outcomes)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("half", ["lora_A", "lora_B"])
def test_a_lora_with_values_that_are_no_numbers_is_refused(tmp_path: Path, half: str, value: float) -> None:
    bad = torch.ones(4, 64) if half == "lora_A" else torch.ones(64, 4)
    bad[1, 2] = value
    with pytest.raises(BaseModelError, match=rf"no finite numbers: transformer\..*{half}"):
        read_start(lora_in(tmp_path / "mug.safetensors", **{half: bad}))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"lora_A": torch.ones(0, 64), "lora_B": torch.ones(64, 0)}, "holds no weights"),
        ({"lora_A": torch.ones(4, 64, dtype=torch.int32)}, "holds no weights"),
        ({"lora_A": torch.ones(4, 8, 8)}, "made of matrices"),
        ({"lora_A": torch.ones(5, 64)}, "A has 5 rows, and B has 4 columns"),
    ],
)
def test_a_lora_of_impossible_matrices_is_refused_by_both_readers(
    folder: Path, tmp_path: Path, changes: dict[str, torch.Tensor], told: str
) -> None:
    file = lora_in(tmp_path / "mug.safetensors", **changes)
    with pytest.raises(BaseModelError, match=told):
        read_start(file)
    with pytest.raises(BaseModelError, match=told):
        open_lora(LoraUse(file), open_base(ModelConfig(base=str(folder))))


@pytest.mark.parametrize("alpha", ['"x"', "NaN", "0", "-1", "[1]", "null", "1e999", "{}"])
def test_a_lora_whose_header_has_an_impossible_scale_is_refused(tmp_path: Path, alpha: str) -> None:
    file = lora_in(tmp_path / "mug.safetensors")
    header, data = parts(file.read_bytes())
    header["__metadata__"]["lora_adapter_metadata"] = f'{{"transformer.lora_alpha": {alpha}, "transformer.r": 4}}'
    file.write_bytes(assembled(header, data))
    with pytest.raises(BaseModelError, match=r"lora_alpha is .*: wanted a number above 0"):
        read_start(file)


@pytest.mark.parametrize("settings", ["[1]", "7", "{", '{"transformer.r": "x"}', "[" * 100_000])
def test_a_lora_whose_header_has_impossible_settings_is_refused(folder: Path, tmp_path: Path, settings: str) -> None:
    file = lora_in(tmp_path / "mug.safetensors")
    header, data = parts(file.read_bytes())
    header["__metadata__"]["lora_adapter_metadata"] = settings
    file.write_bytes(assembled(header, data))
    with pytest.raises(BaseModelError):
        open_lora(LoraUse(file), open_base(ModelConfig(base=str(folder))))


def test_settings_of_a_header_that_are_no_scale_are_of_no_consequence(folder: Path, tmp_path: Path) -> None:
    file = lora_in(tmp_path / "mug.safetensors")
    plain = read_start(file)
    header, data = parts(file.read_bytes())
    settings = {"transformer.oops": 1, "transformer.target_modules": 3, "transformer.lora_dropout": "x"}
    header["__metadata__"]["lora_adapter_metadata"] = json.dumps(settings)
    file.write_bytes(assembled(header, data))
    (layer,) = read_start(file).values()
    assert (layer.scale, layer.a.shape) == (1.0, plain[LAYER].a.shape)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8", "nf4"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_base_with_values_that_are_no_numbers_is_refused_in_each_precision(
    folder: Path, tmp_path: Path, precision: Any, value: float
) -> None:
    own = Path(shutil.copytree(folder, tmp_path / "flux"))
    file = next((own / "transformer").glob("*.safetensors"))
    weights = load_file(file)
    weights[f"{LAYER}.weight"][3, 3] = value
    save_file(weights, file)
    base = open_base(ModelConfig(base=str(own)))
    with pytest.raises(BaseModelError, match=f"{LAYER}.weight has values that are no finite numbers"):
        load_transformer(base, MemoryConfig(base_precision=precision), torch.bfloat16, "cpu")


@pytest.mark.parametrize(("dtype", "bits"), [(torch.float8_e4m3fn, 0x7F), (torch.float8_e5m2, 0x7C)])
@pytest.mark.parametrize("sign", [0, 0x80])
def test_values_of_eight_bits_that_are_no_numbers_are_told(dtype: torch.dtype, bits: int, sign: int) -> None:
    from fluxtune.flux.weights import is_finite

    largest = torch.tensor([torch.finfo(dtype).max, torch.finfo(dtype).min, 0.0]).to(dtype)
    assert is_finite(largest)
    assert not is_finite(
        torch.cat([largest.view(torch.uint8), torch.tensor([bits | sign], dtype=torch.uint8)]).view(dtype)
    )


@pytest.mark.parametrize(
    "listed", ["../vae/diffusion_pytorch_model.safetensors", "/etc/passwd", "weights.bin", "..\\x.safetensors", "", 3]
)
def test_an_index_that_names_files_elsewhere_is_refused(folder: Path, tmp_path: Path, listed: object) -> None:
    own = Path(shutil.copytree(folder, tmp_path / "flux"))
    index = own / "transformer" / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": listed}}))
    base = open_base(ModelConfig(base=str(folder)))
    with pytest.raises(BaseModelError, match=r"no index of \.safetensors files beside it"):
        load_transformer(replaced(base, own), PLAIN, torch.float32, "cpu")


def replaced(base: Any, folder: Path) -> Any:
    """The base as it is in another folder."""
    from dataclasses import replace

    return replace(base, folder=folder)


def test_a_pickle_is_refused_as_captioner_and_as_base_in_a_file_and_in_a_folder(folder: Path, tmp_path: Path) -> None:
    from fluxtune.hub.layouts import BASE_MODEL, CAPTIONER
    from fluxtune.hub.locate import locate

    for kind, whole, part in ((BASE_MODEL, folder, "vae"), (CAPTIONER, captioner_folder(), "")):
        own = Path(shutil.copytree(whole, tmp_path / kind.library))
        weights = next((own / part).glob("*.safetensors"))
        weights.rename(weights.with_suffix(".bin"))
        with pytest.raises(BaseModelError, match="weights as pickles, which can run code") as error:
            locate(str(own), kind=kind)
        assert "save_pretrained" in (error.value.hint or "")
        (tmp_path / "flux1.ckpt").write_bytes(b"")
        with pytest.raises(BaseModelError, match="can run code when it is opened"):
            locate(str(tmp_path / "flux1.ckpt"), kind=kind)


@pytest.mark.parametrize(
    "part",
    [
        ["evil", "Evil"],
        ["diffusers_modules.local.evil", "Evil"],
        ["transformers", "AutoModel"],
        ["diffusers", "AutoModel"],
        ["transformers", "os.system"],
        [None, None],
        ["evil.Evil"],
        "evil",
    ],
)
@pytest.mark.parametrize("name", ["scheduler", "vae", "tokenizer_2"])
def test_a_base_whose_parts_are_of_classes_of_its_own_is_refused_and_runs_nothing(
    folder: Path, tmp_path: Path, name: str, part: object
) -> None:
    own = Path(shutil.copytree(folder, tmp_path / "flux"))
    ran = tmp_path / "ran"
    for place in (own, own / name):
        (place / "evil.py").write_text(f"open({str(ran)!r}, 'w')\nclass Evil: pass\n")
    index = json.loads((own / "model_index.json").read_text())
    (own / "model_index.json").write_text(json.dumps({**index, name: part}))
    with pytest.raises(BaseModelError) as error:
        open_base(ModelConfig(base=str(own)))
    assert "never run" in error.value.message or "not a readable index" in error.value.message
    assert not ran.exists()


def test_code_that_configs_name_is_not_run(folder: Path, tmp_path: Path) -> None:
    from fluxtune.flux.base import load_tokenizers
    from fluxtune.flux.load import load_text_pipeline

    own = Path(shutil.copytree(folder, tmp_path / "flux"))
    ran = tmp_path / "ran"
    for part, config in (("tokenizer", "tokenizer_config.json"), ("text_encoder", "config.json")):
        (own / part / "evil.py").write_text(f"open({str(ran)!r}, 'w')\nclass Evil: pass\n")
        values = json.loads((own / part / config).read_text())
        automatic = {name: "evil.Evil" for name in ("AutoConfig", "AutoModel")} | {"AutoTokenizer": ["evil.Evil", None]}
        (own / part / config).write_text(json.dumps({**values, "auto_map": automatic}))
    base = open_base(ModelConfig(base=str(own)))
    load_tokenizers(base)
    load_text_pipeline(base, PLAIN, torch.float32, "cpu")
    assert not ran.exists()


def test_an_unused_part_of_a_base_is_not_read(folder: Path, tmp_path: Path) -> None:
    from fluxtune.flux.load import load_text_pipeline

    own = Path(shutil.copytree(folder, tmp_path / "flux"))
    (own / "image_encoder").mkdir()
    (own / "image_encoder" / "config.json").write_text('{"model_type": "clip_vision_model"}')
    (own / "image_encoder" / "pytorch_model.bin").write_bytes(ZOO["torch.save"][0](b""))
    index = json.loads((own / "model_index.json").read_text())
    index["image_encoder"] = ["transformers", "CLIPVisionModelWithProjection"]
    (own / "model_index.json").write_text(json.dumps(index))
    pipeline = load_text_pipeline(open_base(ModelConfig(base=str(own))), PLAIN, torch.float32, "cpu")
    assert pipeline.image_encoder is None


def test_no_line_of_the_program_opens_pickles_or_trusts_code() -> None:
    import re

    import fluxtune

    root = Path(fluxtune.__file__).parent
    sources = {
        file.relative_to(root).as_posix(): file.read_text(encoding="utf-8")
        for file in root.rglob("*.py")
        # A model card shows a program for its reader to run.
        if "recipes" not in file.parts and file.name != "model_card.py"
    }
    pickles = r"(?<!save_file\()torch\.load\(|import pickle|pickle\.loads?\(|np\.load\(|joblib\.load"
    forbidden = rf"{pickles}|trust_remote_code\W+True|weights_only=False"
    assert [name for name, text in sources.items() if re.search(forbidden, text)] == []
    loading = {name: re.findall(r"\.from_pretrained\((?:[^()]|\([^()]*\))*\)", text) for name, text in sources.items()}
    calls = [(name, call) for name, found in loading.items() for call in found if "(folder, **_OWN)" not in call]
    assert len(calls) >= 4
    unguarded = [
        (name, call)
        for name, call in calls
        if not {"trust_remote_code=False", "**_OWN"} & set(re.split(r"[\s,()]+", call))
    ]
    assert unguarded == []
