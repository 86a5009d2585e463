"""A script for bash and zsh that completes the commands of `tslm` and their options.

It is static, because a completion that asked the program would wait seconds for torch and lightning at each Tab.
"""

from __future__ import annotations

import contextlib
import io
import re

from tslm.__main__ import COMMANDS, main
from tslm.commands.study import STUDIES

SCRIPT = """\
# Completes `tslm` in bash and zsh. Once:  python -m tslm --completion > ~/.tslm-completion
# In ~/.bashrc or ~/.zshrc:               source ~/.tslm-completion
if [ -n "${ZSH_VERSION-}" ]; then
    autoload -U +X compinit && compinit -u
    autoload -U +X bashcompinit && bashcompinit
fi
_tslm() {
    local word="${COMP_WORDS[COMP_CWORD]}" words=""
    case "$COMP_CWORD:${COMP_WORDS[1]}:${COMP_WORDS[2]}" in
        1:*) words="@commands" ;;
        2:study:*) words="@studies --help" ;;
@options
    esac
    COMPREPLY=($(compgen -W "$words" -- "$word"))
}
complete -o default -F _tslm tslm"""


def script() -> str:
    """Return the script, with the options that the help of each command lists."""
    lines = [f'        *:{command.replace(" ", ":")}{"" if " " in command else ":*"}) words="{" ".join(names)}" ;;'
             for command in [*(f"study {name}" for name in STUDIES), *COMMANDS]
             if (names := options_of(command.split()))]
    parts = {"commands": " ".join(COMMANDS), "studies": " ".join(STUDIES), "options": "\n".join(lines)}
    return re.sub("@(commands|studies|options)", lambda found: parts[found[1]], SCRIPT)


def options_of(words: list[str]) -> list[str]:
    """Return the options in the help of a command, in its order."""
    with contextlib.redirect_stdout(io.StringIO()) as text:
        main([*words, "--help", *(["all"] if words == ["fit"] else [])])
    return list(dict.fromkeys(re.findall(r"(?<![\w`-])--[a-z][\w.-]*", text.getvalue())))
