"""Who this process is among the ranks, and the small agreements by which all ranks do the same.

The agreements run over a process group of their own (gloo, on the CPU, with a timeout), so that they never mix with
DeepSpeed's collectives and work the same on GPUs. A rank alone talks to nobody.
"""

import atexit
import contextlib
import logging
import os
import socket
import struct
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import NoReturn, TypeVar

import torch
import torch.distributed as dist

from shards.errors import ConfigError, DataError, UserError

logger = logging.getLogger(__name__)

Made = TypeVar("Made")

_KINDS = {kind.__name__: kind for kind in (UserError, ConfigError, DataError)}
_GET_INTERFACE_ADDRESS = 0x8915
"""SIOCGIFADDR of Linux (netdevice(7)); its answer carries the IPv4 address in bytes 20 to 24."""


def known_to_all(error: UserError) -> UserError:
    """Mark an error that every rank raises: one of them is enough to say it."""
    error.known_to_all_ranks = True
    return error


def is_known_to_all(error: UserError) -> bool:
    """Whether every rank has this error."""
    return getattr(error, "known_to_all_ranks", False)


class LostRankError(RuntimeError):
    """Another rank died, hangs or cannot be reached: nothing that this run's user wrote is wrong."""


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
    _group: dist.ProcessGroup | None = field(default=None, repr=False)

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
        padded[: len(own)] = torch.tensor(list(own), dtype=torch.uint8)
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
        raise known_to_all(_KINDS[kind](f"rank {failing}: {message}")) from error

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
        if dist.is_initialized():
            dist.destroy_process_group()

    def _reduce(self, tensor: torch.Tensor, operation: dist.ReduceOp.RedOpType, what: str) -> torch.Tensor:
        if self._group is not None:
            with self._waiting(what):
                dist.all_reduce(tensor, op=operation, group=self._group)
        return tensor

    @contextlib.contextmanager
    def _waiting(self, what: str) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[0]
            raise LostRankError(
                f"rank {self.rank} of {self.world_size} lost the other ranks while {what} "
                f"(timeout {self.timeout_seconds:.0f} s): {reason}; the rank that failed first has the cause in its log"
            ) from error


def initialize(timeout_seconds: float) -> World:
    """Join the ranks that the launcher started (RANK, WORLD_SIZE, LOCAL_RANK), or be alone if it started none.

    Args:
        timeout_seconds: how long a collective waits for a rank before the run fails.

    Raises:
        ConfigError: the launcher's environment is incomplete, or asks for a GPU that this node does not have.
    """
    rank, local_rank, world_size = read_environment()
    # DeepSpeed reads these too, and looks for MPI where they are missing.
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(local_rank), WORLD_SIZE=str(world_size))
    device = _claim_device(local_rank)
    timeout = timedelta(seconds=timeout_seconds)
    backend = "nccl" if device.type == "cuda" else "gloo"
    if world_size == 1:
        # A store in memory needs no port, so runs of one process never meet.
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, timeout=timeout)
        return World(rank, local_rank, world_size, device, timeout_seconds)
    _choose_gloo_interface(os.environ.get("MASTER_ADDR", ""))
    bound = {"device_id": device} if device.type == "cuda" else {}
    dist.init_process_group(backend, rank=rank, world_size=world_size, timeout=timeout, **bound)
    control = dist.new_group(backend="gloo", timeout=timeout)
    return World(rank, local_rank, world_size, device, timeout_seconds, control)


def leave(code: int) -> NoReturn:
    """End a process that has used process groups, with exit code `code`, after what is registered with atexit.

    The interpreter is not taken down. gloo's threads let go of a collective's tensors a moment after it has returned,
    for which they need the interpreter's lock; a thread that waits for it while the interpreter goes down aborts a
    process whose work is done: "terminate called without an active exception", exit code -6 (pytorch/pytorch#190489).
    """
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def read_environment() -> tuple[int, int, int]:
    """Rank, local rank and world size as the launcher gave them, (0, 0, 1) without a launcher.

    Raises:
        ConfigError: some of the variables are missing, are no numbers or contradict each other.
    """
    found = {name: os.environ[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK") if name in os.environ}
    if not found:
        return 0, 0, 1
    try:
        rank, world_size = int(found["RANK"]), int(found["WORLD_SIZE"])
        local_rank = int(found["LOCAL_RANK"])
    except (KeyError, ValueError):
        raise ConfigError(
            f"environment: RANK, WORLD_SIZE and LOCAL_RANK must all be integers, found {found or 'none of them'}; "
            "start through the deepspeed launcher, or unset them to run one process"
        ) from None
    if not 0 <= rank < world_size or local_rank < 0:
        raise ConfigError(f"environment: RANK={rank}, LOCAL_RANK={local_rank} cannot belong to WORLD_SIZE={world_size}")
    return rank, local_rank, world_size


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


def _choose_gloo_interface(master_address: str) -> None:
    """Keep gloo off the loopback interface where ranks are on several nodes.

    gloo advertises the address that this host's own name resolves to. Debian and Ubuntu resolve it to 127.0.1.1, with
    which ranks of other nodes try to reach themselves and hang.
    """
    if "GLOO_SOCKET_IFNAME" in os.environ:
        return
    try:
        own = socket.gethostbyname(socket.gethostname())
        master = socket.gethostbyname(master_address)
    except OSError:
        return
    if not own.startswith("127.") or master.startswith("127."):
        return
    interface = interface_with_address(address_towards(master))
    if interface is not None:
        os.environ["GLOO_SOCKET_IFNAME"] = interface
        logger.info("this host's name resolves to %s; gloo uses %s, the way to %s", own, interface, master_address)


def address_towards(address: str) -> str:
    """This host's IPv4 address on the way to another."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((address, 9))  # on a datagram socket this looks up the route and sends nothing
        return probe.getsockname()[0]


def interface_with_address(address: str) -> str | None:
    """The name of the network interface that has this IPv4 address, None if there is none."""
    import fcntl  # not on every platform, and only Linux answers the question below

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as handle:
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode()[:15])
            try:
                answer = fcntl.ioctl(handle.fileno(), _GET_INTERFACE_ADDRESS, request)
            except OSError:
                continue  # an interface without an IPv4 address
            if socket.inet_ntoa(answer[20:24]) == address:
                return name
    return None
