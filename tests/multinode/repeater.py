"""Passes frames between network interfaces with a delay, and loses some: for kernels without netem.

python -S -m tests.multinode.repeater DELAY_SECONDS LOSS INTERFACE INTERFACE ...
"""

import heapq
import random
import select
import socket
import sys
import time

EVERY_PROTOCOL = 0x0003
"""ETH_P_ALL of linux/if_ether.h."""
LONGEST_FRAME = 65_600
BURST = 64
"""Frames taken from an interface before the next is looked at."""


def main() -> None:
    delay, loss, names = float(sys.argv[1]), float(sys.argv[2]), sys.argv[3:]
    generator = random.Random(0)
    ports = [_open(name) for name in names]
    print("up", flush=True)
    waiting: list[tuple[float, int, bytes, socket.socket]] = []
    taken = 0
    while True:
        until_next = max(0.0, waiting[0][0] - time.monotonic()) if waiting else None
        for port in select.select(ports, [], [], until_next)[0]:
            for frame in _frames(port):
                if generator.random() >= loss:
                    taken += 1  # frames of one instant stay in order
                    heapq.heappush(waiting, (time.monotonic() + delay, taken, frame, port))
        while waiting and waiting[0][0] <= time.monotonic():
            _, _, frame, source = heapq.heappop(waiting)
            for port in ports:
                if port is not source:
                    _send(port, frame)


def _open(name: str) -> socket.socket:
    port = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(EVERY_PROTOCOL))
    port.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 24)
    port.bind((name, 0))
    port.setblocking(False)
    return port


def _frames(port: socket.socket) -> list[bytes]:
    frames = []
    for _ in range(BURST):
        try:
            frame, address = port.recvfrom(LONGEST_FRAME)
        except BlockingIOError:
            break
        except OSError:  # the link is down
            break
        if address[2] != socket.PACKET_OUTGOING:
            frames.append(frame)
    return frames


def _send(port: socket.socket, frame: bytes) -> None:
    try:
        port.send(frame)
    except OSError:  # a full queue or a link that is down loses frames, as a switch does
        return


if __name__ == "__main__":
    main()
