"""What lies beside question files and is too large for memory."""

import sqlite3
from pathlib import Path

from shards.annotations.seam import Beside


class OnDisk(Beside):
    """What is looked up, moved from its files to a SQLite file that must not exist."""

    def __init__(self, table: Path) -> None:
        self._database = sqlite3.connect(table, isolation_level=None)
        for pragma in ("journal_mode=OFF", "synchronous=OFF"):  # the file is thrown away after a crash
            self._database.execute(f"PRAGMA {pragma}")

    def close(self) -> None:
        self._database.close()
