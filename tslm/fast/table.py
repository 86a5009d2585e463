"""The substitutes of each replaceable function of the core, the preferred one first."""

from __future__ import annotations

from typing import NamedTuple


class Place(NamedTuple):
    """Where a `door.Substitute` is defined. It is imported only for calls on its device.

    Attributes:
        device: device type of a call's first argument, "cpu" or "cuda"; "" if that argument is no tensor.
        module: the module to import.
        attribute: the name of the substitute in it.
    """

    device: str
    module: str
    attribute: str


SUBSTITUTES: dict[str, tuple[Place, ...]] = {
    "tslm.tokenizer.train.count_blocks": (Place("", "tslm.fast.tokenizer.count_blocks", "COUNT_BLOCKS"),),
    "tslm.tokenizer.train.add_counts": (Place("", "tslm.fast.tokenizer.count_blocks", "ADD_COUNTS"),),
    "tslm.tokenizer.bpe.merge_pairs": (
        Place("", "tslm.fast.cpu.make_merges", "MERGE_PAIRS"),
        Place("", "tslm.fast.tokenizer.merging", "MERGE_PAIRS"),
    ),
    "tslm.tokenizer.bpe.encode_pretokens": (Place("", "tslm.fast.tokenizer.encode_words", "ENCODE_PRETOKENS"),),
    "tslm.tokenizer.bpe.encode_block": (Place("", "tslm.fast.tokenizer.encode_blocks", "ENCODE_BLOCK"),),
    "tslm.model.ops.rms_norm": (Place("cpu", "tslm.fast.cpu.kernels", "RMS_NORM"),),
    "tslm.model.ops.self_attention": (
        Place("cpu", "tslm.fast.cpu.kernels", "SELF_ATTENTION"),
        Place("cuda", "tslm.fast.gpu.attention", "SELF_ATTENTION"),
        Place("cpu", "tslm.fast.operators", "SELF_ATTENTION"),
        Place("cuda", "tslm.fast.operators", "SELF_ATTENTION"),
    ),
    "tslm.model.ops.swiglu_linear": (Place("cpu", "tslm.fast.cpu.kernels", "SWIGLU_LINEAR"),),
    "tslm.objective.linear_and_loss": (
        Place("cpu", "tslm.fast.cpu.kernels", "LINEAR_AND_LOSS"),
        Place("cuda", "tslm.fast.gpu.cross_entropy", "LINEAR_AND_LOSS"),
        Place("cpu", "tslm.fast.operators", "LINEAR_AND_LOSS"),
        Place("cuda", "tslm.fast.operators", "LINEAR_AND_LOSS"),
    ),
    "tslm.optim.adamw.adamw_step": (
        Place("cpu", "tslm.fast.cpu.adamw", "ADAMW_STEP"),
        Place("cuda", "tslm.fast.gpu.adamw", "ADAMW_STEP"),
    ),
    "tslm.generation.sampling.choose_tokens": (Place("cpu", "tslm.fast.cpu.sampling", "CHOOSE_TOKENS"),),
    "tslm.generation.decoding.next_logits": (Place("", "tslm.fast.cpu.decoder", "NEXT_LOGITS"),),
}
