"""Checkpoints load as they were published; what is missing or damaged is one line with its way out, and no table."""

import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from transformers import T5ForConditionalGeneration

from model.pnp.captions import load_captioner
from model.pnp.fid import load_reader
from model.towers import hub
from model.towers.checkpoint_files import BLIP_ARCHITECTURES, T5_ARCHITECTURES
from model.towers.hub import check_reachable, load_pretrained
from model.towers.tokenizer import T5Codec
from shards.errors import ConfigError, DataError, UserError
from tests.models import tiny_captioner, tiny_t5
from tests.t5 import HEADS, change_config, logits, t5_with_head

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CAPTIONER = ("BlipForConditionalGeneration",)
LONGEST_LINE = 1_000


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A reader and a captioner, which no test changes."""
    directory = tmp_path_factory.mktemp("published")
    return {"t5": Path(tiny_t5(directory / "t5")), "captioner": Path(tiny_captioner(directory / "captioner"))}


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache, empty, without a network."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.fixture
def reports() -> list[str]:
    """What transformers has to say while a test runs."""
    said: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    logger, listener = logging.getLogger("transformers"), Listener()
    level = logger.level
    logger.setLevel(logging.WARNING)  # whatever an earlier test has left it at
    logger.addHandler(listener)
    yield said
    logger.removeHandler(listener)
    logger.setLevel(level)


def cached(cache: Path, source: Path, hub_id: str) -> Path:
    """The directory of the files of a hub id, in its cache as `hf download` leaves them."""
    repository = cache / f"models--{hub_id.replace('/', '--')}"
    shutil.copytree(source, repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    return repository / "snapshots" / COMMIT


def garbage(path: Path) -> None:
    path.write_bytes(b"<html>502 Bad Gateway</html>" * 9)


def as_bin(path: Path, *, cut: bool) -> None:
    torch.save(load_file(path / "model.safetensors"), path / "pytorch_model.bin")
    (path / "model.safetensors").unlink()
    if cut:
        os.truncate(path / "pytorch_model.bin", 3_000)
    else:
        garbage(path / "pytorch_model.bin")


def in_two_parts(path: Path) -> None:
    state = load_file(path / "model.safetensors")
    (path / "model.safetensors").unlink()
    save_file(dict(list(state.items())[:3]), path / "model-00001-of-00002.safetensors", metadata={"format": "pt"})
    parts = {name: f"model-0000{1 + (number > 2)}-of-00002.safetensors" for number, name in enumerate(state)}
    (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": parts}))


def other_width(path: Path) -> None:
    config = json.loads((path / "config.json").read_text())
    if config["model_type"] == "t5":
        change_config(path, d_ff=56)
    else:
        change_config(path, vision_config=config["vision_config"] | {"intermediate_size": 56})


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "weights cut off": (lambda path: os.truncate(path / "model.safetensors", 20_000), r"model\.safetensors"),
    "weights empty": (lambda path: (path / "model.safetensors").write_bytes(b""), r"model\.safetensors"),
    "weights garbage": (lambda path: garbage(path / "model.safetensors"), r"model\.safetensors"),
    "pickle cut off": (lambda path: as_bin(path, cut=True), r"pytorch_model\.bin"),
    "pickle garbage": (lambda path: as_bin(path, cut=False), r"pytorch_model\.bin"),
    "a part missing": (in_two_parts, r"1 of 2 weights files are missing, such as model-00002-of-00002"),
    "tokenizer empty": (lambda path: (path / "tokenizer.json").write_text("{}"), r"tokenizer\.json"),
    "tokenizer cut off": (lambda path: os.truncate(path / "tokenizer.json", 50), r"tokenizer\.json"),
    "settings garbage": (lambda path: garbage(path / "tokenizer_config.json"), r"tokenizer_config\.json is damaged"),
    "config cut off": (lambda path: os.truncate(path / "config.json", 50), r"config\.json"),
    "config a list": (lambda path: (path / "config.json").write_text("[]"), r"config\.json"),
    "other sizes": (other_width, r"model\.safetensors: other sizes than config\.json says: .*48.* instead of .*56"),
    "wrong type": (lambda path: change_config(path, initializer_factor="x"), r"config\.json: .*initializer_factor"),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("part", ["t5", "captioner"])
def test_damaged_files_are_one_line_with_place_and_way_out(
    published: dict[str, Path], tmp_path: Path, part: str, damage: str, reports: list[str]
) -> None:
    path, (break_it, said) = tmp_path / "broken", DAMAGES[damage]
    shutil.copytree(published[part], path)
    break_it(path)
    with pytest.raises(UserError, match=said) as error:
        load_pretrained(str(path), T5_ARCHITECTURES if part == "t5" else CAPTIONER)
    message = str(error.value)
    assert message.startswith(f"{path}: {path}")
    assert message.endswith("bring all of them here again")
    assert "huggingface.co" not in message
    assert "\n" not in message
    assert len(message) < LONGEST_LINE
    assert reports == []


@pytest.mark.parametrize("damage", ["weights cut off", "pickle cut off", "tokenizer empty", "other sizes"])
def test_a_damaged_download_is_fetched_again(published: dict[str, Path], offline: Path, damage: str) -> None:
    path, (break_it, said) = cached(offline, published["t5"], "org/t5"), DAMAGES[damage]
    for reference, revision in (("org/t5", ""), (f"org/t5@{COMMIT}", f" --revision {COMMIT}")):
        load_pretrained(reference, T5_ARCHITECTURES)
        break_it(path)
        with pytest.raises(DataError, match=said) as error:
            load_reader(reference)
        message = str(error.value)
        assert message.startswith(f"pnp.reader={reference}: {path}/")
        assert message.endswith(f"`hf download org/t5{revision} --exclude '*.h5' --force-download`")
        shutil.rmtree(path)
        shutil.copytree(published["t5"], path)


def test_what_the_cache_lacks_is_named_with_the_cache_and_the_command(
    published: dict[str, Path], offline: Path
) -> None:
    with pytest.raises(DataError) as error:
        load_reader("org/none@v2")
    assert f"no config.json in the hub cache {offline} and not to be fetched" in str(error.value)
    assert "run `hf download org/none --revision v2 --exclude '*.h5'`" in str(error.value)
    (cached(offline, published["t5"], "org/t5") / "model.safetensors").unlink()
    with pytest.raises(DataError) as error:
        load_reader("org/t5")
    assert f"no weights (model.safetensors or pytorch_model.bin) in the hub cache {offline}" in str(error.value)
    assert "\n" not in str(error.value)


def test_whether_what_is_lacking_can_be_fetched_is_known_before_a_start(
    published: dict[str, Path], offline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = cached(offline, published["t5"], "org/t5")
    check_reachable("KEY=org/t5", "org/t5")  # all of it is here
    check_reachable(f"KEY={published['t5']}", str(published["t5"]))
    (place / "model.safetensors").unlink()
    with pytest.raises(DataError, match=r"^KEY=org/t5: no weights .* not to be fetched \(HF_HUB_OFFLINE=1\); run `hf"):
        check_reachable("KEY=org/t5", "org/t5")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    asked = []
    monkeypatch.setattr(hub.HfApi, "model_info", lambda _, name, **given: asked.append((name, given["revision"])))
    check_reachable("KEY=org/t5@v2", "org/t5@v2")
    assert asked == [("org/t5", "v2")]

    def no_network(*_: object, **__: object) -> None:
        raise OSError("Name or service not known")

    monkeypatch.setattr(hub.HfApi, "model_info", no_network)
    with pytest.raises(DataError, match=r"not to be fetched \(Name or service not known\)"):
        check_reachable("KEY=org/t5", "org/t5")


@pytest.mark.parametrize("named", ["{}", "./none", "~/none", "../none"])
def test_a_directory_is_never_looked_for_on_the_hub(named: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(DataError, match=r"no checkpoint in /.* \(no such directory\); expected config\.json") as error:
        load_reader(named.format(tmp_path / "none"))
    assert "hugging" not in str(error.value)
    (tmp_path / "weights").mkdir()
    lacking = r"weights \(no config\.json; no weights \(model\.safetensors or .*; no tokenizer .*\); expected"
    with pytest.raises(DataError, match=lacking) as error:
        load_reader("weights")
    assert "hugging" not in str(error.value)


def test_what_can_be_no_hub_id_is_said_to_be_none() -> None:
    with pytest.raises(DataError, match=r"pnp\.reader=a/b/c: no such directory, and no hub id"):
        load_reader("a/b/c")


def test_scratch_is_refused_by_name_where_a_checkpoint_is_needed() -> None:
    with pytest.raises(ConfigError, match=r"pnp\.reader: scratch: only parts of the model section"):
        load_reader("scratch")
    with pytest.raises(ConfigError, match=r"scratch: only parts of the model section") as error:
        load_captioner("scratch")
    assert "hf download" not in str(error.value)


def test_weights_that_are_missing_say_in_which_file(published: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "t5"
    shutil.copytree(published["t5"], path)
    change_config(path, num_layers=3)
    with pytest.raises(ConfigError, match=rf"weights are missing: encoder\.block\.2.*looked for in {path}/model\.safe"):
        load_pretrained(str(path), T5_ARCHITECTURES)


def test_reports_are_silenced_for_the_load_alone(published: dict[str, Path], reports: list[str]) -> None:
    load_pretrained(str(published["t5"]), T5_ARCHITECTURES)
    logging.getLogger("transformers.test").warning("heard")
    assert reports == ["heard"]


@pytest.mark.parametrize("head", HEADS)
def test_a_t5_loads_with_its_own_output_layer(tmp_path: Path, head: str, reports: list[str]) -> None:
    path = t5_with_head(tmp_path / "t5", head)
    model = load_pretrained(path, T5_ARCHITECTURES).model
    assert reports == []
    assert torch.equal(logits(model), logits(T5ForConditionalGeneration.from_pretrained(path)))
    assert torch.equal(model.lm_head.weight, model.shared.weight) == (head == "tied")


def test_the_old_name_of_t5_is_taken(published: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "t5"
    shutil.copytree(published["t5"], path)
    change_config(path, architectures=["T5WithLMHeadModel"])
    loaded = load_pretrained(str(path), (*BLIP_ARCHITECTURES, *T5_ARCHITECTURES)).model
    assert torch.equal(logits(loaded), logits(T5ForConditionalGeneration.from_pretrained(path)))
    with pytest.raises(ConfigError, match="is a T5ForConditionalGeneration; expected BlipForConditionalGeneration"):
        load_captioner(str(path))


@pytest.mark.parametrize(("generation", "expected"), [({"decoder_start_token_id": 7}, 7), ({}, 0)])
def test_a_start_token_that_the_config_lacks_is_found(
    published: dict[str, Path], tmp_path: Path, generation: dict[str, int], expected: int
) -> None:
    path = tmp_path / "t5"
    shutil.copytree(published["t5"], path)
    change_config(path, decoder_start_token_id=None)
    (path / "generation_config.json").write_text(json.dumps(generation))
    model, tokenizer = load_pretrained(str(path), T5_ARCHITECTURES)
    assert T5Codec.of(model.config, tokenizer, max_question_tokens=6, max_answer_tokens=3).start_id == expected
    assert len(load_reader(str(path)).answer(["what"], [["red"]])) == 1
