"""What no other trainer has, and what it does instead."""

from __future__ import annotations

WITHOUT = {
    "model.revision": "it takes the newest files of the hub",
    "model.offline": "HF_HUB_OFFLINE=1 in its environment does the same",
    "model.transformer": "it takes what the base model has",
    "model.vae": "it takes what the base model has",
    "model.text_encoder": "it takes what the base model has",
    "model.text_encoder_2": "it takes what the base model has",
    "dataset.resolution": "see the files of the data set",
    "dataset.buckets": "see the files of the data set",
    "dataset.flip": "see the files of the data set",
    "dataset.caption_dropout": "captions are left out as often as it does by itself",
    "dataset.trigger": "the captions hold the word, or what is put in front of them does",
    "dataset.class_word": "regularization pictures without a caption have the word as theirs",
    "dataset.missing_captions": "a picture without a caption has what its files say, or none",
    "dataset.max_aspect": "its buckets are its own",
    "dataset.upscale": "it enlarges small pictures",
    "dataset.crops": "it trains on the central crop of each picture alone",
    "dataset.crop_jitter": "it trains on the central crop of each picture alone",
    "dataset.colour_jitter": "it leaves colours as they are",
    "dataset.unmasked_weight": "what is black in a mask counts nothing",
    "dataset.background": "transparent pictures are laid on a colour of its own",
    "lora.rank_stabilized": "it scales by alpha / rank",
    "lora.init_from": "it begins with an empty adapter",
    "training.ema_decay": "it saves the last weights, no average of them",
    "training.weight_decay": "it has the optimizer's own",
    "training.device": "it takes the graphics card",
    "training.divergence": "it goes on with numbers that are not finite, or ends",
    "training.preservation": "nothing guards what the base model knows",
    "training.seed": "its random numbers are others each time",
    "memory": "it has settings of its own for what fits the card",
    "checkpoints": "it keeps the files as it does by itself",
    "previews": "it makes previews as it does by itself",
    "sampling": "pictures are made by other programs",
    "tracking": "it has settings of its own",
    "metadata": "`fluxtune export FILE --metadata` states it in the file that it makes",
    "captioning": "captions are written before a data set goes there",
}
"""Setting or section -> what the other trainer does."""

LEARNED = ("model.", "dataset.", "lora.", "training.")
"""Sections that decide what is learned."""

NOT_LEARNED = ("model.offline", "model.transformer", "model.vae", "model.text_encoder", "training.device",
               "dataset.trigger", "dataset.missing_captions")  # fmt: skip
"""Settings of those that say where things are, or that are written out."""

OTHER_MODELS = ("kontext", "-fill", "flux.2", "flux2", "redux", "canny", "depth", "flux.3", "flex", "chroma", "krea-2")
"""What the names of models have in them that are made as FLUX.1 or after it, and are not taught here."""
