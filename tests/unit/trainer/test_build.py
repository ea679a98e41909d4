"""Names in a recipe become parts: splits by key, one tokenizer for all starts of a run, weights taken or refused."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from model.build import BuiltModel
from model.towers.tokenizer import build_tokenizer
from shards.atomic import write_atomically
from shards.errors import ConfigError, DataError, UserError
from shards.tasks import TASKS
from tests.models import tiny_t5
from tests.runs import Project, engine_state, weights
from tests.task_corpora import task_recipe
from tests.thread_ranks import on_ranks
from trainer.build import (
    FUSION_FILE,
    assemble_model,
    evaluation_loader,
    image_size,
    make_texts,
    open_split,
    shared_tokenizer,
    training_loader,
    training_tokenizer,
)
from trainer.config import load_config
from trainer.engine.distributed import World
from trainer.engine.state_file import MODEL
from trainer.export.initial_weights import initialize_from
from trainer.export.write import export_model
from trainer.run_directory import RunDirectory
from trainer.training.checkpoints import Checkpoints


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return Project.write(tmp_path_factory.mktemp("project"))


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    assert one.keys() == other.keys()
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def source(project: Project, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory whose `best` has weights of seed 11 and `last` those of seed 12; its export is of seed 13."""
    run = tmp_path_factory.mktemp("source")
    checkpoints = Checkpoints(run / "checkpoints", World())
    for pointer, seed in (("best", 11), ("last", 12)):
        state = engine_state(project.model(seed=seed).objective)
        checkpoints.publish(pointer, checkpoints.save(f"step{seed}", state, {}))
    built = project.model(seed=13)
    export_model(project.config(), built, weights(built.objective), run / "export", step=1, metrics={})
    return run


def test_a_split_that_the_recipe_does_not_name_is_refused_by_its_key(project: Project):
    with pytest.raises(ConfigError, match=r"data\.testdev: is not set"):
        open_split(project.config(), "testdev")


def test_the_order_of_a_split_is_that_of_the_recipe(project: Project):
    config = project.config("data.limit=3", "run.seed=8")
    split = open_split(config, "train")
    assert (split.visits.num_questions > 0).sum() == 3
    assert (split.order.seed, split.order.visits_per_step, split.order.lanes) == (8, 8, 8)


def test_the_vocabulary_covers_every_question_and_answer_of_the_training_split(project: Project):
    config = project.config("model.scratch.vocab_size=500")
    train = open_split(config, "train")
    tokenizer = training_tokenizer(config, train)
    samples = [train.reader.sample(image) for image in range(train.index.num_images)]
    words = {
        word for s in samples for q in s.questions for word in f"{q.question} {q.answer}".lower().strip("?").split()
    }
    words = {word.strip("?,") for word in words}
    assert len(words) > 20
    assert words <= tokenizer.get_vocab().keys()


def test_the_tokenizer_is_built_once_for_all_starts_of_a_run(project: Project, tmp_path: Path, monkeypatch):
    config = project.config()
    train, directory = open_split(config, "train"), RunDirectory(tmp_path)
    first = shared_tokenizer(config, train, directory, World())()
    write_atomically(directory.checkpoints / "last", b"step0")
    monkeypatch.setattr("trainer.build.count_words", lambda *_: pytest.fail("built a second time"))
    second = shared_tokenizer(config, train, directory, World())()
    assert first.get_vocab() == second.get_vocab()


@pytest.mark.parametrize("ranks", [1, 3, 5])
def test_ranks_that_count_a_part_of_the_texts_each_have_the_tokenizer_of_all(
    project: Project, tmp_path: Path, ranks: int
):
    config = project.config("data.limit=4")  # so that one of five has nothing to count
    train = open_split(config, "train")
    alone = training_tokenizer(config, train).get_vocab()
    made = on_ranks(ranks, lambda world: shared_tokenizer(config, train, RunDirectory(tmp_path), world)())
    assert [tokenizer.get_vocab() for tokenizer in made] == [alone] * ranks


def test_a_tokenizer_that_a_start_left_behind_without_a_checkpoint_is_not_trusted(project: Project, tmp_path: Path):
    config = project.config()
    train, directory = open_split(config, "train"), RunDirectory(tmp_path)
    first = shared_tokenizer(config, train, directory, World())()
    (tmp_path / "tokenizer" / "tokenizer.json").unlink()
    assert shared_tokenizer(config, train, directory, World())().get_vocab() == first.get_vocab()


def test_a_tokenizer_that_cannot_be_written_is_one_line_and_leaves_none(project: Project, tmp_path: Path, monkeypatch):
    config = project.config()

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("transformers.PreTrainedTokenizerBase.save_pretrained", full)
    with pytest.raises(UserError, match=r"tokenizer: cannot be written .*No space left"):
        shared_tokenizer(config, open_split(config, "train"), RunDirectory(tmp_path), World())()
    assert not (tmp_path / "tokenizer").exists()


def test_a_rank_that_does_not_see_the_disk_of_rank_0_gets_the_same_tokenizer(project: Project, tmp_path: Path):
    config = project.config()
    train, homes = open_split(config, "train"), [RunDirectory(tmp_path / host) for host in ("fvn1", "fvn2")]
    first, second = on_ranks(2, lambda world: shared_tokenizer(config, train, homes[world.rank], world)())
    assert first.get_vocab() == second.get_vocab()
    assert second("What is this?")["input_ids"] == first("What is this?")["input_ids"]
    assert (homes[0].path / "tokenizer").is_dir()
    assert not homes[1].path.exists()


def test_a_tokenizer_that_rank_0_cannot_give_is_refused_on_all_ranks(project: Project, tmp_path: Path):
    config = project.config()
    train, directory = open_split(config, "train"), RunDirectory(tmp_path)
    write_atomically(directory.checkpoints / "last", b"step0")
    (tmp_path / "tokenizer").mkdir()

    def act(world: World) -> str:
        with pytest.raises(DataError) as refused:
            shared_tokenizer(config, train, directory, world)()
        return str(refused.value)

    assert all("no readable tokenizer" in said for said in on_ranks(2, act))


def test_untrained_weights_depend_on_the_seed_alone(project: Project):
    first = weights(project.model(seed=5).objective)
    assert same(first, weights(project.model(seed=5).objective))
    assert not same(first, weights(project.model(seed=6).objective))


@pytest.mark.parametrize(("place", "seed"), [(".", 11), ("checkpoints/step11", 11), ("checkpoints/step12", 12)])
def test_a_run_starts_from_the_best_of_another_or_from_a_checkpoint_by_name(
    project: Project, source: Path, place: str, seed: int
):
    objective = project.model().objective
    said = initialize_from(objective, str(source / place))
    assert same(weights(objective), weights(project.model(seed=seed).objective))
    count = len(weights(objective))
    assert f"weights of {count} of {count} trained tensors" in said


def test_an_export_gives_the_fusion_encoder_and_leaves_the_rest(project: Project, source: Path):
    objective = project.model().objective
    before = weights(objective)
    initialize_from(objective, str(source / "export"))
    expected = weights(project.model(seed=13).objective)
    assert same(
        weights(objective), {name: (expected if name.startswith("fusion.") else before)[name] for name in before}
    )


def test_more_weights_than_the_recipe_trains_are_no_fault(project: Project, source: Path):
    objective = project.model("losses.answer=0", "early_stopping.metric=val/itm_accuracy").objective
    initialize_from(objective, str(source))
    everything = weights(project.model(seed=11).objective)
    assert len(weights(objective)) < len(everything)
    assert same(weights(objective), {name: everything[name] for name in weights(objective)})


LORA = ("model.lora.answer.rank=2", "model.lora.answer.targets=[q]")


@pytest.fixture(scope="module")
def towers(source: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """Overrides for frozen towers from the export, and T5."""
    export = source / "export"
    return (
        f"model.vision={export / 'blip_itm'}",
        f"model.match={export / 'blip_itm'}",
        f"model.answer={tiny_t5(tmp_path_factory.mktemp('t5'))}",
        f"model.efficient_sam.checkpoint={export / 'efficient_sam.safetensors'}",
        "model.freeze=[vision, second_stream, match, answer]",
    )


def moved(built: BuiltModel, by: float) -> BuiltModel:
    """The model with every trained weight moved, adapters that start at 0 too."""
    with torch.no_grad():
        for parameter in built.objective.parameters():
            parameter += by
    return built


def test_adapters_come_from_an_export(project: Project, towers: tuple[str, ...], tmp_path: Path):
    built = moved(project.model(*towers, *LORA), by=4)
    saved = weights(built.objective)
    export_model(project.config(*towers, *LORA), built, saved, tmp_path / "export", step=1, metrics={})
    objective = project.model(*towers, *LORA, seed=5).objective
    assert "start as they are" not in initialize_from(objective, str(tmp_path / "export"))
    assert same(weights(objective), saved)


def test_adapters_are_new_where_a_run_had_none_and_named_where_none_are_wanted(
    project: Project, towers: tuple[str, ...], tmp_path: Path
):
    plain, adapted = (moved(project.model(*towers, *lora), by=4).objective for lora in ((), LORA))
    for name, objective in (("plain", plain), ("adapted", adapted)):
        checkpoints = Checkpoints(tmp_path / name / "checkpoints", World())
        checkpoints.publish("best", checkpoints.save("step1", engine_state(objective), {}))
    objective = project.model(*towers, *LORA, seed=5).objective
    before = weights(objective)
    assert "; lora start as they are" in initialize_from(objective, str(tmp_path / "plain"))
    expected = {name: value if name.startswith("lora.") else weights(plain)[name] for name, value in before.items()}
    assert same(weights(objective), expected)
    said = initialize_from(project.model(*towers, seed=5).objective, str(tmp_path / "adapted"))
    assert "; lora of it is not used" in said


@pytest.mark.parametrize(
    ("override", "fault"),
    [
        ("model.fusion.layers=3", r"fusion\.encoder\.\S+ is missing"),
        ("model.fusion.ffn_width=20", r"fusion\.encoder\.\S+ is \(96, 24\), expected \(20, 24\)"),
    ],
)
def test_weights_of_another_model_are_refused_by_name_and_shape(
    project: Project, source: Path, override: str, fault: str
):
    objective = project.model(override).objective
    before = weights(objective)
    for place in (source, source / "export"):
        with pytest.raises(ConfigError, match=rf"initialize_from: \S+: .*{fault}"):
            initialize_from(objective, str(place))
    assert same(weights(objective), before), "a refused start changes nothing"


def test_a_flipped_bit_in_a_checkpoint_is_refused(project: Project, source: Path, tmp_path: Path):
    checkpoint = tmp_path / "damaged"
    checkpoint.mkdir()
    for file in (source / "checkpoints" / "step11").iterdir():
        (checkpoint / file.name).write_bytes(file.read_bytes())
    content = bytearray((checkpoint / MODEL).read_bytes())
    content[-100] ^= 1
    (checkpoint / MODEL).write_bytes(content)
    with pytest.raises(DataError, match=r"initialize_from: \S+model.safetensors: damaged checkpoint"):
        initialize_from(project.model().objective, str(checkpoint))


def test_a_file_that_holds_no_tensors_is_refused(project: Project, tmp_path: Path):
    (tmp_path / FUSION_FILE).write_bytes(b"not tensors")
    with pytest.raises(DataError, match=r"initialize_from: \S+fusion_encoder.safetensors: not readable"):
        initialize_from(project.model().objective, str(tmp_path))


def test_a_place_without_weights_is_refused(project: Project, tmp_path: Path):
    with pytest.raises(ConfigError, match="no weights in it; expected a run directory with a checkpoint, a checkpoint"):
        initialize_from(project.model().objective, str(tmp_path))


def test_the_loader_makes_what_the_model_reads(project: Project):
    config = project.config("losses.negatives=[answer]")
    built = project.model()
    assert image_size(config, built) == built.image_size == 32
    assert image_size(project.config("data.image_size=48"), built) == 48
    texts = make_texts(config, built)
    assert texts.wanted.negatives == ("answer",)
    batches, loader = training_loader(config, open_split(config, "train"), built, World())
    item = next(loader.batches([(0, 0, 0)]))
    assert batches.accumulation == 4
    assert item.batch.shown.shape == (2, 3, 32, 32)
    assert torch.isfinite(built.objective(item.batch).loss)


def test_an_evaluation_can_be_limited_to_some_images(project: Project):
    config, built = project.config(), project.model()
    batches, loader = evaluation_loader(config, open_split(config, "val"), built, World(), max_images=4)
    seen = [image for item in loader.batches(batches.all_keys()) for image in item.samples]
    assert len(set(seen)) == 4


@pytest.mark.parametrize(("task", "is_kept"), [("snli_ve", True), ("nlvr2", False)])
def test_heads_of_the_same_form_are_taken_and_those_of_another_task_start_anew(
    tmp_path: Path, task: str, is_kept: bool
):
    def model(name: str, seed: int) -> BuiltModel:
        config = load_config(task_recipe(tmp_path / f"{name}.yaml", name, {}), [f"run.seed={seed}"])
        tokenizer = build_tokenizer(["there is a red square"], vocab_size=60)
        return assemble_model(config, scratch_tokenizer=lambda: tokenizer, classes=TASKS[name].classes)

    source = moved(model("snli_ve", seed=1), by=4).objective
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints", World())
    checkpoints.publish("best", checkpoints.save("step1", engine_state(source), {}))
    objective = model(task, seed=2).objective
    before, saved = weights(objective), weights(source)
    said = initialize_from(objective, str(tmp_path / "run"))
    after = weights(objective)
    assert ("heads start as they are" in said) == (not is_kept)
    for name in after:
        is_taken = is_kept or not name.startswith("heads.")
        assert torch.equal(after[name], (saved if is_taken else before)[name]), name
