"""Manifests: what a checkpoint holds, by which it is told whether every byte of it is as it was written."""

from __future__ import annotations

from pathlib import Path

from fluxtune import files
from fluxtune.errors import StorageError

SCHEMA = 1
MANIFEST = "manifest.json"
OLDER = "remove this checkpoint's folder to go on from the one before it"


def write_manifest(folder: Path, digests: dict[str, str]) -> None:
    """List the files of a checkpoint by name, with size and SHA-256. Written last, it makes the checkpoint whole."""
    entries = {name: {"size": (folder / name).stat().st_size, "sha256": digest} for name, digest in digests.items()}
    files.write_sealed(folder / MANIFEST, {"schema": SCHEMA, "files": entries})


def is_whole(folder: Path) -> bool:
    """Whether every file of a checkpoint can be read and is as it was written."""
    try:
        verify_manifest(folder)
    except StorageError:
        return False
    return True


def verify_manifest(folder: Path) -> None:
    """Check every file of a checkpoint against its manifest.

    Raises:
        StorageError: names the manifest or file that is missing, cut off or altered; or that cannot be read, whose
            cause is the system's error then.
    """
    path = folder / MANIFEST
    with files.storage_errors(folder):
        if not path.is_file():
            raise StorageError("incomplete checkpoint: it has no manifest", where=str(folder), hint=OLDER)
        try:
            entries = files.read_sealed(path)["files"].items()
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise StorageError(f"damaged manifest: {error}", where=str(path), hint=OLDER) from error
        for name, expected in entries:
            file = folder / name
            if not file.is_file():
                raise StorageError("damaged checkpoint: the file is missing", where=str(file), hint=OLDER)
            size = file.stat().st_size
            if size != expected["size"]:
                seen = f"the file has {size} bytes instead of {expected['size']}"
                raise StorageError(f"damaged checkpoint: {seen}", where=str(file), hint=OLDER)
            if files.sha256_of(file) != expected["sha256"]:
                raise StorageError("damaged checkpoint: the file's content changed", where=str(file), hint=OLDER)
