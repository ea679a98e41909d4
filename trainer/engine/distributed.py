"""Who this process is among the ranks, and the small agreements by which all ranks do the same.

The agreements run over a process group of their own (gloo, on the CPU, with a timeout), so that they never mix with
DeepSpeed's collectives and work the same on GPUs. A rank alone talks to nobody.
"""

import contextlib
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import TypeVar

import torch
import torch.distributed as dist

from shards.errors import ConfigError, DataError, UserError
from trainer.engine.addresses import interface_with_address
from trainer.engine.process import Place, export_place, host_name, read_place
from trainer.engine.pulse import FollowingPulse, LeadingPulse, Pulse
from trainer.engine.rendezvous import Met, Rendezvous
from trainer.engine.waiting import LostRankError, Stop, first_line

logger = logging.getLogger(__name__)

Made = TypeVar("Made")

_KINDS = {kind.__name__: kind for kind in (UserError, ConfigError, DataError)}
START_TIMEOUT_SECONDS = 120.0
HEARTBEAT_SECONDS = 10.0
_NCCL_ERRORS = "TORCH_NCCL_ASYNC_ERROR_HANDLING"
"""0 looks after no collective, 1 and 3 end the process whose collective has failed, 2 gives up the collective alone."""
BLAME_SECONDS = 3.0
"""How long a rank whose collective failed waits for word of who is lost."""


def known_to_all(error: UserError) -> UserError:
    """Mark an error that every rank raises: one of them is enough to say it."""
    error.known_to_all_ranks = True
    return error


def is_known_to_all(error: UserError) -> bool:
    """Whether every rank has this error."""
    return getattr(error, "known_to_all_ranks", False)


@dataclass(frozen=True)
class World:
    """This process among `world_size` ranks.

    Every method below is collective: all ranks call the same ones in the same order, and each raises `LostRankError`
    once a rank has been missing for the timeout given to `initialize`.
    """

    rank: int = 0
    local_rank: int = 0
    """Position on this node, and the number of its GPU."""
    world_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    timeout_seconds: float = 600.0
    hosts: tuple[str, ...] = field(default_factory=lambda: (host_name(),))
    """Name of each rank's host."""
    _group: dist.ProcessGroup | None = field(default=None, repr=False)
    _pulse: Pulse | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        """This rank, as messages call it."""
        return self.called(self.rank)

    def called(self, rank: int) -> str:
        """A rank, with its host where there are several."""
        return f"rank {rank} on {self.hosts[rank]}" if len(set(self.hosts)) > 1 else f"rank {rank}"

    @property
    def leads_host(self) -> bool:
        """Whether this is the first rank of its host, which writes what every host keeps."""
        return self.local_rank == 0

    @property
    def ranks_here(self) -> list[int]:
        """The ranks of this host."""
        return [rank for rank, host in enumerate(self.hosts) if host == self.hosts[self.rank]]

    def at(self, phase: str) -> None:
        """Say what this rank does from now on, for when it is late; not collective, but the same on all ranks."""
        if self._pulse is not None:
            self._pulse.at(phase)

    def watch(self, *, dump_stacks: Callable[[], None], on_lost: Callable[[str], None]) -> None:
        """What to do when a rank is lost.

        Args:
            dump_stacks: writes the stacks of all threads where this rank's log is.
            on_lost: ends the process with a message, if the main thread hangs; called from another thread.
        """
        if self._pulse is not None:
            self._pulse.dump_stacks, self._pulse.on_lost = dump_stacks, on_lost

    def who_is_lost(self) -> str:
        """Who is gone, silent or late, as far as this rank hears of it, or where to look; for messages."""
        blame = None if self._pulse is None else self._pulse.blame(BLAME_SECONDS)
        return blame or "the rank that failed first has the cause in its log"

    def part(self, reason: str | None = None) -> None:
        """Say goodbye to the other ranks; not collective.

        Args:
            reason: why, for ranks that go on without knowing it.
        """
        if self._pulse is not None:
            self._pulse.leave(reason)

    def any_rank(self, flag: bool) -> bool:
        """Whether `flag` is true on at least one rank."""
        return bool(self._reduce(torch.tensor([int(flag)]), dist.ReduceOp.MAX, "agreeing on a flag").item())

    def sum_across_ranks(self, values: Sequence[float] | torch.Tensor) -> torch.Tensor:
        """The sum over ranks, element by element, as float64 on the CPU; every rank passes the same shape."""
        own = torch.as_tensor(values).detach().to(device="cpu", dtype=torch.float64, copy=True)
        return self._reduce(own, dist.ReduceOp.SUM, "adding up metrics")

    def max_across_ranks(self, values: torch.Tensor) -> torch.Tensor:
        """The largest value over ranks, element by element, on the CPU; every rank passes the same shape and dtype."""
        return self._reduce(values.detach().to(device="cpu", copy=True), dist.ReduceOp.MAX, "comparing values")

    def broadcast_tensor(self, tensor: torch.Tensor, *, source: int = 0) -> torch.Tensor:
        """Overwrite `tensor` (on the CPU, contiguous) with that of rank `source`, and return it."""
        if self._group is not None and tensor.numel():
            with self._waiting(f"receiving from rank {source}"):
                dist.broadcast(tensor, src=source, group=self._group)
        return tensor

    def broadcast_bytes(self, payload: bytes | None, *, source: int = 0) -> bytes:
        """The payload of rank `source`; what the other ranks pass is not looked at."""
        own = payload if self.rank == source else b""
        assert own is not None, "the source of a broadcast needs something to send"
        length = int(self.broadcast_tensor(torch.tensor([len(own)]), source=source).item())
        buffer = torch.frombuffer(bytearray(own), dtype=torch.uint8) if own else torch.empty(length, dtype=torch.uint8)
        return self.broadcast_tensor(buffer, source=source).numpy().tobytes()

    def broadcast_text(self, text: str | None, *, source: int = 0) -> str:
        """The text of rank `source`. Structures travel as JSON in it: nothing is ever pickled between ranks."""
        return self.broadcast_bytes(None if text is None else text.encode(), source=source).decode()

    def gather_text(self, text: str) -> list[str] | None:
        """On rank 0 the texts of all ranks by rank, elsewhere None."""
        if self._group is None:
            return [text]
        own = text.encode()
        lengths = torch.zeros(self.world_size, dtype=torch.int64)
        lengths[self.rank] = len(own)
        lengths = self._reduce(lengths, dist.ReduceOp.SUM, "gathering texts")
        padded = torch.zeros(max(int(lengths.max()), 1), dtype=torch.uint8)
        if own:
            padded[: len(own)] = torch.frombuffer(bytearray(own), dtype=torch.uint8)
        received = [torch.empty_like(padded) for _ in range(self.world_size)] if self.rank == 0 else None
        with self._waiting("gathering texts"):
            dist.gather(padded, received, dst=0, group=self._group)
        if received is None:
            return None
        return [raw.numpy().tobytes()[:n].decode() for raw, n in zip(received, lengths.tolist(), strict=True)]

    def barrier(self, what: str) -> None:
        """Wait until every rank is here.

        Raises:
            LostRankError: naming `what` was waited for, and on rank 0 the ranks that did not come.
        """
        if self._group is not None:
            with self._waiting(f"waiting for every rank to {what}"):
                dist.monitored_barrier(self._group, timedelta(seconds=self.timeout_seconds), wait_all_ranks=True)

    def agree_or_raise(self, error: UserError | None) -> None:
        """Return only if no rank has an error; otherwise every rank raises that of the first rank that has one.

        A rank that raised alone would leave the others in their next collective until its timeout.

        Raises:
            UserError: of the kind it has on its own rank, naming that rank.
        """
        if self._group is None:
            if error is not None:
                raise error
            return
        first = torch.tensor([self.world_size if error is None else self.rank])
        failing = int(self._reduce(first, dist.ReduceOp.MIN, "agreeing on errors").item())
        if failing == self.world_size:
            return
        own_kind = next(k.__name__ for k in type(error).__mro__ if k.__name__ in _KINDS) if error else ""
        kind, _, message = self.broadcast_text(f"{own_kind}\n{error}", source=failing).partition("\n")
        raise known_to_all(_KINDS[kind](f"{self.called(failing)}: {message}")) from error

    def agree_on(self, make: Callable[[], Made]) -> Made:
        """What `make` gives on this rank, if it gives something on every rank; collective.

        Raises:
            UserError: on all ranks, where it raises one on any.
        """
        error, made = None, None
        try:
            made = make()
        except UserError as refused:
            if is_known_to_all(refused):
                raise  # it came from an agreement inside of `make`, behind which no rank waits for another one
            error = refused
        self.agree_or_raise(error)
        return made

    def close(self) -> None:
        """Give up the process groups; after it no collective works. Not collective."""
        self.part()
        if dist.is_initialized():
            dist.destroy_process_group()

    def _reduce(self, tensor: torch.Tensor, operation: dist.ReduceOp.RedOpType, what: str) -> torch.Tensor:
        if self._group is not None:
            with self._waiting(what):
                dist.all_reduce(tensor, op=operation, group=self._group)
        return tensor

    @contextlib.contextmanager
    def _waiting(self, what: str) -> Iterator[None]:
        if self._pulse is not None:
            self._pulse.at(what, waiting=True)
        try:
            yield
        except RuntimeError as error:
            raise LostRankError(
                f"{self.name} lost the other ranks while {what} "
                f"(timeout {self.timeout_seconds:.0f} s): {self.who_is_lost()}; {first_line(error)}"
            ) from error
        self.at(f"behind {what}")


def initialize(
    timeout_seconds: float,
    *,
    place: Place | None = None,
    start_timeout_seconds: float = START_TIMEOUT_SECONDS,
    heartbeat_seconds: float = HEARTBEAT_SECONDS,
    stop: Stop | None = None,
) -> World:
    """Join the ranks that the launcher started, or be alone if it started none. Call it in the main thread.

    Args:
        timeout_seconds: how long a collective waits for a rank before the run fails.
        place: which rank this is; None reads it from the environment.
        start_timeout_seconds: how long ranks wait for each other here.
        heartbeat_seconds: between two signs of life of a rank; after three without one it is named.
        stop: ends the waiting.

    Raises:
        ConfigError: the launcher's environment is incomplete, or asks for a GPU that this node does not have.
        LostRankError: ranks are missing, or cannot reach each other.
        StoppedError: a signal came first, here or at another rank.
    """
    place = place or read_place(os.environ)
    # DeepSpeed reads these too, and looks for MPI where they are missing.
    export_place(place)
    if place.world_size == 1:
        device = _claim_device(place.local_rank)
        # A store in memory needs no port, so runs of one process never meet.
        timeout = timedelta(seconds=timeout_seconds)
        dist.init_process_group(_backend(device), store=dist.HashStore(), rank=0, world_size=1, timeout=timeout)
        return World(place.rank, place.local_rank, 1, device, timeout_seconds)
    rendezvous = Rendezvous(place, seconds=start_timeout_seconds, stop=stop)
    beat = {"beat_seconds": min(heartbeat_seconds, timeout_seconds / 6), "timeout_seconds": timeout_seconds}
    leading = LeadingPulse([host_name()] * place.world_size, **beat) if place.rank == 0 else None
    met = rendezvous.call_the_roll({} if leading is None else leading.offer)
    try:
        device = _claim_device(place.local_rank)
        if device.type == "cuda":
            check_nccl(os.environ)
    except ConfigError as error:
        rendezvous.refuse(error)
        raise
    _lead_gloo(met.address)
    control = rendezvous.make("process groups", partial(_make_groups, place, device, timeout_seconds))
    pulse = _start_pulse(place, met, leading, beat)
    return World(*place[:3], device, timeout_seconds, met.hosts, control, pulse)


def _make_groups(place: Place, device: torch.device, timeout_seconds: float, store: dist.Store) -> dist.ProcessGroup:
    """DeepSpeed's group, and the one of the agreements, which is given back."""
    timeout = timedelta(seconds=timeout_seconds)
    store.set_timeout(timeout)  # DeepSpeed's groups are made through it later
    bound = {"device_id": device} if device.type == "cuda" else {}
    rank, world_size = place.rank, place.world_size
    dist.init_process_group(_backend(device), store=store, rank=rank, world_size=world_size, timeout=timeout, **bound)
    return dist.new_group(backend="gloo", timeout=timeout)


def _backend(device: torch.device) -> str:
    return "nccl" if device.type == "cuda" else "gloo"


def _start_pulse(place: Place, met: Met, leading: LeadingPulse | None, beat: dict[str, float]) -> Pulse | None:
    """None where rank 0 cannot be reached at a second port: then collectives alone tell that a rank is lost."""
    if leading is not None:
        leading.start(met.hosts)
        return leading
    try:
        pulse = FollowingPulse(place.rank, met.hosts, met.first_address, met.offered, **beat)
    except OSError as error:
        logger.warning("%s: no heartbeat to rank 0 at %s: %s", place, met.first_address, error)
        return None
    pulse.start()
    return pulse


def _lead_gloo(address: str | None) -> None:
    """Have gloo use the interface on which this host's other ranks are reached.

    gloo advertises the address that this host's own name resolves to, or the loopback interface where it does not
    resolve. Debian and Ubuntu resolve it to 127.0.1.1: ranks of other nodes would try to reach themselves, and hang.
    """
    if address is None or "GLOO_SOCKET_IFNAME" in os.environ:
        return
    interface = interface_with_address(address)
    if interface is not None:
        os.environ["GLOO_SOCKET_IFNAME"] = interface
        logger.info("gloo uses %s, which has %s", interface, address)


def check_nccl(environment: Mapping[str, str]) -> None:
    """Whether NCCL ends a process whose collective has failed; else the others would train on what it left.

    Raises:
        ConfigError: it is told not to.
    """
    for name in (_NCCL_ERRORS, _NCCL_ERRORS.removeprefix("TORCH_")):
        if environment.get(name) in ("0", "2"):
            raise ConfigError(
                f"{name}={environment[name]}: a rank whose collective has failed would go on with what it has not "
                "received; unset it (3 is the default)"
            )


def device_type() -> str:
    """ "cuda" or "cpu": what DeepSpeed will run on in this process, by the same rule as its own."""
    return os.environ.get("DS_ACCELERATOR") or ("cuda" if torch.cuda.is_available() else "cpu")


def _claim_device(local_rank: int) -> torch.device:
    kind = device_type()
    if kind == "cpu":
        return torch.device("cpu")
    if kind != "cuda":
        raise ConfigError(f"DS_ACCELERATOR={kind}: only cuda and cpu are supported; unset it or choose one of them")
    if local_rank >= torch.cuda.device_count():
        raise ConfigError(
            f"rank with LOCAL_RANK={local_rank}: this node shows {torch.cuda.device_count()} GPUs; start one rank per "
            "GPU (slots in the hostfile), or set DS_ACCELERATOR=cpu"
        )
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)
