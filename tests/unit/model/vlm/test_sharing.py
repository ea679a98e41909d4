"""Who sees whom, and where tokens stand: as if each question stood behind the prefix alone."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention.flex_attention import create_mask

from model.vlm.batch import PADDING
from model.vlm.collation import lay_out, learnt_of
from model.vlm.forward import sees
from model.vlm.prompt import Row
from model.vlm.sharing import additive, positions, visible

quick = settings(deadline=None, max_examples=40)
lengths = st.lists(
    st.tuples(st.integers(1, 5), st.lists(st.integers(1, 4), min_size=1, max_size=4)), min_size=1, max_size=3
)


def laid(shape: list[tuple[int, list[int]]]):
    """Sequences whose tokens are all different."""
    fresh = iter(range(1, 10_000))
    prefixes = [[next(fresh) for _ in range(prefix)] for prefix, _ in shape]
    rows = [
        [Row([next(fresh) for _ in range(count)], ((count - 1, count),)) for count in counts] for _, counts in shape
    ]
    return prefixes, rows, lay_out(prefixes, rows, pad_id=0)


@quick
@given(lengths)
def test_a_token_sees_what_stands_before_it_in_its_own_row(shape: list[tuple[int, list[int]]]) -> None:
    prefixes, rows, found = laid(shape)
    seen = visible(found.segment, found.place)
    for number, (prefix, behind) in enumerate(zip(prefixes, rows, strict=True)):
        for row, start in zip(behind, found.starts[number], strict=True):
            whole = [*prefix, *row.ids]
            for place in range(len(row.ids)):
                keys = found.ids[number][seen[number, start + place]].tolist()
                assert keys == whole[: len(prefix) + place + 1]
        for place in range(len(prefix)):
            assert found.ids[number][seen[number, place]].tolist() == prefix[: place + 1]
    padding = found.segment == PADDING
    assert not (seen & (padding[:, None, :] != padding[:, :, None])).any()


@quick
@given(lengths)
def test_flex_attention_gets_the_same_mask(shape: list[tuple[int, list[int]]]) -> None:
    _, _, found = laid(shape)
    count, length = found.ids.shape
    made = create_mask(sees(found.segment, found.place), count, 1, length, length, device="cpu")
    assert torch.equal(made[:, 0], visible(found.segment, found.place))


@quick
@given(lengths, st.booleans())
def test_every_question_goes_on_from_the_end_of_the_prefix(shape: list[tuple[int, list[int]]], axes: bool) -> None:
    prefixes, rows, found = laid(shape)
    of_prefix = None
    if axes:  # as M-RoPE: the axes of an image's tokens are small, and what follows goes on from their largest
        of_prefix = torch.stack([found.place, found.place // 2, found.place % 2])
    placed = positions(found.segment, found.place, of_prefix)
    for number, (prefix, behind) in enumerate(zip(prefixes, rows, strict=True)):
        start = len(prefix)
        for row, begin in zip(behind, found.starts[number], strict=True):
            stands = placed[..., number, begin : begin + len(row.ids)]
            assert torch.equal(stands, torch.arange(start, start + len(row.ids)).expand_as(stands))
        assert torch.equal(placed[..., number, :start][..., 0], torch.zeros_like(placed[..., number, 0]))


@quick
@given(lengths)
def test_a_learnt_token_is_expected_behind_the_one_before_it(shape: list[tuple[int, list[int]]]) -> None:
    _, rows, found = laid(shape)
    flat: Tensor = found.ids.flatten()
    weights = torch.ones(sum(map(len, rows)))
    learnt = learnt_of(rows, found.starts, found.ids.shape[1], weights)
    assert torch.equal(flat[learnt.at + 1], learnt.token)
    assert learnt.token.tolist() == [row.ids[-1] for behind in rows for row in behind]
    assert learnt.answer.tolist() == list(range(len(weights)))


def test_what_is_not_seen_weighs_nothing_in_any_dtype() -> None:
    seen = torch.tensor([[[True, False], [True, True]]])
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        weights = additive(seen, dtype).softmax(dim=-1)
        assert weights.isfinite().all()
        assert weights[0, 0, 0].tolist() == [1.0, 0.0]
