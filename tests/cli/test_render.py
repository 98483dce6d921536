from __future__ import annotations

import io
import json
import os

import pytest
from rich.console import Console

from fluxtune import events
from fluxtune.cli.render import PlainLines, json_lines, terminal, write_line
from fluxtune.sentences import printable, printable_lines, sentence

STEP = events.Step(
    step=120, total=1500, loss=0.43125, learning_rate=1e-4, grad_norm=0.2, rate=3.21, seconds_left=430.4, memory=2.06
)


def steps(*numbers: int) -> list[events.Step]:
    return [events.Step(number, 100, 0.5, 1e-4, 0.1, 2.0, 10.0, 1.0) for number in numbers]


class Clock:
    """A clock that moves by a second each time it is read."""

    now = 0.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


def shown_plain(*emitted: events.Event) -> list[str]:
    stream = io.StringIO()
    sink = PlainLines(stream, Clock())
    for event in emitted:
        sink(event)
    return stream.getvalue().splitlines()


def shown_on_terminal(*emitted: events.Event, colours: bool = False) -> str:
    stream = io.StringIO()
    console = Console(
        file=stream, force_terminal=True, width=100, color_system="standard" if colours else None, no_color=not colours
    )
    with terminal(console) as sink:
        for event in emitted:
            sink(event)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("event", "text"),
    [
        (events.RunStarted("runs/mug", "nano", 400), "run runs/mug: nano, 400 steps"),
        (events.Phase("load", "nano in fp32 on cpu"), "load: nano in fp32 on cpu"),
        (events.Phase("train"), "train"),
        (events.Progress("texts", 3, 12, "texts", 1.5, 6.0), "texts: 3/12 texts  1.5 texts/s  0:06 left"),
        (events.Progress("captions", 12, 12, "captions", 1.5, 0.0), "captions: 12/12 captions"),
        (events.Progress("files", 3, 12), "files: 3/12 items"),
        (
            events.Progress("download", 1_500_000_000, 23_800_000_000, "B", 42_000_000.0, 530.0),
            "download: 1.50/23.80 GB  42.0 MB/s  8:50 left",
        ),
        (STEP, "step 120/1500  loss 0.4313  lr 1.0e-04  3.2 steps/s  7:10 left  2.1 GiB"),
        (events.Preview(0, "a mug", 42, "p.png"), "preview at step 0: p.png"),
        (events.Checkpoint(250, "c"), "checkpoint at step 250: c"),
        (events.Resumed(250, "c"), "resumed at step 250 from c"),
        (events.Warning("odd", where="a.png"), "warning: a.png: odd"),
        (events.Warning("odd", hint="mend it"), "warning: odd\nhint: mend it"),
        (events.Finding("note", "size", "small", where="a.png"), "note: a.png: small"),
        (events.Result("train"), None),
        (events.Error(2, "wrong"), None),
    ],
)
def test_each_event_is_a_line_for_people(event: events.Event, text: str | None) -> None:
    assert sentence(event) == text


@pytest.mark.parametrize(
    ("rate", "left", "text"),
    [
        (0.08, 3725.0, "12.5 s/step  1:02:05 left"),
        (1.0, 59.6, "1.0 steps/s  1:00 left"),
        (0.0, 0.0, "- steps/s  0:00 left"),
    ],
)
def test_slow_steps_show_seconds_a_step_and_long_runs_show_hours(rate: float, left: float, text: str) -> None:
    assert text in (sentence(events.Step(1, 2, 0.5, 1e-4, 0.1, rate, left, 1.0)) or "")


def test_without_a_terminal_progress_is_a_line_now_and_then_and_at_both_ends() -> None:
    lines = shown_plain(*steps(*range(1, 101)))
    assert [line.split("/")[0] for line in lines] == [f"step {n}" for n in (1, 11, 21, 31, 41, 51, 61, 71, 81, 91, 100)]


def test_without_a_terminal_each_piece_of_work_has_its_own_pace() -> None:
    done = [events.Progress(task, 1, 2) for task in ("pictures", "captions", "pictures")]
    assert shown_plain(*done) == ["pictures: 1/2 items", "captions: 1/2 items"]


def test_without_a_terminal_there_are_no_control_characters() -> None:
    lines = shown_plain(events.Preview(0, "x", 1, "a\x1b[31m\r\tb"), events.Phase("load", "\x07"), *steps(1))
    assert all(character.isprintable() for line in lines for character in line)


def test_names_from_files_are_shown_and_not_obeyed_as_markup() -> None:
    text = shown_on_terminal(
        events.Phase("load", "[bold]a[/bold] [/] \x1b[2J"),
        events.Progress("[red]task", 1, 2, "[b]"),
        events.Warning("[link=x]y[/link]"),
    )
    assert "load: [bold]a[/bold] [/] \\x1b[2J" in text
    assert "[red]task" in text
    assert "warning: [link=x]y[/link]" in text
    assert "\x1b[2J" not in text


def test_a_terminal_shows_a_bar_with_the_figures_of_the_step() -> None:
    text = shown_on_terminal(events.Phase("train"), STEP)
    assert "━" in text
    assert "120/1500  loss 0.4313  lr 1.0e-04  3.2 steps/s  7:10 left  2.1 GiB" in text


def test_finished_work_leaves_one_line() -> None:
    text = shown_on_terminal(
        events.Progress("pictures", 1, 2), events.Progress("pictures", 2, 2, "pictures"), *steps(99, 100)
    )
    assert text.count("pictures: 2/2 pictures") == 1
    assert text.count("step 100/100  loss 0.5000") == 1


def test_colours_are_used_where_the_terminal_has_them() -> None:
    assert "\x1b[1;33mwarning:" in shown_on_terminal(events.Warning("odd"), colours=True)
    assert "\x1b[1;33m" not in shown_on_terminal(events.Warning("odd"))


def test_long_paths_are_not_broken_over_lines() -> None:
    path = "/".join(["a long folder name"] * 12)
    assert path in shown_on_terminal(events.Checkpoint(1, path))


def test_json_lines_are_the_record_of_each_event_in_ascii() -> None:
    stream = io.StringIO()
    json_lines(stream)(events.Preview(5, "a żółw", 42, "p.png"))
    assert stream.getvalue().isascii()
    record = json.loads(stream.getvalue())
    assert record.pop("time").endswith("+00:00")
    assert record == {
        "schema": 1, "event": "preview", "step": 5, "prompt": "a żółw", "seed": 42, "path": "p.png"
    }  # fmt: skip


def test_work_goes_on_when_nobody_reads_its_lines_any_more() -> None:
    reading, writing = os.pipe()
    stream = os.fdopen(writing, "w")
    os.close(reading)
    for _ in range(3):
        write_line(stream, "nobody reads this")
    stream.close()


def test_printable_text_stays_as_it_is() -> None:
    assert printable("żółw [a] 犬") == "żółw [a] 犬"
    assert printable_lines("a\nb\n") == "a\nb\n"


def test_line_breaks_in_names_break_no_line() -> None:
    assert printable("a\nb\tc") == "a\\nb\\tc"
    assert sentence(events.Caption("a\nb.png", "f", "a dog", written=True)) == "a\\nb.png: a dog"
    assert sentence(events.Warning("odd", where="a\nb.png", hint="mend it")) == "warning: a\\nb.png: odd\nhint: mend it"
