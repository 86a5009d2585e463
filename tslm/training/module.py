"""The model, its loss and its optimizer as one LightningModule: batches of windows in, loss and updated weights out.

It logs nothing itself. `training_step` returns the loss and callbacks report it, so that the bare loop can drive the
very same object.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import lightning.pytorch as pl
import torch
from tqdm import tqdm

from tslm.generation import Completion, complete
from tslm.model import TransformerConfig, TransformerLM
from tslm.model.ops import document_starts_of
from tslm.objective import linear_cross_entropy
from tslm.optim import AdamW, clip_gradients
from tslm.tokenizer import Tokenizer
from tslm.tokenizer.serialization import tokenizer_from_texts, tokenizer_texts
from tslm.training.checkpoint import CHECKPOINT_KEY, fit_part
from tslm.training.compiling import try_compiled
from tslm.training.cuda_step import CudaStep, applies
from tslm.training.micro_batches import loss_by_micro_batches
from tslm.training.saved_settings import saved_form
from tslm.training.settings import GenerationSettings, OptimizerSettings
from tslm.training.skipped import SkippedSteps, SkipReport, with_telling_gradient

# Adding up its gradients makes a micro-batch 1 to 3% slower, which a larger batch gets back by touching less memory.
WHOLE_TOKENS, MICRO_BATCH_TOKENS = 4096, 2048


class LanguageModule(pl.LightningModule):
    """A TransformerLM under training.

    Args:
        vocab_size: Entries of the vocabulary; on the command line it follows `--data.vocab_size`.
        context_length: Longest window in tokens; on the command line it follows `--data.context_length`.
        d_model: Width of the residual stream.
        num_layers: Number of Transformer blocks.
        num_heads: Attention heads per block; divides d_model.
        d_ff: Inner width of the SwiGLU; about 8/3 of d_model, rounded to a multiple of 64.
        rope_theta: Base of the rotary angles.
        loss_chunk_size: Tokens whose logits exist at a time, so peak memory grows by loss_chunk_size · vocab_size
            numbers; a smaller one needs less memory and makes more, smaller matmuls. Unless given, 512 on a CPU,
            whose caches hold little, and 16,384 on a GPU.
        recompute: Whether the backward pass computes the inside of each block again instead of keeping it from the
            forward pass: less memory for a quarter more time.
        micro_batch_size: Windows of a batch that are computed at a time, whose gradients then add up: peak memory is
            theirs and not the batch's. Unless given, all of them on a GPU, and on a CPU all in a batch of up to 4,096
            tokens, else as many as have 2,048. (To take several batches to a step there is
            `--trainer.accumulate_grad_batches`.)
        optimizer: AdamW and its schedule.
        generation: How `predict` draws stories.

    Raises:
        ValueError: a size or a setting is out of range.
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
        loss_chunk_size: int | None = None,
        recompute: bool = False,
        micro_batch_size: int | None = None,
        optimizer: OptimizerSettings | None = None,
        generation: GenerationSettings | None = None,
    ) -> None:
        super().__init__()
        self.model = TransformerLM(
            TransformerConfig(vocab_size, context_length, d_model, num_layers, num_heads, d_ff, rope_theta)
        )
        # The only buffer is the same constant everywhere; synchronising it would tie processes together in validation,
        # where one may have a batch more than another.
        self._ddp_params_and_buffers_to_ignore = ["model.rope.table"]
        for name, size in (("loss_chunk_size", loss_chunk_size), ("micro_batch_size", micro_batch_size)):
            if size is not None and size < 1:
                raise ValueError(f"model.{name} is {size}: give --model.{name} at least 1")
        self.loss_chunk_size, self.micro_batch_size = loss_chunk_size, micro_batch_size
        self.model.recompute = recompute
        self.optimizer_settings = optimizer or OptimizerSettings()
        self.generation_settings = generation or GenerationSettings()
        self.optimizer_settings.check()
        self.generation_settings.check()
        self.tokenizer: Tokenizer | None = None
        self.separator: int | None = None  # a token behind which nothing before it is seen; the data module gives it
        self.run_config: dict[str, Any] = {}  # the whole command line, for whoever resumes without repeating it
        self.gradient_norm = torch.zeros(())
        self.skipped = SkippedSteps(self.device)
        self.valid_nats = torch.zeros((), dtype=torch.float64)  # sum over the validation targets seen so far
        self.valid_tokens = 0
        self._rng: dict[str, Any] | None = None
        self._compile_now = False
        self._compiled_loss: Callable[..., torch.Tensor] | None = None
        self._cuda_step: CudaStep | None = None

    def mean_loss(self, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the mean cross-entropy in nats of windows (..., T) against their next tokens (..., T)."""
        starts = None if self.separator is None else document_starts_of(inputs, self.separator)
        hidden = self.model.hidden(inputs, document_starts=starts)
        weight, loss_of = self.model.lm_head.weight, linear_cross_entropy
        # On a GPU a kernel of our own does all of the loss but its matmuls.
        if self._compiled_loss is not None and torch.is_grad_enabled() and not hidden.is_cuda:
            loss_of = self._compiled_loss
        return loss_of(hidden.flatten(0, -2), weight, targets.flatten(), self.loss_chunk_size)

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> torch.Tensor:
        """Return the mean loss of a batch of windows, with a gradient that is finite only if the loss is."""
        if self._compile_now:
            self._compile_now = False
            speaks = self._trainer is None or self.trainer.is_global_zero
            try_compiled(self, batch, say=tqdm.write if speaks else lambda line: None)
        return self.training_loss(*batch) if self._cuda_step is None else self._cuda_step(*batch)

    def training_loss(self, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return `mean_loss` of windows (B, T), made in micro-batches; in its gradient it shows if it is not finite."""
        return with_telling_gradient(self._loss_by_micro_batches(inputs, targets))

    def _loss_by_micro_batches(self, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        most = self.micro_batch_size
        if most is None:
            whole = inputs.is_cuda or inputs.numel() <= WHOLE_TOKENS
            most = len(inputs) if whole else max(1, MICRO_BATCH_TOKENS // inputs.shape[-1])
        return loss_by_micro_batches(self.mean_loss, inputs, targets, most, self.parameters())

    def on_train_start(self) -> None:
        """Train by a CUDA graph where that is possible."""
        trainer, scaled = self.trainer, self.trainer.scaler is not None
        alone = trainer.world_size == 1 and trainer.model is self
        graph = applies(trainer.strategy.root_device, alone, trainer.accumulate_grad_batches, scaled)
        self.use_cuda_graph(graph)

    def use_cuda_graph(self, on: bool) -> None:
        """Compute the gradients by a CUDA graph, which the next batch records, or take that back."""
        self._cuda_step = CudaStep(self.training_loss, self.parameters()) if on else None

    def on_train_end(self) -> None:
        """Let the graph's memory go."""
        self._cuda_step = None

    def backward(self, loss: torch.Tensor) -> None:
        """Make the gradients of a loss that `training_step` returned; Lightning calls this behind its own zeroing."""
        if self._cuda_step is None:
            loss.backward()
        else:
            self._cuda_step.backward(loss)

    def compile_step(self) -> None:
        """Compile what training computes when the next batch comes, whose shape all later ones should have."""
        self._compile_now = True

    @property
    def compiled(self) -> bool:
        """Whether training computes by compiled parts: not before its first batch, nor where that could not be done."""
        return self._compiled_loss is not None

    def use_compiled(self, on: bool) -> None:
        """Compute the gradients by compiled blocks and a compiled loss, or take that back; `compile_step` calls it."""
        self.model.compile_layers(on)
        self._compiled_loss = torch.compile(linear_cross_entropy, dynamic=False) if on else None

    def validation_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> None:
        """Add a batch to the validation totals; windows may differ in length from batch to batch."""
        inputs, targets = batch
        self.valid_nats += self._loss_by_micro_batches(inputs, targets).cpu().double() * targets.numel()
        self.valid_tokens += targets.numel()

    def test_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> None:
        """Do what `validation_step` does."""
        self.validation_step(batch, batch_idx)

    def reset_validation(self) -> None:
        """Forget the validation totals."""
        self.valid_nats = torch.zeros((), dtype=torch.float64)
        self.valid_tokens = 0

    def predict_step(self, batch: list[str], batch_idx: int) -> list[Completion]:
        """Continue each prompt of a batch."""
        return self.tell(batch, seed_offset=batch_idx)  # or batches would repeat each other's draws

    def tell(self, prompts: list[str], seed_offset: int = 0) -> list[Completion]:
        """Continue each prompt as the generation settings say.

        Raises:
            ValueError: the module has not been given its tokenizer.
        """
        if self.tokenizer is None:
            raise ValueError("a story needs the tokenizer that the model was trained with: give --ckpt_path")
        options = asdict(self.generation_settings)
        options["seed"] += seed_offset
        return complete(self.model, self.tokenizer, prompts, **options)

    def configure_optimizers(self) -> Any:
        """Return AdamW with a LambdaLR around the cosine schedule, which spans the trainer's budget."""
        return self.make_optimizer(self.trainer.max_steps)

    def make_optimizer(self, max_steps: int) -> dict[str, Any]:
        """Build the optimizer and its schedule for a budget of `max_steps`."""
        settings = self.optimizer_settings
        optimizer = AdamW(self.parameters(), settings.lr, settings.betas, settings.eps, settings.weight_decay)
        self.skipped = SkippedSteps(next(self.parameters()).device)
        optimizer.skip = self.skipped.skip
        rate = settings.schedule(max_steps)
        # A function and not an object: LambdaLR would save an object's state and, resuming, put it over new settings.
        factor = (lambda step: rate(step) / settings.lr) if settings.lr else (lambda step: 1.0)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def clip(self, max_norm: float | None) -> None:
        """Clip the gradients in place and remember their norm; if it is not finite, the optimizer skips the step.

        Neither is read here: on a GPU asking would make the processor wait for every step.
        """
        self.gradient_norm = clip_gradients(self.parameters(), math.inf if max_norm is None else max_norm)
        # The bare loop has no trainer, and makes no reports that would name the step.
        self.skipped.watch(self.gradient_norm, self.trainer.global_step + 1 if self._trainer is not None else 0)

    def check_skipped(self, skipped: SkipReport) -> None:
        """Stop with a sentence that names the place.

        Raises:
            ValueError: `optimizer.max_skipped` steps in a row were skipped.
        """
        if skipped.longest >= self.optimizer_settings.max_skipped:
            raise ValueError(
                f"the gradient norm is {skipped.norm} at optimizer step {skipped.step}, and "
                f"{skipped.longest} steps in a row had to be skipped, so the training has diverged: try a lower "
                f"--optimizer.lr than {self.optimizer_settings.lr:g}; the last checkpoint is from before"
            )

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip by the global norm; Lightning calls this at every optimizer step, behind the unscaling."""
        if gradient_clip_algorithm not in (None, "norm"):
            raise ValueError(
                f"gradient_clip_algorithm is {gradient_clip_algorithm!r}, but only 'norm' is implemented here: "
                "leave it out"
            )
        self.clip(gradient_clip_val)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what makes the file stand alone: architecture, tokenizer, settings, random number generators."""
        checkpoint[CHECKPOINT_KEY] = {
            "architecture": asdict(self.model.config),
            **saved_form(self.run_config),
            "tokenizer": tokenizer_texts(self.tokenizer) if self.tokenizer is not None else None,
            "rng": {
                "cpu": torch.get_rng_state(),
                "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
            },
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take over the tokenizer and the generators, and let today's optimizer settings win over the saved ones."""
        own = fit_part(checkpoint, "the checkpoint")
        if own["tokenizer"] is not None:
            self.tokenizer = tokenizer_from_texts(own["tokenizer"])
        self._rng = own["rng"]
        if self._trainer is None or not self.trainer.training:
            return
        settings, step = self.optimizer_settings, checkpoint["global_step"]
        rate = settings.schedule(self.trainer.max_steps)(step)
        for state in checkpoint["optimizer_states"]:
            for group in state["param_groups"]:
                group.update(
                    lr=rate, initial_lr=settings.lr, betas=settings.betas, eps=settings.eps,
                    weight_decay=settings.weight_decay,
                )
        for state in checkpoint["lr_schedulers"]:
            state.update(base_lrs=[settings.lr] * len(state["base_lrs"]), _last_lr=[rate] * len(state["_last_lr"]))

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Restore the generators at the first batch: setting up loaders and loggers draws numbers too."""
        if self._rng is not None:
            torch.set_rng_state(self._rng["cpu"].cpu())
            for device, state in enumerate(self._rng["cuda"][: torch.cuda.device_count()]):
                torch.cuda.set_rng_state(state.cpu(), device)
            self._rng = None
