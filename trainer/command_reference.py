"""docs/commands.md, from the parsers themselves: `python -m trainer.command_reference` writes it."""

import argparse
from collections.abc import Iterator
from pathlib import Path

from trainer.cli import build_parser
from trainer.command_line import Parser, with_default
from trainer.exit_codes import EXIT_CODES

PAGE = Path("docs/commands.md")

_HEAD = """\
# Commands

Every verb of `duoflow`, with its options and examples. This page is made from the command line itself: `python -m
trainer.command_reference` writes it.

- A mistake is one line on stderr, with the nearest name where one is near. So are the errors of ranks: `2> err.log`
  has them all; what happens is on stdout.
- `--json` without a file prints JSON in place of the table; `--json F` writes it to a file beside the table. Neither it
  nor `--overlay` makes a directory: name one that is there.
- Relative paths in the recipe of a run are found from wherever the run is looked at, as long as it lies where it was
  trained; else the message names the key to set, such as `data.val=DIR`.
- Options are never guessed from their beginning. No word is needed behind `--`, but for flags of DeepSpeed's own
  launcher with `--hostfile`.
- Completion of verbs, options and choices: `source <(duoflow completion bash)` in `~/.bashrc`; zsh and fish too.

## Exit codes

| code | |
|---|---|
"""


def page() -> str:
    """The text of docs/commands.md."""
    codes = "".join(f"| {code} | {meaning} |\n" for code, meaning in EXIT_CODES.items())
    return _HEAD + codes + "".join(_sections(build_parser()))


def _sections(parser: Parser) -> Iterator[str]:
    children = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if parser.prog != "duoflow":
        yield "\n".join(["", *_section(parser), ""])
    for action in children:
        for child in dict.fromkeys(action.choices.values()):
            yield from _sections(child)


def _section(parser: Parser) -> Iterator[str]:
    yield f"{'#' * (parser.prog.count(' ') + 1)} {parser.prog}"
    yield ""
    yield " ".join((parser.description or "").split())
    rows = [row for action in parser._actions if (row := _row(action)) is not None]
    if rows:
        yield ""
        yield "| | |"
        yield "|---|---|"
        yield from rows
    yield ""
    yield "```"
    yield from parser.examples
    yield "```"


def _row(action: argparse.Action) -> str | None:
    if isinstance(action, argparse._HelpAction | argparse._SubParsersAction):
        return None
    choices = None if action.choices is None else "{" + ",".join(map(str, action.choices)) + "}"
    value = "" if action.nargs == 0 else f"{action.metavar or choices or action.dest}"
    named = f"{action.option_strings[0]} {value}".strip() if action.option_strings else value
    needed = ", required" if action.option_strings and action.required else ""
    several = " ..." if action.nargs in ("+", "*") else ""
    text = " ".join((with_default(action) % vars(action)).split()).replace("|", "\\|")
    return f"| `{named}{several}`{needed} | {text} |"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
