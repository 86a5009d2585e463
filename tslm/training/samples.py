"""A story from the same prompt at each validation: what the loss means, in words."""

from __future__ import annotations

import lightning.pytorch as pl
from lightning.pytorch.loggers import TensorBoardLogger

from tslm.generation import Completion, complete
from tslm.training.module import LanguageModule


class StorySamples(pl.Callback):
    """Writes a story to TensorBoard behind each validation.

    Args:
        prompt: Where the story begins.
        max_new_tokens: Longest story in tokens.
    """

    def __init__(self, prompt: str = "Once upon a time", max_new_tokens: int = 200) -> None:
        self.prompt = prompt
        self.max_new_tokens = max_new_tokens

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw the story, with the same seed each time, and log it as text."""
        writers = [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
        if trainer.sanity_checking or trainer.state.fn != "fit" or not writers or not trainer.is_global_zero:
            return
        for story in self.draw(pl_module):
            for logger in writers:
                logger.experiment.add_text("story", f"**{story.prompt}**{story.text}", trainer.global_step)

    def draw(self, module: pl.LightningModule, seed: int = 0) -> list[Completion]:
        """Return one completion, or none where the module has no tokenizer."""
        assert isinstance(module, LanguageModule)
        if module.tokenizer is None:
            return []
        return complete(
            module.model, module.tokenizer, [self.prompt], max_new_tokens=self.max_new_tokens, temperature=0.8,
            top_p=0.95, seed=seed,
        )
