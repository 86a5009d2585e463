"""Stories from a checkpoint, printed as they are written; what `python -m tslm generate` does."""

from __future__ import annotations

from tslm.generation import stream_text
from tslm.training.runs import find_checkpoint, load_model
from tslm.training.settings import GenerationSettings


def print_story(prompt: str, settings: GenerationSettings, ckpt_path: str | None = None) -> None:
    """Print a prompt and, token by token, how the model goes on.

    Args:
        prompt: beginning of the story; may be empty.
        settings: how to draw.
        ckpt_path: a checkpoint file, a run directory, or `last` or `best` of the newest run; unless given, the
            newest run's best, and that is said.

    Raises:
        FileNotFoundError: if there is no such checkpoint.
        ValueError: if the checkpoint is damaged, or a setting is out of range.
    """
    settings.check()
    path, remarks = find_checkpoint(ckpt_path, prefer="best")
    for remark in remarks:
        print(remark, flush=True)
    model, tokenizer, *_ = load_model(path)
    pieces = stream_text(
        model, tokenizer, prompt, settings.max_new_tokens, temperature=settings.temperature, top_p=settings.top_p,
        top_k=settings.top_k, seed=settings.seed,
    )
    first = next(pieces, "")  # whatever is wrong with the settings shows before anything is printed
    print(prompt + first, end="", flush=True)
    for piece in pieces:
        print(piece, end="", flush=True)
    print()
