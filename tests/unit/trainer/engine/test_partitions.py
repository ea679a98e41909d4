"""The arithmetic of ZeRO's flat buffers: pieces put a parameter together again, whole and in order."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from trainer.engine.partitions import cut_by_parameter, cut_end_to_end

sizes = st.lists(st.integers(1, 40), min_size=1, max_size=8)
world_sizes = st.integers(1, 6)


@given(sizes=sizes, world_size=world_sizes, alignment=st.integers(1, 4))
def test_a_group_laid_end_to_end_comes_apart_into_its_parameters(sizes, world_size, alignment):
    unit = world_size * alignment
    flat = torch.arange(-(-sum(sizes) // unit) * unit)  # padded so that it can be cut evenly
    parts = flat.chunk(world_size)
    start = 0
    for numel in sizes:
        pieces = cut_end_to_end(start, numel, len(parts[0]), world_size)
        found = torch.cat([parts[piece.rank].narrow(0, piece.offset, piece.numel) for piece in pieces])
        assert found.tolist() == list(range(start, start + numel))
        start += numel


@given(sizes=sizes, world_size=world_sizes)
def test_parameters_cut_one_by_one_are_put_together_without_their_padding(sizes, world_size):
    parts = [-(-numel // world_size) for numel in sizes]
    buffers = [torch.full((sum(parts),), -1) for _ in range(world_size)]
    offset = 0
    for i, (numel, part) in enumerate(zip(sizes, parts, strict=True)):
        for element in range(numel):
            buffers[element // part][offset + element % part] = 1000 * i + element
        pieces = cut_by_parameter(offset, numel, part, world_size)
        found = torch.cat([buffers[piece.rank].narrow(0, piece.offset, piece.numel) for piece in pieces])
        assert found.tolist() == [1000 * i + element for element in range(numel)]
        offset += part
