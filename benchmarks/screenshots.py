"""Pictures of what a browser shows: docs/images/serve.png, report.png and tensorboard.png.

python -m benchmarks.screenshots [RUN]      RUN from `make demo`, evaluated on its testdev

Needs a Chromium (`apt-get install chromium`) and what `pip install -e .[dev]` brings. Nothing is drawn here: the local
page is asked about the first photo of the split, the report is scrolled to its answers, and TensorBoard shows its page
of custom scalars.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any

from playwright.sync_api import Page, sync_playwright

from benchmarks.commands import run_duoflow
from launch.network import free_port
from shards.errors import ConfigError, UserError
from trainer.build import open_split
from trainer.inference.serve import Server, load_asking, reply_about
from trainer.run_directory import RunDirectory

PICTURES = Path("docs/images")
WIDTH, HEIGHT = 1000, 700
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
START_SECONDS = 60.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", nargs="?", type=Path, default=Path("demo/runs/demo_fusion"))
    parser.add_argument("--split", default="testdev", help="of the photo and the report (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=PICTURES, help="directory of the pictures (default: %(default)s)")
    options = parser.parse_args()
    try:
        with opened_page() as page:
            show_answer(page, options.run, options.split, options.out / "serve.png")
            show_report(page, options.run, options.split, options.out / "report.png")
            show_curves(page, options.run.parent, options.out / "tensorboard.png")
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


@contextmanager
def opened_page() -> Iterator[Page]:
    """An empty page of a headless browser.

    Raises:
        ConfigError: none is installed.
    """
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        raise ConfigError(f"none of {', '.join(BROWSERS)} is installed; `apt-get install chromium`")
    with sync_playwright() as started:
        opened = started.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        yield opened.new_page(viewport={"width": WIDTH, "height": HEIGHT})
        opened.close()


def show_answer(page: Page, run: Path, split: str, picture: Path) -> None:
    """The local page, asked the first question of a split about its photo."""
    config = RunDirectory(run).read_config()
    if config is None:
        raise ConfigError(f"{run}: no run in it; run `make demo` first, or name another run directory")
    reader = open_split(config, split).reader
    asking = load_asking(run)
    with Server("127.0.0.1", 0, lambda data, question: reply_about(asking, data, question)) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        page.goto(server.url)
        photo = {"name": "photo.png", "mimeType": "image/png", "buffer": reader.images(0)[0]}
        page.locator("#file").set_input_files(photo)
        page.get_by_label("question").fill(reader.sample(0).items[0].texts[0])
        page.get_by_role("button", name="Ask").click()
        page.locator("#looked").wait_for(state="visible")
        page.screenshot(path=picture, full_page=True)
        server.shutdown()


def show_report(page: Page, run: Path, split: str, picture: Path) -> None:
    """The report of a run, from its answers on."""
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "report.html"
        if code := run_duoflow("report", str(run), "--split", split, "--out", str(file)):
            raise UserError(f"`duoflow report` ended with {code}")
        page.goto(file.as_uri())
        page.screenshot(path=picture, clip=_from(page, "h2:has-text('Answers of')", 2 * HEIGHT), full_page=True)


def show_curves(page: Page, runs: Path, picture: Path) -> None:
    """TensorBoard's page of custom scalars over a directory of runs."""
    port = free_port()
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(runs), "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        url = f"http://127.0.0.1:{port}/"
        _wait_for(url)
        page.set_viewport_size({"width": 2 * HEIGHT, "height": WIDTH})
        page.goto(f"{url}#custom_scalars")
        page.locator("tf-custom-scalar-dashboard").wait_for()
        page.wait_for_timeout(5000)  # its curves are drawn when they come; there is no event for the last of them
        page.screenshot(path=picture)
    finally:
        process.terminate()
        process.wait()


def _wait_for(url: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            urllib.request.urlopen(url).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise UserError(f"TensorBoard does not answer at {url} after {START_SECONDS:.0f} s") from None
            time.sleep(0.2)


def _from(page: Page, selector: str, height: int) -> Any:
    """A part of a page that begins with an element."""
    top = page.locator(selector).first.bounding_box()
    assert top is not None
    return {"x": 0, "y": max(0.0, top["y"] - 10), "width": WIDTH, "height": height}


if __name__ == "__main__":
    sys.exit(main())
