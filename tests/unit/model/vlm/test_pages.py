"""Which page shows the answer: dot products with image tokens, pooled by page, against numbers worked out by hand."""

import math

import pytest
import torch

from model.parts.page import page_loss
from model.vlm.batch import Windows
from model.vlm.pages import PageFinder, in_window, log_mean_exp


@pytest.fixture
def windows() -> Windows:
    """Two sequences of six tokens: one of two pages and two questions, one of a page and one question."""
    return Windows(
        page=torch.tensor([[-1, 0, 0, 1, -1, -1], [0, 0, 0, -1, -1, -1]]),
        at=torch.tensor([4, 5, 6 + 3]),
        place=torch.tensor([[2, 5], [0, 3], [1, -1]]),
        shown=torch.tensor([1, 0, 0]),
        weight=torch.ones(3),
    )


def test_a_page_is_the_mean_of_what_its_tokens_say_however_many_they_are() -> None:
    found = torch.tensor([[0.0, 1.0, 1.0, 5.0, 9.0], [3.0, 2.0, -40.0, -41.0, 0.0]])
    page = torch.tensor([[0, 0, 1, 1, -1], [2, 1, 0, 0, -1]])
    pooled = log_mean_exp(found, page, 3)
    assert pooled[0, :2].tolist() == pytest.approx([math.log((1 + math.e) / 2), math.log((math.e + math.e**5) / 2)])
    assert pooled[1].tolist() == pytest.approx([math.log((1 + math.exp(-1)) / 2) - 40, 2.0, 3.0])
    doubled = log_mean_exp(found.repeat(1, 2), page.repeat(1, 2), 3)
    torch.testing.assert_close(doubled[1], pooled[1])


def test_a_page_without_tokens_has_a_gradient_that_is_finite() -> None:
    found = torch.zeros(1, 2, requires_grad=True)
    log_mean_exp(found, torch.tensor([[0, -1]]), 2).clamp(min=-1e4).sum().backward()
    assert found.grad.isfinite().all()


def test_a_page_is_as_likely_as_its_tokens_answer_the_question(windows: Windows) -> None:
    torch.manual_seed(0)
    head, states = PageFinder(8), torch.randn(2, 6, 8)
    found = head(states, windows)
    assert found[2, 1] == -torch.inf
    for question, sequence, page in ((0, 0, 0), (0, 0, 1), (1, 0, 0), (2, 1, 0)):
        tokens = states[sequence][windows.page[sequence] == page]
        asked = head.question(states.flatten(0, 1)[windows.at[question]])
        said = torch.stack([asked @ head.page(token) for token in tokens])
        torch.testing.assert_close(found[question, page], said.exp().mean().log())


def test_it_learns_which_of_many_tokens_is_asked_for() -> None:
    torch.manual_seed(0)
    head, codes = PageFinder(16), torch.randn(12, 16)
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-2)

    def asked(count: int) -> tuple[torch.Tensor, Windows]:
        """Three pages of four of twelve codes, and the question is one of them."""
        order = torch.stack([torch.randperm(12) for _ in range(count)])
        wanted = torch.randint(12, (count,))
        states = torch.cat([codes[order], codes[order.gather(1, wanted[:, None])]], dim=1)
        page = torch.tensor([[0] * 4 + [1] * 4 + [2] * 4 + [-1]]).expand(count, -1)
        at, place = torch.arange(count) * 13 + 12, torch.arange(3).expand(count, -1)
        return states, Windows(page, at, place, wanted // 4, torch.ones(count))

    for _ in range(80):
        states, windows = asked(32)
        loss = page_loss(head(states, windows), windows.shown, windows.weight).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    states, windows = asked(200)
    assert (head(states, windows).argmax(dim=1) == windows.shown).float().mean() > 0.95


def test_ranks_are_places_in_the_whole_window(windows: Windows) -> None:
    order = torch.tensor([[1, 0], [0, 1], [0, -1]])
    assert in_window(order, windows.place).tolist() == [[5, 2], [0, 3], [1, -1]]
