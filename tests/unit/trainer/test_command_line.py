"""Every screen of the command: what it imports, what it shows, which words it takes for which, and what it returns."""

import argparse
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from trainer import cli, command_reference
from trainer.command_line import Parser, nearest
from trainer.commands.completion import bash_script, fish_script, screens, zsh_script
from trainer.exit_codes import EXIT_CODES

ROOT = Path(__file__).parents[3]
HEAVY = ("torch", "transformers", "deepspeed", "timm")


def parsers(parser: argparse.ArgumentParser) -> Iterator[Parser]:
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                yield from parsers(child)


ALL = [pytest.param(parser, id=parser.prog) for parser in parsers(cli.build_parser())]
SCREENS = {screen.words: screen for screen in screens(cli.build_parser())}
EXAMPLES = [line for parameter in ALL for line in parameter.values[0].examples]


@pytest.mark.parametrize("parser", ALL)
def test_every_screen_has_a_description_and_an_example_that_the_command_takes(parser: Parser):
    assert parser.description
    assert parser.examples
    for line in parser.examples:
        words = shlex.split(line)
        assert " ".join(words).startswith(parser.prog)
        assert callable(cli._parse(words[1:]).handler)


@pytest.mark.parametrize("parser", ALL)
def test_every_argument_says_what_it_is_and_what_it_is_without_being_given(parser: Parser):
    shown = " ".join(parser.format_help().split())
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            continue
        assert action.help, action.dest
        has_default = action.option_strings and action.default not in (None, False, [], (), argparse.SUPPRESS)
        if has_default:
            assert "default" in command_reference._row(action), action.option_strings
    for line in parser.examples:
        assert line in parser.format_help(), "an example is one line to copy"
    assert "%(" not in shown


@pytest.mark.parametrize(
    "words",
    [[], ["--help"], ["--version"], *([verb, "--help"] for verb in cli.VERBS), ["trian"], ["status", "nowhere"]],
    ids=" ".join,
)
def test_no_screen_waits_for_what_it_does_not_need(words: list[str]):
    code = (
        "import sys\nfrom trainer.cli import main\ntry:\n    main(sys.argv[1:])\nexcept SystemExit:\n    pass\n"
        f"print(sorted({HEAVY} & sys.modules.keys()))".replace(str(HEAVY), str(set(HEAVY)))
    )
    done = subprocess.run([sys.executable, "-c", code, *words], cwd=ROOT, text=True, capture_output=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_list_of_verbs_imports_none_of_them():
    code = "import sys\nfrom trainer import cli\nprint(sorted(name for name in sys.modules if 'commands' in name))\n"
    code = code.replace("print", "try:\n    cli.main(['--help'])\nexcept SystemExit:\n    pass\nprint", 1)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, text=True, capture_output=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_verb_alone_has_the_parser_that_it_has_among_all():
    for name in cli.VERBS:
        alone, among = (dict(_verbs(cli.build_parser(asked)))[name] for asked in (name, None))
        assert alone.format_help() == among.format_help()


def _verbs(parser: Parser) -> Iterator[tuple[str, Parser]]:
    action = next(action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    yield from action.choices.items()


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["trian"], "did you mean train?"),
        (["train", "x.yaml", "--dri-run"], "did you mean --dry-run? (see duoflow train --help)"),
        (["shards", "biuld"], "did you mean build?"),
        (["shards", "info", "x", "--jsn"], "did you mean --json? (see duoflow shards info --help)"),
        (["evaluate", "runs/x", "--split", "testdef"], "did you mean testdev?"),
        (["score", "--task", "vqaa", "--questions", "q", "--predictions", "p"], "did you mean vqa?"),
        (["runs", "comapre", "a", "b"], "did you mean compare?"),
        (["completion", "bsh"], "did you mean bash?"),
        (["train", "recipes/easyvqo.yml"], "easyvqa.yaml?)"),
        (["train", "recipes/easyvqa.yaml", "optim.lrr=1", "--print-config"], "did you mean optim.lr?"),
        (["train", "recipes/easyvqa.yaml", "task=gqqa", "--print-config"], "did you mean gqa?"),
    ],
)
def test_a_typo_is_one_line_with_the_nearest_name(words: list[str], hint: str, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert cli.main(words) == 2
    output = capsys.readouterr()
    assert hint in output.err
    assert (output.out, output.err.count("\n")) == ("", 1)


def test_nothing_near_is_no_hint():
    assert nearest("zzz", ["train", "stop"]) == ""


def test_the_version_is_that_of_the_checkout_and_says_where_it_lies(capsys):
    with pytest.raises(SystemExit) as left:
        cli.main(["--version"])
    assert left.value.code == 0
    assert capsys.readouterr().out.startswith(f"duoflow 0.1.0 in {ROOT}, Python 3.")


@pytest.mark.parametrize("option", ["--json", "--overlay"])
def test_a_file_in_a_directory_that_is_not_there_is_refused_and_makes_none(tmp_path: Path, option: str):
    from shards.atomic import check_writable
    from shards.errors import UserError

    with pytest.raises(
        UserError,
        match=rf"^{option} .*/deep/f: cannot be made: the directory .*/deep is not there; make it with `mkdir",
    ):
        check_writable(option, tmp_path / "deep" / "f")
    assert not (tmp_path / "deep").exists()
    check_writable(option, tmp_path / "f")


def test_the_exit_codes_of_the_help_are_those_of_the_list():
    shown = " ".join(cli.build_parser("").format_help().split())
    assert all(f"{code} {meaning}" in shown for code, meaning in EXIT_CODES.items())


def test_docs_commands_is_what_the_parsers_say():
    written = (ROOT / command_reference.PAGE).read_text(encoding="utf-8")
    assert written == command_reference.page(), "run `python -m trainer.command_reference`"


class TestCompletion:
    @pytest.mark.parametrize(
        ("words", "offered"),
        [
            ("", list(cli.VERBS)),
            ("sha", ["shards"]),
            ("shards ", ["build", "verify", "info", "upgrade"]),
            ("shards build --form", ["--format"]),
            ("shards build --format js", ["jsonl"]),
            ("train r.yaml --dry", ["--dry-run"]),
            ("evaluate runs/x --split t", ["train", "testdev", "test"]),
            ("runs --json comp", ["compare"]),
            ("train rec", []),
        ],
    )
    def test_bash_offers_what_may_follow(self, tmp_path: Path, words: str, offered: list[str]):
        script = tmp_path / "duoflow.bash"
        script.write_text(bash_script(list(SCREENS.values())))
        typed = ["duoflow", *words.split(" ")]
        line = (
            f'source {script}; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _duoflow; printf "%s\\n" "${{COMPREPLY[@]}}"'
        )
        done = subprocess.run(["bash", "-c", line, "bash", *typed], text=True, capture_output=True, check=True)
        assert done.stderr == ""
        assert set(done.stdout.split()) == set(offered)

    @pytest.mark.parametrize(("shell", "script"), [("bash", bash_script), ("zsh", zsh_script), ("fish", fish_script)])
    def test_each_shell_reads_its_script(self, tmp_path: Path, shell: str, script):
        if shutil.which(shell) is None:
            pytest.skip(f"{shell} is not installed")
        path = tmp_path / shell
        path.write_text(script(list(SCREENS.values())))
        done = subprocess.run([shell, "-n", str(path)], text=True, capture_output=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")

    def test_fish_is_told_every_option_with_its_help(self):
        script = fish_script(list(SCREENS.values()))
        for words, screen in SCREENS.items():
            at = f"'__duoflow_at {' '.join(words)}'" if words else "__duoflow_at"
            for option in screen.options:
                if option.startswith("--"):
                    assert f"complete -c duoflow -n {at} -l {option[2:]}" in script

    def test_the_verb_prints_the_script(self, capsys):
        assert cli.main(["completion", "zsh"]) == 0
        assert capsys.readouterr().out.startswith("autoload -U +X bashcompinit")
