"""`generate`: prints a prompt and its continuation by a trained model."""

from __future__ import annotations

import sys

from tslm.commands.arguments import Parser
from tslm.errors import UserError


def main(argv: list[str]) -> None:
    """Continue a prompt and print the text while it is generated."""
    from tslm.training.settings import GenerationSettings  # imported here because both need torch
    from tslm.training.stories import StoryTeller

    parser = Parser(prog="python -m tslm generate", description="Continue a prompt with a trained model.")
    parser.add_argument("--prompt", type=str, default="",
                        help="how the text begins; if empty, the model starts it; - reads it from standard input")
    parser.add_argument("--interactive", action="store_true",
                        help="read prompts line by line and continue each, until Ctrl-D or Ctrl-C")
    parser.add_argument("--num_samples", type=int, default=1,
                        help="how many texts each prompt gets; the first has the seed --seed, the next one more")
    parser.add_argument("--stop", type=str, nargs="+", action="extend", default=[],
                        help="texts that end the generated text, which does not include them")
    parser.add_argument("--ckpt_path", type=str | None, default=None,
                        help="a checkpoint, a run directory, or 'last' or 'best' of the newest run; 'best' if left out")
    parser.add_argument("--ffn", type=str | None, default=None,
                        help="the class of the model's own feed-forward layer, as module.Class")
    parser.add_argument("--allow_special", type=bool, default=False,
                        help="whether a special token that is spelled in the prompt is recognized; else it is text")
    parser.add_class_arguments(GenerationSettings)
    options = parser.parse_args(argv).as_dict()
    prompt, interactive = options.pop("prompt"), options.pop("interactive")
    of_teller = {name: options.pop(name) for name in ("ckpt_path", "num_samples", "stop", "allow_special", "ffn")}
    if interactive and prompt:
        raise UserError("--interactive reads the prompts, so --prompt has no place: leave one of them out")
    prompt = _read_prompt() if prompt == "-" else prompt
    teller = StoryTeller(GenerationSettings(**options), **of_teller)
    if interactive:
        teller.converse()
    else:
        teller.tell(prompt)


def _read_prompt() -> str:
    """Read standard input to its end; one line break at the end, which `echo` adds, is left out."""
    if sys.stdin is None:
        raise UserError("--prompt - reads the standard input, which is closed: give the prompt itself")
    try:
        text = sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as error:
        raise UserError(f"the prompt on standard input is not UTF-8: byte {error.object[error.start]:#04x} at offset "
                        f"{error.start}") from error
    return text.removesuffix("\r\n" if text.endswith("\r\n") else "\n")
