"""Which page shows the answer: means of image tokens, and a dot product that is computed by hand here."""

import pytest
import torch

from model.vlm.batch import Windows
from model.vlm.pages import PageHead, in_window, page_means


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


def test_a_page_is_the_mean_of_its_tokens(windows: Windows) -> None:
    states = torch.arange(24.0).reshape(2, 6, 2)
    found = page_means(states, windows.page, 2)
    assert found.tolist() == [[[3.0, 4.0], [6.0, 7.0]], [[14.0, 15.0], [0.0, 0.0]]]


def test_means_of_many_half_precision_states_are_summed_in_fp32() -> None:
    states = torch.ones(1, 4000, 1, dtype=torch.bfloat16)
    assert page_means(states, torch.zeros(1, 4000, dtype=torch.int64), 1).item() == 1.0


def test_a_page_is_as_likely_as_its_dot_product_with_the_question_says(windows: Windows) -> None:
    torch.manual_seed(0)
    head, states = PageHead(8), torch.randn(2, 6, 8)
    found = head(states, windows)
    assert found[2, 1] == -torch.inf
    for question, sequence, page in ((0, 0, 1), (1, 0, 0), (2, 1, 0)):
        tokens = states[sequence][windows.page[sequence] == page]
        asked = states.flatten(0, 1)[windows.at[question]]
        expected = head.question(asked) @ head.page(tokens.mean(dim=0)) / 16
        torch.testing.assert_close(found[question, page], expected)


def test_ranks_are_places_in_the_whole_window(windows: Windows) -> None:
    order = torch.tensor([[1, 0], [0, 1], [0, -1]])
    assert in_window(order, windows.place).tolist() == [[5, 2], [0, 3], [1, -1]]
