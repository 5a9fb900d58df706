"""The foreign keys that set nothing here: those without a meaning, named in a note, and those that would train otherwise."""

from __future__ import annotations

from typing import Any

from engine.aliases.rows import GRPO, LORA, MLL, MLX, TRL, Ignored, Kind, Refused, Tool


def _ignored(tools: tuple[Tool, ...], why: str, keys: str, only: Kind | None = None) -> tuple[Ignored, ...]:
    return tuple(Ignored(key, tools, why, only) for key in keys.split())


_JOURNAL = "the journal of the run records every step, and `droid-tune logs` and the app show it"
_FOLDER = "a run keeps checkpoints and adapters in its own folder, unfused; nothing is uploaded"
_MACHINE = "how the work is laid out on this machine is the worker's own affair"
_EVAL = "held-out rows are evaluated every run.eval_every steps, and adapters/ holds the best"
_OTHER = "an option of a method that is not the one here"
_START = "`droid-tune train` trains"

IGNORED: tuple[Ignored, ...] = (
    *_ignored(MLX, _JOURNAL, "steps_per_report"),
    *_ignored((MLL,), _JOURNAL, "wandb list_reward_functions"),
    *_ignored((LORA,), _JOURNAL, "project_name"),
    *_ignored((LORA, TRL), _JOURNAL, "report_to"),
    *_ignored(
        (TRL,),
        _JOURNAL,
        "logging_steps logging_strategy logging_dir logging_first_step logging_nan_inf_filter log_level log_level_replica "
        "log_on_each_node log_completions log_multimodal log_unique_prompts num_completions_to_print log_completions_hub_repo "
        "disable_tqdm project trackio_space_id trackio_bucket_id trackio_static_space_id "
        "wandb_log_unique_prompts wandb_project wandb_entity wandb_run_group "
        "include_num_input_tokens_seen skip_memory_metrics debug callbacks benchmarks",
    ),
    *_ignored(MLX, _FOLDER, "adapter_path"),
    *_ignored((MLL,), _FOLDER, "fuse lm_studio_name"),
    *_ignored(
        (TRL,),
        _FOLDER,
        "output_dir overwrite_output_dir save_strategy save_only_model save_on_each_node save_safetensors push_to_hub hub_token "
        "hub_model_id hub_strategy hub_private_repo hub_always_push hub_revision push_to_hub_revision",
    ),
    *_ignored((LORA,), _MACHINE, "clear_cache_threshold"),
    *_ignored((LORA, TRL), _MACHINE, "trust_remote_code"),
    *_ignored((MLL,), _MACHINE, "micro_batch_size efficient_long_context recurrence_chunk_size"),
    *_ignored(
        (TRL,),
        _MACHINE,
        "bf16 fp16 tf32 bf16_full_eval fp16_full_eval dtype torch_dtype attn_implementation "
        "gradient_checkpointing_kwargs activation_checkpointing activation_checkpointing_kwargs activation_offloading "
        "use_cache use_liger_kernel use_liger_loss liger_kernel_config torch_compile torch_compile_backend "
        "torch_compile_mode torch_empty_cache_steps cache_implementation use_vllm vllm_mode vllm_model_impl "
        "vllm_enable_sleep_mode vllm_device vllm_server_base_url vllm_server_host vllm_server_port vllm_server_timeout "
        "vllm_group_port vllm_dtype vllm_gpu_memory_utilization vllm_max_model_length vllm_max_model_len "
        "vllm_tensor_parallel_size vllm_enable_prefix_caching use_transformers_paged use_transformers_continuous_batching "
        "transformers_continuous_batching_config use_cpu local_rank ds3_gather_for_generation deepspeed fsdp fsdp_config "
        "ddp_backend ddp_timeout ddp_find_unused_parameters ddp_bucket_cap_mb ddp_broadcast_buffers accelerator_config "
        "average_tokens_across_devices full_determinism dataloader_num_workers dataloader_pin_memory "
        "dataloader_persistent_workers dataloader_prefetch_factor dataloader_drop_last dataloader_in_order "
        "dataset_num_proc dataset_streaming pad_to_multiple_of pad_token eval_packing packing_strategy "
        "remove_unused_columns preprocessing_num_workers cast_lm_head_to_fp32 dataloader_multiprocessing_context "
        "ddp_static_graph enable_jit_checkpoint ignore_bias_buffers ignore_data_skip "
        "restore_callback_states_from_checkpoint parallelism_config bnb_4bit_quant_storage bnb_4bit_quant_type "
        "use_bnb_nested_quant label_names length_column_name",
    ),
    *_ignored(MLX, _EVAL, "test test_batches"),
    *_ignored(
        (TRL,),
        _EVAL,
        "do_eval do_predict eval_strategy evaluation_strategy eval_delay eval_on_start eval_accumulation_steps "
        "per_device_eval_batch_size num_generations_eval prediction_loss_only dataset_test_split load_best_model_at_end "
        "metric_for_best_model greater_is_better batch_eval_metrics eval_do_concat_batches eval_use_gather_object "
        "include_for_metrics",
    ),
    *_ignored(MLX, _START, "train config"),
    *_ignored((TRL,), _START, "do_train"),
    *_ignored((TRL,), "one seed, run.seed, stands for everything random", "data_seed"),
    *_ignored((TRL,), "there is no dropout while a policy is sampled and scored", "disable_dropout"),
    *_ignored((TRL,), "longer rows are left out and counted, not cut", "truncation_mode"),
    *_ignored((TRL,), "adapters here are for language models", "lora_task_type task_type"),
    *_ignored(
        (TRL,),
        "sampler and trainer are one process here; objective.tis weighs what gap there is",
        "vllm_importance_sampling_correction vllm_importance_sampling_mode vllm_importance_sampling_clip_max "
        "vllm_importance_sampling_clip_min vllm_importance_sampling_cap",
    ),
    *_ignored((MLL,), f"{_OTHER} (DPOP's penalty, with dpo_cpo_loss_type)", "delta"),
    *_ignored((MLL,), f"{_OTHER} (the weight of XPO's exploration)", "alpha"),
    *_ignored(
        (MLL,),
        _OTHER,
        "reward_scaling dpo_cpo_loss_type dsla_loss judge judge_config lambda_mse_target tau_mse_target lambda_mse "
        "clip_epsilon_logits latent_weight latent_margin latent_gamma latent_variant latent_pooling latent_layer klpo_route "
        "klpo_kl_estimator klpo_mc_samples klpo_top_k klpo_tail_floor chosen_feature rejected_feature preference_score_feature "
        "qat_bits qat_group_size qat_mode qat_start_step qat_interval",
    ),
    *_ignored(
        (TRL,),
        _OTHER,
        "sapo_temperature_neg sapo_temperature_pos vespo_k_pos vespo_k_neg vespo_lambda_pos vespo_lambda_neg entropy_coef_min "
        "entropy_coef_max entropy_coef_delta entropy_target",
        "rl",
    ),
)


def _refused(
    tools: tuple[Tool, ...], neutral: tuple[Any, ...], why: str, remedy: str, keys: str, only: Kind | None = None
) -> tuple[Refused, ...]:
    return tuple(Refused(key, tools, neutral, why, remedy, only) for key in keys.split())


_TAIL = "the sampled distribution would not be the one that is scored"
_QUANT = "set quantize: {bits: 4} (affine, in groups), or name a model that is quantised so"
_OUT = "leave it out"

REFUSED: tuple[Refused, ...] = (
    *_refused(GRPO, (1, 0), _TAIL, "leave it out; sampling.temperature shapes both", "top_p", "rl"),
    *_refused(GRPO, (0, -1), _TAIL, "leave it out; sampling.temperature shapes both", "top_k min_p", "rl"),
    *_refused(GRPO, (1,), _TAIL, "leave it out; sampling.temperature shapes both", "repetition_penalty", "rl"),
    *_refused((TRL,), ({}, "{}"), _TAIL, _OUT, "generation_kwargs", "rl"),
    *_refused((TRL,), ("",), _TAIL, _OUT, "vllm_structured_outputs_regex vllm_guided_decoding_regex", "rl"),
    *_refused(
        (TRL,), (False, ""), "a run starts from its model", "`droid-tune resume RUN` takes up one", "resume_from_checkpoint"
    ),
    *_refused((MLL,), ("",), "the reference is the model that the run starts from", _OUT, "reference_model_path", "rl"),
    *_refused((MLL,), (False,), "mxfp4 is not made while a model loads", _QUANT, "load_in_mxfp4"),
    *_refused((TRL,), (False,), "bitsandbytes' formats are not MLX's", _QUANT, "load_in_4bit load_in_8bit"),
    *_refused((TRL,), ("main",), "a model is a folder or an id, without a revision", "download that revision", "model_revision"),
    *_refused((TRL,), ({}, "{}"), "models are loaded as mlx_lm loads them", _OUT, "model_init_kwargs"),
    *_refused((TRL,), ([],), "a run trains on one data set", "name one in data: {train: owner/name}", "datasets"),
    *_refused((TRL,), (True,), "prompts are always drawn in a shuffled order", _OUT, "shuffle_dataset", "rl"),
    *_refused((TRL,), (False,), "rows are always drawn in a shuffled order", _OUT, "group_by_length"),
    *_refused((TRL,), ("random",), "rows are always drawn in a shuffled order", _OUT, "train_sampling_strategy"),
    *_refused(
        (TRL,),
        ("sum_then_normalize",),
        "rewards are summed by weight before they are normalised",
        "use sum_then_normalize",
        "multi_objective_aggregation",
        "rl",
    ),
    *_refused((TRL,), (), "sequences are not masked by their KL", "try objective.tis", "off_policy_mask_threshold", "rl"),
    *_refused((TRL,), (False,), "the entropy bonus is constant", "set objective.entropy_bonus", "use_adaptive_entropy", "rl"),
    *_refused((TRL,), (0,), "there is no load-balancing loss", _OUT, "router_aux_loss_coef"),
    *_refused((TRL,), (0,), "completions call no tools", _OUT, "max_tool_calling_iterations", "rl"),
    *_refused(
        (TRL,), ("",), "rewards are functions, not models", "write a function that asks it", "reward_model_name_or_path", "rl"
    ),
    *_refused((TRL,), (0,), "targets are not smoothed", _OUT, "label_smoothing_factor"),
    *_refused((TRL,), (0,), "embeddings get no noise", _OUT, "neftune_noise_alpha"),
    *_refused((TRL,), (False,), "rows are not packed into one another", _OUT, "packing padding_free", "sft"),
    *_refused((TRL,), (False,), "the batch is the one that the config names", _OUT, "auto_find_batch_size"),
    *_refused((TRL,), ("",), "the model's own chat template is used", _OUT, "chat_template_path"),
    *_refused((TRL,), ("",), "the model's own stop tokens are used", _OUT, "eos_token", "sft"),
    *_refused((TRL,), ({}, "{}"), "data files have no further options", _OUT, "dataset_kwargs", "sft"),
    *_refused((TRL,), ({}, "{}"), "schedules have no further arguments", _OUT, "lr_scheduler_kwargs"),
    *_refused((TRL,), ("",), "optimizers have no further arguments", "see optim in `droid-tune schema`", "optim_args"),
    *_refused((TRL,), ([], ""), "one optimizer updates everything", _OUT, "optim_target_modules"),
    *_refused((TRL,), ([],), "only low-rank factors are trained", _OUT, "lora_modules_to_save modules_to_save"),
    *_refused((TRL,), ([],), "adapters are on linear layers", "use lora_target_modules", "lora_target_parameters"),
    *_refused((TRL,), ("none",), "adapters train no bias", _OUT, "lora_bias bias"),
    *_refused((TRL,), (), "LoRA's alpha (scale x rank)", "write lora_alpha, or adapter: {scale: ALPHA / RANK}", "alpha"),
    *_refused((MLL,), ("nll", "chunked_nll"), "the loss is the mean negative log-likelihood", _OUT, "sft_loss_type", "sft"),
    *_refused((MLL,), (False,), "weights are not rounded while they train", _OUT, "qat_enable"),
)
