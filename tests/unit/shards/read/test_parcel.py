"""What goes into a parcel comes out of it, also in another process, in one piece of memory."""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from shards.read.parcel import Parcel
from shards.read.workers import worker_context


class Batch(NamedTuple):
    pixels: Tensor
    blocks: dict[str, list[Tensor]]
    again: Tensor
    names: tuple[str, ...]


def batch() -> Batch:
    pixels = torch.arange(2 * 3 * 5 * 7, dtype=torch.float32).view(2, 3, 5, 7).permute(0, 3, 1, 2)
    dtypes = (torch.bool, torch.int64, torch.uint8, torch.bfloat16, torch.float64, torch.complex64)
    ones = [torch.ones(3, dtype=dtype) for dtype in dtypes]
    return Batch(pixels, {"ones": ones, "empty": [torch.empty(0, 4), torch.tensor(2.5)]}, pixels, ("a", "b"))


class Batches(Dataset):
    def __len__(self) -> int:
        return 3

    def __getitem__(self, number: int) -> Parcel:
        return Parcel(batch())


def assert_is_whole(found: Batch) -> None:
    expected = batch()
    assert (type(found), found.names) == (Batch, expected.names)
    assert found.again is found.pixels
    pairs = [(found.pixels, expected.pixels)]
    pairs += [
        pair for name, tensors in expected.blocks.items() for pair in zip(found.blocks[name], tensors, strict=True)
    ]
    for one, other in pairs:
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        assert torch.equal(one, other)
    assert len({one.untyped_storage().data_ptr() for one, _ in pairs}) == 1, "one descriptor passes between processes"


def test_every_kind_of_tensor_comes_out_as_it_went_in() -> None:
    assert_is_whole(Parcel(batch()).open())


def test_another_process_sends_one_piece_of_memory() -> None:
    loader = DataLoader(Batches(), batch_size=None, num_workers=1, multiprocessing_context=worker_context({__name__}))
    found = [parcel.open() for parcel in loader]
    assert len(found) == 3
    for each in found:
        assert_is_whole(each)


@pytest.mark.parametrize("value", [None, {}, ("text", 3)])
def test_a_value_without_tensors_is_as_good(value: object) -> None:
    assert Parcel(value).open() == value
