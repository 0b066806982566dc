"""``qformats completion``: completion of commands, options and formats in a shell.

The scripts ask the program itself, in typer's protocol. They are our own since those of typer do not know that bash
and zsh treat the colon in a format's name specially.
"""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["VARIABLE", "completion"]

VARIABLE = "_QFORMATS_COMPLETE"
"""Environment variable through which typer is asked for completions."""

_BASH = r"""# Completion of qformats in bash: eval "$(qformats completion bash)"
_qformats_completion() {
    local IFS=$'\n' word="" part prefix
    local -a words=()
    # Bash splits words at colons and equals signs: formats are put together again.
    for part in "${COMP_WORDS[@]:0:COMP_CWORD+1}"; do
        if [[ ${#words[@]} -gt 0 && ( $part == [:=] || $word == *[:=] ) ]]; then
            word+="$part"
            words[${#words[@]}-1]="$word"
        else
            word="$part"
            words+=("$word")
        fi
    done
    COMPREPLY=($(IFS=' '; COMP_WORDS="${words[*]}" COMP_CWORD=$((${#words[@]} - 1)) \
        _QFORMATS_COMPLETE=complete_bash "$1" 2> /dev/null))
    # What stands before the last colon is not replaced.
    word="${word#*=}"
    prefix="${word%"${word##*:}"}"
    [[ $COMP_WORDBREAKS == *:* ]] && COMPREPLY=("${COMPREPLY[@]#"$prefix"}")
    return 0
}
complete -o bashdefault -o default -F _qformats_completion qformats
"""
_ZSH = r"""#compdef qformats
# Completion of qformats in zsh, after compinit: eval "$(qformats completion zsh)"
_qformats_completion() {
    local -a found
    found=("${(@f)$(COMP_WORDS="${(j: :)words[1,CURRENT]}" COMP_CWORD=$((CURRENT - 1)) \
        _QFORMATS_COMPLETE=complete_bash "${words[1]}" 2> /dev/null)}")
    if [[ -n ${found[1]} ]]; then
        # After --option= only the value is completed.
        compset -P '--*='
        compadd -- "${found[@]}"
    else
        _files
    fi
}
compdef _qformats_completion qformats
"""
_FISH = r"""# Completion of qformats in fish: qformats completion fish | source
function __qformats_completion
    set -l words (string escape -- (commandline -opc) (commandline -ct))
    set -l count (math (count $words) - 1)
    set -l found (env COMP_WORDS="$words" COMP_CWORD=$count _QFORMATS_COMPLETE=complete_bash qformats 2> /dev/null)
    if test -n "$found[1]"
        # After --option= the whole word is replaced.
        string match -q -- '--*=*' $words[-1]; and set found (string replace -r '=.*' '=' -- (commandline -ct))$found
        string join \n -- $found
    else
        __fish_complete_path (commandline -ct)
    end
end
complete --command qformats --no-files --arguments '(__qformats_completion)'
"""


class Shell(StrEnum):
    """A shell that can complete."""

    bash = "bash"
    zsh = "zsh"
    fish = "fish"


_SCRIPTS = {Shell.bash: _BASH, Shell.zsh: _ZSH, Shell.fish: _FISH}


def completion(
    shell: Annotated[Shell, typer.Argument(help="The shell.")],
    install: Annotated[
        bool, typer.Option("--install", help="Install it for this user instead of printing it.")
    ] = False,
) -> None:
    """Complete commands, options and formats in a shell: print the script that does it, or install it.

    qformats completion bash --install
    """
    if not install:
        print(_SCRIPTS[shell], end="")
        return
    script, start = _places(shell)
    _write(script, _SCRIPTS[shell])
    print(f"{script} is written")
    if start is not None:
        line = f"source '{script}'"
        before = start.read_text() if start.is_file() else ""
        if line not in before.splitlines():
            _write(start, f"{before}{'' if before.endswith(chr(10)) or not before else chr(10)}{line}\n")
            print(f"{start} loads it")
    print("New shells complete qformats")


def _places(shell: Shell) -> tuple[Path, Path | None]:
    """Where the script goes, and the file that must load it."""
    data = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share")
    match shell:
        case Shell.fish:
            config = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
            return config / "fish/completions/qformats.fish", None
        case Shell.zsh:
            start = Path(os.environ.get("ZDOTDIR") or Path.home()) / ".zshrc"
            return data / "qformats/completion.zsh", start
        case Shell.bash:
            return data / "qformats/completion.bash", Path.home() / ".bashrc"


def _write(path: Path, text: str) -> None:
    from qformats.errors import OutputError

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    except OSError as error:
        hint = "run qformats completion without --install to print the script"
        raise OutputError(path, error.strerror or str(error), hint) from error
