"""A zoo of files that are no whole safetensors files, each made from a whole one; no torch is needed to make them."""

from __future__ import annotations

import io
import json
import pickle
import random
import zipfile
from collections.abc import Callable
from typing import Any

Change = Callable[[bytes], bytes]


def parts(whole: bytes) -> tuple[dict[str, Any], bytes]:
    """The header of a safetensors file, and the bytes behind it."""
    end = 8 + int.from_bytes(whole[:8], "little")
    return json.loads(whole[8:end]), whole[end:]


def assembled(header: Any, data: bytes) -> bytes:
    """The file of a header, which may be JSON text or what becomes it, and the bytes behind it."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def first(**fields: Any) -> Change:
    """The first tensor's entry with other fields."""

    def change(whole: bytes) -> bytes:
        header, data = parts(whole)
        name = next(name for name in header if name != "__metadata__")
        header[name].update(fields)
        return assembled(header, data)

    return change


def moved(start: int, stop: int) -> Change:
    """The first tensor's place moved by so many bytes at its ends."""

    def change(whole: bytes) -> bytes:
        header, _ = parts(whole)
        name = next(name for name in header if name != "__metadata__")
        begin, end = header[name]["data_offsets"]
        return first(data_offsets=[begin + start, end + stop])(whole)

    return change


def twice(whole: bytes) -> bytes:
    """A tensor that the header describes two times."""
    header, data = parts(whole)
    name = next(name for name in header if name != "__metadata__")
    entry = f"{json.dumps(name)}:{json.dumps(header[name])}"
    return assembled(json.dumps(header)[:-1].encode() + f",{entry}}}".encode(), data)


def same_place(whole: bytes) -> bytes:
    """Two tensors that lie in the same bytes."""
    header, data = parts(whole)
    names = [name for name in header if name != "__metadata__"]
    header[names[1]] = header[names[0]]
    return assembled(header, data)


def pickled(whole: bytes) -> bytes:
    """A pickle that would run code."""
    return pickle.dumps(Exploding())


def zipped(whole: bytes) -> bytes:
    """What torch.save writes: a ZIP around a pickle."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", pickled(whole))
    return buffer.getvalue()


class Exploding:
    """Opening its pickle ends the process."""

    def __reduce__(self) -> tuple[Any, ...]:
        import os

        return os._exit, (99,)


def many(count: int) -> Change:
    """A header of so many tensors without content."""
    entry = '{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    return lambda whole: assembled(("{" + ",".join(f'"{n}":{entry}' for n in range(count)) + "}").encode(), b"")


ZOO: dict[str, tuple[Change, str]] = {
    "empty": (lambda whole: b"", "the file is empty"),
    "a few bytes": (lambda whole: whole[:5], "the file is cut off: it has 5 bytes"),
    "only a length": (lambda whole: whole[:8], "the file is cut off"),
    "half a header": (lambda whole: whole[:60], "the file is cut off"),
    "cut off": (lambda whole: whole[:-9], "the file is cut off"),
    "bytes behind": (lambda whole: whole + b"more", "4 bytes behind its tensors"),
    "length too small": (lambda whole: (40).to_bytes(8, "little") + whole[8:], "no JSON"),
    "length zero": (lambda whole: bytes(8) + whole[8:], "no JSON"),
    "length beyond the file": (lambda whole: (10**7).to_bytes(8, "little") + whole[8:], "the file is cut off"),
    "length of 100 GB": (lambda whole: (10**11).to_bytes(8, "little") + whole[8:], "no safetensors file"),
    "length of all ones": (lambda whole: b"\xff" * 8 + whole[8:], "no safetensors file"),
    "text": (lambda whole: b"this is a note, and no file of tensors", "no safetensors file"),
    "web page": (lambda whole: b"<!DOCTYPE html><html>not found</html>", "a web page"),
    "pointer": (lambda whole: b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a", "Git LFS"),
    "gguf": (lambda whole: b"GGUF\x03\x00\x00\x00" + whole[8:], "a GGUF file"),
    "pickle": (pickled, "this is a pickle, which can run code"),
    "torch.save": (zipped, "this is a pickle, which can run code"),
    "no JSON": (lambda whole: assembled(b"{'a': 1}", b""), "no JSON"),
    "no UTF-8": (lambda whole: assembled(b'{"\xff\xfe": 1}', b""), "no JSON"),
    "a list": (lambda whole: assembled([1, 2], b""), "no table"),
    "a number": (lambda whole: assembled(b"1", b""), "no table"),
    "nested too deep": (lambda whole: assembled(b"[" * 100_000, b""), "no JSON"),
    "too much": (lambda whole: assembled(b"[" * 3_000_000, b""), "holds too much"),
    "millions of tensors": (many(300_000), "wanted 100,000"),
    "metadata of numbers": (lambda whole: assembled({"__metadata__": {"a": 1}}, b""), "no table of texts"),
    "metadata as a list": (lambda whole: assembled({"__metadata__": []}, b""), "no table of texts"),
    "a tensor as a list": (lambda whole: assembled({"a": [1]}, b""), "something else than type, shape and place"),
    "a field too many": (first(stride=[1]), "something else than type, shape and place"),
    "twice": (twice, "twice"),
    "same place": (same_place, "over another tensor"),
    "unknown type": (first(dtype="F31"), "the unknown type 'F31'"),
    "type as a list": (first(dtype=["F32"]), "the unknown type"),
    "type of escapes": (first(dtype="\x1b]0;owned\x07"), "the unknown type"),
    "wrong shape": (first(shape=[3, 5]), "which is not the"),
    "negative shape": (first(shape=[-4, -4]), "impossible shape"),
    "shape of fractions": (first(shape=[1.5]), "impossible shape"),
    "shape of truths": (first(shape=[True]), "impossible shape"),
    "shape as text": (first(shape="4"), "impossible shape"),
    "shape beyond 64 bits": (first(shape=[2**64, 4]), "impossible shape"),
    "shape whose product overflows": (first(shape=[2**33, 2**33]), "which is not the"),
    "shape of digits": (first(shape=[10**400]), "impossible shape"),
    "negative place": (first(data_offsets=[-8, 0]), "impossible place"),
    "backwards": (first(data_offsets=[64, 0], shape=[0]), "which is not the"),
    "one offset": (first(data_offsets=[0]), "impossible place"),
    "offsets beyond the file": (moved(2**40, 2**40), "instead of"),
    "offsets beyond 64 bits": (first(data_offsets=[0, 2**70]), "impossible place"),
    "a gap": (lambda whole: moved(8, 8)(whole), "instead of"),
}
"""What is wrong -> how a whole file comes to it, and a part of what is said of it."""


def mutated(whole: bytes, seed: int) -> bytes:
    """The file with one to eight bytes changed, taken out, put in or cut off, half of them in its header."""
    draw = random.Random(seed)
    changed = bytearray(whole)
    header = 8 + int.from_bytes(whole[:8], "little")
    for _ in range(draw.randint(1, 8)):
        place = draw.randrange(min(header, len(changed)) if draw.random() < 0.5 else len(changed))
        match draw.randrange(6):
            case 0 | 1:
                changed[place] = draw.randrange(256)
            case 2:
                changed[place] ^= 1 << draw.randrange(8)
            case 3:
                del changed[place : place + draw.randint(1, 16)]
            case 4:
                changed[place:place] = draw.randbytes(draw.randint(1, 16))
            case _:
                changed[place : place + 1] = draw.choice([b"9", b"-", b'"', b"{", b"[", b"}", b"0", b",", b"e9"])
        if not changed:
            break
    return bytes(changed)
