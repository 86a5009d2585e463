"""`generate`: a prompt in, the prompt and a story out."""

from __future__ import annotations

from tslm.commands.arguments import Parser


def main(argv: list[str]) -> None:
    """Continue a prompt and print it as it grows.

    Args:
        argv: the words after `python -m tslm generate`.
    """
    from tslm.training.settings import GenerationSettings  # imported here, as both need torch
    from tslm.training.stories import print_story

    parser = Parser(prog="python -m tslm generate", description="Continue a prompt with a trained model.")
    parser.add_argument("--prompt", type=str, default="", help="where the story begins; empty for one of the model's")
    parser.add_argument(
        "--ckpt_path", type=str | None, default=None,
        help="a checkpoint, a run directory, or 'last' or 'best' of the newest run; the newest run's best if left out",
    )
    parser.add_class_arguments(GenerationSettings)
    options = parser.parse_args(argv).as_dict()
    prompt, ckpt_path = options.pop("prompt"), options.pop("ckpt_path")
    print_story(prompt, GenerationSettings(**options), ckpt_path)
