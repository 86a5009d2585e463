"""What an option of other programs is called here."""

from __future__ import annotations

# What to give, and the last parts of names that tslm has not.
HERE: dict[str, str] = {
    "--optimizer.lr": "learning_rate max_lr",
    "--optimizer.lr_min": "min_lr lr_end",
    "--optimizer.warmup_steps": "warmup warmup_iters num_warmup_steps",
    "--optimizer.weight_decay": "wd decay",
    "--optimizer.warmup_steps, a number of steps; unless given, a twentieth of the schedule": "warmup_ratio",
    "--optimizer.cosine_steps": "lr_decay_iters lr_decay_steps",
    "--optimizer.schedule cosine, linear, wsd or constant": "lr_scheduler_type lr_scheduler scheduler decay_lr",
    "--optimizer.betas '[0.9, 0.95]'": "beta1 beta2 adam_beta1 adam_beta2",
    "--optimizer.eps": "epsilon adam_eps adam_epsilon",
    "--optimizer.class_path AdamW, SGD, Muon, or a class of your own": "optim optimizer_name optimizer_type",
    "--trainer.max_tokens, since a training has no epochs: the number of passes times the tokens":
        "epochs num_epochs num_train_epochs",
    "--optimizer.weight_decay against overfitting, since the model has no dropout": "dropout attn_dropout p_dropout",
    "--model.ffn swiglu, --model.ffn silu, or a class of your own": "activation act hidden_act mlp",
    "--model.norm pre, post or none": "norm_type normalization layernorm",
    "--model.num_layers": "n_layer n_layers num_hidden_layers depth layers",
    "--model.num_heads": "n_head n_heads heads num_attention_heads",
    "--model.d_model": "n_embd hidden_size dim embed_dim width",
    "--model.num_heads, since each head has keys and values of its own":
        "n_kv_heads n_kv_head n_query_groups num_key_value_heads",
    "--model.d_ff": "intermediate_size ffn_dim mlp_dim hidden_dim",
    "--data.context_length": "block_size seq_len seq_length max_seq_len max_seq_length sequence_length",
    "--trainer.max_steps": "steps max_iters iterations num_steps train_iters",
    "--trainer.max_tokens": "tokens num_tokens train_tokens",
    "--trainer.val_every_n_steps": "eval_interval eval_steps eval_every val_interval",
    "--trainer.limit_val_batches": "eval_iters max_eval_samples",
    "--trainer.save_every_n_steps": "save_interval save_steps save_every always_save_checkpoint",
    "--checkpoint.keep": "save_total_limit keep_checkpoints",
    "--trainer.callbacks EarlyStopping --trainer.callbacks.monitor valid/loss":
        "patience early_stopping early_stopping_patience",
    "--trainer.logger": "report_to wandb wandb_log wandb_project logger_name",
    "--trainer.log_every_n_steps": "log_interval logging_steps log_every",
    "--trainer.gradient_clip_val": "grad_clip max_grad_norm clip clip_grad",
    "--data.micro_batch_size, from which accumulation follows": "gradient_accumulation_steps grad_accum accumulate",
    "--data.batch_size": "global_batch_size global_bsz train_batch_size",
    "--model.recompute true": "gradient_checkpointing activation_checkpointing",
    "--trainer.accelerator": "device cuda gpu",
    "--trainer.devices": "gpus num_gpus nproc_per_node",
    "--trainer.precision": "dtype fp16 bf16 amp",
    "--trainer.default_root_dir": "out_dir output_dir save_dir log_dir",
    "--ckpt_path": "resume resume_from resume_from_checkpoint",
    "--init_from": "finetune pretrained init_checkpoint checkpoint_dir initial_checkpoint_dir model_name_or_path",
    "--seed_everything": "seed random_seed manual_seed",
    "--data.train_files": "input train_file train_data dataset text",
    "--data.valid_files": "val_file valid_file validation_file eval_data",
    "--model.tie_embeddings": "tie_weights tie_word_embeddings weight_tying",
    "--model.position rope or none": "rope pos_emb positional_encoding",
}
ELSEWHERE = {name: here for here, names in HERE.items() for name in names.split()}
