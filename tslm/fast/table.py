"""Which substitutes there are for which function of the core, the preferred one first, as "module:attribute"."""

SUBSTITUTES: dict[str, tuple[str, ...]] = {
    "tslm.tokenizer.train.count_blocks": ("tslm.fast.tokenizer.count_blocks:COUNT_BLOCKS",),
    "tslm.tokenizer.bpe.merge_pairs": ("tslm.fast.tokenizer.merging:MERGE_PAIRS",),
    "tslm.tokenizer.bpe.encode_pretokens": ("tslm.fast.tokenizer.encode_words:ENCODE_PRETOKENS",),
    "tslm.tokenizer.bpe.encode_block": ("tslm.fast.tokenizer.encode_blocks:ENCODE_BLOCK",),
    "tslm.model.ops.rms_norm": ("tslm.fast.cpu.kernels:RMS_NORM",),
    "tslm.model.ops.self_attention": ("tslm.fast.gpu.attention:SELF_ATTENTION", "tslm.fast.cpu.kernels:SELF_ATTENTION"),
    "tslm.model.ops.swiglu_linear": ("tslm.fast.gpu.swiglu:SWIGLU_LINEAR", "tslm.fast.cpu.kernels:SWIGLU_LINEAR"),
    "tslm.objective.linear_cross_entropy": (
        "tslm.fast.gpu.cross_entropy:LINEAR_CROSS_ENTROPY", "tslm.fast.cpu.kernels:LINEAR_CROSS_ENTROPY",
    ),
    "tslm.optim.adamw.adamw_step": ("tslm.fast.gpu.adamw:ADAMW_STEP",),
    "tslm.generation.decoding.next_logits": ("tslm.fast.cpu.decoder:NEXT_LOGITS",),
}
