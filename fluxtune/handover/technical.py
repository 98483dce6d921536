"""Keys of each trainer that say how it works and not what it learns: they are passed over, and noted once."""

from __future__ import annotations

AI_TOOLKIT = frozenset({
    "training_folder", "device", "performance_log_every", "sqlite_db_path", "logging", "meta", "save.save_format",
    "save.push_to_hub", "save.hf_repo_id", "save.hf_private", "sample.sampler", "sample.neg", "sample.format",
    "sample.sample_start_step", "sample.num_frames", "sample.fps", "train.force_first_sample", "train.xformers",
    "train.sdp", "train.attention_backend", "model.low_vram", "model.layer_offloading",
    "model.layer_offloading_transformer_percent", "model.arch", "model.is_flux",
    "model.layer_offloading_text_encoder_percent", "model.quantize_kwargs", "model.compile", "network.alpha",
    "train.unload_text_encoder", "train.cache_text_embeddings", "network.conv", "network.conv_alpha",
    "network.lokr_full_rank", "network.lokr_factor", "train.blank_prompt_preservation_multiplier",
    "train.switch_boundary_every", "train.do_differential_guidance_scale", "model.model_kwargs",
})  # fmt: skip

SIMPLETUNER = frozenset({
    "data_backend_config", "output_dir", "resume_from_checkpoint", "hub_model_id", "push_to_hub", "quantize_via",
    "push_checkpoints_to_hub", "aspect_bucket_rounding", "aspect_bucket_alignment", "disable_bucket_pruning",
    "minimum_image_size", "vae_batch_size", "num_eval_images", "fuse_qkv_projections", "disable_benchmark",
    "validation_disable_unconditional", "validation_guidance_rescale", "validation_negative_prompt",
    "push_to_hub_background", "validation_prompt_library", "validation_torch_compile",
    "attention_mechanism", "model_card_safe_for_work", "text_encoder_batch_size",
    "write_batch_size", "read_batch_size", "image_processing_batch_size", "allow_tf32", "base_model_default_dtype",
    "cache_dir", "logging_dir", "offload_during_startup", "compress_disk_cache", "delete_unwanted_images",
    "metadata_update_interval", "keep_vae_loaded", "vae_dtype", "num_processes", "num_machines", "dynamo_backend",
    "ema_device", "validation_on_startup", "ema_update_interval", "ema_cpu_only", "lycoris_config",
    "init_lokr_norm", "validation_seed_source", "lora_format", "accelerate_extra_args", "validation_using_datasets",
    "lr_power", "lr_num_cycles", "debug_dataset_loader", "override_dataset_config", "validation_scheduler",
    "webhook_config", "dataloader_prefetch", "validation_preview", "validation_preview_steps",
    "eval_steps_interval", "eval_dataset_id", "evaluation_type",
})  # fmt: skip

SD_SCRIPTS = frozenset({
    "output_dir", "save_model_as", "sdpa", "xformers", "cache_latents", "cache_latents_to_disk", "script",
    "cache_text_encoder_outputs", "cache_text_encoder_outputs_to_disk", "max_data_loader_n_workers", "highvram",
    "persistent_data_loader_workers", "lowvram", "logging_dir", "log_prefix", "vae_batch_size", "no_metadata",
    "save_state", "save_state_on_train_end", "resume", "training_comment", "huggingface_repo_id", "wandb_run_name",
    "huggingface_token", "wandb_api_key", "mem_eff_save", "num_cpu_threads_per_process", "split_mode",
    "disable_mmap_load_safetensors", "max_token_length", "t5xxl_max_token_length", "sample_sampler",
    "text_encoder_batch_size", "gradient_checkpointing_cpu_offload", "cpu_offload_checkpointing", 
    "sample_at_first", "metadata_title", "metadata_author", "metadata_description",
    "metadata_license", "metadata_tags", "dataset", "dynamo_backend", "num_processes", "num_machines",
    "torch_compile", "console_log_level", "bucket_reso_steps", "min_bucket_reso", "max_bucket_reso", "clip_skip",
    "lr_scheduler_num_cycles", "lr_scheduler_power", "huber_c", "huber_schedule", "no_half_vae", "config_file",
    "skip_cache_check", "mode_scale", "huber_scale", "caption_separator",
})  # fmt: skip

ONETRAINER = frozenset({
    "__version", "concept_file_name", "sample_definition_file_name", "workspace_dir", "cache_dir", "debug_mode",
    "debug_dir", "output_model_format", "backup_after", "backup_after_unit", "rolling_backup", "cloud", "secrets",
    "rolling_backup_count", "backup_before_save", "save_skip_first", "save_filename_prefix", "dataloader_threads",
    "train_device", "temp_device", "tensorboard_expose", "tensorboard_port", "tensorboard_always_on", "validation",
    "validate_after", "validate_after_unit", "continue_last_backup", "include_train_config", "prevent_overwrites",
    "multi_gpu", "device_indexes", "gradient_reduce_precision", "fused_gradient_reduce", "async_gradient_reduce",
    "async_gradient_reduce_buffer", "async_offloading", "compile", "latent_caching", "clear_cache_before_training",
    "custom_learning_rate_scheduler", "scheduler_params", "learning_rate_cycles", "fallback_train_dtype",
    "enable_autocast_cache", "only_cache", "frames", "attention_mechanism", "vae", "huber_delta",
    "vb_loss_strength", "loss_weight_strength", "loss_scaler", "unet", "prior", "quantization",
    "unconditional_transformer", "effnet_encoder", "decoder", "decoder_text_encoder", "decoder_vqgan",
    "text_encoder_3", "text_encoder_4", "text_encoder_3_layer_skip", "text_encoder_4_layer_skip", "embedding",
    "text_encoder_sequence_length", "text_encoder_2_sequence_length", "embedding_learning_rate", "loss_weight",
    "additional_embeddings", "embedding_weight_dtype", "lora_weight_dtype", "bundle_additional_embeddings",
    "oft_block_size", "oft_block_share", "oft_scaled", "lokr_dim", "lokr_decompose_both", "lokr_decompose_factor",
    "lokr_use_tucker", "lokr_weight_decompose", "lokr_dora_on_output", "lokr_full_matrix", "lokr_vec_trick",
    "optimizer_defaults", "sample_skip_first", "sample_image_format", "sample_video_format", "sample_audio_format",
    "samples_to_tensorboard", "non_ema_sampling", "huggingface_cache_dir", "offline_mode",
    "preserve_embedding_norm", "lora_decompose_norm_epsilon", "lora_decompose_output_axis", "text_encoder.include",
    "text_encoder_2.include", "transformer.include", "text_encoder.learning_rate", "text_encoder_2.learning_rate",
    "text_encoder.train_embedding", "text_encoder_2.train_embedding", "transformer.train_embedding",
    "text_encoder.stop_training_after", "text_encoder.stop_training_after_unit", "transformer.dropout_probability",
    "text_encoder_2.stop_training_after", "text_encoder_2.stop_training_after_unit",
    "text_encoder.gradient_checkpointing", "transformer.stop_training_after",
    "transformer.stop_training_after_unit", "transformer.offload_fraction", "text_encoder_2.gradient_checkpointing",
    "text_encoder.guidance_scale", "text_encoder_2.guidance_scale", "text_encoder.offload_fraction",
    "text_encoder_2.offload_fraction", "text_encoder.activation_offloading", "text_encoder_2.activation_offloading",
    "text_encoder.attention_mask", "text_encoder_2.attention_mask", "text_encoder_layer_skip",
    "text_encoder_2_layer_skip", "optimizer.fused", "optimizer.stochastic_rounding", "optimizer.foreach",
    "optimizer.capturable", "optimizer.differentiable", "optimizer.is_paged", "optimizer.percentile_clipping",
    "optimizer.min_8bit_size", "optimizer.block_wise", "rescale_noise_scheduler_to_zero_terminal_snr",
    "force_v_prediction", "force_epsilon_prediction", "concepts", "custom_conditioning_image",
    "text_encoder.model_name", "text_encoder_2.model_name", "vae.model_name", "layer_offload_fraction",
    "enable_async_offloading", "enable_activation_offloading", "compile_mode", "weight_dtype", "sample_definition",
    "optimizer.use_bias_correction", "optimizer.bias_correction",
})  # fmt: skip

DIFFUSERS = frozenset({
    "variant", "cache_dir", "cache_latents", "logging_dir", "push_to_hub", "hub_model_id", "hub_token",
    "allow_tf32", "dataloader_num_workers", "sample_batch_size", "prior_generation_precision", "local_rank",
    "upcast_before_saving", "resume_from_checkpoint", "image_column", "caption_column", "text_encoder_lr", "script",
    "adam_epsilon", "adam_weight_decay_text_encoder", "prodigy_beta3", "prodigy_decouple", "lr_num_cycles",
    "prodigy_use_bias_correction", "prodigy_safeguard_warmup", "lr_power", "num_processes", "num_machines",
    "dynamo_backend", "config_file", "enable_npu_flash_attention",
})  # fmt: skip
