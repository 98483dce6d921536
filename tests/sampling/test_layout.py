"""What a request comes to: single pictures, their names' parts, and sheets; no model is needed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from fluxtune.config.previews import LAST_SEED
from fluxtune.config.sampling import SamplingConfig
from fluxtune.errors import UsageError
from fluxtune.lora.use import LoraUse
from fluxtune.runs import Run
from fluxtune.sampling.axes import NAMES, Axis, read_axis
from fluxtune.sampling.layout import laid_out
from fluxtune.sampling.prompts import PromptRow
from fluxtune.sampling.request import SampleRequest

Requests = Callable[..., SampleRequest]
MUG = LoraUse(Path("mug.safetensors"), 0.8)


def axes(*texts: str) -> tuple[Axis, ...]:
    return tuple(read_axis(text, (None,)) for text in texts)


def test_a_row_of_prompts_has_what_it_says_and_else_what_all_have(request_for: Requests) -> None:
    rows = (PromptRow(prompt="a cup", seed=5, count=2, width=128, guidance=1.0, name="cup"), "a boat")
    pictures, sheets = laid_out(request_for(prompts=rows, seeds=(7, 8), sampling=SamplingConfig(negative_prompt="x")))
    assert [(each.prompt, each.seed, each.width, each.height, each.guidance) for each in pictures] == [
        ("a cup", 5, 128, 96, 1.0),
        ("a cup", 6, 128, 96, 1.0),
        ("a boat", 7, 64, 96, 3.5),
        ("a boat", 8, 64, 96, 3.5),
    ]
    assert [(each.number, each.name, each.negative_prompt) for each in pictures[1:3]] == [
        (0, "cup", "x"),
        (1, None, "x"),
    ]
    assert sheets == []


def test_a_count_of_a_row_begins_at_the_seed_of_all(request_for: Requests) -> None:
    pictures, _ = laid_out(request_for(prompts=(PromptRow(prompt="a cup", count=3),), seeds=(7,)))
    assert [each.seed for each in pictures] == [7, 8, 9]


def test_one_axis_goes_across_and_prompts_with_seeds_go_down(request_for: Requests) -> None:
    request = request_for(prompts=("a cup", "a boat"), seeds=(7, 8), loras=(MUG,), axes=axes("lora-scale=0,0.5,1"))
    pictures, (sheet,) = laid_out(request)
    assert [each.loras[0].scale for each in pictures[:3]] == [0.0, 0.4, 0.8]
    assert sheet.headings == ("LoRA at 0", "LoRA at 0.5", "LoRA at 1")
    assert [(line.label, line.note) for line in sheet.lines] == [
        ("a cup", "seed 7"),
        ("a cup", "seed 8"),
        ("a boat", "seed 7"),
        ("a boat", "seed 8"),
    ]
    assert sheet.lines[3].cells == (9, 10, 11)
    assert pictures[10].prompt == "a boat" and pictures[10].seed == 8 and pictures[10].marks == ("scale0.5",)


def test_a_second_axis_goes_down_and_a_third_makes_a_sheet_for_each_value(request_for: Requests) -> None:
    given = axes("steps=1,2", "guidance=1,2,3", "seed=4,5")
    pictures, sheets = laid_out(request_for(axes=given))
    assert len(pictures) == 12
    assert [sheet.title for sheet in sheets] == [f"{pictures[0].prompt}, seed 4", f"{pictures[0].prompt}, seed 5"]
    for sheet, seed in zip(sheets, (4, 5), strict=True):
        assert sheet.headings == ("1 steps", "2 steps")
        assert [line.label for line in sheet.lines] == ["guidance 1", "guidance 2", "guidance 3"]
        for line, guidance in zip(sheet.lines, (1.0, 2.0, 3.0), strict=True):
            cells = [pictures[cell] for cell in line.cells]
            assert [(each.steps, each.guidance, each.seed) for each in cells] == [
                (1, guidance, seed),
                (2, guidance, seed),
            ]


def test_every_picture_of_a_request_has_a_name_of_its_own(request_for: Requests) -> None:
    given = axes("lora-scale=0,1", "size=64x64,96x64", "negative-prompt=x|y", "true-guidance=2,3", "strength=0.1,0.2")
    pictures, _ = laid_out(request_for(seeds=(7, 8, 7), loras=(MUG,), axes=given, compare=True))
    assert len(pictures) == 2 * 2**6
    assert len({(each.number, each.name, each.seed, each.marks) for each in pictures}) == len(pictures)


def test_prompts_of_an_axis_hold_commas_and_choices_and_are_numbered(request_for: Requests) -> None:
    pictures, (sheet,) = laid_out(request_for(prompts=(), axes=axes("prompt=a cup, red|a {big|small} boat")))
    assert [(each.number, each.template) for each in pictures] == [(0, "a cup, red"), (1, "a {big|small} boat")]
    assert pictures[1].prompt in ("a big boat", "a small boat")
    assert sheet.headings == ("a cup, red", "a {big|small} boat")


def test_a_prompt_is_drawn_by_the_seed_alone(request_for: Requests) -> None:
    prompt = "a {red|blue|green|black} cup"
    request = request_for(prompts=(prompt,), seeds=tuple(range(12)), loras=(MUG,), compare=True)
    pictures, (sheet,) = laid_out(request)
    assert len({each.prompt for each in pictures}) > 1
    for line, seed in zip(sheet.lines, range(12), strict=True):
        without, acting = (pictures[cell] for cell in line.cells)
        assert without.prompt == acting.prompt == line.label
        assert (without.loras, acting.loras, acting.seed) == ((), (MUG,), seed)
    alone, _ = laid_out(request_for(prompts=(prompt,), seeds=(9,)))
    assert alone[0].prompt == pictures[18].prompt


def test_a_picture_keeps_the_shape_of_its_start_picture_unless_a_size_is_asked_for(
    request_for: Requests, tmp_path: Path
) -> None:
    start = tmp_path / "start.png"
    Image.new("RGB", (600, 200)).save(start)
    (free,), _ = laid_out(request_for(width=96, height=96, start=start))
    assert (free.width, free.height) == (160, 48)  # 166 x 55 have 96 x 96 pixels in this shape
    (fixed,), _ = laid_out(request_for(width=96, height=96, start=start, sized=True))
    (own,), _ = laid_out(request_for(prompts=(PromptRow(prompt="a", height=64),), width=96, height=96, start=start))
    assert (fixed.width, fixed.height, own.width, own.height) == (96, 96, 96, 64)


def test_checkpoints_of_a_run_take_the_place_of_its_lora(request_for: Requests, tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", "", {}, {})
    for step in (500, 1000):
        folder = run.checkpoint_folder(step)
        folder.mkdir(parents=True)
        (folder / "mug.safetensors").touch()
        (folder / "manifest.json").touch()
    run.result_path("mug").touch()
    run.update(status="finished", result="mug.safetensors")
    uses = (LoraUse(tmp_path / "other.safetensors"), LoraUse(run.result_path("mug"), 0.5))
    axis = read_axis("checkpoint=all,result", (None, run.folder))
    pictures, (sheet,) = laid_out(request_for(loras=uses, axes=(axis,)))
    assert sheet.headings == ("step 500", "step 1000", "result")
    assert [each.loras[1].path.parent.name for each in pictures] == ["step-000500", "step-001000", "run"]
    assert {(each.loras[0], each.loras[1].scale) for each in pictures} == {(uses[0], 0.5)}
    with pytest.raises(UsageError, match="'7' is no checkpoint") as error:
        read_axis("checkpoint=7", (run.folder,))
    assert error.value.hint == "there are all, result and 500, 1000"


def test_bars_in_prompts_of_an_axis_can_be_escaped(request_for: Requests) -> None:
    pictures, _ = laid_out(request_for(prompts=(), axes=axes(r"prompt=a \| b|\{c|d\}")))
    assert [each.prompt for each in pictures] == ["a | b", "{c", "d}"]


def test_an_axis_leads_away_from_the_empty_text_too(request_for: Requests) -> None:
    pictures, (sheet,) = laid_out(request_for(axes=axes("negative-prompt=|blurry")))
    assert [each.negative_prompt for each in pictures] == ["", "blurry"]
    assert sheet.headings == ("empty text", "blurry")


@pytest.mark.parametrize("prompt", ["", "  ", "\u2003"])
def test_a_blank_prompt_is_refused(request_for: Requests, prompt: str) -> None:
    with pytest.raises(UsageError, match="wanted text that is not blank"):
        laid_out(request_for(prompts=(prompt,)))
    with pytest.raises(UsageError, match="seed 7 draws a blank prompt"):
        laid_out(request_for(prompts=(f"{{{prompt}|{prompt}}}",)))


def test_seeds_past_the_last_are_refused(request_for: Requests) -> None:
    row = PromptRow(prompt="a cup", seed=LAST_SEED - 1, count=2)
    assert laid_out(request_for(prompts=(row,)))[0][1].seed == LAST_SEED
    with pytest.raises(UsageError, match="3 seeds from 9223372036854775806 on go past the last"):
        laid_out(request_for(prompts=(row.model_copy(update={"count": 3}),)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prompt=a||b", 'prompt is "": wanted text that is not blank'),
        ("prompt= ", "prompt has no values"),
        ("lora_scale", "no axis: wanted NAME=VALUE"),
        ("sed=1,2", "no axis"),
        ("seed=", "seed has no values"),
        ("seed=1,1", "seed has a value twice"),
        ("seed=x", 'seed is "x": wanted a whole number'),
        ("steps=0", "steps is 0: wanted"),
        ("size=100x100", 'size is "100x100": wanted'),
        ("lora-scale=much", "'much' is no scale"),
        ("lora-scale=nan", "'nan' is no scale"),
        ("checkpoint=all", "varies the LoRA of a run, and there is none"),
    ],
)
def test_what_is_no_axis_is_a_usage_error(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as error:
        read_axis(text, (None,))
    assert error.value.where == "--grid"


def test_a_name_that_is_nearly_an_axis_is_suggested() -> None:
    with pytest.raises(UsageError) as error:
        read_axis("lora-scales=1", (None,))
    assert error.value.hint == "did you mean lora-scale=...?"
    assert set(NAMES) >= {"prompt", "seed", "steps", "guidance", "lora-scale", "checkpoint"}


def test_axes_that_make_too_much_or_stand_twice_are_refused(request_for: Requests) -> None:
    with pytest.raises(UsageError, match="seed is an axis twice"):
        laid_out(request_for(axes=axes("seed=1", "seed=2")))
    many = ",".join(map(str, range(1, 200)))
    with pytest.raises(UsageError, match="these are 39,601 pictures: at most 10,000"):
        laid_out(request_for(axes=axes(f"seed={many}", f"steps={many}")))
