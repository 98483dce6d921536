"""Every file operation of saving, creating, recording and reading fails once, or kills: nothing that was saved is lost.

The operations are enumerated, not sampled: each test first counts them, then lets each in turn fail.
"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import product
from pathlib import Path

import pytest
from faults import Killed, injected
from small_state import SmallState, holds, new_run

from fluxtune.errors import StorageError
from fluxtune.events import Event, Warning, ignore
from fluxtune.manifests import verify_manifest
from fluxtune.runs import Run
from fluxtune.training.checkpoint import last_good_checkpoint
from fluxtune.training.retention import Retention
from fluxtune.training.saving import Saver

ERRORS = (errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EIO)
PASSING = (errno.ENOSPC, errno.EIO)
STATES = {step: SmallState(step) for step in (1, 2, 3)}
Case = tuple[int, int]


@pytest.fixture(autouse=True)
def _without_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is synced is seen by ``injected``; the real thing would take most of the time."""
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


def save(run: Run, step: int, on_event: Callable[[Event], None] = ignore) -> None:
    saver = Saver(run, Retention(run, 2, every=0), on_event, pauses=(0.0, 0.0))
    saver.begin(STATES[step].snapshot({"skipped": step}))
    saver.settle()


@pytest.fixture(scope="module")
def saved_twice(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with checkpoints of steps 1 and 2, as many as are kept."""
    run = new_run(tmp_path_factory.mktemp("saved") / "mug")
    save(run, 1)
    save(run, 2)
    return run.folder


@pytest.fixture
def tell(capsys: pytest.CaptureFixture[str]) -> Callable[[int], None]:
    """Shows how many faults a test tried."""

    def say(faults: int) -> None:
        assert faults
        with capsys.disabled():
            print(f"[{faults} faults]", end=" ")

    return say


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Where runs are made; temporary files of a run lie beside it."""
    (tmp_path / "runs").mkdir()
    return tmp_path / "runs"


@pytest.fixture
def copies(saved_twice: Path, tmp_path: Path) -> Iterator[Run]:
    """As many runs like that as are asked for, each in a folder of its own."""

    def each() -> Iterator[Run]:
        number = 0
        while True:
            number += 1
            yield Run.open(Path(shutil.copytree(saved_twice, tmp_path / str(number) / "mug")))
            shutil.rmtree(tmp_path / str(number))

    return each()


def operations(work: Callable[[], object], root: Path) -> int:
    """How many file operations there are below a folder, of which none fails."""
    with injected(root) as faults:
        work()
    return len(faults.seen)


def cases(count: int, crossed: bool) -> list[Case]:
    """Each operation with one of the errors, in turn; or with all."""
    if crossed:
        return list(product(range(count), ERRORS))
    return [(number, ERRORS[number % len(ERRORS)]) for number in range(count)]


def check_nothing_is_lost(folder: Path) -> None:
    """The run opens, its newest checkpoint is the state to the bit, and what has a final name is whole."""
    run = Run.open(folder)
    assert run.trouble is None
    newest = last_good_checkpoint(run, refuse_warnings)
    assert newest is not None
    step = int(newest.name[-1])
    assert step in (2, 3)
    assert holds(newest, STATES[step])
    for each in run.checkpoint_folders():
        verify_manifest(each)


def check_it_goes_on(folder: Path) -> None:
    """Once the disk works again the save succeeds, and nothing is left of what failed."""
    run = Run.open(folder)
    with run.locked():
        save(run, 3, refuse_warnings)
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["step-000002", "step-000003"]
    assert holds(run.checkpoints()[-1], STATES[3])
    assert not [path for path in folder.rglob(".*")]
    assert Run.open(folder).state.step == 3


def refuse_warnings(event: Event) -> None:
    assert not isinstance(event, Warning), event


def check_saves_with(copies: Iterator[Run], crossed: bool) -> int:
    run = next(copies)
    tried = cases(operations(lambda: save(run, 3), run.folder), crossed)
    for number, error in tried:
        run = next(copies)
        try:
            with injected(run.folder, number, error):
                save(run, 3)
        except StorageError as failure:
            assert error not in PASSING, f"operation {number} was not tried again"
            assert failure.where is not None
            assert failure.where.startswith(str(run.folder))
            assert failure.hint
        check_nothing_is_lost(run.folder)
        check_it_goes_on(run.folder)
    return len(tried)


def test_a_fault_at_any_operation_of_a_save_loses_nothing(copies: Iterator[Run], tell: Callable[[int], None]) -> None:
    tell(check_saves_with(copies, crossed=False))


@pytest.mark.slow
def test_every_fault_at_any_operation_of_a_save_loses_nothing(
    copies: Iterator[Run], tell: Callable[[int], None]
) -> None:
    tell(check_saves_with(copies, crossed=True))


def check_kills_with(copies: Iterator[Run], crossed: bool) -> int:
    run = next(copies)
    count = operations(lambda: save(run, 3), run.folder)
    tried = [(number, cut) for number in range(count) for cut in ((False, True) if crossed else (number % 2 == 1,))]
    for number, power_cut in tried:
        run = next(copies)
        with pytest.raises(Killed), injected(run.folder, number, power_cut=power_cut):
            save(run, 3)
        check_nothing_is_lost(run.folder)
        check_it_goes_on(run.folder)
    return len(tried)


def test_a_kill_or_power_cut_at_any_operation_of_a_save_loses_nothing(
    copies: Iterator[Run], tell: Callable[[int], None]
) -> None:
    tell(check_kills_with(copies, crossed=False))


@pytest.mark.slow
def test_both_kill_and_power_cut_at_any_operation_of_a_save_lose_nothing(
    copies: Iterator[Run], tell: Callable[[int], None]
) -> None:
    tell(check_kills_with(copies, crossed=True))


def test_older_checkpoints_go_only_after_the_new_one_is_whole_and_synced(copies: Iterator[Run]) -> None:
    run = next(copies)
    with injected(run.folder) as faults:
        save(run, 3)
    moved = faults.seen.index("replace checkpoints/step-000003")
    dropped = faults.seen.index("replace checkpoints/.step-000001.dropped")
    read = [index for index, each in enumerate(faults.seen) if each.startswith("read checkpoints/.step-000003.partial")]
    assert max(read) < moved < faults.seen.index("fsync checkpoints") < dropped


def test_a_fault_at_any_operation_of_making_a_run_leaves_it_whole_or_absent(
    place: Path, tell: Callable[[int], None]
) -> None:
    tried = cases(operations(lambda: new_run(place / "0"), place), crossed=True)
    for number, error in tried:
        folder = place / f"mug-{number}-{error}"
        try:
            with injected(place, number, error):
                new_run(folder)
        except StorageError as failure:
            assert failure.where == str(folder)
            assert failure.hint
        if not folder.exists():
            new_run(folder)
        assert Run.open(folder).state.accepted == ["data"]
        assert not list(place.glob(".*"))
    tell(len(tried))


def test_a_kill_at_any_operation_of_making_a_run_leaves_it_whole_or_absent(
    place: Path, tell: Callable[[int], None]
) -> None:
    count = operations(lambda: new_run(place / "0"), place)
    for number in range(count):
        folder = place / f"mug-{number}"
        with pytest.raises(Killed), injected(place, number, power_cut=True):
            new_run(folder)
        if not folder.exists():
            new_run(folder)
        assert Run.open(folder).trouble is None
        assert not list(place.glob(".*"))
    tell(count)


def test_a_fault_or_kill_at_any_operation_of_recording_keeps_the_record_whole(
    copies: Iterator[Run], tell: Callable[[int], None]
) -> None:
    run = next(copies)
    count = operations(lambda: run.update(step=7), run.folder)
    for number, error in product(range(count), (*ERRORS, None)):
        with suppress(StorageError, Killed), injected(run.folder, number, error):
            run.update(step=7)
        again = Run.open(run.folder)
        assert again.trouble is None
        assert again.state.step in (2, 7)
        run.update(step=2)
    tell(count * (len(ERRORS) + 1))


def test_a_fault_at_any_operation_of_a_resumes_reading_is_one_error_that_takes_nothing_away(
    copies: Iterator[Run], tell: Callable[[int], None]
) -> None:
    run = next(copies)

    def read() -> None:
        opened = Run.open(run.folder)
        assert opened.trouble is None
        with opened.locked():
            newest = last_good_checkpoint(opened, refuse_warnings)
            assert newest is not None
            assert holds(newest, STATES[2])

    tried = cases(operations(read, run.folder), crossed=True)
    for number, error in tried:
        try:
            with injected(run.folder, number, error):
                read()
        except StorageError as failure:
            assert failure.where is not None
            assert failure.hint
        # One that could not be removed would be taken over once this process is gone.
        (run.folder / "lock").unlink(missing_ok=True)
        read()
    tell(len(tried))
