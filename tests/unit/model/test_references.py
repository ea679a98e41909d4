"""What a recipe writes in the place of a checkpoint, read."""

from pathlib import Path

import pytest

from model.config import untrained_towers, vision_references
from model.references import Reference, read_reference, timm_directory
from tests.models import model_config

PLAIN = {"is_timm": False, "is_untrained": False}
TIMM = {"is_timm": True, "is_untrained": False}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("scratch", {"is_timm": False, "is_untrained": True}),
        ("org/blip", PLAIN | {"hub_id": "org/blip"}),
        ("org/blip@abc", PLAIN | {"hub_id": "org/blip", "revision": "abc"}),
        ("./blip", PLAIN | {"directory": Path("blip")}),
        ("timm:vit.tag", TIMM | {"name": "vit.tag"}),
        ("timm:vit@scratch", TIMM | {"name": "vit", "is_untrained": True}),
        ("timm:hf-hub:org/vit", TIMM | {"hub_id": "org/vit"}),
        ("timm:hf-hub:org/vit@abc", TIMM | {"hub_id": "org/vit", "revision": "abc"}),
        ("timm:hf-hub:org/vit@scratch", TIMM | {"hub_id": "org/vit", "is_untrained": True}),
        ("timm:/a/b@c", TIMM | {"directory": Path("/a/b@c")}),
        ("timm:../vit@scratch", TIMM | {"directory": Path("../vit"), "is_untrained": True}),
        ("timm:local-dir:vit", TIMM | {"directory": Path("vit")}),
    ],
)
def test_a_reference_says_what_it_is(text: str, expected: dict):
    assert read_reference(text) == Reference(text, **expected)


def test_what_is_there_is_a_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "vit").mkdir()
    assert read_reference("timm:vit").directory == read_reference("vit").directory == Path("vit")
    assert read_reference(timm_directory(tmp_path)).directory == tmp_path


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("timm:vit.tag@scratch", "vit.tag"),
        ("timm:hf-hub:org/vit@abc", "hf-hub:org/vit@abc"),
        ("timm:hf-hub:org/vit", "hf-hub:org/vit"),
        ("timm:/a/b", "local-dir:/a/b"),
    ],
)
def test_timm_is_told_by_its_own_schemes(text: str, source: str):
    assert read_reference(text).timm_source == source


def test_every_vision_tower_has_its_key():
    second = {"second_stream": "timm", "second_vision": "timm:vit@scratch"}
    assert vision_references(model_config(**second)) == {
        "vision": ("model.vision", "scratch"),
        "second_stream": ("model.second_vision", "timm:vit@scratch"),
    }
    assert vision_references(model_config(vision="timm:vit")).keys() == {"vision"}


@pytest.mark.parametrize(("suffix", "untrained"), [("@scratch", ("vision", "second_stream")), ("", ())])
def test_untrained_backbones_are_untrained_towers(suffix: str, untrained: tuple[str, ...]):
    model = model_config(vision=f"timm:a{suffix}", second_stream="timm", second_vision=f"timm:b{suffix}")
    assert untrained_towers(model, ()) == untrained
