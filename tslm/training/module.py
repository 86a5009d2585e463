"""The LightningModule: the model with its loss, its optimizer and its part of a checkpoint.

In a run of tslm it logs nothing: `training_step` returns the loss and callbacks report it, so the bare loop can drive
the same module. With a stock `lightning.Trainer` it logs by itself, and ends a training that has diverged.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from tslm.data.batches import default_micro_batch
from tslm.data.datamodule import text_data
from tslm.errors import UserError
from tslm.generation import Completion, complete
from tslm.model import TransformerConfig, TransformerLM
from tslm.model.config import Norm, Position
from tslm.model.ops import document_starts_of
from tslm.objective import bits_per_byte, linear_cross_entropy, perplexity
from tslm.tokenizer import Tokenizer
from tslm.training.checkpoint import CHECKPOINT_KEY
from tslm.training.compiling import try_compiled
from tslm.training.cuda_graph import GraphStep, Run, graph_supported, record_cuda_graph
from tslm.training.module_state import own_part, restore, saved_arguments
from tslm.training.nonfinite import check_loss, propagate_nonfinite
from tslm.training.optimization import OptimizedModule
from tslm.training.settings import GenerationSettings, OptimizerSettings
from tslm.training.sharded import divide_weights, gather_weights


class LanguageModule(OptimizedModule):
    """A TransformerLM under training.

    Args:
        vocab_size: Entries of the vocabulary; on the command line it follows `--data.vocab_size`.
        context_length: Longest window in tokens; on the command line it follows `--data.context_length`.
        d_model: Width of the residual stream.
        num_layers: Number of Transformer blocks.
        num_heads: Attention heads per block; divides d_model.
        d_ff: Inner width of the feed-forward layer; about 8/3 of d_model for SwiGLU, 4 times d_model for SiLU.
        rope_theta: Base of the rotary angles.
        norm: Where a block normalises: `pre`, the input of each branch; `post`, the sum of branch and input; `none`.
        position: `rope`, or `none`, where only the causal mask tells the order of the tokens.
        ffn: Feed-forward layer: `swiglu`, `silu`, or a class of your own as `module.Class`, called with d_model, d_ff.
        tie_embeddings: Whether the head uses the matrix of the token embeddings.
        qk_norm: Whether queries and keys are normalised before they are rotated.
        loss_chunk_size: Tokens whose logits are computed at a time. Peak memory grows by loss_chunk_size · vocab_size
            numbers; a smaller size needs less memory and makes more, smaller matmuls. Unless given, 512 on a CPU, to
            fit its caches, and 16,384 on a GPU.
        recompute: Whether the backward pass recomputes the activations inside each block instead of keeping them:
            less memory for a quarter more time.
        optimizer: AdamW and its schedule.
        generation: How stories are drawn.

    Raises:
        UserError: a size or a setting is out of range.
    """

    def __init__(
        self,
        vocab_size: int,
        context_length: int,
        d_model: int = 512,
        num_layers: int = 4,
        num_heads: int = 16,
        d_ff: int = 1344,
        rope_theta: float = 10_000.0,
        norm: Norm = "pre",
        position: Position = "rope",
        ffn: str = "swiglu",
        tie_embeddings: bool = False,
        qk_norm: bool = False,
        loss_chunk_size: int | None = None,
        recompute: bool = False,
        optimizer: OptimizerSettings | None = None,
        generation: GenerationSettings | None = None,
    ) -> None:
        super().__init__(optimizer or OptimizerSettings(), TransformerLM(TransformerConfig(
            vocab_size, context_length, d_model, num_layers, num_heads, d_ff, rope_theta, norm, position, ffn,
            tie_embeddings, qk_norm)))
        # The only buffer is the same constant in all processes. DDP would synchronise it in every forward pass, also in
        # validation, where one process may have a batch more than another and would wait forever.
        self._ddp_params_and_buffers_to_ignore = ["model.rope.table"]
        if loss_chunk_size is not None and loss_chunk_size < 1:
            raise UserError(f"model.loss_chunk_size is {loss_chunk_size}: give --model.loss_chunk_size at least 1")
        self.loss_chunk_size = loss_chunk_size
        self.model.recompute = recompute
        self.generation_settings = generation or GenerationSettings()
        self.generation_settings.check()
        self.tokenizer: Tokenizer | None = None
        self.separator: int | None = None  # attention is masked across this token; set by the data module
        self.micro_batch_size: int | None = None  # windows that validation computes at a time; set by the data module
        self.document_prefix: list[int] | None = None  # the ids that precede documents; set by the data module
        self.fingerprints: dict[str, str] = {}  # of texts and tokenizer; set by the data module
        self.allow_changed_text = False  # on resuming; set by the data module
        self.tokens_seen: int | None = None  # by a run that is resumed; read by the data module
        self.run_config: dict[str, Any] = {}  # the whole configuration; resuming takes from it what is not stated
        self.reset_validation()
        self.figures: dict[str, float] = {}  # of the last evaluation
        self.is_sharded = False  # whether each process has only a part of the weights, so that all compute together
        self._rng: dict[str, Any] | None = None
        self._compile_now = False
        self._compiled_loss: Callable[..., torch.Tensor] | None = None
        self._graph_step: GraphStep | None = None

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls, checkpoint_path: str | Path, map_location: Any = None, *, ffn: str | None = None, **arguments: Any
    ) -> LanguageModule:
        """Load a module with its architecture, settings, weights and tokenizer; nothing in the file is executed.

        Args:
            checkpoint_path: a checkpoint of `fit` or of a stock Trainer.
            map_location: the device to move to; the CPU unless given.
            ffn: the class of the model's own feed-forward layer, if it has one.
            arguments: arguments of this class that replace the saved ones, such as `generation`.

        Raises:
            MissingFileError: there is no such file.
            UserError: the file is damaged, or is not a checkpoint of this module.
        """
        saved, loaded = saved_arguments(checkpoint_path, ffn)
        module = cls(**saved | arguments)
        module.model.load_state_dict(loaded.model.state_dict())
        module.tokenizer, module.document_prefix = loaded.tokenizer, loaded.prefix
        return module if map_location is None else module.to(map_location)

    def configure_model(self) -> None:
        """Divide the weights among the processes, if the strategy is `fsdp2`: each keeps a part of every weight."""
        if self._device_mesh is not None and not self.is_sharded:
            divide_weights(self.model, self._device_mesh["data_parallel"])
            self.is_sharded = True

    def mean_loss(self, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the mean cross-entropy in nats of windows (..., T) against their next tokens (..., T)."""
        starts = None if self.separator is None else document_starts_of(inputs, self.separator)
        hidden = self.model.hidden(inputs, document_starts=starts)
        weight, loss_of = self.model.lm_head.weight, linear_cross_entropy
        # On a GPU a kernel of our own computes the loss, except its matmuls.
        if self._compiled_loss is not None and torch.is_grad_enabled() and not hidden.is_cuda:
            loss_of = self._compiled_loss
        return loss_of(hidden.flatten(0, -2), weight, targets.flatten(), self.loss_chunk_size)

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> torch.Tensor:
        """Return the mean loss of a micro-batch; its gradient is finite only if the loss is."""
        if self._compile_now:
            self._compile_now = False
            speaks = self._trainer is None or self.trainer.is_global_zero
            try_compiled(self, batch, say=tqdm.write if speaks else lambda line: None)
        loss = self.training_loss(*batch) if self._graph_step is None else self._graph_step(*batch)
        if not self.is_reported and self._trainer is not None:
            self.log("train/loss", loss.detach(), prog_bar=True)
        return loss

    def training_loss(self, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return `mean_loss`; if it is not finite, its gradient is not finite either."""
        return propagate_nonfinite(self.mean_loss(inputs, targets))

    def on_train_start(self) -> None:
        """Use a CUDA graph where it is supported."""
        trainer = self.trainer
        self.use_cuda_graph(graph_supported(
            trainer.strategy.root_device, alone=trainer.world_size == 1 and trainer.model is self,
            accumulate=trainer.accumulate_grad_batches, scaled=trainer.scaler is not None,
        ))

    def use_cuda_graph(self, on: bool, record: Callable[[Run], Run] = record_cuda_graph) -> None:
        """Compute loss and gradients by a CUDA graph, which the next batch records, or as written."""
        self._graph_step = GraphStep(self.training_loss, self.parameters(), record) if on else None

    def on_train_end(self) -> None:
        """Free the graph's memory."""
        self._graph_step = None

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradients of a loss that `training_step` returned."""
        if self._graph_step is None:
            loss.backward()
        else:
            self._graph_step.backward(loss)

    def compile_step(self) -> None:
        """Compile the training step with the next batch; a batch of another shape is compiled again.

        If compiling fails, the step runs as written, with a notice; see `try_compiled`.
        """
        self._compile_now = True

    @property
    def compiled(self) -> bool:
        """Whether training computes by compiled parts; False before the first batch, and if compiling failed."""
        return self._compiled_loss is not None

    def use_compiled(self, on: bool) -> None:
        """Train by compiled blocks and a compiled loss, or as written; the next step compiles, and may fail."""
        self.model.compile_layers(on)
        self._compiled_loss = torch.compile(linear_cross_entropy, dynamic=False) if on else None

    def validation_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> None:
        """Add a batch (B, T) to the validation totals; T may differ from batch to batch, and may be 0."""
        inputs, targets = batch
        if not targets.numel():
            return
        windows, length = inputs.shape
        size = self.micro_batch_size or default_micro_batch(windows, length, inputs.device.type)
        for part in zip(inputs.split(size), targets.split(size), strict=True):
            self.valid_nats += self.mean_loss(*part).cpu().double() * part[1].numel()
        self.valid_tokens += targets.numel()

    test_step = validation_step

    def on_validation_epoch_start(self) -> None:
        """Reset the totals."""
        self.reset_validation()
        if self.is_sharded:
            gather_weights(self.model, True)

    def reset_validation(self) -> None:
        """Reset the validation totals."""
        self.valid_nats = torch.zeros((), dtype=torch.float64)  # sum over the validation targets so far
        self.valid_tokens = 0

    def on_validation_epoch_end(self, prefix: str = "valid") -> None:
        """Publish the figures over all tokens of all processes as `callback_metrics`, and in a stock Trainer log them.

        Raises:
            UserError: the loss is not finite.
        """
        if self.is_sharded:
            gather_weights(self.model, False)
        totals = torch.stack([self.valid_nats, torch.tensor(float(self.valid_tokens), dtype=torch.float64)])
        if self.trainer.world_size > 1:
            strategy = self.trainer.strategy
            totals = strategy.reduce(totals.to(strategy.root_device), reduce_op="sum").cpu()
        nats, tokens = totals.tolist()
        self.figures = {"loss": nats / tokens, "perplexity": perplexity(nats / tokens)} if tokens else {}
        if tokens and (data := text_data(self.trainer)) is not None:
            self.figures["bits_per_byte"] = bits_per_byte(nats, round(tokens * data.valid_bytes_per_token))
        check_loss(self.figures.get("loss", 0.0), self, str(self.trainer.precision))
        logger = False if self.is_reported else None  # None, unlike True, does not warn where there is no logger
        self.log_dict({f"{prefix}/{name}": value for name, value in self.figures.items()}, logger=logger)
        self.log_dict({f"{prefix}_{name}": value for name, value in self.figures.items()}, logger=False)

    on_test_epoch_start = on_validation_epoch_start

    def on_test_epoch_end(self) -> None:
        """As after a validation."""
        self.on_validation_epoch_end("test")

    def predict_step(self, batch: list[str], batch_idx: int) -> list[Completion]:
        """Continue each prompt of a batch."""
        # With the same seed, all batches would use the same random numbers.
        data = text_data(self.trainer)
        return self.complete_prompts(batch, seed_offset=batch_idx,
                                     allow_special=data is not None and data.reading.allow_special)

    def complete_prompts(self, prompts: list[str], seed_offset: int = 0, *,
                         allow_special: bool = False) -> list[Completion]:
        """Continue each prompt with the generation settings.

        Raises:
            UserError: the module has no tokenizer.
        """
        if self.tokenizer is None:
            raise UserError("a story needs the tokenizer that the model was trained with: give --ckpt_path")
        options = asdict(self.generation_settings)
        options["seed"] += seed_offset
        return complete(self.model, self.tokenizer, prompts, prefix=self.document_prefix, allow_special=allow_special,
                        **options)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Make the file self-contained: add architecture, tokenizer, configuration and random number generators."""
        checkpoint[CHECKPOINT_KEY] = own_part(self, checkpoint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the tokenizer and the generators; the current optimizer settings win over the saved ones.

        Raises:
            UserError: a part of the checkpoint is missing or has another form, or a run is resumed on another text.
        """
        restore(self, checkpoint)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Restore the generators at the first batch, because setting up loaders and loggers draws numbers too."""
        if self._rng is not None:
            torch.set_rng_state(self._rng["cpu"].cpu())
            for device, state in enumerate(self._rng["cuda"][: torch.cuda.device_count()]):
                torch.cuda.set_rng_state(state.cpu(), device)
            self._rng = None
