"""Every family of models: questions behind one prefix compute what rows compute, in loss, gradients and answers."""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from transformers.modeling_layers import GradientCheckpointingLayer

from model.config import VlmConfig
from model.vlm.adapters import add_adapters
from model.vlm.checkpoint import end_ids_of
from model.vlm.collation import OwnSizeEyes, Questions, VlmCollation
from model.vlm.objective import VlmObjective
from model.vlm.pages import PageFinder
from model.vlm.prompt import ChatPrompt, row_ids
from model.vlm.trial import try_sharing
from shards.read.collation import SeenVisit
from shards.tasks.seam import Row, Target
from tests.vlm import FAMILIES

MAX_ANSWER_TOKENS = 10
LOSSES = {
    "sum_names": ("answer_loss", "answered", "page_loss", "paged"),
    "weights": {"answer": 1.0, "page": 0.5},
    "max_answer_tokens": MAX_ANSWER_TOKENS,
}
CPU = torch.device("cpu")
every_family = pytest.mark.parametrize("family", FAMILIES)


class Parts(NamedTuple):
    """A family with adapters, in both ways of asking."""

    shared: VlmObjective
    rows: VlmObjective
    collation: VlmCollation

    def batch(self, visits: Sequence[SeenVisit], questions: Questions, *, answering: bool = False):
        made = replace(self.collation, questions=questions)
        return made.collate(visits, loss_scale=0.5, eyes=OwnSizeEyes(), blanks=1, answering=answering).batch


def parts_of(family: str, *, system: str | None = "Be brief.") -> Parts:
    """With adapters and a head over pages that are not zero."""
    model, processor = FAMILIES[family]()
    ends = end_ids_of(model, processor)
    limits = {"max_question_tokens": 64, "max_answer_tokens": MAX_ANSWER_TOKENS}
    prompt = ChatPrompt.of(processor, end_ids=ends, system=system, source=family, **limits)
    torch.manual_seed(0)
    leaves = add_adapters(model, VlmConfig.model_validate({"language": {"rank": 4}, "vision": {"rank": 2}}))
    for parameter in leaves.parameters():
        parameter.data.normal_(std=0.1)
    head = PageFinder(model.config.get_text_config().hidden_size)
    shared, rows = (
        VlmObjective(model, leaves, page_head=head, shared=way, end_ids=ends, **LOSSES) for way in (True, False)
    )
    return Parts(shared, rows, VlmCollation(prompt=prompt, questions="shared", max_tokens=512, finds_pages=True))


def picture(height: int, width: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8)


def visit(images: Sequence[Tensor], *asked: tuple[str, Sequence[tuple[str, float]]]) -> SeenVisit:
    """The answers to questions by turns on each image, which stand in windows that begin a page earlier."""
    places = tuple(range(1, len(images) + 1))
    rows = [
        Row(
            text,
            item,
            images=tuple(range(len(images))),
            places=places,
            label=places[item % len(images)],
            targets=tuple(Target(answer, weight) for answer, weight in answers),
        )
        for item, (text, answers) in enumerate(asked)
    ]
    return SeenVisit(images, {"ask": rows}, len(rows), "a sample")


VISITS = (
    visit(
        [picture(40, 60, 0)],
        ("What color?", [("red", 1.0)]),
        ("Is it small, or not?", [("yes", 0.5), ("no", 0.25)]),
        ("Where", [("left side", 1.0)]),
    ),
    visit([picture(60, 40, 1), picture(50, 50, 2)], ("How many?", [("two", 1.0)]), ("Which one?", [("the 2nd", 1.0)])),
)


def gradients(objective: VlmObjective, batch) -> tuple[Tensor, dict[str, Tensor]]:
    objective.zero_grad()
    output = objective(batch)
    output.loss.backward()
    return output.sums, {name: p.grad.clone() for name, p in objective.named_parameters() if p.grad is not None}


@every_family
def test_loss_and_gradients_are_those_of_rows(family: str) -> None:
    parts = parts_of(family)
    sums, together = gradients(parts.shared, parts.batch(VISITS, "shared"))
    expected_sums, alone = gradients(parts.rows, parts.batch(VISITS, "rows"))
    torch.testing.assert_close(sums, expected_sums, rtol=1e-5, atol=0)
    assert together.keys() == alone.keys() == dict(parts.shared.named_parameters()).keys()
    scale = torch.stack([gradient.norm() for gradient in alone.values()]).max()
    for name, gradient in alone.items():
        assert (together[name] - gradient).norm() <= 1e-5 * torch.maximum(gradient.norm(), 1e-2 * scale), name


@every_family
def test_answers_are_those_of_generate_one_by_one(family: str) -> None:
    parts = parts_of(family)
    together = parts.shared.write(parts.batch(VISITS, "shared", answering=True))
    alone = parts.rows.write(parts.batch(VISITS, "rows", answering=True))
    decode = parts.collation.prompt.decode
    assert decode(together.ids.tolist()) == decode(alone.ids.tolist())
    assert len(together.ids) == sum(seen.num_items for seen in VISITS)
    torch.testing.assert_close(together.probability.log(), alone.probability.log(), rtol=1e-4, atol=1e-4)


@every_family
def test_the_model_itself_says_that_it_can_be_asked_so(family: str) -> None:
    parts = parts_of(family)
    found = try_sharing(parts.shared, parts.collation, CPU)
    assert found.passed, str(found)
    assert found.difference < 1e-4


@every_family
def test_rows_have_the_tokens_that_the_processor_gives_for_the_whole_text(family: str) -> None:
    parts = parts_of(family)
    prompt, batch = parts.collation.prompt, parts.batch(VISITS[:1], "rows")
    user = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What color?"}]}
    messages = [
        {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
        user,
        {"role": "assistant", "content": [{"type": "text", "text": "red"}]},
    ]
    text = prompt.processor.apply_chat_template(messages, tokenize=False)
    (expected,) = row_ids(prompt.encode([text], [VISITS[0].images]))
    sequences = batch.sequences
    made = sequences.ids[0][sequences.segment[0] >= 0].tolist()
    assert made[: len(expected)] == expected[: len(made)]
    assert made[-1] in prompt.end_ids
    learnt = batch.learnt.token[batch.learnt.answer == 0].tolist()
    assert prompt.tokenizer.decode(learnt, skip_special_tokens=True).strip() == "red"


@every_family
def test_the_tokens_of_a_prefix_are_those_of_its_images_in_their_order(family: str) -> None:
    parts = parts_of(family)
    prompt, images = parts.collation.prompt, [picture(60, 40, 0), picture(40, 60, 1), picture(200, 200, 2)]
    (ids,) = row_ids(prompt.encode([prompt.prefix(3)], [images]))
    found = prompt.images_of(ids, images)
    token = prompt.tokenizer.convert_tokens_to_ids(prompt.processor.image_token)
    assert [number >= 0 for number in found] == [one == token for one in ids]
    shown = [number for number in found if number >= 0]
    assert shown == sorted(shown)
    alone = [row_ids(prompt.encode([prompt.prefix(1)], [[image]]))[0].count(token) for image in images]
    together = [shown.count(number) for number in range(3)]
    assert together == alone or (family == "llava_onevision" and len(set(together)) == 1)


@every_family
def test_pages_are_ranked_by_grouped_questions_as_by_rows(family: str) -> None:
    parts = parts_of(family)
    seen = visit(
        [picture(60, 40, n) for n in range(4)], *((text, [("yes", 1.0)]) for text in ("Which?", "Where is it?"))
    )
    visits = [visit([picture(40, 60, 7)], ("What?", [("no", 1.0)])), seen]
    together = parts.shared.evaluate(parts.batch(visits, "shared", answering=True)).predictions["page"]
    alone = parts.rows.evaluate(parts.batch(visits, "rows", answering=True)).predictions["page"]
    assert torch.equal(together, alone)
    assert together[0].tolist() == [1, -1, -1, -1], "places in the whole window"
    assert [sorted(ranked.tolist()) for ranked in together[1:]] == [[1, 2, 3, 4]] * 2
    assert torch.equal(parts.shared.pages(parts.batch(visits, "shared")), together)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "llava"])
def test_a_conversation_is_another_objective(family: str) -> None:
    parts = parts_of(family)
    sums, _ = gradients(parts.shared, parts.batch(VISITS, "shared"))
    joined = parts.batch(VISITS, "conversation")
    chat, _ = gradients(parts.shared, joined)
    assert len(joined.sequences.ids) == len(VISITS)
    assert chat[1] == sums[1], "the same answers weigh the same"
    assert abs(float(chat[0] - sums[0])) > 1e-3, "later questions see earlier ones"
    first = gradients(parts.shared, parts.batch([visit(VISITS[0].images, ("What?", [("red", 1.0)]))], "conversation"))
    alone = gradients(parts.shared, parts.batch([visit(VISITS[0].images, ("What?", [("red", 1.0)]))], "shared"))
    torch.testing.assert_close(first[0], alone[0], rtol=1e-5, atol=0)


def test_a_model_that_lets_questions_see_each_other_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = parts_of("qwen2_5_vl")

    def causal(segment: Tensor, _: Tensor) -> Tensor:
        return torch.ones(segment.shape[1], segment.shape[1]).tril().bool().expand(len(segment), -1, -1)

    monkeypatch.setattr("model.vlm.forward.visible", causal)
    assert not try_sharing(parts.shared, parts.collation, CPU).passed


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_checkpointed_layers_give_the_same_gradients_and_keep_dropout_off(share: float) -> None:
    parts = parts_of("qwen2_5_vl")
    batch = parts.batch(VISITS, "shared")
    _, expected = gradients(parts.shared, batch)
    model = parts.shared.model
    again = VlmObjective(
        model,
        parts.shared.adapters["vlm"],
        page_head=parts.shared.heads["page"],
        shared=True,
        end_ids=(0,),
        gradient_checkpointing=share,
        **LOSSES,
    )
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    assert 0 < sum(layer.gradient_checkpointing for layer in layers) / len(layers) <= share
    assert not any(module.training for module in model.modules() if isinstance(module, torch.nn.Dropout))
    _, found = gradients(again, batch)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-7)


def test_a_micro_batch_without_visits_runs_the_same_layers_and_weighs_nothing() -> None:
    parts = parts_of("qwen2_5_vl")
    sums, found = gradients(parts.shared, parts.batch([], "shared"))
    assert not sums.any()
    assert found.keys() == dict(parts.shared.named_parameters()).keys()
    assert not any(gradient.any() for gradient in found.values())
