"""The questions of `asking.ask`, each a function that runs in a process of its own: its answer is an object of JSON."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch as torch_module
    from torch import nn

FLUX_NEEDS = (
    ("transformers", "T5EncoderModel"),
    ("transformers", "CLIPTextModel"),
    ("diffusers", "FluxPipeline"),
    ("peft", "LoraConfig"),
    ("accelerate", "Accelerator"),
)
HUB_PATIENCE = 8.0
"""Seconds that the hub has for an answer."""

_TOLERANCE = 0.2
"""How far a product with quantised weights may be from the plain one, as a part of it; 4 bits stay below 0.1."""


def torch() -> dict[str, Any]:
    """Version, what it is built for, the cards it sees, and whether one of them computes."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        import torch

        available = torch.cuda.is_available()
        answer: dict[str, Any] = {
            "version": torch.__version__,
            "cuda": torch.version.cuda,
            "hip": torch.version.hip,
            "available": available,
            "kernels": torch.cuda.get_arch_list() if available else [],
            "cards": [_card(index) for index in range(torch.cuda.device_count())] if available else [],
            "failed": _failing(_multiply) if available else _failing(torch.cuda.init),
        }
    return {**answer, "warnings": [_words(warning.message) for warning in told]}


def libraries() -> dict[str, Any]:
    """What of the libraries that FLUX needs cannot be imported: name -> the error's words."""
    broken: dict[str, str] = {}
    # Nothing here needs torchvision, but transformers imports it wherever it is.
    if importlib.util.find_spec("torchvision") and (words := _failing(partial(importlib.import_module, "torchvision"))):
        broken["torchvision"] = words
    for module, name in FLUX_NEEDS:
        if words := _failing(partial(_find, module, name)):
            broken.setdefault(module, words)
    return {"broken_libraries": broken}


def bitsandbytes() -> dict[str, Any]:
    """Quantises a small layer each way that training does, multiplies, and steps its optimizer."""
    import bitsandbytes as bnb
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"

    def step() -> None:
        weight = torch.nn.Parameter(torch.ones(8192, device=device))
        weight.grad = torch.ones_like(weight)
        bnb.optim.AdamW8bit([weight], lr=0.1).step()
        if not float(weight.max()) < 1.0:
            raise ArithmeticError("a step of its optimizer changed nothing")

    failed = {
        "nf4": _failing(lambda: _multiply_quantized("nf4", device)),
        "int8": _failing(lambda: _multiply_quantized("int8", device)),
        "adamw-8bit": _failing(step),
    }
    return {"version": bnb.__version__, "device": device, "failed": {name: why for name, why in failed.items() if why}}


def torchao() -> dict[str, Any]:
    """Whether it is there, and multiplies with weights of 8 bits."""
    if importlib.util.find_spec("torchao") is None:
        return {"version": None}
    import torch
    import torchao
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    device = "cuda" if torch.cuda.is_available() else "cpu"
    layer = _layer(device)
    inputs = torch.randn(32, 128, device=device, dtype=torch.bfloat16)
    plain = layer(inputs)
    whole = torch.nn.Sequential(layer)
    quantize_(whole, Int8WeightOnlyConfig())
    _require_near(whole(inputs), plain)
    return {"version": torchao.__version__, "device": device}


def hub(base: str) -> dict[str, Any]:
    """Whether a base model is here, and else whether it can be downloaded; never the token itself."""
    from huggingface_hub import constants, get_hf_file_metadata, get_token, hf_hub_url

    from fluxtune.errors import FluxtuneError
    from fluxtune.hub.layouts import BASE_MODEL
    from fluxtune.hub.locate import at_hand
    from fluxtune.hub.refusals import explaining

    folder = at_hand(base)
    answer: dict[str, Any] = {
        "cache": constants.HF_HUB_CACHE,
        "offline": constants.HF_HUB_OFFLINE,
        "endpoint": constants.ENDPOINT,
        "token": get_token() is not None,
        "folder": str(folder) if folder else None,
        "local": base == BASE_MODEL.known[0] or Path(os.path.expanduser(base)).is_dir(),
        "missing": BASE_MODEL.missing(folder) if folder else [BASE_MODEL.index],
        "refusal": None,
    }
    if answer["missing"] and not answer["local"] and not answer["offline"]:
        try:
            with explaining(base, None, BASE_MODEL):
                get_hf_file_metadata(hf_hub_url(base, BASE_MODEL.index), timeout=HUB_PATIENCE)
        except FluxtuneError as error:
            answer["refusal"] = {"message": error.message, "hint": error.hint}
    return answer


def _find(module: str, name: str) -> object:
    return getattr(importlib.import_module(module), name)


def _card(index: int) -> dict[str, Any]:
    import torch

    properties = torch.cuda.get_device_properties(index)
    return {
        "name": properties.name,
        "capability": [properties.major, properties.minor],
        "total": properties.total_memory / 2**30,
    }


def _multiply() -> None:
    import torch

    ones = torch.ones(64, 64, device="cuda", dtype=torch.bfloat16)
    if float((ones @ ones).mean()) != 64.0:
        raise ArithmeticError("a product of matrices is wrong")


def _layer(device: str) -> nn.Linear:
    import torch

    torch.manual_seed(0)
    layer = torch.nn.Linear(128, 128, device=device, dtype=torch.bfloat16)
    return layer.requires_grad_(False)


def _multiply_quantized(precision: Any, device: str) -> None:
    import torch

    from fluxtune.memory.quantize import quantized_linear

    layer = _layer(device)
    made = quantized_linear(layer, layer.weight.data, precision, torch.bfloat16, device)
    inputs = torch.randn(32, 128, device=device, dtype=torch.bfloat16, requires_grad=True)
    _require_near(made(inputs), layer(inputs))
    made(inputs).sum().backward()


def _require_near(product: torch_module.Tensor, plain: torch_module.Tensor) -> None:
    away = float((product - plain).float().norm() / plain.float().norm())
    if not away < _TOLERANCE:
        raise ArithmeticError(f"products are {away:.0%} away from what they should be")


def _failing(call: Callable[[], object]) -> str | None:
    """The words of the error, if there is one: of whatever kind, since it is a broken library that is looked at."""
    try:
        call()
    except Exception as error:
        return _words(error)
    return None


def _words(error: object) -> str:
    """An error on one line, cut where it becomes a page."""
    text = " ".join(str(error).split())
    shown = text if len(text) <= 400 else f"{text[:400]} ..."
    return f"{type(error).__name__}: {shown}" if isinstance(error, Exception) else shown


def main() -> None:
    """Answer the question that the command line names; what libraries print goes to stderr."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    questions = {each.__name__: each for each in (torch, libraries, bitsandbytes, torchao, hub)}
    try:
        answer = questions[sys.argv[1]](*sys.argv[2:])
    except Exception as error:
        answer = {"broken": _words(error)}
    json.dump(answer, answers)
    answers.close()
