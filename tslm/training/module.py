"""The LightningModule: the model with its loss, its optimizer and its part of a checkpoint.

In a run of tslm it logs nothing: `training_step` returns the loss and callbacks report it, so the bare loop can drive
the same module. With a stock `lightning.Trainer` it logs by itself, and ends a training that has diverged.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from tqdm import tqdm

from tslm.data.batches import default_micro_batch
from tslm.errors import UserError
from tslm.generation import Completion, complete
from tslm.model import TransformerConfig, TransformerLM
from tslm.model.config import Norm, Position
from tslm.model.ops import document_starts_of
from tslm.objective import linear_cross_entropy
from tslm.optim import AdamW, clip_gradients
from tslm.tokenizer import Tokenizer
from tslm.training.checkpoint import CHECKPOINT_KEY
from tslm.training.compiling import try_compiled
from tslm.training.cuda_graph import GraphStep, Run, graph_supported, record_cuda_graph
from tslm.training.evaluation import check_loss, validation_figures
from tslm.training.module_state import own_part, restore, saved_arguments
from tslm.training.nonfinite import SkippedSteps, check_diverged, propagate_nonfinite
from tslm.training.optimizers import make_optimizer
from tslm.training.settings import GenerationSettings, OptimizerSettings


class LanguageModule(pl.LightningModule):
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
        super().__init__()
        self.model = TransformerLM(
            TransformerConfig(vocab_size, context_length, d_model, num_layers, num_heads, d_ff, rope_theta, norm,
                              position, ffn, tie_embeddings, qk_norm)
        )
        # The only buffer is the same constant in all processes. DDP would synchronise it in every forward pass, also in
        # validation, where one process may have a batch more than another and would wait forever.
        self._ddp_params_and_buffers_to_ignore = ["model.rope.table"]
        if loss_chunk_size is not None and loss_chunk_size < 1:
            raise UserError(f"model.loss_chunk_size is {loss_chunk_size}: give --model.loss_chunk_size at least 1")
        self.loss_chunk_size = loss_chunk_size
        self.model.recompute = recompute
        self.optimizer_settings = optimizer or OptimizerSettings()
        self.generation_settings = generation or GenerationSettings()
        self.optimizer_settings.check()
        make_optimizer(self.optimizer_settings.class_path, self.model, self.optimizer_settings.arguments())  # checks it
        self.generation_settings.check()
        self.tokenizer: Tokenizer | None = None
        self.separator: int | None = None  # attention is masked across this token; set by the data module
        self.micro_batch_size: int | None = None  # windows that validation computes at a time; set by the data module
        self.document_prefix: list[int] | None = None  # the ids that precede documents; set by the data module
        self.fingerprints: dict[str, str] = {}  # of texts and tokenizer; set by the data module
        self.allow_changed_text = False  # on resuming; set by the data module
        self.tokens_seen: int | None = None  # by a run that is resumed; read by the data module
        self.run_config: dict[str, Any] = {}  # the whole configuration; resuming takes from it what is not stated
        self.gradient_norm = torch.zeros(())
        self.skipped = SkippedSteps(self.device)
        self.valid_nats = torch.zeros((), dtype=torch.float64)  # sum over the validation targets so far
        self.valid_tokens = 0
        self.figures: dict[str, float] = {}  # of the last evaluation
        self.is_sharded = False  # whether each process has only a part of the weights, so that all compute together
        self.is_reported = False  # whether a callback reports the figures
        self.total_steps: int | None = None  # the budget that the schedule spans
        self._drops_gradients = False  # of steps to be skipped, because the optimizer cannot skip steps by itself
        self._rng: dict[str, Any] | None = None
        self._rate: Callable[[int], float] = lambda step: 0.0
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
        mesh = self._device_mesh
        if mesh is None or self.is_sharded:
            return
        from torch.distributed.fsdp import (  # slow to import, and rarely needed
            fully_shard,
            register_fsdp_forward_method,
        )

        for layer in self.model.layers:
            fully_shard(layer, mesh=mesh["data_parallel"])
        fully_shard(self.model, mesh=mesh["data_parallel"])
        register_fsdp_forward_method(self.model, "hidden")
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
        self._gather_weights(True)

    def _gather_weights(self, on: bool) -> None:
        """Let each process keep all weights, if they are divided: processes may have different numbers of batches."""
        sharded: list[Any] = [self.model, *self.model.layers] if self.is_sharded else []
        for module in sharded:
            # The outermost keeps embedding and head after its forward pass anyway: the loss reads the head.
            module.set_reshard_after_forward(not on and module is not self.model, recurse=False)
            if on:
                module.unshard()
            else:
                module.reshard()

    def on_validation_epoch_end(self, prefix: str = "valid") -> None:
        """Publish the figures over all tokens of all processes as `callback_metrics`, and in a stock Trainer log them.

        Raises:
            UserError: the loss is not finite.
        """
        self._gather_weights(False)
        self.figures = validation_figures(self.trainer, self)
        check_loss(self.figures.get("loss", 0.0), self, str(self.trainer.precision))
        logger = False if self.is_reported else None  # None, unlike True, does not warn where there is no logger
        self.log_dict({f"{prefix}/{name}": value for name, value in self.figures.items()}, logger=logger)
        self.log_dict({f"{prefix}_{name}": value for name, value in self.figures.items()}, logger=False)

    on_test_epoch_start = on_validation_epoch_start

    def on_test_epoch_end(self) -> None:
        """As after a validation."""
        self.on_validation_epoch_end("test")

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """End a training that has diverged, if no callback does."""
        every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if not self.is_reported and self.trainer.scaler is None and every and (batch_idx + 1) % every == 0:
            check_diverged(self.skipped.report(), self.optimizer_settings, None)

    def reset_validation(self) -> None:
        """Reset the validation totals."""
        self.valid_nats = torch.zeros((), dtype=torch.float64)
        self.valid_tokens = 0

    def predict_step(self, batch: list[str], batch_idx: int) -> list[Completion]:
        """Continue each prompt of a batch."""
        # With the same seed, all batches would use the same random numbers.
        allow_special = getattr(getattr(self.trainer, "datamodule", None), "allow_special", False)
        return self.complete_prompts(batch, seed_offset=batch_idx, allow_special=allow_special)

    def complete_prompts(
        self, prompts: list[str], seed_offset: int = 0, *, allow_special: bool = False
    ) -> list[Completion]:
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

    def configure_optimizers(self) -> Any:
        """Return the optimizer with a LambdaLR around the schedule, which spans the trainer's budget."""
        return self.make_optimizer(self._total_steps())

    def _total_steps(self) -> int | None:
        """The trainer's budget in optimizer steps; None if it has none, as with max_time alone."""
        if self.trainer.max_steps >= 0:
            return self.trainer.max_steps
        steps = self.trainer.estimated_stepping_batches  # of a stock Trainer
        return None if math.isinf(steps) else int(steps)

    def make_optimizer(self, max_steps: int | None) -> dict[str, Any]:
        """Build the optimizer and its schedule for a budget; without one the rate stays constant."""
        settings = self.optimizer_settings
        if max_steps is None and settings.cosine_steps is None:
            warnings.warn("the trainer has no budget in steps or epochs, so the learning rate stays at its peak after "
                          "a warm-up of 100 steps: give OptimizerSettings(cosine_steps=...)", stacklevel=2)
            self.optimizer_settings = settings = replace(
                settings, schedule="constant", warmup_steps=100, cosine_steps=100
            )
        self._rate = self._schedule(max_steps or settings.cosine_steps or 1)
        optimizer = make_optimizer(settings.class_path, self.model, settings.arguments())
        self.skipped = SkippedSteps(next(self.parameters()).device)
        self._drops_gradients = not isinstance(optimizer, AdamW)
        if isinstance(optimizer, AdamW):
            optimizer.skip = self.skipped.skip
        # A function, not an object: LambdaLR saves an object's state, and on resuming it would overwrite new settings.
        factor = (lambda step: self._rate(step) / settings.lr) if settings.lr else (lambda step: 1.0)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _schedule(self, max_steps: int) -> Callable[[int], float]:
        """Return the learning rate as a function of the step, and remember the budget that it spans."""
        self.total_steps = max_steps
        in_minutes = getattr(self._trainer, "max_minutes", None) is not None
        return self.optimizer_settings.rate(max_steps, in_minutes=in_minutes)

    def set_total_steps(self, max_steps: int) -> None:
        """Let the schedule span another budget from the next step on."""
        self._rate = self._schedule(max_steps)
        for each in self.trainer.lr_scheduler_configs:
            schedule: Any = each.scheduler
            schedule.last_epoch -= 1  # the coming step's rate once more, by the new schedule
            schedule.step()

    def clip(self, max_norm: float | None) -> None:
        """Clip the gradients in place and remember their norm; if it is not finite, the optimizer skips the step.

        With AdamW the norm is not read here, because on a GPU that would make the CPU wait for every step.
        """
        self.gradient_norm = clip_gradients(self.parameters(), math.inf if max_norm is None else max_norm)
        # The bare loop has no trainer, and its reports do not name the step.
        self.skipped.update(self.gradient_norm, self.trainer.global_step + 1 if self._trainer is not None else 0)
        if self._drops_gradients and self.skipped.skip:  # optimizers skip parameters without a gradient
            self.zero_grad()

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip by the global norm; Lightning calls this at every optimizer step, after unscaling.

        Raises:
            UserError: another algorithm is asked for.
        """
        if gradient_clip_algorithm not in (None, "norm"):
            algorithm = getattr(gradient_clip_algorithm, "value", gradient_clip_algorithm)
            raise UserError(
                f"trainer.gradient_clip_algorithm is {algorithm!r}, but only 'norm' is implemented: "
                "leave --trainer.gradient_clip_algorithm out"
            )
        self.clip(gradient_clip_val)

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
