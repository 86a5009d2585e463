"""The adapters have the names and arguments that the course documents; its test files run each of them."""

import inspect

from tests import adapters

SIGNATURES = {
    "run_linear": "d_in d_out weights in_features",
    "run_embedding": "vocab_size d_model weights token_ids",
    "run_swiglu": "d_model d_ff w1_weight w2_weight w3_weight in_features",
    "run_scaled_dot_product_attention": "Q K V mask",
    "run_multihead_self_attention":
        "d_model num_heads q_proj_weight k_proj_weight v_proj_weight o_proj_weight in_features",
    "run_multihead_self_attention_with_rope":
        "d_model num_heads max_seq_len theta q_proj_weight k_proj_weight v_proj_weight o_proj_weight in_features "
        "token_positions",
    "run_rope": "d_k theta max_seq_len in_query_or_key token_positions",
    "run_transformer_block": "d_model num_heads d_ff max_seq_len theta weights in_features",
    "run_transformer_lm":
        "vocab_size context_length d_model num_layers num_heads d_ff rope_theta weights in_indices",
    "run_rmsnorm": "d_model eps weights in_features",
    "run_silu": "in_features",
    "run_softmax": "in_features dim",
    "run_cross_entropy": "inputs targets",
    "run_get_batch": "dataset batch_size context_length device",
    "run_gradient_clipping": "parameters max_l2_norm",
    "get_adamw_cls": "",
    "run_get_lr_cosine_schedule": "it max_learning_rate min_learning_rate warmup_iters cosine_cycle_iters",
    "run_save_checkpoint": "model optimizer iteration out",
    "run_load_checkpoint": "src model optimizer",
    "get_tokenizer": "vocab merges special_tokens",
    "run_train_bpe": "input_path vocab_size special_tokens kwargs",
}


def test_adapters_have_the_documented_names_and_arguments():
    found = {name: " ".join(inspect.signature(function).parameters)
             for name, function in inspect.getmembers(adapters, inspect.isfunction) if not name.startswith("_")}
    assert found == SIGNATURES
    for name, optional in (("run_scaled_dot_product_attention", "mask"), ("get_tokenizer", "special_tokens"),
                           ("run_multihead_self_attention_with_rope", "token_positions")):
        assert inspect.signature(getattr(adapters, name)).parameters[optional].default is None
