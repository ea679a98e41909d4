"""Page retrieval over small documents: what CLIP and SigLIP say themselves, however visits are shared between ranks."""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoModel, AutoProcessor

from model.retrieval.batch import NONE
from model.retrieval.objective import RetrievalObjective
from shards.plan import Share
from shards.read.loader import Loader
from shards.read.micro_batch import MicroBatch
from shards.read.micro_batches import EvaluationBatches, TrainingBatches
from tests.retrieval import CONTEXT, KINDS, shared_checkpoint
from tests.runs import write_recipe
from tests.task_corpora import write_task
from tests.thread_ranks import on_ranks
from trainer.build import assemble_model, make_texts, open_split
from trainer.config import RunConfig, load_config
from trainer.engine.distributed import World
from trainer.tasks import task_named
from trainer.training.validate import Evaluation, evaluate

LOSSES = ("contrastive", "triplet")
ADAPTED = (
    "retrieval.freeze=[text, vision]",
    *(f"retrieval.lora.{tower}.rank=2" for tower in ("text", "vision")),
    *(f"retrieval.lora.{tower}.targets=[q_proj, v_proj]" for tower in ("text", "vision")),
)


class Retriever:
    """A small CLIP or SigLIP over small documents."""

    def __init__(self, recipe: Path, kind: str = "clip", *overrides: str) -> None:
        reference = f"model.retrieval={shared_checkpoint(kind)}"
        self.config: RunConfig = load_config(recipe, (reference, "data.max_question_tokens=48", *overrides))
        self.train, self.val = (open_split(self.config, split) for split in ("train", "val"))
        self.built = assemble_model(self.config, scratch_tokenizer=lambda: pytest.fail("it has its own"))
        self.objective: RetrievalObjective = self.built.objective
        self.objective.eval()

    def step(self, number: int, *, world_size: int = 1, micro_visits: int = 4, epoch: int = 0) -> list[MicroBatch]:
        """The micro-batches of all ranks for a step."""
        found = []
        for rank in range(world_size):
            share = Share(rank=rank, world_size=world_size, micro_visits=micro_visits)
            batches = TrainingBatches(self.train, make_texts(self.config, self.built), None, share)
            found += [batches.prepare(epoch, number, micro) for micro in range(batches.accumulation)]
        return found

    def learn(self, batches: Sequence[MicroBatch]) -> tuple[float, dict[str, Tensor]]:
        """Loss and gradients as the engine has them, which averages over ranks and micro-batches."""
        self.objective.zero_grad(set_to_none=True)
        total = 0.0
        for item in batches:
            loss = self.objective(item.batch).loss / len(batches)
            loss.backward()
            total += float(loss.detach())
        return total, {name: parameter.grad.clone() for name, parameter in self.objective.named_parameters()}

    def evaluation(self, *, world_size: int = 1, micro_visits: int = 2) -> list[Evaluation]:
        """What each rank gets of the validation split."""

        def of_rank(world: World) -> Evaluation:
            share = Share(rank=world.rank, world_size=world_size, micro_visits=micro_visits)
            batches = EvaluationBatches(self.val, make_texts(self.config, self.built), None, share)
            loader, task = Loader(batches, workers=0, pin_memory=False), task_named(self.config.task)
            found = evaluate(self.objective, self.built, batches, loader, world, task=task, losses=self.config.losses)
            assert found is not None
            return found

        return on_ranks(world_size, of_rank)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("retrieval")
    return write_recipe(
        directory / "own.yaml",
        write_task(directory, "mpdocvqa"),
        task="mpdocvqa_retrieval",
        model={"retrieval": shared_checkpoint("clip")},
        batch={"visits": 4, "micro_visits": 2},
        early_stopping={"metric": "val/hit@1"},
    )


@pytest.fixture(scope="module")
def whole(recipe: Path) -> Retriever:
    return Retriever(recipe)


@pytest.mark.parametrize("kind", KINDS)
def test_similarities_are_those_of_the_checkpoint_one_question_and_page_at_a_time(recipe: Path, kind: str):
    retriever, split = Retriever(recipe, kind), open_split(load_config(recipe), "val")
    model = AutoModel.from_pretrained(shared_checkpoint(kind)).eval()
    processor = AutoProcessor.from_pretrained(shared_checkpoint(kind))
    padding = {"padding": "max_length", "max_length": CONTEXT} if kind == "siglip" else {}
    pictures = {}
    for sample in range(split.index.num_images):
        for page, data in zip(split.reader.sample(sample).pages, split.reader.images(sample), strict=True):
            pictures[page.image_id] = Image.open(BytesIO(data)).convert("RGB")
    texts = make_texts(retriever.config, retriever.built)
    batches = EvaluationBatches(retriever.val, texts, None, Share(rank=0, world_size=1, micro_visits=2))
    found, expected = [], []
    for key in batches.all_keys():
        item = batches.prepare(*key)
        with torch.no_grad():
            similarity = retriever.objective.similarity(item.batch)
        for row, question in enumerate(item.items):
            for place, name in enumerate(question.pages):
                made = processor(text=[question.question], images=[pictures[name]], **padding, return_tensors="pt")
                if kind == "siglip":
                    del made["attention_mask"]
                with torch.no_grad():
                    output = model(**made)
                found.append(similarity[row, item.batch.asked.window[row, place]])
                expected.append((output.text_embeds @ output.image_embeds.T).squeeze())
    assert len(found) > 20
    torch.testing.assert_close(torch.stack(found), torch.stack(expected), rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("loss", LOSSES)
def test_every_trained_parameter_has_a_gradient(recipe: Path, kind: str, loss: str):
    retriever = Retriever(recipe, kind, f"retrieval.loss={loss}")
    _, gradients = retriever.learn(retriever.step(0))
    names = set(gradients)
    assert {name for name in names if name.startswith("temperature")} == (
        {"temperature.offset"} if loss == "contrastive" else set()
    )
    expected = sum(1 for name, _ in AutoModel.from_pretrained(shared_checkpoint(kind)).named_parameters())
    scales = 1 if kind == "clip" else 2  # SigLIP's bias has no effect on a softmax, and is not trained
    assert len(names - {"temperature.offset"}) == expected - scales
    assert [name for name, value in gradients.items() if not bool(value.ne(0).any())] == []


def test_adapters_alone_are_trained_in_frozen_towers(recipe: Path):
    retriever = Retriever(recipe, "clip", *ADAPTED, "retrieval.loss=triplet", "model.gradient_checkpointing=true")
    with torch.no_grad():
        for name, parameter in retriever.objective.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.1)
    _, gradients = retriever.learn(retriever.step(0))
    assert {name.split(".")[1] for name in gradients} == {"text", "vision"}
    assert all(name.startswith("lora.") for name in gradients)
    assert all(bool(value.ne(0).any()) for value in gradients.values())
    assert {name for name, _ in retriever.objective.frozen_towers()} == {"text", "vision"}


@pytest.mark.parametrize("loss", LOSSES)
def test_every_number_of_ranks_and_micro_batches_gives_the_same_step(recipe: Path, loss: str):
    retriever = Retriever(recipe, "clip", "data.pages_per_visit=3", f"retrieval.loss={loss}")
    for number in (0, retriever.train.steps_per_epoch - 1):
        expected, gradients = retriever.learn(retriever.step(number))
        largest = max(float(gradient.abs().max()) for gradient in gradients.values())
        for world_size, micro_visits in ((1, 1), (2, 2), (4, 1)):
            step = retriever.step(number, world_size=world_size, micro_visits=micro_visits)
            found, others = retriever.learn(step)
            assert found == pytest.approx(expected, rel=1e-5)
            for name, gradient in gradients.items():
                assert float((gradient - others[name]).abs().max()) < 1e-5 * largest, name


def test_every_number_of_ranks_measures_the_same_and_ranks_every_question_once(whole: Retriever):
    (alone,) = whole.evaluation()
    samples = range(whole.val.index.num_images)
    asked = {item.item_id for number in samples for item in whole.val.reader.sample(number).items}
    assert set(alone.predictions) == asked
    names = ("accuracy", "hit@1", "hit@3", "hit@5", "long_hit@1", "retrieve_loss", "loss")
    assert {f"val/{name}" for name in names} <= set(alone.metrics)
    assert alone.counts["val/hit@1/count"] == len(asked) - 1, "one has no answer page"
    for world_size, micro_visits in ((1, 1), (2, 1)):
        ranks = whole.evaluation(world_size=world_size, micro_visits=micro_visits)
        assert {name: said for rank in ranks for name, said in rank.predictions.items()} == alone.predictions
        assert ranks[0].metrics == {
            name: pytest.approx(value, rel=1e-5) if name.endswith("loss") else value
            for name, value in alone.metrics.items()
        }


def test_a_micro_batch_without_visits_changes_nothing(whole: Retriever):
    collation = whole.built.collation
    eyes = collation.eyes(whole.train.index, None)
    made = collation.collate([], loss_scale=1.0, eyes=eyes, blanks=1, answering=False)
    output = whole.objective(made.batch)
    assert float(output.loss.detach()) == 0
    assert output.sums.tolist() == [0.0, 0.0]
    output.loss.backward()
    gradients = [parameter.grad for parameter in whole.objective.parameters() if parameter.grad is not None]
    assert gradients
    assert all(bool((gradient == 0).all()) for gradient in gradients)


def test_a_page_is_encoded_once_for_all_questions_of_a_visit(whole: Retriever):
    for item in (batch for number in range(whole.train.steps_per_epoch) for batch in whole.step(number)):
        window = item.batch.asked.window
        assert sorted(set(window[window != NONE].tolist())) == list(range(len(item.batch.pages)))
        assert len(window) == item.num_items


def test_a_long_question_is_cut_and_counted(recipe: Path):
    retriever = Retriever(recipe, "clip", "data.max_question_tokens=8")
    items = retriever.step(0)
    assert sum(item.items_cut for item in items) == sum(item.num_items for item in items)
    tokenizer = retriever.built.collation.form.tokenizer
    for item in items:
        texts = item.batch.texts
        assert texts.ids.shape[1] == 8
        assert texts.ids[:, -1].tolist() == [tokenizer.eos_token_id] * len(texts.ids)
