"""`tslm generate`: a prompt in, the prompt and a story out."""

from __future__ import annotations

from tslm.commands.arguments import Parser


def main(argv: list[str]) -> None:
    """Parse the arguments and print the story."""
    from tslm.training.settings import GenerationSettings
    from tslm.training.stories import print_story

    parser = Parser(prog="tslm generate", description="Continue a prompt with a trained model.")
    parser.add_argument("--prompt", type=str, default="", help="Where the story begins; empty for a story of its own.")
    parser.add_argument(
        "--ckpt_path", type=str | None, default=None,
        help="A checkpoint, a run directory, or 'last' or 'best' of the newest run; default: the newest run's best.",
    )
    parser.add_class_arguments(GenerationSettings)
    options = parser.parse_args(argv).as_dict()
    prompt, ckpt_path = options.pop("prompt"), options.pop("ckpt_path")
    print_story(prompt, GenerationSettings(**options), ckpt_path)
