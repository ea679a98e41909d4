"""The page and the report: the model's own answers, nothing from elsewhere, and no way in for a question's HTML."""

import json
import re
import shutil
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from PIL import Image

from tests.runs import Project, answer_photo
from tests.unit.trainer.inference.test_answer import QUESTION, finished_run
from trainer.build import open_split
from trainer.cli import main
from trainer.commands.report import worst_errors
from trainer.inference.serve import MAX_PHOTO_BYTES, Server, load_asking, reply_about
from trainer.inference.table import Predicted
from trainer.reporting.html import curves, page, table
from trainer.run_directory import RunDirectory

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
EVIL = "<script>alert(1)</script>&\"'"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return Project.write(tmp_path_factory.mktemp("project"))


@pytest.fixture(scope="module")
def run(project: Project, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished_run(project, tmp_path_factory.mktemp("runs") / "direct")


@pytest.fixture(scope="module")
def photo(project: Project, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photos") / "photo.jpg"
    path.write_bytes(open_split(project.config(), "val").reader.images(0)[0])
    return path


@pytest.fixture(scope="module")
def url(run: Path) -> Iterator[str]:
    asking = load_asking(run)
    with Server("127.0.0.1", 0, lambda data, question: reply_about(asking, data, question)) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield server.url
        server.shutdown()


def ask(url: str, data: bytes, question: str = QUESTION, **headers: str) -> tuple[int, dict]:
    asked = f"{url}answer?{urllib.parse.urlencode({'question': question})}"
    request = urllib.request.Request(asked, data, {name.replace("_", "-"): value for name, value in headers.items()})
    try:
        with urllib.request.urlopen(request, timeout=60) as reply:
            return reply.status, json.load(reply)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_the_page_gives_the_answer_of_the_command_with_where_it_looked(url: str, run: Path, photo: Path):
    status, reply = ask(url, photo.read_bytes())
    expected = answer_photo(run, photo, QUESTION)
    assert (status, reply["answer"], reply["notes"]) == (200, expected.text, list(expected.notes))
    assert reply["probability"] == pytest.approx(expected.confidence)
    assert reply["overlay"].startswith("data:image/png;base64,")
    with Image.open(photo) as opened:
        width, height = opened.size
    assert reply["points"]
    assert all(0 <= x <= width and 0 <= y <= height for x, y in reply["points"])


@pytest.mark.parametrize(
    ("data", "question", "headers", "status", "said"),
    [
        (b"no image", QUESTION, {}, 400, "photo: "),
        (None, " ", {}, 400, "question: empty"),
        (None, QUESTION, {"Host": "evil.example"}, 403, "Host: 'evil.example' is not this machine"),
        (None, QUESTION, {"Origin": "https://evil.example"}, 403, "Origin: "),
        (b"", QUESTION, {"Content_Length": str(MAX_PHOTO_BYTES + 1)}, 413, "at most 33,554,432 are read"),
    ],
)
def test_what_is_not_answered_is_one_line_with_its_status(
    url: str, photo: Path, data: bytes | None, question: str, headers: dict[str, str], status: int, said: str
):
    found, reply = ask(url, photo.read_bytes() if data is None else data, question, **headers)
    assert found == status
    assert said in reply["error"]
    assert "\n" not in reply["error"]


def test_a_port_that_is_taken_is_one_line(url: str, run: Path, capsys: pytest.CaptureFixture):
    port = urllib.parse.urlsplit(url).port
    assert main(["serve", str(run), "--port", str(port)]) == 2
    message = capsys.readouterr().err
    assert f"--port {port}: cannot listen on 127.0.0.1" in message
    assert message.count("\n") == 1


def test_the_report_stands_alone(run: Path, tmp_path: Path):
    directory, out = RunDirectory(run), tmp_path / "report.html"
    lines = [{"step": step, "train/loss": 1 / step, "val/loss": 1.0, "time": step} for step in (1, 2, 3)]
    directory.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert main(["report", str(run), "--out", str(out)]) == 0
    assert f"duoflow evaluate {run} --split val" in out.read_text()
    assert main(["evaluate", str(run), "--split", "val"]) == 0
    assert main(["report", str(run), "--out", str(out)]) == 0
    text = out.read_text()
    assert text.count("<svg") >= 2
    assert text.count("data:image/png") >= 6
    assert not re.search(r"""(src|href)=["'](?!data:)|url\(|@import|<script""", text)
    assert "losses:" in text


def test_texts_of_a_report_are_escaped():
    made = page(EVIL, [(EVIL, table((EVIL,), [(EVIL,)]) + curves({EVIL: [(1, 2.0), (2, 1.0)]}))])
    assert "<script" not in made
    assert made.count("&lt;script&gt;") == 7


def test_the_worst_errors_are_those_that_the_model_is_surest_of():
    def row(name: str, probability: float | None, correct: float | None) -> Predicted:
        return Predicted(name, "i", "q", "a", "p", probability, correct)

    rows = [row("a", 0.2, 0.0), row("b", 0.9, 1.0), row("c", 0.8, 0.0), row("d", None, 0.0), row("e", 0.99, None)]
    assert [one.item_id for one in worst_errors(rows)] == ["c", "a", "d"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


def test_in_a_browser_a_photo_gets_its_answer_and_where_it_looked(
    browser: Any, url: str, run: Path, photo: Path, tmp_path: Path
):
    page, failed = browser.new_page(), []
    page.on("requestfailed", lambda request: failed.append(request.url))
    page.on("pageerror", lambda error: failed.append(str(error)))
    page.goto(url)
    page.get_by_role("button", name="Ask").click()
    page.get_by_label("question").fill(QUESTION)
    page.get_by_role("button", name="Ask").click()
    assert page.get_by_role("alert").inner_text() == "Choose a photo first."
    page.locator("#file").set_input_files(photo)
    page.get_by_role("button", name="Ask").click()
    page.locator("#looked").wait_for(state="visible")
    expected = answer_photo(run, photo, QUESTION)
    assert page.locator("#answer").inner_text() == f"{expected.text} ({100 * expected.confidence:.1f} %)"
    assert page.locator("#looked").evaluate("picture => picture.naturalWidth") > 0
    (tmp_path / "notes.txt").write_text("no photo")
    page.locator("#file").set_input_files(tmp_path / "notes.txt")
    page.get_by_role("button", name="Ask").click()
    page.get_by_role("alert").filter(has_text="photo: ").wait_for()
    assert not failed
    page.close()


def test_in_a_browser_a_report_shows_itself_without_asking_anybody(browser: Any, run: Path, tmp_path: Path):
    assert main(["evaluate", str(run), "--split", "val"]) == 0
    assert main(["report", str(run), "--out", str(tmp_path / "report.html")]) == 0
    page, asked = browser.new_page(), []
    page.on("request", lambda request: asked.append(request.url))
    page.goto((tmp_path / "report.html").as_uri())
    assert [link for link in asked if not link.startswith(("file:", "data:"))] == []
    widths = page.locator("img").evaluate_all("pictures => pictures.map(picture => picture.naturalWidth)")
    assert len(widths) >= 6
    assert all(widths)
    assert page.get_by_role("heading", name="Recipe").is_visible()
    page.close()
