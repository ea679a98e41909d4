"""Where each parameter's fp32 master copy and what an optimizer keeps of it lie under every ZeRO stage, and how to
move them whole.

DeepSpeed keeps them in flat buffers: one per parameter at stage 0, one per parameter group and rank at stages 1 and 2
(the group laid end to end, then cut into equal parts), one per sub-group and rank at stage 3 (every parameter cut into
equal parts, the last one padded). A `Shelf` describes one such buffer, so that reading and writing know no stages.

What an optimizer keeps of a buffer has names of its own: exp_avg and exp_avg_sq of Adam, momentum_buffer of SGD. It is
a tensor of the buffer's shape, a number, or, of a whole parameter at stage 0, a tensor of any shape.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from shards.errors import DataError

STEP = "step"
"""What an optimizer calls the number of its updates, of a buffer or of a parameter group: one number for all."""

Kept = Mapping[str, Mapping[str, Tensor]]
"""Whole tensors by the optimizer's name for them, then by parameter; a number is a tensor without dimensions."""


class Piece(NamedTuple):
    """A run of a flattened parameter's elements, in their order, inside one rank's buffer."""

    rank: int
    offset: int
    numel: int


GATHERED = 1 << 24
"""Numbers that rank 0 gathers at once, those of all ranks together: 64 MB of fp32."""


class Slot(NamedTuple):
    """One parameter, whole, as the pieces that make it up."""

    name: str
    shape: torch.Size
    pieces: tuple[Piece, ...]


class Shelf(NamedTuple):
    """One flat buffer of fp32 master values."""

    master: Tensor
    """What the optimizer updates, flat; of the same size on every rank."""
    key: Tensor
    """The same as the optimizer knows it."""
    slots: tuple[Slot, ...]
    split: bool
    """Whether the ranks hold different parts; otherwise every rank holds everything."""


def shelves(optimizer: Any, names: Mapping[nn.Parameter, str], stage: int) -> list[Shelf]:
    """All buffers of a DeepSpeed optimizer, in the same order on every rank.

    Args:
        optimizer: what DeepSpeed made of torch's, or torch's itself where it made nothing (fp32 at stage 0).
        names: of all trainable parameters.
    """
    rank, world_size = dist.get_rank(), dist.get_world_size()
    if stage == 3:
        layout = _cut_by_parameter(optimizer, names, world_size)
    elif stage > 0:
        layout = _cut_end_to_end(optimizer, names, rank, world_size)
    else:
        layout = _whole(optimizer, names, rank)
    return [Shelf(key.detach().view(-1), key, slots, stage > 0) for key, slots in layout]


def gather(shelf: Shelf, own: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Collective: on rank 0 every parameter's whole tensor, copied to the CPU; on other ranks nothing.

    Args:
        own: what this rank has of it: `master`, or a value of `kept`.
    """
    rank = dist.get_rank()
    if own.shape != shelf.key.shape and own is not shelf.master:
        assert not shelf.split or own.ndim == 0, f"{own.shape} belongs to no part of {shelf.key.shape}"
        if rank == 0:
            yield from ((slot.name, own.to("cpu", copy=True)) for slot in shelf.slots)
        return
    own = own.reshape(-1)
    parts = _parts_of_all(own) if shelf.split and dist.get_world_size() > 1 else {rank: own}
    if rank != 0:
        return
    for slot in shelf.slots:
        pieces = [parts[piece.rank].narrow(0, piece.offset, piece.numel) for piece in slot.pieces]
        yield slot.name, torch.cat(pieces).to("cpu").view(slot.shape)


def _parts_of_all(own: Tensor) -> dict[int, Tensor]:
    """Collective: every rank's part on rank 0, in host memory; on other ranks nothing.

    A piece at a time: all parts at once are the whole fp32 state, for which rank 0's GPU has no room beside its own.
    """
    longest = max(1, GATHERED // dist.get_world_size())
    ranks = range(dist.get_world_size()) if dist.get_rank() == 0 else ()
    parts = {rank: torch.empty(own.shape, dtype=own.dtype) for rank in ranks}
    for start in range(0, own.numel(), longest):
        piece = own.narrow(0, start, min(longest, own.numel() - start)).contiguous()
        received = [torch.empty_like(piece) for _ in ranks]
        dist.gather(piece, received or None, dst=0)
        for rank, there in zip(ranks, received, strict=True):
            parts[rank].narrow(0, start, piece.numel()).copy_(there)
    return parts


def scatter(shelf: Shelf, own: Tensor, full: Mapping[str, Tensor]) -> None:
    """Write this rank's part of every whole tensor into `own`. Not collective: every rank has them all."""
    rank = dist.get_rank()
    for slot in shelf.slots:
        if own.shape != shelf.key.shape and own is not shelf.master:
            own.copy_(full[slot.name])  # a number, or of a shape of its own
            continue
        flat, start = full[slot.name].reshape(-1), 0
        for piece in slot.pieces:
            if piece.rank == rank:
                own.view(-1).narrow(0, piece.offset, piece.numel).copy_(flat.narrow(0, start, piece.numel))
            start += piece.numel


def kept(shelf: Shelf, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """What an optimizer keeps of a buffer, by its own names, but for `step`; nothing before its first update.

    Numbers become tensors in double precision, which holds them exactly.
    """
    found: dict[str, Tensor] = {}
    for name, value in optimizer.state.get(shelf.key, {}).items():
        if name == STEP or value is None or isinstance(value, bool):
            continue
        if isinstance(value, int | float):
            value = torch.tensor(value, dtype=torch.float64)
        assert isinstance(value, Tensor), f"{name}: {type(value).__name__} cannot be saved"
        found[name] = value
    return found


def restore(shelf: Shelf, optimizer: torch.optim.Optimizer, saved: Kept) -> None:
    """Write this rank's part of what was kept of a buffer's parameters, where the optimizer has created it.

    Raises:
        DataError: the optimizer keeps something else, or it has another shape.
    """
    own, state = kept(shelf, optimizer), optimizer.state[shelf.key]
    for slot in shelf.slots:
        theirs = {name: tensors[slot.name] for name, tensors in saved.items() if slot.name in tensors}
        if theirs.keys() != own.keys():
            raise DataError(
                f"checkpoint: of {slot.name} the optimizer kept {', '.join(sorted(theirs)) or 'nothing'}, and this one "
                f"keeps {', '.join(sorted(own)) or 'nothing'}; resume with the recipe that it was saved with"
            )
        for name, tensor in theirs.items():
            expected = slot.shape if own[name].shape == shelf.key.shape else own[name].shape
            if tensor.shape != expected:
                raise DataError(
                    f"checkpoint: {name} of {slot.name} has shape {tuple(tensor.shape)}, the optimizer expects "
                    f"{tuple(expected)}; resume with the recipe that it was saved with"
                )
    for name, value in own.items():
        if isinstance(state[name], Tensor):
            scatter(shelf, value, saved[name])
        else:
            state[name] = type(state[name])(saved[name][shelf.slots[0].name].item())


def set_step(optimizer: torch.optim.Optimizer, step: int) -> None:
    """Make an optimizer continue after this many updates, wherever it counts them."""
    for counter in (*optimizer.state.values(), *optimizer.param_groups):
        value = counter.get(STEP)
        if isinstance(value, Tensor):
            value.fill_(float(step))
        elif value is not None:
            counter[STEP] = type(value)(step)


def check_step(optimizer: torch.optim.Optimizer, step: int) -> None:
    """Whether all that an optimizer counts says that it made this many updates."""
    counts = {int(counter[STEP]) for counter in (*optimizer.state.values(), *optimizer.param_groups) if STEP in counter}
    assert counts <= {step}, f"of {step} updates some parameters had another number: {sorted(counts)}"


def create_adamw_state(optimizer: torch.optim.AdamW, all_shelves: Sequence[Shelf]) -> None:
    """The state as AdamW itself creates it at its first step: a checkpoint of step 0 has moments that are zero."""
    for shelf in all_shelves:
        state = optimizer.state[shelf.key]
        state[STEP] = torch.tensor(0.0, dtype=torch.float32)
        for moment in ("exp_avg", "exp_avg_sq"):
            state[moment] = torch.zeros_like(shelf.key, memory_format=torch.preserve_format)


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
