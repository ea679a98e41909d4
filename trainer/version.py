"""Which DuoFlow this is, and where it lies."""

import re
from importlib import metadata
from pathlib import Path

DISTRIBUTION = "duoflow"
ROOT = Path(__file__).resolve().parents[1]
"""Where the packages lie: a checkout, or the site-packages of an environment."""

_VERSION = re.compile(r'^    version="([^"]+)",$', re.MULTILINE)


def version() -> str:
    """The version of a checkout by its setup.py, else that of the installed distribution."""
    setup = ROOT / "setup.py"
    if setup.is_file() and (found := _VERSION.search(setup.read_text(encoding="utf-8"))):
        return found[1]
    try:
        return metadata.version(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return "of an unknown version"
