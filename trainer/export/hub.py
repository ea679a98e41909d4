"""A copy of an export as a repository of the hub: what it wants beside the files, and the command that uploads it.

Nothing here reaches for a network.
"""

import re
from pathlib import Path

from shards.errors import ConfigError

ATTRIBUTES = ".gitattributes"
_LARGE = ("*.safetensors", "*.onnx", "*.pt2", "*.pt", "*.bin", "*.model")
_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)


def check_repository(name: str) -> None:
    """Whether a name can be one of the hub.

    Raises:
        ConfigError: it cannot.
    """
    if not _ID.fullmatch(name) or ".." in name or "--" in name:
        raise ConfigError(f"--hub {name}: is no name of a repository; expected OWNER/NAME, such as me/gqa-fusion")


def prepare_repository(directory: Path) -> None:
    """Say to git which files are large; the card is there already."""
    lines = [f"{pattern} filter=lfs diff=lfs merge=lfs -text" for pattern in _LARGE]
    (directory / ATTRIBUTES).write_text("\n".join(lines) + "\n", encoding="utf-8")


def upload_command(name: str, directory: Path) -> str:
    """What a person types to upload it."""
    return f"hf upload {name} {directory} . --repo-type model"
