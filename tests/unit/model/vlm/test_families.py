"""Every family of models: questions behind one prefix compute what rows compute, in loss, gradients and answers."""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from model.config import VlmConfig
from model.vlm.adapters import add_adapters
from model.vlm.checkpoint import end_ids_of
from model.vlm.collation import OwnSizeEyes, Questions, VlmCollation
from model.vlm.objective import VlmObjective
from model.vlm.prompt import ChatPrompt, row_ids
from model.vlm.trial import try_sharing
from shards.read.collation import SeenVisit
from shards.tasks.seam import Row, Target
from tests.vlm import FAMILIES

MAX_ANSWER_TOKENS = 10
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
    model, processor = FAMILIES[family]()
    ends = end_ids_of(model, processor)
    limits = {"max_question_tokens": 64, "max_answer_tokens": MAX_ANSWER_TOKENS}
    prompt = ChatPrompt.of(processor, end_ids=ends, system=system, source=family, **limits)
    torch.manual_seed(0)
    leaves = add_adapters(model, VlmConfig.model_validate({"language": {"rank": 4}, "vision": {"rank": 2}}))
    for parameter in leaves.parameters():
        parameter.data.normal_(std=0.1)
    common = {"sum_names": ("answer_loss", "answered"), "weight": 1.0, "end_ids": ends}
    shared, rows = (
        VlmObjective(model, leaves, shared=way, max_answer_tokens=MAX_ANSWER_TOKENS, **common) for way in (True, False)
    )
    return Parts(shared, rows, VlmCollation(prompt=prompt, questions="shared", max_tokens=512))


def picture(height: int, width: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8)


def visit(images: Sequence[Tensor], *asked: tuple[str, Sequence[tuple[str, float]]]) -> SeenVisit:
    rows = [
        Row(text, item, targets=tuple(Target(answer, weight) for answer, weight in answers))
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


def test_checkpointed_layers_give_the_same_gradients_and_keep_dropout_off() -> None:
    parts = parts_of("qwen2_5_vl")
    batch = parts.batch(VISITS, "shared")
    _, expected = gradients(parts.shared, batch)
    model = parts.shared.model
    again = VlmObjective(
        model,
        parts.shared.adapters["vlm"],
        sum_names=("answer_loss", "answered"),
        weight=1.0,
        shared=True,
        max_answer_tokens=MAX_ANSWER_TOKENS,
        end_ids=(0,),
        gradient_checkpointing=True,
    )
    assert any(getattr(layer, "gradient_checkpointing", False) for layer in model.modules())
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
