"""The whole configuration, assembled from its sections."""

from __future__ import annotations

from fluxtune.config.base import Section, section, setting
from fluxtune.config.captioning import CaptioningConfig
from fluxtune.config.checkpoints import CheckpointsConfig
from fluxtune.config.dataset import DatasetConfig
from fluxtune.config.lora import LoraConfig
from fluxtune.config.memory import MemoryConfig
from fluxtune.config.metadata import MetadataConfig
from fluxtune.config.model import ModelConfig
from fluxtune.config.previews import PreviewsConfig
from fluxtune.config.sampling import SamplingConfig
from fluxtune.config.tracking import TrackingConfig
from fluxtune.config.training import TrainingConfig


class Config(Section):
    """Everything a run needs to know. Equal configurations give equal runs."""

    name: str = setting(
        "",
        "Name of the LoRA and its file; empty means the name of the run folder.",
        form="up to 100 letters, digits, spaces, dots, dashes and underscores, beginning with a letter or digit",
        pattern=r"^([A-Za-z0-9][A-Za-z0-9._ -]*)?$",
        max_length=100,
    )
    model: ModelConfig = section(ModelConfig, "The base model.")
    dataset: DatasetConfig = section(DatasetConfig, "The pictures.")
    lora: LoraConfig = section(LoraConfig, "The adapter.")
    training: TrainingConfig = section(TrainingConfig, "The training loop.")
    memory: MemoryConfig = section(MemoryConfig, "What fits the card.")
    checkpoints: CheckpointsConfig = section(CheckpointsConfig, "What is saved.")
    metadata: MetadataConfig = section(MetadataConfig, "What the LoRA file says of itself.")
    previews: PreviewsConfig = section(PreviewsConfig, "Pictures made while training.")
    sampling: SamplingConfig = section(SamplingConfig, "How `fluxtune sample` makes pictures.")
    tracking: TrackingConfig = section(TrackingConfig, "Where figures and previews are shown.")
    captioning: CaptioningConfig = section(CaptioningConfig, "How `fluxtune caption` captions pictures.")
