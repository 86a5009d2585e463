"""`generate`: prints a prompt and its continuation by a trained model."""

from __future__ import annotations

from tslm.commands.arguments import Parser


def main(argv: list[str]) -> None:
    """Continue a prompt and print the text while it is generated.

    Args:
        argv: the words after `python -m tslm generate`.
    """
    from tslm.training.settings import GenerationSettings  # imported here because both need torch
    from tslm.training.stories import print_story

    parser = Parser(prog="python -m tslm generate", description="Continue a prompt with a trained model.")
    parser.add_argument("--prompt", type=str, default="", help="how the text begins; if empty, the model starts it")
    parser.add_argument(
        "--ckpt_path", type=str | None, default=None,
        help="a checkpoint, a run directory, or 'last' or 'best' of the newest run; 'best' if left out",
    )
    parser.add_argument("--allow_special", type=bool, default=False,
                        help="whether a special token that is spelled in the prompt is recognized; else it is text")
    parser.add_class_arguments(GenerationSettings)
    options = parser.parse_args(argv).as_dict()
    prompt, ckpt_path, allow_special = (options.pop(name) for name in ("prompt", "ckpt_path", "allow_special"))
    print_story(prompt, GenerationSettings(**options), ckpt_path, allow_special=allow_special)
