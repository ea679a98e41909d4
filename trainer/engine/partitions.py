"""Where each parameter's fp32 master copy and Adam moments lie under every ZeRO stage, and how to move them whole.

DeepSpeed keeps them in flat buffers: one per parameter at stage 0, one per parameter group and rank at stages 1 and 2
(the group laid end to end, then cut into equal parts), one per sub-group and rank at stage 3 (every parameter cut into
equal parts, the last one padded). A `Shelf` describes one such buffer, so that reading and writing know no stages.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

MOMENTS = ("exp_avg", "exp_avg_sq")


class Piece(NamedTuple):
    """A run of a flattened parameter's elements, in their order, inside one rank's buffer."""

    rank: int
    offset: int
    numel: int


class Slot(NamedTuple):
    """One parameter, whole, as the pieces that make it up."""

    name: str
    shape: torch.Size
    pieces: tuple[Piece, ...]


class Shelf(NamedTuple):
    """One flat buffer of fp32 master values and the Adam state that belongs to it."""

    master: Tensor
    """What the optimizer updates; of the same size on every rank."""
    adam: dict[str, Any]
    """torch.optim.AdamW's state of `master`: step, exp_avg, exp_avg_sq."""
    slots: tuple[Slot, ...]
    split: bool
    """Whether the ranks hold different parts; otherwise every rank holds everything."""


def shelves(optimizer: Any, adamw: torch.optim.AdamW, names: Mapping[nn.Parameter, str], stage: int) -> list[Shelf]:
    """All buffers of a DeepSpeed optimizer, in the same order on every rank. Adam states that are missing are created.

    Args:
        optimizer: what DeepSpeed made of `adamw`, or `adamw` itself where it made nothing (fp32 at stage 0).
        names: of all trainable parameters.
    """
    rank, world_size = dist.get_rank(), dist.get_world_size()
    if stage == 3:
        layout = _cut_by_parameter(optimizer, names, world_size)
    elif stage > 0:
        layout = _cut_end_to_end(optimizer, names, rank, world_size)
    else:
        layout = _whole(optimizer, names, rank)
    return [Shelf(key.detach().view(-1), _adam_state(adamw, key), slots, stage > 0) for key, slots in layout]


def gather(shelf: Shelf, kind: str) -> Iterator[tuple[str, Tensor]]:
    """Collective: on rank 0 every parameter's whole tensor of this kind, fp32 on the CPU; on other ranks nothing.

    Args:
        kind: "master" or one of `MOMENTS`.
    """
    own = _buffer(shelf, kind)
    rank = dist.get_rank()
    parts = {rank: own}
    if shelf.split and dist.get_world_size() > 1:
        received = [torch.empty_like(own) for _ in range(dist.get_world_size())] if rank == 0 else None
        dist.gather(own.contiguous(), received, dst=0)
        parts = dict(enumerate(received)) if received is not None else {}
    if rank != 0:
        return
    for slot in shelf.slots:
        pieces = [parts[piece.rank].narrow(0, piece.offset, piece.numel) for piece in slot.pieces]
        yield slot.name, torch.cat(pieces).to(device="cpu", dtype=torch.float32).view(slot.shape)


def scatter(shelf: Shelf, kind: str, full: Mapping[str, Tensor]) -> None:
    """Write this rank's part of every whole tensor into the buffer. Not collective: every rank has them all."""
    own, rank = _buffer(shelf, kind), dist.get_rank()
    for slot in shelf.slots:
        flat, start = full[slot.name].reshape(-1), 0
        for piece in slot.pieces:
            if piece.rank == rank:
                own.narrow(0, piece.offset, piece.numel).copy_(flat.narrow(0, start, piece.numel))
            start += piece.numel


def optimizer_step(all_shelves: Sequence[Shelf]) -> int:
    """How many updates Adam has made, as its bias correction counts them."""
    steps = {int(shelf.adam["step"]) for shelf in all_shelves}
    assert len(steps) == 1, f"parameters were updated a different number of times: {sorted(steps)}"
    return steps.pop()


def set_optimizer_step(all_shelves: Sequence[Shelf], step: int) -> None:
    """Make Adam continue after this many updates."""
    for shelf in all_shelves:
        shelf.adam["step"].fill_(float(step))


def _buffer(shelf: Shelf, kind: str) -> Tensor:
    return shelf.master if kind == "master" else shelf.adam[kind].view(-1)


def _adam_state(adamw: torch.optim.AdamW, key: Tensor) -> dict[str, Any]:
    """The state as AdamW itself creates it at its first step, where it does not exist yet."""
    state = adamw.state[key]
    if not state:
        state["step"] = torch.tensor(0.0, dtype=torch.float32)
        for moment in MOMENTS:
            state[moment] = torch.zeros_like(key, memory_format=torch.preserve_format)
    return state


_Layout = Iterator[tuple[Tensor, tuple[Slot, ...]]]
"""Pairs of the tensor that the optimizer knows and the parameters inside it."""


def _whole(optimizer: Any, names: Mapping[nn.Parameter, str], rank: int) -> _Layout:
    """Stage 0: fp32 parameters are their own master copies, half-precision ones have a copy each."""
    groups = getattr(optimizer, "fp16_groups", None)
    models = groups if groups is not None else [group["params"] for group in optimizer.param_groups]
    masters = optimizer.fp32_groups if groups is not None else models
    for group, master_group in zip(models, masters, strict=True):
        for parameter, master in zip(group, master_group, strict=True):
            yield master, (Slot(names[parameter], parameter.shape, (Piece(rank, 0, parameter.numel()),)),)


def _cut_end_to_end(optimizer: Any, names: Mapping[nn.Parameter, str], rank: int, world_size: int) -> _Layout:
    """Stages 1 and 2."""
    groups = zip(optimizer.bit16_groups, optimizer.single_partition_of_fp32_groups, strict=True)
    for group, master in groups:
        slots, start = [], 0
        for parameter in group:
            pieces = cut_end_to_end(start, parameter.numel(), master.numel(), world_size)
            _check_own_piece(parameter, names[parameter], pieces, rank)
            slots.append(Slot(names[parameter], parameter.shape, pieces))
            start += parameter.numel()
        yield master, tuple(slots)


def cut_end_to_end(start: int, numel: int, part: int, world_size: int) -> tuple[Piece, ...]:
    """The pieces of elements [start, start + numel) of a sequence that is cut into `world_size` parts of `part`."""
    pieces = []
    for rank in range(world_size):
        first, last = max(start, rank * part), min(start + numel, (rank + 1) * part)
        if first < last:
            pieces.append(Piece(rank, first - rank * part, last - first))
    return tuple(pieces)


def _check_own_piece(parameter: nn.Parameter, name: str, pieces: Sequence[Piece], rank: int) -> None:
    """Our arithmetic against DeepSpeed's own record of this rank's fragment: its layout is not a documented promise."""
    mapping = parameter._hp_mapping
    recorded = mapping.hp_fragment_address if mapping is not None else None
    own = next((piece for piece in pieces if piece.rank == rank), None)
    found = (recorded.start, recorded.numel) if recorded is not None else None
    assert found == (own[1:] if own is not None else None), f"{name}: expected {own}, DeepSpeed keeps it at {found}"


def _cut_by_parameter(optimizer: Any, names: Mapping[nn.Parameter, str], world_size: int) -> _Layout:
    """Stage 3."""
    for group, master in zip(optimizer.fp16_groups, optimizer.fp32_partitioned_groups_flat, strict=True):
        slots = []
        for parameter in group:
            _, offset, part = optimizer.grad_position[optimizer.get_param_id(parameter)]
            pieces = cut_by_parameter(offset, parameter.ds_numel, part, world_size)
            slots.append(Slot(names[parameter], parameter.ds_shape, pieces))
        yield master, tuple(slots)


def cut_by_parameter(offset: int, numel: int, part: int, world_size: int) -> tuple[Piece, ...]:
    """The pieces of `numel` elements of which every rank holds `part` at the same offset, the last ranks fewer."""
    pieces = (Piece(rank, offset, min(part, numel - rank * part)) for rank in range(world_size))
    return tuple(piece for piece in pieces if piece.numel > 0)
