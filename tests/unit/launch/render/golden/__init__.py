"""Texts that the renderers gave when somebody last read them; DUOFLOW_WRITE_GOLDEN=1 writes them anew, to be read."""

import os
from pathlib import Path

_HERE = Path(__file__).parent


def check_golden(name: str, text: str) -> None:
    """Compare a rendered text with its file, to the byte."""
    path = _HERE / name
    if os.environ.get("DUOFLOW_WRITE_GOLDEN"):
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")
