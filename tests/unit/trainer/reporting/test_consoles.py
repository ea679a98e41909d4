"""Errors of ranks are on stderr and nowhere else, also while a bar is drawn; what happens is on stdout."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[4]
SETUP = """
import logging, sys
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm
from trainer.reporting.consoles import console_handlers
rank = int(sys.argv[1])
logging.basicConfig(level=logging.INFO, handlers=console_handlers(rank), force=True)
log = logging.getLogger("x")
"""


def said(code: str, rank: int = 0) -> tuple[str, str]:
    done = subprocess.run(
        [sys.executable, "-c", SETUP + code, str(rank)], cwd=ROOT, text=True, capture_output=True, check=True
    )
    return done.stdout, done.stderr


def test_rank_0_tells_news_on_stdout_and_errors_on_stderr():
    out, err = said("log.info('news'); log.warning('odd'); log.error('damaged')")
    assert [line.split(" ", 1)[1] for line in out.splitlines()] == ["news", "odd"]
    assert [line.split(" ", 1)[1] for line in err.splitlines()] == ["damaged"]


def test_another_rank_tells_its_errors_alone():
    assert said("log.info('news'); log.error('damaged')", rank=1)[0] == ""
    assert said("log.info('news'); log.error('damaged')", rank=1)[1].endswith(" damaged\n")


def test_a_bar_on_stdout_takes_no_error_away_from_stderr():
    out, err = said(
        "with tqdm(total=3, file=sys.stdout) as bar, logging_redirect_tqdm():\n"
        "    bar.update(1); log.info('news'); log.error('damaged')\n"
    )
    assert "news" in out
    assert "damaged" not in out
    assert "damaged" in err


def test_a_closed_stderr_ends_nothing():
    code = "import os; os.close(2); log.error('damaged'); log.info('news')"
    assert "news" in said(code)[0]
