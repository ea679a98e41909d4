"""What is being done stands on a terminal until it is over, and nowhere else."""

import io
import sys

import pytest

from shards.progress import Progress, doing, say


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True

    @property
    def last(self) -> str:
        """What is left of the line on which the cursor stands."""
        return self.getvalue().split("\r")[-1].strip()


def sit_before(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """In the test itself: before it begins, pytest takes stderr for its own."""
    shown = Terminal()
    monkeypatch.setattr(sys, "stderr", shown)
    return shown


def test_it_stands_until_it_is_over_and_makes_room_for_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    terminal = sit_before(monkeypatch)
    with doing("checking"):
        assert terminal.last == "checking ..."
        say("a note")
        assert terminal.last == ""
    assert terminal.last == ""
    assert "\n" not in terminal.getvalue()
    assert capsys.readouterr().out == "a note\n"


def test_a_line_goes_before_the_bar_of_a_build(monkeypatch: pytest.MonkeyPatch):
    terminal = sit_before(monkeypatch)
    with Progress("packing", 10, "images") as progress:
        progress.advance(4)
        assert "packing" in terminal.last
        say("photo.jpg: left out", error=True)
    assert "\rphoto.jpg: left out\n" in terminal.getvalue()


def test_a_fault_goes_through_and_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch):
    terminal = sit_before(monkeypatch)
    with pytest.raises(ValueError, match="wrong"), doing("checking"):
        raise ValueError("wrong")
    say("duoflow: wrong", error=True)
    assert terminal.getvalue().endswith("\rduoflow: wrong\n")


def test_without_a_terminal_nothing_is_said(capsys: pytest.CaptureFixture[str]):
    with doing("checking"):
        pass
    assert capsys.readouterr() == ("", "")
