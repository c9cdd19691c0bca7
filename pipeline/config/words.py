"""Words of TRL, Axolotl, LLaMA-Factory and OpenRLHF -> our key, and how its unit differs, or why there is none."""

from __future__ import annotations

from typing import NamedTuple


class Word(NamedTuple):
    """Our word for a setting of another program."""

    key: str | None  # section.field; None: nothing here stands for it
    note: str  # what differs, or why there is no key; "" where the value means the same

    @property
    def advice(self) -> str:
        """The end of a sentence that says what to write instead."""
        if self.key is None:
            return self.note
        return f"the key is {self.key}: {self.note}" if self.note else f"the key is {self.key}"


# Words with blanks between, the key, and what differs.
MODEL = [
    ("model_name_or_path base_model model model_name model_id model_path pretrain", "policy.path", ""),
    (
        "ref_model ref_model_name_or_path ref_pretrain reference_model reference_model_name_or_path ref_model_adapters",
        "reference.model",
        '"start" (the default) is the policy before training, "base" the model under its adapter; or a folder',
    ),
    (
        "model_type architecture tokenizer_type type_of_model model_init_kwargs overrides_of_model_config",
        None,
        "the folder of policy.path says it in its config.json",
    ),
    (
        "model_revision revision_of_model revision",
        None,
        "download the revision to a folder, and set policy.path to it",
    ),
    (
        "trust_remote_code",
        None,
        "code that comes with a model is never run; the model must be one of the transformers library",
    ),
    ("torch_dtype mixed_precision precision", "train.dtype", '"bfloat16", "float32" or "auto"'),
    ("bf16 pure_bf16", "train.dtype", 'true is "bfloat16"'),
    ("fp16 float16", "train.dtype", 'there is no float16; write "bfloat16" or "float32"'),
    (
        "attn_implementation flash_attention flash_attn flash_attention_2 sdp_attention xformers_attention",
        None,
        "the attention is chosen by the program, for all completions of a prompt at once",
    ),
    (
        "use_liger_kernel use_liger_loss enable_liger_kernel liger_kernel_config use_unsloth use_logits_to_keep "
        "dpo_use_logits_to_keep torch_compile torch_compile_backend torch_compile_mode tf32",
        None,
        "no kernel is to be chosen; logits are computed for scored tokens alone, in chunks",
    ),
    (
        "adapter use_peft peft lora finetuning_type peft_config",
        "policy.adapter",
        "a table; with { r = 16 } a LoRA adapter is trained in place of all weights",
    ),
    ("lora_r lora_rank", "policy.adapter.r", ""),
    ("lora_alpha", "policy.adapter.alpha", ""),
    (
        "lora_target lora_targets target_modules lora_target_modules lora_target_linear",
        "policy.adapter.target_modules",
        '"all-linear", or a list of names',
    ),
    ("lora_target_parameters", "policy.adapter.target_parameters", ""),
    ("lora_modules_to_save", "policy.adapter.modules_to_save", ""),
    ("use_dora", "policy.adapter.use_dora", ""),
    ("use_rslora", "policy.adapter.use_rslora", ""),
    ("adapter_name_or_path lora_model_dir", "policy.adapter.path", ""),
    ("lora_dropout", None, "dropout is off in every model, so that policy and reference are one function"),
    ("lora_task_type", None, "it is always CAUSAL_LM"),
    (
        "load_in_8bit load_in_4bit quantization_bit quantization_method",
        "policy.quantize",
        '"nf4" for 4 bits, "int8" for 8; it needs [policy.adapter]',
    ),
    (
        "bnb_4bit_quant_type bnb_4bit_quant_storage use_bnb_nested_quant",
        None,
        'policy.quantize = "nf4" or "int8" is all that is to be chosen',
    ),
    (
        "rope_scaling rope_theta",
        None,
        "positions are those of the model's config.json; change them there",
    ),
]
TOKENIZER = [
    ("tokenizer_name tokenizer_name_or_path tokenizer_path tokenizer_config", "tokenizer.path", ""),
    (
        "chat_template_path chat_template_jinja tokenizer_chat_template template input_template",
        "tokenizer.chat_template",
        '"chatml", or the path of a Jinja file; without it the tokenizer\'s own template applies',
    ),
    ("special_tokens", "tokenizer.eos_token", "the end token; no other is replaced"),
    (
        "pad_token padding_side padding_free pad_to_sequence_len pad_to_multiple_of padding_value label_pad_token_id "
        "dpo_padding_free",
        None,
        "padding is left out where the model can do without, and masked elsewhere",
    ),
    ("apply_chat_template", "data.strings", '"messages" puts rows of strings through the chat template, too'),
    ("use_fast tokenizer_use_fast disable_fast_tokenizer use_fast_tokenizer", None, "the tokenizer's folder decides"),
]
DATA = [
    (
        "dataset_name dataset datasets dataset_path dataset_dir train_file train_files data_files train_dataset",
        "data.train",
        "a file, a folder, a pattern, a URI or a Hub name, or a list of these",
    ),
    (
        "eval_dataset validation_file test_datasets eval_file dataset_test_split eval_split",
        "data.eval",
        "a source as in data.train, or a fraction of its prompts",
    ),
    ("val_size val_set_size test_size validation_split", "data.eval", "a fraction (0 to 1) of the prompts is held out"),
    ("dataset_train_split train_split", "data.train", 'a table { path = "NAME", split = "train" }'),
    (
        "dataset_config dataset_config_name subset",
        "data.train",
        'a table { path = "NAME", name = "CONFIGURATION" }',
    ),
    ("prompt_column prompt_key field_prompt", "data.columns", '{ prompt = "YOUR COLUMN" }'),
    ("chosen_column chosen_key field_chosen", "data.columns", '{ chosen = "YOUR COLUMN" }'),
    ("rejected_column rejected_key field_rejected", "data.columns", '{ rejected = "YOUR COLUMN" }'),
    ("field_messages column_mapping message_property_mappings", "data.columns", '{ prompt = "YOUR COLUMN", ... }'),
    (
        "dataset_probs interleave_probs mix_strategy dataset_weights",
        "data.train",
        "tables { path, weight } in a list; a weight of 2 uses each row twice",
    ),
    ("cutoff_len max_len sequence_len max_seq_length max_seq_len model_max_length seq_length", "data.max_length", ""),
    ("max_prompt_len prompt_max_len", "data.max_prompt_length", ""),
    ("max_target_length max_response_length", "data.max_completion_length", ""),
    (
        "truncation_mode truncation_side excess_length_strategy",
        "data.truncation",
        '"keep_start", "keep_end" or "drop"',
    ),
    ("streaming dataset_streaming", None, "data are always streamed"),
    (
        "dataset_num_proc preprocessing_num_workers dataset_processes dataloader_num_workers num_proc num_workers "
        "dataloader_pin_memory dataloader_prefetch_factor dataloader_persistent_workers "
        "dataloader_multiprocessing_context dataloader_in_order",
        None,
        "reading is spread over the cores without a setting",
    ),
    ("overwrite_cache", None, "tokens and log-probs are found by their contents, and are never out of date"),
    ("dataset_prepared_path tokenized_path cache_dir", "run.workspace", "tokens and log-probs are kept in it"),
    (
        "packing sample_packing eval_sample_packing neat_packing packing_samples group_by_length "
        "length_column_name train_sampling_strategy",
        None,
        "micro-batches are always packed by length, up to train.micro_batch_tokens",
    ),
    ("data_seed shuffle shuffle_dataset shuffle_merged_datasets", "run.seed", "each epoch is shuffled by it"),
    ("remove_unused_columns", None, "columns that nobody needs are not read"),
    (
        "train_on_inputs train_on_prompt mask_history completion_only_loss assistant_only_loss",
        None,
        "only the answer's tokens are scored",
    ),
    ("dataset_exact_deduplication deduplicate", "data.duplicates", '"drop" or "keep"'),
]
LOSS = [
    ("pref_beta rl_beta dpo_beta", "loss.beta", ""),
    ("loss_type pref_loss rl rlhf loss_fn", "loss.kind", 'DPO is "sigmoid"'),
    ("ipo", "loss.kind", 'it is "ipo"'),
    ("dpo_label_smoothing label_smoothing_factor", "loss.label_smoothing", ""),
    ("loss_weights", "loss.weight", "one in each [[loss]] table"),
    (
        "rpo_alpha pref_ftx nll_loss_coef dpop_lambda",
        "loss.weight",
        'of a second [[loss]] table with kind = "sft"',
    ),
    ("simpo_gamma", "loss.gamma", 'with kind = "simpo"'),
    ("cpo_alpha", "loss.nll_weight", 'with kind = "cpo"'),
    ("orpo_alpha", "loss.odds_weight", 'with kind = "orpo"; it is the beta of TRL\'s ORPO'),
    ("f_divergence_type", "loss.divergence", '"reverse_kl", "forward_kl", "js" or "alpha"'),
    ("f_alpha_divergence_coef", "loss.divergence_alpha", 'with divergence = "alpha"'),
    ("use_weighting dpo_use_weighting", "loss.wpo", ""),
    ("discopop_tau", "loss.tau", 'with kind = "discopop"'),
    ("average_log_prob dpo_norm_loss length_normalization", "loss.kind", '"sigmoid_norm" divides by the length'),
    ("reference_free", "loss.kind", '"simpo", "cpo" and "orpo" look at no reference'),
    (
        "desirable_weight undesirable_weight kto_chosen_weight kto_rejected_weight pref_bco_weight",
        None,
        "KTO and its weights are not there; every row is a pair",
    ),
    (
        "sync_ref_model ref_model_mixup_alpha ref_model_sync_steps",
        None,
        "the reference stays as it is during a run, and its log-probs are cached",
    ),
    (
        "precompute_ref_log_probs force_use_ref_model",
        "reference.mode",
        '"precompute" is the default; "overlap" scores during training',
    ),
    ("precompute_ref_batch_size", "reference.batch_tokens", "it counts tokens, about 2 x pairs x data.max_length"),
    ("disable_dropout", None, "dropout is always off"),
    ("router_aux_loss_coef aux_loss_coef", None, "no loss is added for the balance of experts"),
]
TRAINING = [
    ("num_train_epochs num_epochs max_epochs n_epochs epochs", "train.epochs", ""),
    (
        "per_device_train_batch_size",
        "train.batch_pairs",
        "pairs of one optimizer step over all workers: this value x gradient_accumulation_steps x devices",
    ),
    (
        "micro_batch_size micro_train_batch_size train_micro_batch_size_per_gpu",
        "train.micro_batch_tokens",
        "it counts tokens, about 2 x pairs x data.max_length",
    ),
    (
        "train_batch_size global_batch_size batch_size total_batch_size",
        "train.batch_pairs",
        "pairs of one optimizer step, over all workers",
    ),
    (
        "gradient_accumulation_steps accumulate_grad_batches",
        None,
        "it follows from train.batch_pairs (pairs of a step) and train.micro_batch_tokens (what a worker takes)",
    ),
    (
        "per_device_eval_batch_size eval_batch_size eval_accumulation_steps",
        None,
        "held-out pairs are batched by train.micro_batch_tokens",
    ),
    ("auto_find_batch_size", None, "the largest micro-batch is tried before step 1, and the message names what to set"),
    ("learning_rate lr actor_learning_rate", "train.learning_rate", ""),
    ("lr_scheduler_type lr_scheduler scheduler", "train.schedule", '"linear", "cosine" or "constant"'),
    ("lr_scheduler_kwargs cosine_min_lr_ratio min_lr min_lr_ratio", None, "linear and cosine fall to 0"),
    ("warmup_ratio lr_warmup_ratio", "train.warmup_fraction", ""),
    ("warmup_steps lr_warmup_steps", "train.warmup_fraction", "a share (0 to 1) of the optimizer steps"),
    ("weight_decay l2", "train.weight_decay", ""),
    ("optim optimizer optim_args optimizer_type", None, "the optimizer is AdamW"),
    ("adam_betas", "train.adam_beta1", "and train.adam_beta2"),
    ("adam_beta1", "train.adam_beta1", ""),
    ("adam_beta2", "train.adam_beta2", ""),
    ("adam_epsilon", "train.adam_epsilon", ""),
    ("max_grad_norm max_norm gradient_clipping clip_grad_norm gradient_clip_val", "train.max_grad_norm", ""),
    ("gradient_checkpointing", "train.activation_checkpointing", ""),
    (
        "gradient_checkpointing_kwargs activation_checkpointing_kwargs gradient_checkpointing_use_reentrant "
        "activation_offloading neftune_noise_alpha optim_target_modules average_tokens_across_devices bf16_full_eval "
        "fp16_full_eval use_cache torch_empty_cache_steps eval_delay prediction_loss_only eval_do_concat_batches "
        "eval_use_gather_object batch_eval_metrics accelerator_config label_names ignore_bias_buffers "
        "skip_memory_metrics include_num_input_tokens_seen log_on_each_node log_level_replica logging_nan_inf_filter "
        "restore_callback_states_from_checkpoint",
        None,
        "there is nothing of the kind",
    ),
    (
        "fsdp fsdp_config parallelism_config",
        "deepspeed.stage",
        "weights are sharded by DeepSpeed; 3 is what FSDP calls a full shard",
    ),
    ("zero_stage", "deepspeed.stage", ""),
    ("deepspeed deepspeed_config ds_config", "deepspeed.config", ""),
    ("adam_offload cpu_offload", "deepspeed.offload_optimizer", '"cpu" or "none"'),
    ("ref_offload", None, "the reference scores before training, and is not in memory during it"),
    (
        "tensor_parallel_size context_parallel_size sequence_parallel_degree ring_attn_size tensor_parallel_degree zpg",
        None,
        "a model is sharded by deepspeed.stage alone",
    ),
    ("num_processes nproc_per_node num_gpus n_gpu world_size", "cluster.workers", "one for each GPU, over all nodes"),
    (
        "ddp_timeout ddp_find_unused_parameters ddp_bucket_cap_mb ddp_backend local_rank num_machines nnodes "
        "ddp_broadcast_buffers ddp_static_graph dataloader_drop_last",
        None,
        "Ray starts the workers, on the nodes that it knows, and no row is left out",
    ),
    ("use_cpu no_cuda", "cluster.gpus_per_worker", "0 trains on CPUs"),
    ("full_determinism", "train.deterministic", ""),
]
OUTPUT = [
    (
        "output_dir save_path output_path",
        "run.dir",
        "the folder of all runs; run.name names the one, and the model is in its export/",
    ),
    ("run_name experiment_name exp_name", "run.name", ""),
    ("overwrite_output_dir", None, "ray-align run my.toml --restart begins anew under a name"),
    ("save_steps", "train.checkpoint_steps", ""),
    ("save_strategy", "train.checkpoint_minutes", "checkpoints are written by the clock, and every checkpoint_steps"),
    ("saves_per_epoch", "train.checkpoint_steps", "it counts optimizer steps"),
    ("save_total_limit max_ckpt_num", "train.keep_checkpoints", ""),
    (
        "ckpt_path save_only_model save_safetensors save_hf_ckpt enable_jit_checkpoint save_on_each_node",
        None,
        "checkpoints are in the run's folder, the model is in its export/ as safetensors",
    ),
    (
        "resume_from_checkpoint auto_resume_from_checkpoints load_checkpoint ignore_data_skip",
        None,
        "the same command goes on from the last checkpoint",
    ),
    ("load_best_model_at_end metric_for_best_model greater_is_better", "evaluate.best_by", '"loss" or "accuracy"'),
    (
        "early_stopping_patience early_stopping_steps",
        None,
        "training runs to its end; evaluate.best_by exports the weights of the best evaluation",
    ),
    ("eval_steps eval_every", "evaluate.every_steps", ""),
    (
        "eval_strategy evaluation_strategy do_eval evals_per_epoch eval_on_start",
        "evaluate.every_steps",
        "it counts optimizer steps; without it the only evaluation is after training",
    ),
    (
        "generate_during_eval eval_table_size",
        "evaluate.generate_prompts",
        "the number of prompts to answer; with every_steps also in training",
    ),
    (
        "logging_steps logging_strategy logging_first_step logging_dir disable_tqdm log_level include_for_metrics",
        None,
        "every step is written to metrics.jsonl",
    ),
    (
        "report_to log_with use_wandb use_mlflow use_trackio wandb wandb_project wandb_entity wandb_name "
        "wandb_run_name wandb_watch wandb_log_model mlflow mlflow_tracking_uri mlflow_experiment_name trackio_space_id "
        "trackio_bucket_id trackio_static_space_id project "
        "use_tensorboard",
        "report.trackers",
        '["wandb", "mlflow", "trackio"]; their own variables, such as WANDB_PROJECT, say the rest',
    ),
    ("plot_loss", None, "curves.png is always drawn"),
    (
        "push_to_hub hub_model_id hub_token hub_strategy hub_private_repo hub_always_push hub_revision "
        "push_dataset_to_hub",
        None,
        "nothing is uploaded; hf upload NAME runs/NAME/export does it afterwards",
    ),
    ("do_train do_predict strict debug plugins", None, "the verb says what is done: ray-align run, doctor, ..."),
    ("stage", "deepspeed.stage", "that of ZeRO; what is done is said by the verb, as in ray-align run"),
    (
        "max_steps total_steps num_training_steps",
        "train.epochs",
        "the data and train.batch_pairs decide the steps; run.trial makes few",
    ),
    ("max_samples max_train_samples", "run.trial", "pairs to train on; a table { path, weight = 0.02 } takes a share"),
]
WORDS = {
    word: Word(key, note)
    for rows in (MODEL, TOKENIZER, DATA, LOSS, TRAINING, OUTPUT)
    for words, key, note in rows
    for word in words.split()
}
# Sections of other files, and what they are called here.
SECTIONS = {
    "dataset": "data",
    "datasets": "data",
    "dpo": "loss",
    "eval": "evaluate",
    "logging": "report",
    "model": "policy",
    "optimizer": "train",
    "ref": "reference",
    "trainer": "train",
    "training": "train",
    "wandb": "report",
    "zero": "deepspeed",
}
# Values of a key by other names.
VALUES = {
    "loss.kind": {
        "apo": 'it is "apo_zero" or "apo_down"',
        "bco": 'it is "bco_pair"',
        "cdpo": 'it is "sigmoid" with loss.label_smoothing',
        "dpo": 'DPO is "sigmoid"',
        "exo": 'it is "exo_pair"',
        "kto": "KTO is not there; every row is a pair",
        "kto_pair": "KTO is not there; every row is a pair",
        "nca": 'it is "nca_pair"',
        "rdpo": 'it is "robust"',
        "rpo": 'it is "sigmoid", and a second [[loss]] table with kind = "sft"',
        "rso": 'it is "hinge"',
        "slic": 'it is "hinge"',
        "sppo": 'it is "sppo_hard"',
    },
    "policy.kind": dict.fromkeys(("hf", "transformers", "causal_lm", "llama", "qwen"), 'it is "huggingface"'),
    "train.schedule": {
        "constant_with_warmup": 'it is "constant"; train.warmup_fraction warms up',
        "cosine_with_min_lr": 'it is "cosine", which falls to 0',
    },
    "train.dtype": {
        "bf16": 'it is "bfloat16"',
        "fp16": 'there is no float16; write "bfloat16" or "float32"',
        "float16": 'there is no float16; write "bfloat16" or "float32"',
        "fp32": 'it is "float32"',
    },
}
