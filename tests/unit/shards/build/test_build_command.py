"""`duoflow shards build | verify | info`: exit codes, lines, JSON."""

import argparse
import io
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from shards import progress
from shards.build import commands, writer
from shards.build.build_request import BuildRequest
from shards.build.writer import Built
from shards.errors import UserError
from shards.format.index import read_index
from shards.progress import Progress, progress_line, silence
from tests.corpora import Corpus, write_corpus

ROOT = Path(__file__).parents[4]

PROGRAM = """
import argparse, sys
from shards.build.commands import add_shards_parser
if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    add_shards_parser(parser.add_subparsers(required=True))
    arguments = parser.parse_args()
    sys.exit(arguments.handler(arguments))
"""


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    return write_corpus(tmp_path / "corpus", num_images=5)


def parse(*words: object) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    commands.add_shards_parser(parser.add_subparsers(required=True))
    return parser.parse_args(["shards", *map(str, words)])


def duoflow(*words: object) -> int:
    arguments = parse(*words)
    return arguments.handler(arguments)


def build_words(corpus: Corpus, out: Path, *more: object) -> list[object]:
    words = ["build", "--format", "gqa", "--questions", corpus.questions, "--images", corpus.images, "--out", out]
    return [*words, "--workers", 0, *more]


def test_every_option_reaches_the_build(corpus, tmp_path):
    more = ["--scene-graphs", corpus.scene_graphs, "--limit", 3, "--on-missing", "skip", "--balanced-only"]
    assert duoflow(*build_words(corpus, tmp_path / "out", *more, "--resize", 20, "--shard-bytes", 10_240)) == 0
    index = read_index(tmp_path / "out")
    assert index.options == {
        "balanced_only": True,
        "limit": 3,
        "on_missing": "skip",
        "resize": 20,
        "shard_bytes": 10_240,
    }
    assert {source.name for source in index.sources} == {"questions.json", "scene_graphs.json"}


def test_the_options_are_those_promised():
    with pytest.raises(SystemExit) as caught:
        parse("build", "--format", "xml", "--questions", "q", "--images", "i", "--out", "o")
    assert caught.value.code == 2
    arguments = parse("build", "--format", "csv", "--questions", "a", "b", "--images", "i", "--out", "o")
    assert arguments.questions == [Path("a"), Path("b")]
    assert (arguments.on_missing, arguments.balanced_only, arguments.limit, arguments.resize) == (
        "fail",
        False,
        None,
        None,
    )
    assert (arguments.engine, arguments.ray_address, arguments.workers) == ("local", None, None)


@pytest.mark.parametrize(("words", "workers"), [([], len(os.sched_getaffinity(0))), (["--workers", 3], 3)])
def test_without_a_number_of_workers_there_is_one_for_each_core(corpus, tmp_path, monkeypatch, words, workers):
    asked = []

    def note(request: BuildRequest) -> Built:
        asked.append(request)
        return writer.build(replace(request, workers=0))

    monkeypatch.setattr(commands, "build", note)
    given = build_words(corpus, tmp_path / "out")
    at = given.index("--workers")
    assert duoflow(*given[:at], *given[at + 2 :], *words) == 0
    assert [(request.engine, request.workers) for request in asked] == [("local", workers)]


def test_building_twice_says_so_and_exits_with_0(corpus, tmp_path, capsys):
    words = build_words(corpus, tmp_path / "out")
    assert (duoflow(*words), duoflow(*words)) == (0, 0)
    first, second = capsys.readouterr().out.splitlines()
    assert f"{tmp_path / 'out'}: built: 5 images, 15 questions, 1 shard, " in first
    assert "already built, nothing changed: 5 images, 15 questions" in second


def test_what_was_left_out_is_said(corpus, tmp_path, capsys):
    next(corpus.images.iterdir()).unlink()
    duoflow(*build_words(corpus, tmp_path / "out", "--on-missing", "skip"))
    assert "left out: 1 missing image, " in capsys.readouterr().out


def test_answers_that_no_generated_one_can_match_are_said_once_with_the_way_out(corpus, tmp_path, capsys):
    names = sorted(path.name for path in corpus.images.iterdir())
    table = tmp_path / "rows.csv"
    answers = ["Yes", "Yes", "very  dark", "red", ""]
    rows = [f"{name},What is it?,{answer}" for name, answer in zip(names, answers, strict=True)]
    table.write_text("\n".join(["image,question,answer", *rows]))
    words = ["build", "--format", "csv", "--questions", table, "--images", corpus.images, "--workers", 0, "--out"]
    assert duoflow(*words, tmp_path / "out") == 0
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert line.startswith(f"{tmp_path / 'out'}: warning: 3 of 4 answers are not in lower case with single spaces, ")
    assert "such as 'Yes'" in line
    assert "--lowercase-answers into another --out" in line
    assert duoflow(*words, tmp_path / "lower", "--lowercase-answers") == 0
    assert capsys.readouterr().err == ""
    assert read_index(tmp_path / "lower").answers == {"yes": 2, "very dark": 1, "red": 1}


def test_answers_in_lower_case_are_not_warned_of(corpus, tmp_path, capsys):
    duoflow(*build_words(corpus, tmp_path / "out"))
    assert capsys.readouterr().err == ""


def test_a_user_error_goes_to_the_caller(corpus, tmp_path):
    corpus.questions.write_text("[]")
    with pytest.raises(UserError, match="broken JSON at byte 0"):
        duoflow(*build_words(corpus, tmp_path / "out"))


def test_an_interrupt_is_one_line_and_goes_to_the_caller(corpus, tmp_path, capsys, monkeypatch):
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(writer, "_pack_all", interrupt)
    with pytest.raises(KeyboardInterrupt):  # for which every verb has the same exit code
        duoflow(*build_words(corpus, tmp_path / "out"))
    assert capsys.readouterr().err == f"{tmp_path / 'out'}: stopped; nothing half-written is left\n"
    assert not (tmp_path / "out").exists()


def test_verify_exits_with_0_or_2_and_prints_every_fault(corpus, tmp_path, capsys):
    out = tmp_path / "out"
    duoflow(*build_words(corpus, out))
    assert duoflow("verify", out) == 0
    assert "no fault in 1 shard, 5 images, 15 questions" in capsys.readouterr().out
    data = bytearray((out / "000000.tar").read_bytes())
    shard = read_index(out).shards[0]
    for position in (0, 3):
        data[shard.json_offsets[position]] ^= 1
    (out / "000000.tar").write_bytes(data)
    assert duoflow("verify", out) == 2
    lines = capsys.readouterr().err.splitlines()
    assert sum("not a sample" in line for line in lines) == 2
    assert all(line.startswith(f"{out}: ") for line in lines)
    assert duoflow("verify", out, "--json") == 2
    report = json.loads(capsys.readouterr().out)
    assert not report["ok"]
    assert [f"{out}: {fault}" for fault in report["faults"]] == lines[:-1]


def test_info_tells_the_same_as_text_and_as_json(corpus, tmp_path, capsys):
    out = tmp_path / "out"
    duoflow(*build_words(corpus, out))
    capsys.readouterr()
    assert duoflow("info", out, "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    index = read_index(out)
    assert facts["counts"] == index.counts
    assert facts["structural"] == index.types["structural"]
    assert list(facts["answers"].values()) == sorted(index.answers.values(), reverse=True)
    assert facts["bytes"] == sum(path.stat().st_size for path in out.glob("*.tar"))
    assert duoflow("info", out) == 0
    rows = {line[:22].strip(): line[22:].split() for line in capsys.readouterr().out.splitlines()}
    assert rows["questions"] == ["15"]
    for name, count in facts["structural"].items():
        assert rows[name] == [str(count), f"{100 * count / 15:.2f}", "%"]


@pytest.mark.parametrize("redirection", [">&-", "| true"])
def test_a_closed_stdout_does_not_stop_a_build(corpus, tmp_path, redirection):
    (tmp_path / "program.py").write_text(PROGRAM)
    words = " ".join(map(str, ["shards", *build_words(corpus, tmp_path / "out")]))
    command = f"set -o pipefail; {sys.executable} {tmp_path / 'program.py'} {words} {redirection}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    finished = subprocess.run(["bash", "-c", command], env=environment, stderr=subprocess.PIPE, check=False)
    assert (finished.returncode, finished.stderr) == (0, b"")
    assert read_index(tmp_path / "out").num_images == 5


def test_neither_help_nor_info_imports_torch_or_webdataset(corpus, tmp_path):
    duoflow(*build_words(corpus, tmp_path / "out"))
    script = (
        "import sys, argparse; from shards.build.commands import add_shards_parser\n"
        "parser = argparse.ArgumentParser(); add_shards_parser(parser.add_subparsers())\n"
        f"for words in (['info', {str(tmp_path / 'out')!r}], ['verify', {str(tmp_path / 'out')!r}]):\n"
        "    arguments = parser.parse_args(['shards', *words]); assert arguments.handler(arguments) == 0\n"
        "assert not {'torch', 'webdataset', 'transformers', 'deepspeed'} & sys.modules.keys()\n"
    )
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def test_a_progress_line_has_rate_and_time_left():
    assert (
        progress_line("packing", 1200, 72_000, "images", 12.0)
        == "packing: 1,200 / 72,000 images, 100 images/s, 11:48 left"
    )
    assert progress_line("packing", 0, 10, "images", 1.0).endswith("time left unknown")
    assert progress_line("packing", 10, 10, "images", 3725.0).endswith("done in 1:02:05")


def test_without_a_terminal_lines_come_now_and_then(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 10.0)
    with Progress("packing", 100, "images", clock=lambda: now[0]) as bar:
        for _ in range(100):
            now[0] += 0.25
            bar.advance()
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(" / ")[0] for line in lines] == ["packing: 40", "packing: 80", "packing: 100"]
    with Progress("packing", 1, "images", clock=lambda: now[0]) as bar:
        bar.advance()
    assert capsys.readouterr().err == ""


def test_a_stream_that_was_silenced_takes_text_and_a_stream_without_a_file_stays():
    reader, writer_end = os.pipe()
    with os.fdopen(writer_end, "w") as stream:
        os.close(reader)
        silence(stream)
        stream.write("nobody reads this")
        stream.flush()
    silence(stream)  # closed
    silence(None)
    text = io.StringIO()
    silence(text)
    print("kept", file=text, end="")
    assert text.getvalue() == "kept"
