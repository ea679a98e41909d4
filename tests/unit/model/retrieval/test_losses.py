"""The losses of page retrieval against numbers worked out by hand, and what their signs do to a ranking."""

import math

import pytest
import torch
from torch import Tensor

from model.retrieval.batch import NONE, Asked
from model.retrieval.losses import contrastive, ranking, triplet
from model.retrieval.towers import Temperature

ALL = torch.arange(4).expand(4, 4)
MARGIN = 0.3


def asked(answer: list[int], window: Tensor = ALL, weight: list[float] | None = None) -> Asked:
    return Asked(window, torch.tensor(answer), torch.tensor(weight or [1.0] * len(answer)))


ODDS = torch.tensor([[4.0, 2.0, 1.0, 1.0], [1.0, 5.0, 2.0, 2.0], [3.0, 1.0, 6.0, 2.0], [2.0, 2.0, 2.0, 2.0]])
"""exp(logits): the rows add up to 8, 10, 12 and 8, the columns to 10, 10, 11 and 7."""


def test_the_contrastive_loss_is_the_mean_of_both_directions():
    found = contrastive(ODDS.log() / 7, asked([0, 1, 2, 3]), torch.tensor(7.0))
    pages, questions = (8 / 4, 10 / 5, 12 / 6, 8 / 2), (10 / 4, 10 / 5, 11 / 6, 7 / 2)
    expected = [(math.log(one) + math.log(other)) / 2 for one, other in zip(pages, questions, strict=True)]
    assert found.tolist() == pytest.approx(expected, rel=1e-6)


def test_questions_of_one_page_are_not_told_from_each_other():
    found = contrastive(ODDS.log(), asked([0, 1, 2, 0]), torch.tensor(1.0))
    assert float(found[0]) == pytest.approx((math.log(8 / 4) + math.log((4 + 1 + 3) / 4)) / 2, rel=1e-6)
    assert float(found[3]) == pytest.approx((math.log(8 / 2) + math.log((2 + 1 + 3) / 2)) / 2, rel=1e-6)


def test_a_page_outside_of_a_window_is_compared_in_neither_direction():
    window = ALL.clone()
    window[1] = torch.tensor([1, 2, 3, NONE])  # question 1 is not asked of page 0
    found = contrastive(ODDS.log(), asked([0, 0, 2, 3], window), torch.tensor(1.0))
    assert float(found[1]) == pytest.approx((math.log((5 + 2 + 2) / 5) + math.log(10 / 5)) / 2, rel=1e-6)
    assert float(found[0]) == pytest.approx((math.log(8 / 4) + math.log((4 + 3 + 2) / 4)) / 2, rel=1e-6)


def test_a_question_whose_page_is_not_known_is_no_wrong_one_for_a_page():
    found = contrastive(ODDS.log(), asked([0, 1, 2, 3], weight=[1.0, 1.0, 0.0, 1.0]), torch.tensor(1.0))
    assert float(found[0]) == pytest.approx((math.log(8 / 4) + math.log((4 + 1 + 2) / 4)) / 2, rel=1e-6)


def test_documents_do_not_see_each_other():
    alone = contrastive(ODDS.log(), asked([0, 1, 2, 3]), torch.tensor(2.0))
    generator = torch.Generator().manual_seed(0)
    both = torch.randn(6, 7, generator=generator)
    both[2:, 3:] = ODDS.log()
    window = torch.full((6, 4), NONE)
    window[:2, :3], window[2:] = torch.arange(3), ALL + 3
    together = contrastive(both, asked([2, 0, 0, 1, 2, 3], window), torch.tensor(2.0))
    torch.testing.assert_close(together[2:], alone)


COSINES = torch.tensor([[0.9, 0.5, 0.7, 0.1], [0.2, 0.4, 0.3, 0.6], [0.0, 0.1, 0.8, 0.2], [0.5, 0.5, 0.5, 0.5]])


def test_the_triplet_loss_is_the_mean_over_the_wrong_pages():
    found = triplet(COSINES, asked([0, 1, 2, 3]), MARGIN)
    assert found.tolist() == pytest.approx([0.1 / 3, (0.1 + 0.2 + 0.5) / 3, 0.0, 0.3], abs=1e-6)
    window = torch.tensor([[0, 2, NONE, NONE], [3, 1, NONE, NONE], [2, NONE, NONE, NONE], [3, 0, 1, 2]])
    found = triplet(COSINES, asked([0, 1, 0, 0], window), MARGIN)
    assert found.tolist() == pytest.approx([0.1, 0.5, 0.0, 0.3], abs=1e-6)


@pytest.mark.parametrize("loss", ["contrastive", "triplet"])
def test_gradients_are_finite_and_lead_the_right_way(loss: str):
    similarity = COSINES.clone().requires_grad_()
    scale = torch.tensor(3.0, requires_grad=True)
    window = torch.tensor([[0, 2, NONE, NONE], [1, 3, NONE, NONE], [2, NONE, NONE, NONE], [3, 0, 1, 2]])
    asks = asked([0, 0, 0, 0], window)
    found = contrastive(similarity, asks, scale) if loss == "contrastive" else triplet(similarity, asks, MARGIN)
    found.sum().backward()
    gradient = similarity.grad
    assert bool(gradient.isfinite().all())
    assert float(gradient[0, 0]) < 0 < float(gradient[0, 2]), "the right page comes nearer, a wrong one goes away"
    assert gradient[2].tolist()[:2] == [0.0, 0.0], "pages that a question is not asked of"
    if loss == "contrastive":
        assert math.isfinite(float(scale.grad))


def test_a_ranking_is_by_similarity_and_equals_stay_in_their_order():
    window = torch.tensor([[0, 1, 2, 3], [3, 2, 1, NONE], [2, NONE, NONE, NONE], [1, 3, 0, 2]])
    assert ranking(COSINES, window).tolist() == [
        [0, 2, 1, 3],
        [0, 2, 1, NONE],
        [0, NONE, NONE, NONE],
        [0, 1, 2, 3],
    ]


def trained_accuracy(sign: float, *, steps: int = 150) -> float:
    """How many of 32 questions find their page among four, once a linear map was trained with a triplet loss."""
    generator = torch.Generator().manual_seed(3)
    questions, pages = (torch.nn.functional.normalize(torch.randn(32, 24, generator=generator), dim=1) for _ in "qp")
    window = torch.arange(32).view(8, 4).repeat_interleave(4, dim=0)
    asks = asked([number % 4 for number in range(32)], window)
    weight = torch.eye(24).requires_grad_()
    optimizer = torch.optim.Adam([weight], lr=0.02)
    for _ in range(steps):
        similarity = torch.nn.functional.normalize(questions @ weight, dim=1) @ pages.T
        optimizer.zero_grad()
        triplet(sign * similarity, asks, MARGIN).sum().backward()
        optimizer.step()
    with torch.no_grad():
        best = ranking(torch.nn.functional.normalize(questions @ weight, dim=1) @ pages.T, window)[:, 0]
    return float((best == asks.answer).float().mean())


def test_with_the_sign_of_the_original_accuracy_falls_below_chance():
    """GuiQuQu takes dot products for distances, max(0, right - wrong + margin): right pages are pushed away."""
    chance = 1 / 4
    assert trained_accuracy(1.0) > 0.9
    assert trained_accuracy(-1.0) < chance / 2


class TestTemperature:
    def test_it_is_held_between_its_bounds_and_the_parameter_is_left_alone(self):
        made = Temperature(2.0)
        with torch.no_grad():
            made.offset.fill_(7.0)
        assert made().item() == pytest.approx(100.0)
        assert made.offset.item() == 7.0
        assert made.log_scale(made.offset).item() == pytest.approx(math.log(100.0))

    @pytest.mark.parametrize(("offset", "direction", "passes"), [(7.0, 1, True), (7.0, -1, False), (-5.0, -1, True)])
    def test_a_gradient_passes_only_back_between_them(self, offset: float, direction: int, passes: bool):
        made = Temperature(2.0)
        with torch.no_grad():
            made.offset.fill_(offset)
        (direction * made()).backward()
        assert (made.offset.grad.item() != 0) == passes

    def test_a_checkpoint_beyond_the_bounds_starts_where_it_was(self):
        siglip = Temperature(math.log(117.3))
        assert siglip().item() == pytest.approx(117.3, rel=1e-5)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
    @pytest.mark.parametrize("direction", [1, -1])
    def test_clips_own_scale_learns_at_the_bound_in_every_precision(self, dtype: torch.dtype, direction: int):
        made = Temperature(float(torch.tensor(100.0).log())).to(dtype)
        scale = made()
        assert scale.item() == pytest.approx(100.0, rel=1e-6)
        (direction * scale).backward()
        assert made.offset.grad.item() != 0
