"""Tiny random models of each captioner family, of the real classes, in folders as the hub has them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import (
    AutoModelForImageTextToText,
    Blip2Config,
    BlipImageProcessorPil,
    CLIPImageProcessorPil,
    Florence2Config,
    LlavaConfig,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2VLImageProcessorPil,
    SmolVLMConfig,
    SmolVLMImageProcessorPil,
)

PLAIN_CHAT = (
    "{% for message in messages %}<|{{ message['role'] }}|>"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}IMAGE{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def tokenizer(*extra: str, **settings: Any) -> PreTrainedTokenizerFast:
    """Every byte is a token, and so is each of the extra texts."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {sign: index for index, sign in enumerate(["<pad>", "<s>", "</s>", *alphabet])}
    backend = Tokenizer(BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="</s>", **settings
    )
    made.add_special_tokens({"additional_special_tokens": list(extra)})
    return made


def save(folder: Path, config: Any, parts: dict[str, Any], processor: str, chat_template: str | None = None) -> Path:
    """Saves a random model of the config, and its processor's parts as hub repositories lay them out."""
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config)
    model.generation_config.max_new_tokens = 8
    model.save_pretrained(folder)
    for part in parts.values():
        part.save_pretrained(folder)
    if chat_template is not None:
        (folder / "chat_template.jinja").write_text(chat_template)
    _set_processor_class(folder, processor)
    return folder


def _set_processor_class(folder: Path, processor: str) -> None:
    import json

    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "processor_class": processor}))


def blip2(folder: Path) -> Path:
    words = tokenizer("<image>")
    config = Blip2Config(
        vision_config={
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 28,
            "patch_size": 14,
        },
        qformer_config={
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "encoder_hidden_size": 64,
            "vocab_size": len(words),
        },
        text_config={
            "model_type": "opt",
            "hidden_size": 64,
            "ffn_dim": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "vocab_size": len(words),
            "word_embed_proj_dim": 64,
            "max_position_embeddings": 128,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
        num_query_tokens=4,
        image_token_index=words.convert_tokens_to_ids("<image>"),
    )
    images = BlipImageProcessorPil(size={"height": 28, "width": 28})
    save(folder, config, {"tokenizer": words, "image_processor": images}, "Blip2Processor")
    import json

    (folder / "processor_config.json").write_text(
        json.dumps({"processor_class": "Blip2Processor", "num_query_tokens": 4})
    )
    return folder


def llava(folder: Path) -> Path:
    words = tokenizer("<image>")
    config = LlavaConfig(
        vision_config={
            "model_type": "clip_vision_model",
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "image_size": 28,
            "patch_size": 14,
            "projection_dim": 64,
        },
        text_config={
            "model_type": "llama",
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "vocab_size": len(words),
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
        image_token_index=words.convert_tokens_to_ids("<image>"),
    )
    images = CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    save(
        folder,
        config,
        {"tokenizer": words, "image_processor": images},
        "LlavaProcessor",
        PLAIN_CHAT.replace("IMAGE", "<image>"),
    )
    import json

    (folder / "processor_config.json").write_text(
        json.dumps(
            {
                "processor_class": "LlavaProcessor",
                "patch_size": 14,
                "vision_feature_select_strategy": "default",
                "num_additional_image_tokens": 1,
                "image_token": "<image>",
            }
        )
    )
    return folder


def qwen_vl(folder: Path) -> Path:
    words = tokenizer("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
    ids = words.convert_tokens_to_ids
    config = Qwen2_5_VLConfig(
        vision_config={
            "hidden_size": 64,
            "intermediate_size": 128,
            "depth": 2,
            "num_heads": 2,
            "out_hidden_size": 64,
            "patch_size": 14,
            "fullatt_block_indexes": [1],
            "window_size": 56,
        },
        text_config={
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "vocab_size": len(words),
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]},
        },
        image_token_id=ids("<|image_pad|>"),
        video_token_id=ids("<|video_pad|>"),
        vision_start_token_id=ids("<|vision_start|>"),
        vision_end_token_id=ids("<|vision_end|>"),
    )
    images = Qwen2VLImageProcessorPil(size={"shortest_edge": 28 * 28, "longest_edge": 28 * 28 * 4})
    return save(
        folder,
        config,
        {"tokenizer": words, "image_processor": images},
        "Qwen2_5_VLProcessor",
        PLAIN_CHAT.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>"),
    )


def smolvlm(folder: Path) -> Path:
    words = tokenizer(
        "<image>",
        "<fake_token_around_image>",
        "<global-img>",
        "<end_of_utterance>",
        *(f"<row_{r}_col_{c}>" for r in range(1, 3) for c in range(1, 3)),
    )
    ids = words.convert_tokens_to_ids
    config = SmolVLMConfig(
        vision_config={
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 32,
            "patch_size": 8,
        },
        text_config={
            "model_type": "llama",
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "vocab_size": len(words),
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
        scale_factor=2,
        image_token_id=ids("<image>"),
        pad_token_id=0,
    )
    images = SmolVLMImageProcessorPil(
        size={"longest_edge": 32}, max_image_size={"longest_edge": 32}, do_image_splitting=False
    )
    save(
        folder,
        config,
        {"tokenizer": words, "image_processor": images},
        "SmolVLMProcessor",
        PLAIN_CHAT.replace("IMAGE", "<image>"),
    )
    import json

    (folder / "processor_config.json").write_text(
        json.dumps({"processor_class": "SmolVLMProcessor", "image_seq_len": 4})
    )
    return folder


def florence2(folder: Path) -> Path:
    words = tokenizer(*(f"<loc_{i}>" for i in range(1000)), extra_special_tokens={"image_token": "<image>"})
    config = Florence2Config(
        text_config={
            "model_type": "bart",
            "d_model": 64,
            "encoder_ffn_dim": 64,
            "decoder_ffn_dim": 64,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_attention_heads": 2,
            "decoder_attention_heads": 2,
            "vocab_size": len(words),
            "max_position_embeddings": 256,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "decoder_start_token_id": 2,
            "forced_eos_token_id": 2,
        },
        vision_config={
            "embed_dim": (64, 64),
            "num_heads": (2, 2),
            "num_groups": (2, 2),
            "depths": (1, 1),
            "patch_size": (7, 3),
            "patch_stride": (4, 2),
            "patch_padding": (3, 1),
            "patch_prenorm": (False, True),
            "projection_dim": 64,
            "window_size": 4,
            "max_position_embeddings": 16,
            "max_temporal_embeddings": 4,
        },
        image_token_id=words.convert_tokens_to_ids("<image>"),
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    images = CLIPImageProcessorPil(
        size={"height": 32, "width": 32}, do_center_crop=False, crop_size={"height": 32, "width": 32}
    )
    images.image_seq_length = 17
    return save(folder, config, {"tokenizer": words, "image_processor": images}, "Florence2Processor")


FAMILIES: dict[str, Callable[[Path], Path]] = {
    "blip-2": blip2,
    "florence-2": florence2,
    "llava": llava,
    "qwen-vl": qwen_vl,
    "smolvlm": smolvlm,
}
