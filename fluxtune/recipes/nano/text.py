"""The text encoders, taught what captions say before any picture: a FLUX then need not learn it from noise."""

from __future__ import annotations

from pathlib import Path
from random import Random

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel, T5Tokenizer

from fluxtune.nano.critters import FORMS, MOUTHS, PATTERNS, TOPS
from fluxtune.nano.painter import KINDS
from fluxtune.nano.palette import BACKGROUND_COLOURS, BACKGROUND_KINDS, COLOURS
from fluxtune.nano.scenes import PLACES, Scene, training_scene
from fluxtune.recipes.nano.progress import Budget, rate_at, record, say
from fluxtune.recipes.nano.vocabulary import LENGTH, save_tokenizers

T5_WIDTH, CLIP_WIDTH = 128, 64
BATCH = 128
JOINS = ("beside", "above")

# What a caption tells, with the values that each role can take; "" or "nothing" where it has none.
ROLES: dict[str, tuple[str, ...]] = {
    "first kind": KINDS,
    "first colour": tuple(COLOURS),
    "second kind": KINDS,
    "second colour": ("", *COLOURS),
    "join": ("", *JOINS),
    "size": ("", "small", "large"),
    "place": tuple(PLACES),
    "background kind": ("", *BACKGROUND_KINDS),
    "background colour": ("", *BACKGROUND_COLOURS),
    "form": ("", *FORMS),
    "pattern": ("", *PATTERNS),
    "pattern colour": ("", *COLOURS),
    "top": ("", *TOPS),
    "eyes": ("", "1", "2"),
    "mouth": ("", *MOUTHS),
}


def roles_of(scene: Scene) -> list[int]:
    """The scene's value for each role, as indices into `ROLES`."""
    first, second = scene.things[0], scene.things[1] if len(scene.things) > 1 else None
    words = scene.caption.replace(",", " ").split()
    told = "background" in words or f"on {scene.background.kind}" in scene.caption
    critter = first.critter if second is None else None
    values = {
        "first kind": first.kind,
        "first colour": first.colour,
        "second kind": second.kind if second else "nothing",
        "second colour": second.colour if second else "",
        "join": ("above" if "above" in words else "beside") if second else "",
        "size": next((size for size in ("small", "large") if size in words), ""),
        "place": next((place for place in PLACES if place and f"at the {place}" in scene.caption), ""),
        "background kind": scene.background.kind if scene.background.kind in words else "",
        "background colour": scene.background.colour if told else "",
        "form": critter.form if critter else "",
        "pattern": critter.pattern if critter else "",
        "pattern colour": critter.second_colour if critter else "",
        "top": critter.top if critter else "",
        "eyes": str(critter.eyes) if critter else "",
        "mouth": critter.mouth if critter else "",
    }
    return [allowed.index(values[role]) for role, allowed in ROLES.items()]


class Reader(nn.Module):
    """Heads that read every role off an encoder's states, and each token back; thrown away after training."""

    def __init__(self, width: int, vocabulary: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(len(ROLES), width) / width**0.5)
        self.roles = nn.ModuleList(nn.Linear(width, len(values)) for values in ROLES.values())
        self.tokens = nn.Linear(width, vocabulary)

    def forward(self, states: Tensor, roles: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Loss and accuracy by role, from states `[batch, tokens, width]` (one token: a pooled state)."""
        attention = torch.einsum("rw,btw->brt", self.queries, states).softmax(-1)
        read = torch.einsum("brt,btw->brw", attention, states)
        loss, correct = states.new_zeros(()), []
        for index, head in enumerate(self.roles):
            logits = head(read[:, index])
            loss = loss + functional.cross_entropy(logits, roles[:, index])
            correct.append((logits.argmax(-1) == roles[:, index]).float().mean())
        spelled = self.tokens(states).log_softmax(-1)
        if states.shape[1] == 1:
            spelling = -spelled[:, 0].gather(1, targets).mean()
        else:
            spelling = -spelled.gather(2, targets[..., None]).mean()
        return loss / len(ROLES) + 0.2 * spelling, torch.stack(correct)


def build_encoders(folder: Path) -> tuple[CLIPTokenizer, CLIPTextModel, T5Tokenizer, T5EncoderModel]:
    """New encoders for the tokenizers in `folder`."""
    clip_tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    t5_tokenizer = T5Tokenizer.from_pretrained(folder / "tokenizer_2")
    clip = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(clip_tokenizer),
            hidden_size=CLIP_WIDTH,
            projection_dim=CLIP_WIDTH,
            intermediate_size=2 * CLIP_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=LENGTH,
            bos_token_id=clip_tokenizer.bos_token_id,
            eos_token_id=clip_tokenizer.eos_token_id,
            pad_token_id=clip_tokenizer.pad_token_id,
        )
    )
    t5 = T5EncoderModel(
        T5Config(
            vocab_size=len(t5_tokenizer),
            d_model=T5_WIDTH,
            d_kv=32,
            d_ff=2 * T5_WIDTH,
            num_layers=2,
            num_heads=4,
            dropout_rate=0.0,
            is_encoder_decoder=False,
            use_cache=False,
        )
    )
    return clip_tokenizer, clip, t5_tokenizer, t5


def tokenize(tokenizer: CLIPTokenizer | T5Tokenizer, captions: list[str]) -> Tensor:
    """Token ids `[captions, LENGTH]`, padded as FLUX's pipeline pads them."""
    encoded = tokenizer(captions, padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt")
    return encoded.input_ids


def train_text(work: Path, minutes: float, seed: int) -> None:
    """Trains both encoders to tell a caption's roles and its tokens, into `work/text`."""
    torch.manual_seed(seed)
    folder = work / "text"
    save_tokenizers(folder)
    clip_tokenizer, clip, t5_tokenizer, t5 = build_encoders(folder)
    clip_reader, t5_reader = Reader(CLIP_WIDTH, len(clip_tokenizer)), Reader(T5_WIDTH, len(t5_tokenizer))
    modules = nn.ModuleList((clip, t5, clip_reader, t5_reader))
    rate = 2e-3
    optimizer = torch.optim.AdamW(modules.parameters(), rate, (0.9, 0.98), weight_decay=0.01)
    budget, step = Budget(minutes), 0
    while budget.fraction < 1:
        optimizer.param_groups[0]["lr"] = rate * rate_at(budget.fraction, decay=0.4)
        captions, roles = _batch(seed, step)
        clip_ids, t5_ids = tokenize(clip_tokenizer, captions), tokenize(t5_tokenizer, captions)
        pooled = clip(clip_ids).pooler_output[:, None]
        clip_loss, clip_correct = clip_reader(pooled, roles, clip_ids)
        t5_loss, t5_correct = t5_reader(t5(t5_ids).last_hidden_state, roles, t5_ids)
        (clip_loss + t5_loss).backward()
        nn.utils.clip_grad_norm_(modules.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        if step % 50 == 0:
            say(f"text step {step} losses {clip_loss.item():.3f} {t5_loss.item():.3f} {100 * budget.fraction:.0f} %")
    reached = {role: [round(clip_correct[i].item(), 3), round(t5_correct[i].item(), 3)] for i, role in enumerate(ROLES)}
    say(f"text: right of clip and t5 by role {reached}")
    clip.eval().save_pretrained(folder / "text_encoder")
    t5.eval().save_pretrained(folder / "text_encoder_2")
    record(work, "text", seed=seed, minutes=budget.seconds / 60, steps=step, right_of_clip_and_t5=reached)


def _batch(seed: int, step: int) -> tuple[list[str], Tensor]:
    """Captions, some with a capital or a full stop as people write them, and their roles `[batch, roles]`."""
    scenes = [training_scene(seed, step * BATCH + i) for i in range(BATCH)]
    random = Random(f"nano text {seed} {step}")
    captions = []
    for scene in scenes:
        caption = scene.caption
        if random.random() < 0.1:
            caption = caption[0].upper() + caption[1:]
        if random.random() < 0.1:
            caption += "."
        captions.append(caption)
    return captions, torch.tensor([roles_of(scene) for scene in scenes])


class TextEncoders:
    """The trained encoders, frozen: captions → what the transformer takes."""

    def __init__(self, folder: Path) -> None:
        self.clip_tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
        self.t5_tokenizer = T5Tokenizer.from_pretrained(folder / "tokenizer_2")
        self.clip = CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float32).eval()
        self.t5 = T5EncoderModel.from_pretrained(folder / "text_encoder_2", dtype=torch.float32).eval()

    @torch.no_grad()
    def __call__(self, captions: list[str]) -> tuple[Tensor, Tensor]:
        """T5's states `[captions, LENGTH, 128]` and CLIP's pooled states `[captions, 64]`."""
        states = self.t5(tokenize(self.t5_tokenizer, captions)).last_hidden_state
        return states, self.clip(tokenize(self.clip_tokenizer, captions)).pooler_output
