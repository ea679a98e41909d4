"""The `completion` verb: a script for bash, zsh or fish, made from the parsers themselves. Nothing runs at each Tab."""

import argparse
import shlex
from collections.abc import Iterator
from typing import Any, NamedTuple

from shards.progress import say

SHELLS = ("bash", "zsh", "fish")


class Screen(NamedTuple):
    """What may follow some words of the command."""

    words: tuple[str, ...]
    """Behind `duoflow`: `("shards", "build")`."""
    verbs: dict[str, str]
    """name -> what it does"""
    options: dict[str, str]
    """name -> help"""
    choices: dict[str, tuple[str, ...]]
    """Of the options that take one of a few values."""
    flags: frozenset[str]
    """Options without a value."""


def add_completion_parser(verbs: Any) -> None:
    """Add `completion`; its namespace carries `handler`: namespace -> exit code."""
    parser = verbs.add_parser(
        "completion",
        description="Print a script that completes verbs, options, choices and files. bash: `source <(duoflow "
        "completion bash)` in ~/.bashrc. zsh: the same with zsh in ~/.zshrc, behind compinit. fish: `duoflow "
        "completion fish > ~/.config/fish/completions/duoflow.fish`.",
        epilog="duoflow completion bash",
    )
    parser.add_argument("shell", choices=SHELLS, help="whose script")
    parser.set_defaults(handler=_run)


def _run(arguments: argparse.Namespace) -> int:
    scripts = {"bash": bash_script, "zsh": zsh_script, "fish": fish_script}
    say(scripts[arguments.shell](list(screens(arguments.all_verbs()))).rstrip("\n"))
    return 0


def screens(parser: argparse.ArgumentParser, words: tuple[str, ...] = ()) -> Iterator[Screen]:
    """A parser and those of its verbs, from the top down."""
    children: dict[str, argparse.ArgumentParser] = {}
    helps: dict[str, str] = {}
    options: dict[str, str] = {}
    choices: dict[str, tuple[str, ...]] = {}
    flags = set()
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            children |= action.choices
            helps |= {found.dest: found.help or "" for found in action._choices_actions}
        elif not action.option_strings and action.choices is not None:
            helps |= dict.fromkeys(map(str, action.choices), action.help or "")
        for option in action.option_strings:
            options[option] = (action.help or "").replace("%%", "%")
            if action.choices is not None:
                choices[option] = tuple(map(str, action.choices))
            if action.nargs == 0:
                flags.add(option)
    yield Screen(words, helps, options, choices, frozenset(flags))
    for name, child in children.items():
        yield from screens(child, (*words, name))


def bash_script(found: list[Screen]) -> str:
    """Completion for bash; files where nothing else fits."""
    cases = []
    for screen in found:
        path = " ".join(screen.words)
        cases += [
            f"        {shlex.quote(f'{path}/{option}')}) answer={shlex.quote(' '.join(values))} ;;"
            for option, values in screen.choices.items()
        ]
    offers = [
        f"        {shlex.quote(' '.join(screen.words))}) verbs={shlex.quote(' '.join(screen.verbs))} "
        f"options={shlex.quote(' '.join(screen.options))} flags={shlex.quote(' '.join(sorted(screen.flags)))} ;;"
        for screen in found
    ]
    return _BASH.replace("@OFFERS@", "\n".join(offers)).replace("@CHOICES@", "\n".join(cases))


def zsh_script(found: list[Screen]) -> str:
    """zsh runs bash's completion functions."""
    return f"autoload -U +X bashcompinit && bashcompinit\n{bash_script(found)}"


def fish_script(found: list[Screen]) -> str:
    """Completion for fish, with descriptions."""
    lines = [_FISH]
    for screen in found:
        path = " ".join(screen.words)
        at = f"complete -c duoflow -n {shlex.quote(f'__duoflow_at {path}'.strip())}"
        lines += [f"{at} -f -a {name} -d {_fish(text)}" for name, text in screen.verbs.items()]
        for option, text in screen.options.items():
            form = f"-l {option[2:]}" if option.startswith("--") else f"-s {option[1:]}"
            values = screen.choices.get(option)
            takes = f" -x -a {_fish(' '.join(values))}" if values else "" if option in screen.flags else " -r"
            lines.append(f"{at} {form}{takes} -d {_fish(text)}")
    return "\n".join(lines) + "\n"


def _fish(text: str) -> str:
    escaped = " ".join(text.split()).replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


_BASH = """\
# Completion of duoflow for bash; made by `duoflow completion bash`.
_duoflow_offers() {  # the words so far -> verbs, options and flags
    case "$1" in
@OFFERS@
        *) return 1 ;;
    esac
}
_duoflow() {
    local word current="${COMP_WORDS[COMP_CWORD]}" previous="${COMP_WORDS[COMP_CWORD-1]}"
    local path="" next verbs="" options="" flags="" answer=""
    for word in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do
        next="${path:+$path }$word"
        if _duoflow_offers "$next"; then path="$next"; fi
    done
    _duoflow_offers "$path"
    case "$path/$previous" in
@CHOICES@
    esac
    COMPREPLY=()
    if [[ -n $answer ]]; then
        COMPREPLY=($(compgen -W "$answer" -- "$current"))
    elif [[ $current == -* ]]; then
        COMPREPLY=($(compgen -W "$options" -- "$current"))
    elif [[ -n $verbs && ( $previous != -* || " $flags " == *" $previous "* ) ]]; then
        COMPREPLY=($(compgen -W "$verbs" -- "$current"))
    fi
}
complete -o bashdefault -o default -F _duoflow duoflow
"""

_FISH = """\
# Completion of duoflow for fish; made by `duoflow completion fish`.
function __duoflow_at  # whether the verbs so far are these, and no other stands behind them
    set -l words (commandline -opc)
    set -l verbs
    for word in $words[2..-1]
        if not string match -q -- '-*' $word
            set -a verbs $word
        end
    end
    set -l depth (count $argv)
    if test $depth -gt 0
        test (count $verbs) -ge $depth; and test "$verbs[1..$depth]" = "$argv"
    else
        test (count $verbs) -eq 0
    end
end"""
