"""An HTTP server of files on loopback that fails as it is told to, and counts what it was asked for."""

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


@dataclass
class Behaviour:
    """How the server answers; may be changed while it runs."""

    ranges: bool = True
    """Whether it answers a range with that range; else with the whole file."""
    dead: bool = False
    """Whether it cuts every connection at once."""
    status: Callable[[str, int], int | None] = lambda _name, _request: None
    """(file, number of the request for it) -> the status to fail with; None answers."""
    cut: Callable[[str, int], int | None] = lambda _name, _request: None
    """(file, number of the request for it) -> after how many bytes of the answer the connection breaks."""
    change: Callable[[str, int, bytes], bytes] = lambda _name, _request, data: data
    """(file, number of the request for it, its bytes) -> what the server takes for its bytes."""
    latency_seconds: float = 0.0
    bytes_per_second: float | None = None
    """Of each answer."""
    requests: Counter[str] = field(default_factory=Counter)
    """Requests by file, failed ones too."""
    bytes_sent: Counter[str] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)


@contextlib.contextmanager
def file_server(directory: Path, behaviour: Behaviour | None = None, port: int = 0) -> Iterator[tuple[str, Behaviour]]:
    """Serve a directory; gives its URL, and how it behaves."""
    behaviour = behaviour or Behaviour()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            _answer(self, directory, behaviour)

        def log_message(self, *_: object) -> None:
            """Keep silent."""

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", behaviour
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _answer(handler: BaseHTTPRequestHandler, directory: Path, behaviour: Behaviour) -> None:
    name = handler.path.lstrip("/")
    with behaviour.lock:
        behaviour.requests[name] += 1
        number = behaviour.requests[name]
    if behaviour.latency_seconds:
        time.sleep(behaviour.latency_seconds)
    if behaviour.dead:
        handler.close_connection = True
        return
    path = directory / name
    failure = behaviour.status(name, number) or (None if path.is_file() else 404)
    if failure is not None:
        handler.send_response(failure)
        handler.send_header("Content-Length", "0")
        handler.end_headers()
        return
    data = behaviour.change(name, number, path.read_bytes())
    asked = handler.headers.get("Range")
    if asked is not None and behaviour.ranges:
        first, _, last = asked.removeprefix("bytes=").partition("-")
        start, stop = int(first), min(int(last) + 1 if last else len(data), len(data))
        if start >= len(data):
            handler.send_response(416)
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        handler.send_response(206)
        handler.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(data)}")
        data = data[start:stop]
    else:
        handler.send_response(200)
    handler.send_header("Content-Length", str(len(data)))
    handler.end_headers()
    cut = behaviour.cut(name, number)
    _send(handler, data if cut is None else data[:cut], name, behaviour)
    if cut is not None:
        handler.close_connection = True


def _send(handler: BaseHTTPRequestHandler, data: bytes, name: str, behaviour: Behaviour) -> None:
    rate = behaviour.bytes_per_second
    piece = len(data) if rate is None else max(1, int(rate / 50))
    for start in range(0, len(data), max(piece, 1)):
        part = data[start : start + piece]
        try:
            handler.wfile.write(part)
        except (BrokenPipeError, ConnectionResetError):
            return
        with behaviour.lock:
            behaviour.bytes_sent[name] += len(part)
        if rate is not None:
            time.sleep(len(part) / rate)
