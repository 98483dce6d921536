"""The embedded captioner's schooling: a small BLIP learns to say what painted pictures show."""

from __future__ import annotations

import string
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    BertTokenizer,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessorPil,
    BlipTextConfig,
    BlipVisionConfig,
)

from fluxtune.nano.painter import KINDS, TOKEN, paint, token_labels
from fluxtune.nano.palette import BACKGROUND_COLOURS, BACKGROUND_KINDS, COLOURS
from fluxtune.nano.scenes import Mix, Scene, training_scene
from fluxtune.recipes.nano.muon import Muon
from fluxtune.recipes.nano.plain_captions import plain_caption
from fluxtune.recipes.nano.progress import COMPUTE, Budget, load_checkpoint, rate_at, record, save_checkpoint, say

SIDE = 128
"""Pixels of the square that BLIP sees every picture as, whatever its shape."""
WIDTH = 128
LENGTH = 32
"""Tokens of a caption at most."""
BATCH = 64
MIX = Mix(pairs=0.15, critters=0.25)
BFLOAT16 = COMPUTE is torch.bfloat16
LARGER = 0.15
"""Share of the pictures that are painted at twice the size, as the demo's are, and then reduced."""
MUON_RATE, ADAMW_RATE = 3e-3, 2e-3
# The vision tower learns what is where from labels of its tokens, long before captions could teach it that.
LABELS_WEIGHT = 0.5

WORDS = (
    *("a", "an", "small", "large", "on", "background", "at", "the", "left", "right", "top", "bottom", "and", "above"),
    *("critter", "picture", "of", "with", "in"),
)


@dataclass(frozen=True)
class Batch:
    """`pixels [batch, 3, SIDE, SIDE]`, `ids [batch, tokens]`, `kinds` and `colours` `[batch, SIDE/16 squared]`,
    `backgrounds [batch, 2]`: kind and colour."""

    pixels: Tensor
    ids: Tensor
    kinds: Tensor
    colours: Tensor
    backgrounds: Tensor


class Eyes(nn.Module):
    """Heads that read what each token of the vision tower shows; thrown away after training."""

    def __init__(self) -> None:
        super().__init__()
        self.kinds = nn.Linear(WIDTH, len(KINDS))
        self.colours = nn.Linear(WIDTH, 1 + len(COLOURS))
        self.background_kinds = nn.Linear(WIDTH, len(BACKGROUND_KINDS))
        self.background_colours = nn.Linear(WIDTH, len(BACKGROUND_COLOURS))

    def forward(self, states: Tensor, batch: Batch) -> Tensor:
        """The loss, from states `[batch, 1 + tokens, WIDTH]`."""
        whole, parts = states[:, 0], states[:, 1:].flatten(0, 1)
        return (
            functional.cross_entropy(self.kinds(parts), batch.kinds.flatten())
            + functional.cross_entropy(self.colours(parts), batch.colours.flatten())
            + functional.cross_entropy(self.background_kinds(whole), batch.backgrounds[:, 0])
            + functional.cross_entropy(self.background_colours(whole), batch.backgrounds[:, 1])
        )


def build_tokenizer() -> BertTokenizer:
    """Whole words of the captions; any other word in pieces of letters, so that prompts can be given."""
    words = dict.fromkeys((*WORDS, *COLOURS, *BACKGROUND_COLOURS, *BACKGROUND_KINDS, *(k for k in KINDS[1:])))
    signs = [*string.ascii_lowercase, *string.digits, *string.punctuation]
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    pieces += [sign for sign in signs if sign not in words] + [f"##{sign}" for sign in signs]
    return BertTokenizer(vocab={piece: index for index, piece in enumerate(pieces)}, model_max_length=LENGTH)


def build_image_processor() -> BlipImageProcessorPil:
    return BlipImageProcessorPil(size={"height": SIDE, "width": SIDE})


def build_captioner(tokenizer: BertTokenizer) -> BlipForConditionalGeneration:
    """A BLIP of 1.4 million weights."""
    vision = BlipVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=SIDE,
        patch_size=TOKEN,
    )
    text = BlipTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        encoder_hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        projection_dim=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=LENGTH,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        bos_token_id=tokenizer.cls_token_id,
        eos_token_id=tokenizer.sep_token_id,
        sep_token_id=tokenizer.sep_token_id,
        pad_token_id=tokenizer.pad_token_id,
        label_smoothing=0.05,
    )
    config = BlipConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=WIDTH)
    return BlipForConditionalGeneration(config)


def train_captioner(work: Path, minutes: float, seed: int) -> None:
    """Trains the captioner into `work/captioner.ckpt`."""
    torch.manual_seed(seed)
    tokenizer, processor = build_tokenizer(), build_image_processor()
    model, eyes = build_captioner(tokenizer), Eyes()
    modules = nn.ModuleDict({"model": model, "eyes": eyes})
    optimizers = _optimizers(modules)
    rates = [group["lr"] for optimizer in optimizers for group in optimizer.param_groups]
    budget, step, mean = Budget(minutes), 0, torch.zeros(2)
    state = load_checkpoint(work / "captioner.ckpt")
    if state is not None:
        modules.load_state_dict(state["modules"])
        budget, step = Budget(minutes, state["seconds"]), state["step"]
    while budget.fraction < 1:
        groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        for group, rate in zip(groups, rates, strict=True):
            group["lr"] = rate * rate_at(budget.fraction, decay=0.5)
        batch = make_batch(tokenizer, processor, seed, step)
        with torch.autocast("cpu", torch.bfloat16, enabled=BFLOAT16):
            out = model(pixel_values=batch.pixels, input_ids=batch.ids, labels=_labels(batch.ids, tokenizer))
            looks = eyes(out.last_hidden_state, batch)
        (out.loss + LABELS_WEIGHT * looks).backward()
        nn.utils.clip_grad_norm_(modules.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        step += 1
        mean += torch.stack((out.loss.detach().float(), looks.detach().float()))
        if step % 50 == 0:
            losses = " ".join(f"{loss:.3f}" for loss in (mean / 50).tolist())
            say(f"captioner step {step} losses {losses} {100 * budget.fraction:.0f} %")
            mean.zero_()
        if step % 200 == 0 or budget.fraction >= 1:
            held = {"modules": modules.state_dict(), "step": step, "seconds": budget.seconds}
            save_checkpoint(work / "captioner.ckpt", held)
    record(work, "captioner", seed=seed, minutes=budget.seconds / 60, steps=step)


def make_batch(tokenizer: BertTokenizer, processor: BlipImageProcessorPil, seed: int, step: int) -> Batch:
    """The batch of a step, a pure function of (seed, step)."""
    random = Random(f"nano captioner {seed} {step}")
    scenes = [training_scene(seed, step * BATCH + index, mix=MIX) for index in range(BATCH)]
    pictures = [paint(scene, scale=2 if random.random() < LARGER else 1) for scene in scenes]
    captions = [plain_caption(scene) for scene in scenes]
    encoded = tokenizer(captions, padding=True, truncation=True, max_length=LENGTH, return_tensors="pt")
    labels = [_square_labels(scene) for scene in scenes]
    return Batch(
        pixels=processor(images=pictures, return_tensors="pt")["pixel_values"],
        ids=encoded.input_ids,
        kinds=torch.stack([kinds for kinds, _ in labels]),
        colours=torch.stack([colours for _, colours in labels]),
        backgrounds=torch.tensor(
            [
                (BACKGROUND_KINDS.index(s.background.kind), list(BACKGROUND_COLOURS).index(s.background.colour))
                for s in scenes
            ]
        ),
    )


def _square_labels(scene: Scene) -> tuple[Tensor, Tensor]:
    """Kind and colour at each token of the square that the picture becomes, `[tokens]` each."""
    labels = token_labels(scene)
    grid = torch.stack((torch.from_numpy(labels.kind), torch.from_numpy(labels.colour))).float()
    kinds, colours = functional.interpolate(grid[None], (SIDE // TOKEN, SIDE // TOKEN), mode="nearest-exact")[0].long()
    return kinds.flatten(), colours.flatten()


def _labels(ids: Tensor, tokenizer: BertTokenizer) -> Tensor:
    """What the decoder is to say: padding does not count."""
    return ids.masked_fill(ids == tokenizer.pad_token_id, -100)


def _optimizers(modules: nn.ModuleDict) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices, AdamW for the rest."""
    matrices = [
        parameter
        for name, parameter in modules.named_parameters()
        if parameter.ndim == 2 and (".layers." in name or ".layer." in name)
    ]
    ids = {id(parameter) for parameter in matrices}
    others = [parameter for parameter in modules.parameters() if id(parameter) not in ids]
    return [Muon(matrices, MUON_RATE), torch.optim.AdamW(others, ADAMW_RATE, (0.9, 0.98), weight_decay=0.01)]
