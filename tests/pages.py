"""A page of the documentation, followed: every command that it shows, in its order and from its own text."""

import json
import shlex
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from tests.distributed.forked_ranks import fork_command
from tests.unit.test_documented_commands import SHELL, commands, fenced
from trainer.config.schema import REPOSITORY

SPLITS = ("train", "val", "testdev")
"""Of a loop on a page."""


def duoflow(words: list[str], desk: Path, **environment: str) -> str:
    """What a command says in this directory, which is its home too; it has to end with 0."""
    common = {"PYTHONPATH": str(REPOSITORY), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1", "HOME": str(desk)}
    done = fork_command(words, common | environment, desk)
    assert done.returncode == 0, (words, done.stdout[-3000:])
    return done.stdout


def page_commands(name: str) -> list[list[str]]:
    """The commands of a page, with those of a loop over splits once for each."""
    found = []
    for words in commands(_path(name).read_text(encoding="utf-8")):
        splits = SPLITS if any("$" in word for word in words) else SPLITS[:1]
        for split in splits:
            found.append([word.replace("${split}", split).replace("$split", split) for word in words])
    return found


def why_not(words: list[str], not_here: Mapping[str, str]) -> str | None:
    """The reason of the first part that stands in the command.

    Args:
        not_here: what stands in commands that do not run here -> why.
    """
    line = shlex.join(words)
    return next((why for part, why in not_here.items() if part in line), None)


def here(name: str, not_here: Mapping[str, str]) -> list[list[str]]:
    """Those commands of a page that run."""
    return [words for words in page_commands(name) if why_not(words, not_here) is None]


def follow(
    name: str,
    desk: Path,
    not_here: Mapping[str, str],
    *,
    before: Callable[[list[str]], None] = lambda _words: None,
    behind: tuple[str, ...] = (),
    already: Collection[str] = (),
    **environment: str,
) -> dict[str, str]:
    """What each command of a page says, by the command.

    Args:
        before: called ahead of each command, to lay out what the page takes to be there.
        behind: words behind each command that trains, where the page is about more than seconds.
        already: commands that another page has run here.
    """
    said = {}
    for words in here(name, not_here):
        if shlex.join(words) in already:
            continue
        before(words)
        trains = words[0] == "train" and "--dry-run" not in words
        said[shlex.join(words)] = duoflow([*words, *(behind if trains else ())], desk, **environment)
    return said


def run_or_named(name: str, said: Mapping[str, str], not_here: Mapping[str, str]) -> None:
    """Every command of the page has run, or a reason is there."""
    asked = list(dict.fromkeys(shlex.join(words) for words in here(name, not_here)))
    assert asked
    assert list(said) == asked


def reasons_without_command(pages: tuple[str, ...], not_here: Mapping[str, str]) -> set[str]:
    """What excuses a command that no page has (any more)."""
    lines = [shlex.join(words) for page in pages for words in page_commands(page)]
    return {part for part in not_here if not any(part in line for line in lines)}


def states(desk: Path) -> dict[str, str]:
    """How each run of a desk stands, by its name."""
    return {path.parent.name: json.loads(path.read_text())["state"] for path in desk.glob("runs/*/status.json")}


def fenced_behind(name: str, part: str) -> list[str]:
    """The lines of the block that a page shows behind the one with this command."""
    blocks = list(fenced(_path(name).read_text(encoding="utf-8"), *SHELL))
    place = next(place for place, block in enumerate(blocks) if part in block)
    return blocks[place + 1].strip().splitlines()


def _path(name: str) -> Path:
    return REPOSITORY / "README.md" if name == "README" else REPOSITORY / "docs" / f"{name}.md"
