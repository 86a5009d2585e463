"""A story from the same prompt at each validation: what the loss means, in words."""

from __future__ import annotations

import lightning.pytorch as pl
from lightning.pytorch.loggers import TensorBoardLogger

from tslm.training.module import LanguageModule


class StorySamples(pl.Callback):
    """Writes a story to TensorBoard behind each validation.

    Args:
        prompt: Where the story begins; how it is drawn is in the module's generation settings.
    """

    def __init__(self, prompt: str = "Once upon a time") -> None:
        self.prompt = prompt

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw the story, with the same seed each time, and log it as text."""
        writers = [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
        if trainer.sanity_checking or trainer.state.fn != "fit" or not writers or not trainer.is_global_zero:
            return
        assert isinstance(pl_module, LanguageModule)
        for story in pl_module.tell([self.prompt]) if pl_module.tokenizer is not None else []:
            for logger in writers:
                logger.experiment.add_text("story", f"**{story.prompt}**{story.text}", trainer.global_step)
