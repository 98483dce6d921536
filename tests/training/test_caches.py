from __future__ import annotations

import shutil
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny_runs import plain_config, small_pictures, train_in

from fluxtune import rng
from fluxtune.config.schema import Config
from fluxtune.dataset.images import fit, open_image, to_pixels
from fluxtune.errors import BaseModelError, DataError, StorageError
from fluxtune.events import Event, Progress, Sink, Warning, ignore
from fluxtune.flux import load
from fluxtune.flux.load import load_vae
from fluxtune.training import encode, examples
from fluxtune.training.examples import Prepared
from fluxtune.training.preflight import Preflight, preflight
from fluxtune.training.prepare import prepare


@pytest.fixture
def own_pictures(tmp_path: Path) -> Path:
    return small_pictures(tmp_path / "own")


@pytest.fixture(scope="module")
def filled(tiny_flux: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that holds everything for the unchanged pictures and settings."""
    cache = tmp_path_factory.mktemp("filled")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLUXTUNE_CACHE", str(cache))
        encoded(tiny_flux, small_pictures(tmp_path_factory.mktemp("unchanged")))
    return cache


@pytest.fixture
def filled_cache(own_cache: None, filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work with the filled cache; what a test changes, no other one changes the same way."""
    monkeypatch.setenv("FLUXTUNE_CACHE", str(filled))


def prepared_for(
    config: Config, on_event: Sink = ignore, between: Callable[[], None] = lambda: None
) -> tuple[Preflight, Prepared]:
    """Prepare a run; ``between`` is called when the pictures were checked and nothing is encoded yet."""
    ready = preflight(config, on_event)
    between()
    return ready, prepare(config, ready.base, ready.pictures, ready.prompts, torch.float32, "cpu", on_event)


def encoded(base: Path, pictures: Path, **changes: Any) -> dict[str, int]:
    """Prepare a run; how many entries of each kind had to be made."""
    events: list[Event] = []
    prepared_for(plain_config(base, pictures, **changes), events.append)
    tasks = [event.task for event in events if isinstance(event, Progress)]
    return {kind: tasks.count(f"encode {kind}") for kind in ("captions", "pictures")}


def test_everything_is_encoded_once(tiny_flux: Path, own_pictures: Path) -> None:
    # Three captions and the empty one of caption dropout.
    assert encoded(tiny_flux, own_pictures) == {"captions": 4, "pictures": 3}
    assert encoded(tiny_flux, own_pictures) == {"captions": 0, "pictures": 0}


def test_further_crops_are_entries_of_their_own_and_keep_the_first(
    filled_cache: None, tiny_flux: Path, own_pictures: Path
) -> None:
    assert encoded(tiny_flux, own_pictures, dataset__crops=3) == {"captions": 0, "pictures": 6}
    assert encoded(tiny_flux, own_pictures, dataset__crops=2) == {"captions": 0, "pictures": 0}
    assert encoded(tiny_flux, own_pictures, dataset__crops=2, dataset__crop_jitter=0.3)["pictures"] == 3


def test_colour_jitter_makes_entries_of_further_crops_alone(
    filled_cache: None, tiny_flux: Path, own_pictures: Path
) -> None:
    assert encoded(tiny_flux, own_pictures, dataset__colour_jitter=0.2) == {"captions": 0, "pictures": 0}
    settings = {"dataset__crops": 2, "dataset__crop_jitter": 0.17}
    assert encoded(tiny_flux, own_pictures, **settings)["pictures"] == 3
    assert encoded(tiny_flux, own_pictures, **settings, dataset__colour_jitter=0.2)["pictures"] == 3
    assert encoded(tiny_flux, own_pictures, **settings, dataset__colour_jitter=0.0)["pictures"] == 0


def test_latents_made_of_tiles_are_entries_of_their_own_where_a_picture_is_larger_than_a_tile(
    filled_cache: None, tiny_flux: Path, own_pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert encoded(tiny_flux, own_pictures, memory__vae_tiling=True) == {"captions": 0, "pictures": 0}
    for module in (load, examples):
        monkeypatch.setattr(module, "VAE_TILE", 128)
    assert encoded(tiny_flux, own_pictures, memory__vae_tiling=True) == {"captions": 0, "pictures": 1}
    assert encoded(tiny_flux, own_pictures) == {"captions": 0, "pictures": 0}


def test_colour_jitter_that_finds_no_further_crop_is_told(tiny_flux: Path, own_pictures: Path) -> None:
    for crops, told in ((1, 1), (2, 0)):
        events: list[Event] = []
        settings = {"dataset__colour_jitter": 0.2, "dataset__crops": crops}
        prepared_for(plain_config(tiny_flux, own_pictures, **settings), events.append)
        warnings = [event for event in events if isinstance(event, Warning) and event.where == "dataset.colour_jitter"]
        assert len(warnings) == told


VARIANTS = {"dataset__crops": 3, "dataset__flip": True, "dataset__resolution": [96, 128], "dataset__colour_jitter": 0.1}


def test_latents_are_those_of_each_crop_encoded_alone(tiny_flux: Path, own_pictures: Path) -> None:
    config = plain_config(tiny_flux, own_pictures, **VARIANTS)
    ready, prepared = prepared_for(config)
    vae = load_vae(ready.base, torch.float32, "cpu")
    assert len(prepared.examples) == 3 * 2 * 6
    for example in prepared.examples:
        image = fit(open_image(example.picture.path, "#ffffff"), example.width, example.height, example.crop)
        noise = rng.generator(0, "posterior", example.picture.digest, example.width, example.height)
        alone = ready.base.family.encode_image(vae, to_pixels(image)[None], noise)[0]
        assert torch.equal(prepared.latents.read(example.latents)["latents"], alone)


@pytest.mark.parametrize(("threads", "parcel"), [(1, 1), (4, 1), (4, 2**30)])
def test_threads_and_parcels_do_not_change_a_bit(
    tiny_flux: Path, own_pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: int, parcel: int
) -> None:
    config = plain_config(tiny_flux, own_pictures, **VARIANTS)
    _, usual = prepared_for(config)
    monkeypatch.setenv("FLUXTUNE_CACHE", str(tmp_path / "other"))
    monkeypatch.setattr(encode, "DECODERS", threads)
    monkeypatch.setattr(encode, "PARCEL_BYTES", parcel)
    _, other = prepared_for(config)
    for one, two in zip(usual.examples, other.examples, strict=True):
        assert torch.equal(usual.latents.read(one.latents)["latents"], other.latents.read(two.latents)["latents"])


def test_a_picture_is_decoded_once_for_all_its_crops_and_sizes(
    tiny_flux: Path, own_pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: Counter[str] = Counter()

    def counting(path: Path, background: str) -> Image.Image:
        decoded[path.name] += 1
        return open_image(path, background)

    monkeypatch.setattr(encode, "open_image", counting)
    encoded(tiny_flux, own_pictures, **VARIANTS)
    assert decoded == {"0.png": 1, "1.png": 1, "2.png": 1}


def test_an_interruption_keeps_what_was_encoded_and_leaves_no_thread(tiny_flux: Path, own_pictures: Path) -> None:
    def interrupting(event: Event) -> None:
        if isinstance(event, Progress) and event.task == "encode pictures" and event.done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepared_for(plain_config(tiny_flux, own_pictures), interrupting)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ahead")]
    assert encoded(tiny_flux, own_pictures) == {"captions": 0, "pictures": 1}


def test_a_picture_that_changes_before_it_is_encoded_is_refused_and_those_before_it_are_kept(
    tiny_flux: Path, own_pictures: Path
) -> None:
    before = (own_pictures / "1.png").read_bytes()
    config = plain_config(tiny_flux, own_pictures)
    with pytest.raises(DataError, match="picture was changed") as error:
        prepared_for(config, between=lambda: Image.new("RGB", (128, 128)).save(own_pictures / "1.png"))
    assert error.value.where == str(own_pictures / "1.png")
    (own_pictures / "1.png").write_bytes(before)
    assert encoded(tiny_flux, own_pictures) == {"captions": 0, "pictures": 2}


def test_a_mask_that_changes_before_it_is_fitted_is_refused(tiny_flux: Path, own_pictures: Path) -> None:
    mask = own_pictures / "1-masklabel.png"
    Image.linear_gradient("L").resize((128, 128)).save(mask)
    config = plain_config(tiny_flux, own_pictures)
    with pytest.raises(DataError, match="mask was changed") as error:
        prepared_for(config, between=lambda: Image.new("L", (128, 128), 9).save(mask))
    assert error.value.where == str(mask)


def stored(prepared: Prepared) -> int:
    """Bytes of all tensors that a run needs."""
    needed = [(prepared.texts, set(prepared.text_keys.values()))]
    needed.append((prepared.latents, {example.latents for example in prepared.examples}))
    needed.append((prepared.masks, {example.mask for example in prepared.examples if example.mask}))
    return sum(tensor.nbytes for store, keys in needed for key in keys for tensor in store.read(key).values())


def free_bytes(patch: pytest.MonkeyPatch, free: int) -> None:
    patch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free))


def test_what_does_not_fit_on_the_disk_is_refused_before_an_encoder_loads(
    tiny_flux: Path, own_pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.linear_gradient("L").resize((128, 128)).save(own_pictures / "1-masklabel.png")
    config = plain_config(tiny_flux, own_pictures, dataset__crops=2)
    needed = stored(prepared_for(config)[1])
    monkeypatch.setenv("FLUXTUNE_CACHE", str(tmp_path / "other"))
    events: list[Event] = []
    with monkeypatch.context() as patch:
        free_bytes(patch, needed - 1)
        with pytest.raises(StorageError, match="caption embeddings, latents, masks and prior pictures need"):
            prepared_for(config, events.append)
    assert not [event for event in events if isinstance(event, Progress) and event.task.startswith("encode")]
    free_bytes(monkeypatch, needed)
    prepared_for(config)


def test_prior_pictures_that_will_not_fit_on_the_disk_are_refused_before_an_encoder_loads(
    tiny_flux: Path, own_pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guard = {"method": "prior", "prompts": ["a red star"], "pictures": 3}
    config = plain_config(tiny_flux, own_pictures, training__preservation=guard, training__steps=1)
    train_in(tmp_path / "run", config, cache=tmp_path / "cache")
    monkeypatch.setenv("FLUXTUNE_CACHE", str(tmp_path / "cache"))
    (priors,) = (tmp_path / "cache").glob("priors-*")
    made = sum(tensor.nbytes for shard in priors.iterdir() for tensor in load_file(shard).values())
    shutil.rmtree(priors)
    free_bytes(monkeypatch, made - 1)
    with pytest.raises(StorageError, match="latents, masks and prior pictures need"):
        prepared_for(config)
    free_bytes(monkeypatch, made)
    prepared_for(config)


def test_what_is_in_the_cache_needs_no_space(
    filled_cache: None, tiny_flux: Path, own_pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free_bytes(monkeypatch, 0)
    assert encoded(tiny_flux, own_pictures) == {"captions": 0, "pictures": 0}


def test_a_damaged_shard_is_told_and_its_entries_are_made_anew(tiny_flux: Path, own_pictures: Path) -> None:
    config = plain_config(tiny_flux, own_pictures)
    _, prepared = prepared_for(config)
    before = [prepared.latents.read(example.latents)["latents"] for example in prepared.examples]
    (shard,) = prepared.latents.folder.iterdir()
    content = bytearray(shard.read_bytes())
    content[-100] ^= 4
    shard.unlink()
    shard.write_bytes(content)
    events: list[Event] = []
    _, again = prepared_for(config, events.append)
    told = [event.message for event in events if isinstance(event, Warning) and event.where == str(shard)]
    assert told == ["damaged cache file, made again: an entry is not what was written (its checksum differs)"]
    for latents, example in zip(before, again.examples, strict=True):
        assert torch.equal(again.latents.read(example.latents)["latents"], latents)


def test_a_changed_caption_re_encodes_that_caption_alone(
    filled_cache: None, tiny_flux: Path, own_pictures: Path
) -> None:
    (own_pictures / "1.txt").write_text("a zorvex at sea")
    assert encoded(tiny_flux, own_pictures) == {"captions": 1, "pictures": 0}


def test_a_changed_picture_re_encodes_that_picture_alone(
    filled_cache: None, tiny_flux: Path, own_pictures: Path
) -> None:
    Image.new("RGB", (128, 128), (1, 2, 3)).save(own_pictures / "1.png")
    assert encoded(tiny_flux, own_pictures) == {"captions": 0, "pictures": 1}


def test_a_file_that_is_there_twice_is_encoded_once(filled_cache: None, tiny_flux: Path, own_pictures: Path) -> None:
    Image.new("RGB", (128, 128), (3, 2, 1)).save(own_pictures / "1.png")
    (own_pictures / "2.png").write_bytes((own_pictures / "1.png").read_bytes())
    assert encoded(tiny_flux, own_pictures) == {"captions": 0, "pictures": 1}


def test_embeddings_that_are_no_numbers_are_refused_and_not_kept(
    own_cache: None, tiny_flux: Path, own_pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = {"prompt_embeds": torch.full((1, 4, 8), float("nan"))}
    with monkeypatch.context() as patch:
        patch.setattr("fluxtune.training.encode.encode_prompt", lambda *arguments: broken)
        with pytest.raises(BaseModelError, match="no finite numbers for one of the captions"):
            encoded(tiny_flux, own_pictures)
    assert encoded(tiny_flux, own_pictures)["captions"] == 4


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"dataset__trigger": "mug"}, {"captions": 3, "pictures": 0}),
        ({"dataset__resolution": [96, 128]}, {"captions": 0, "pictures": 3}),
        ({"dataset__background": "#000000"}, {"captions": 0, "pictures": 3}),
        ({"memory__text_precision": "bf16"}, {"captions": 4, "pictures": 0}),
        ({"memory__base_precision": "nf4"}, {"captions": 0, "pictures": 0}),
        ({"training__seed": 7}, {"captions": 0, "pictures": 0}),
    ],
)
def test_a_changed_setting_re_encodes_what_it_decides(
    filled_cache: None, tiny_flux: Path, own_pictures: Path, changes: dict[str, Any], expected: dict[str, int]
) -> None:
    assert encoded(tiny_flux, own_pictures, **changes) == expected


def test_prior_pictures_are_made_once(tiny_flux: Path, own_pictures: Path, tmp_path: Path) -> None:
    guard = {"method": "prior", "prompts": ["a red star", "a blue ball"], "pictures": 3}
    config = plain_config(tiny_flux, own_pictures, training__preservation=guard, training__steps=1)
    other = plain_config(
        tiny_flux, own_pictures, training__preservation=guard, training__steps=1, memory__text_precision="bf16"
    )
    made = []
    for number, chosen in enumerate((config, config, other)):
        run = train_in(tmp_path / f"run-{number}", chosen, cache=tmp_path / "cache")
        made.append([event.task for event in run.seen(Progress)].count("prior pictures"))
    assert made == [3, 0, 3]


def test_nothing_is_written_into_the_folder_of_pictures(tiny_flux: Path, own_pictures: Path) -> None:
    before = sorted(path.name for path in own_pictures.iterdir())
    encoded(tiny_flux, own_pictures)
    assert sorted(path.name for path in own_pictures.iterdir()) == before
