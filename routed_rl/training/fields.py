"""Tables that say how every field of the algorithms' arguments (the settings of `trainer:`) is treated. They are complete for the
installed TRL and transformers: a field is in exactly one of `ELSEWHERE`, `STAYS`, `VALUES` and `FREE`. Fields in `FIXED` keep
their value on `resume` and `rollback`; all others may change there, from the next step on."""

ELSEWHERE = {
    "set out=FOLDER": "output_dir",
    "set seed=N": "seed data_seed",
    "set name=NAME": "run_name",
    "set tracking.project=NAME": "project",
    "set trainer.max_steps=N, since tasks are endless and a run has no epochs": "num_train_epochs",
    "use `routed-rl resume RUN`": "resume_from_checkpoint",
    "set evaluation.every=N": """eval_strategy eval_steps eval_delay eval_on_start eval_do_concat_batches eval_use_gather_object
        eval_accumulation_steps per_device_eval_batch_size prediction_loss_only include_for_metrics batch_eval_metrics do_eval
        num_generations_eval bf16_full_eval fp16_full_eval metric_for_best_model greater_is_better""",
    "the verbs of the command line decide what is done": "do_train do_predict",
    "set launch=zero1, zero2 or zero3": "deepspeed",
    "set launch=fsdp2": "fsdp fsdp_config",
    "set launch=ddp, zero1, zero2, zero3 or fsdp2": "parallelism_config accelerator_config local_rank",
    "the machine decides": "ddp_backend",
    "set launch.timeout_s=SECONDS": "ddp_timeout",
    "set rollout=vllm_colocate or rollout=vllm_server": "use_vllm",
    "set rollout.gpu_memory and the other settings of rollout": """vllm_mode vllm_model_impl vllm_enable_sleep_mode
        vllm_server_base_url vllm_server_host vllm_server_port vllm_server_timeout vllm_group_port
        vllm_gpu_memory_utilization vllm_max_model_length vllm_tensor_parallel_size""",
    "the names of the environments are passed on in columns that must stay": "remove_unused_columns label_names",
    "the mixture of environments orders the tasks, and makes them in this process": """shuffle_dataset train_sampling_strategy
        length_column_name dataloader_drop_last dataloader_num_workers dataloader_persistent_workers dataloader_prefetch_factor
        dataloader_multiprocessing_context dataloader_in_order""",
    "progress is shown by routed_rl": "disable_tqdm",
    "push the folder that `routed-rl discard` writes": """push_to_hub hub_private_repo hub_model_id hub_strategy
        hub_always_push hub_revision""",
    "set tracking.completions=true, which keeps completions; images are not supported": "log_completions_hub_repo log_multimodal",
    "each environment pays one reward; set env.NAME.weight, or change the reward in the environment": "reward_weights",
    "set env.NAME.max_turns": "max_tool_calling_iterations",
    "the model is loaded as model.path says": "model_init_kwargs trust_remote_code",
    "set trainer.vllm_importance_sampling_clip_max": "vllm_importance_sampling_cap",
}
"""The fields that are not set in `trainer:`. A key is the text that says where they are set instead, and its value has their
names."""

STAYS = {
    "fp16 loses small updates; set trainer.bf16=true, which keeps float32 weights": "fp16",
    "a fused loss hides the gradients by the writers' outputs, which routing splits": "use_liger_kernel liger_kernel_config",
    "a compiled model does not call the hooks that route": "torch_compile torch_compile_backend torch_compile_mode",
    "its log-probabilities differ from those of the model that is routed":
        "use_transformers_continuous_batching transformers_continuous_batching_config use_transformers_paged",
    "a discarded best model would mix two runs' quarantines; use `routed-rl rollback`": "load_best_model_at_end",
    "the reference model is the base model": "sync_ref_model ref_model_mixup_alpha ref_model_sync_steps",
    "extraction and evaluation render prompts with the plain template": "chat_template_kwargs",
    "a checkpoint must hold all that a resume needs": "save_only_model",
    "a resumed run would train on the same tasks again": "ignore_data_skip",
    "every run ends with a checkpoint; set trainer.save_steps=N for the others": "save_strategy",
    "a signal ends a run with a checkpoint already": "enable_jit_checkpoint",
    "checkpoints are written once, to the run folder": "save_on_each_node",
    "routed_rl's callbacks keep what they need in the checkpoint": "restore_callback_states_from_checkpoint",
    "a smaller batch could cut a group in two; set trainer.per_device_train_batch_size": "auto_find_batch_size",
    "TRL's loss does not use it": "label_smoothing_factor average_tokens_across_devices",
    "rollouts always use a cache, and training never does": "use_cache",
    "TRL counts tokens itself: train/num_tokens": "include_num_input_tokens_seen",
    "nothing reads the memory that it would measure": "skip_memory_metrics",
}
"""The fields that must keep their default. A key is the reason, and its value has the names of the fields."""

VALUES = {
    "at least 1": """max_steps per_device_train_batch_size gradient_accumulation_steps num_iterations steps_per_generation
        generation_batch_size max_completion_length pad_to_multiple_of torch_empty_cache_steps save_total_limit
        ddp_bucket_cap_mb num_completions_to_print""",
    "at least 2": "num_generations",
    "above 0": """temperature repetition_penalty sapo_temperature_neg sapo_temperature_pos vespo_k_pos vespo_k_neg
        vespo_lambda_pos vespo_lambda_neg delta value_clip off_policy_mask_threshold vllm_importance_sampling_clip_max""",
    "at least 0": """learning_rate weight_decay adam_epsilon max_grad_norm beta epsilon epsilon_high top_k entropy_coef_min
        entropy_coef_max entropy_coef_delta entropy_target neftune_noise_alpha value_learning_rate value_coefficient
        router_aux_loss_coef vllm_importance_sampling_clip_min""",
    "above 0 and at most 1": "top_p top_entropy_quantile",
    "from 0 to 1": "min_p gamma gae_lambda",
    "from 0 to below 1": "adam_beta1 adam_beta2",
    "a whole number from 1, or a share of all steps": "logging_steps save_steps",
    "a whole number from 0, or a share of all steps": "warmup_steps",
    "token or sequence": "importance_sampling_level",
    "group, batch or none": "scale_rewards",
    "sum_then_normalize or normalize_then_sum": "multi_objective_aggregation",
    "grpo, dr_grpo, dapo, bnpo, cispo, sapo, luspo or vespo": "loss_type",
    "token_mask, token_truncate, sequence_mask or sequence_truncate": "vllm_importance_sampling_mode",
    "debug, info, warning, error, critical, detail or passive": "log_level log_level_replica",
    "two numbers, the smaller one first": "reward_clip_range",
}
"""The fields whose values must satisfy a rule. A key is the rule, which `checks.keeps` reads, and its value has the names of the
fields."""

ORDERED = (("entropy_coef_min", "entropy_coef_max"),
           ("vllm_importance_sampling_clip_min", "vllm_importance_sampling_clip_max"))
"""Pairs of fields. The value of the second may not be below that of the first."""

FREE = """lr_scheduler_type lr_scheduler_kwargs optim optim_args optim_target_modules bf16 tf32 gradient_checkpointing
    gradient_checkpointing_kwargs logging_strategy logging_first_step logging_nan_inf_filter log_on_each_node report_to debug
    log_completions log_unique_prompts trackio_space_id trackio_bucket_id trackio_static_space_id full_determinism use_cpu
    dataloader_pin_memory ddp_find_unused_parameters ddp_broadcast_buffers ddp_static_graph disable_dropout
    cast_lm_head_to_fp32 ds3_gather_for_generation generation_kwargs cache_implementation mask_truncated_completions
    use_adaptive_entropy entropy_coef use_bias_correction_kl vllm_importance_sampling_correction vllm_structured_outputs_regex
    normalize_advantages whiten_advantages value_detach
    hub_token"""
"""Fields whose values are checked by their type, by TRL, or by a trial on the model. A reference to an environment variable in
`hub_token` is not resolved, because nothing is uploaded to the hub."""

FIXED = """optim optim_args optim_target_modules adam_beta1 adam_beta2 adam_epsilon num_generations num_iterations
    generation_batch_size steps_per_generation"""
"""The fields that a resumed run cannot change, because a checkpoint's optimizer or its stored completions depend on them."""

_CLIPS = ("grpo", "bnpo", "dr_grpo", "dapo", "luspo")
_MULTISTEP = ("linear", "cosine", "cosine_with_restarts", "polynomial", "inverse_sqrt", "cosine_with_min_lr",
              "cosine_warmup_with_min_lr", "warmup_stable_decay")
BY_TOKEN = ("grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo")
"""The values of `loss_type` with which each token of a completion may have its own advantage. The other losses have one weight
for a whole completion."""
NEEDS = (
    ("epsilon", "trainer.loss_type", _CLIPS),
    ("epsilon_high", "trainer.loss_type", (*_CLIPS, "cispo")),
    ("delta", "trainer.loss_type", _CLIPS),
    ("sapo_temperature_neg sapo_temperature_pos", "trainer.loss_type", ("sapo",)),
    ("vespo_k_pos vespo_k_neg vespo_lambda_pos vespo_lambda_neg", "trainer.loss_type", ("vespo",)),
    ("entropy_coef_min entropy_coef_max entropy_coef_delta entropy_target", "trainer.use_adaptive_entropy", (True,)),
    ("gradient_checkpointing_kwargs", "trainer.gradient_checkpointing", (True,)),
    ("warmup_steps", "trainer.lr_scheduler_type", ("constant_with_warmup", *_MULTISTEP)),
    ("lr_scheduler_kwargs", "trainer.lr_scheduler_type", _MULTISTEP),
    ("num_completions_to_print log_unique_prompts", "trainer.log_completions", (True,)),
    ("trackio_space_id trackio_bucket_id trackio_static_space_id", "trainer.report_to", ("trackio",)),
    ("vllm_importance_sampling_correction vllm_importance_sampling_mode vllm_importance_sampling_clip_max "
     "vllm_importance_sampling_clip_min vllm_structured_outputs_regex", "rollout.engine", ("vllm_colocate", "vllm_server")),
    ("ddp_find_unused_parameters ddp_bucket_cap_mb ddp_broadcast_buffers ddp_static_graph", "launch.strategy", ("ddp",)),
    ("ds3_gather_for_generation", "launch.strategy", ("zero3",)),
)
"""Entries (fields, another setting, values). The fields have an effect only if the other setting has one of the values."""

GONE = {"max_prompt_length": "prompts are not cut; let the environment make them shorter",
        "warmup_ratio": "set trainer.warmup_steps=0.1, a share of all steps", "no_cuda": "set trainer.use_cpu=true",
        "evaluation_strategy": "set evaluation.every=N", "logging_dir": "set out=FOLDER"}
"""The names of fields that TRL or transformers had in earlier versions, each with a text that says what replaces it. They are
listed because no present field has a similar name."""
