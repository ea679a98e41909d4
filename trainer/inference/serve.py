"""`duoflow serve`: a model that stays loaded, behind one local page and the same as JSON."""

import base64
import io
import ipaddress
import json
import math
import socket
import sys
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import BoundedSemaphore, Lock
from typing import Any
from urllib.parse import parse_qs, urlsplit

from PIL import Image

from model.looking.points import to_pixels
from shards.errors import ConfigError, UserError
from shards.read.photo import check_question, photo_in
from trainer.export.read import load_exported, open_keys, read_run
from trainer.inference.asking import Asking
from trainer.inference.doubts import doubts
from trainer.inference.page import PAGE
from trainer.reporting.overlays import Answered, picture

MAX_PHOTO_BYTES = 32 * 1024**2
MAX_WAITING = 8
"""Requests at a time; each may hold a decoded photo. One of them computes."""
IDLE_SECONDS = 30
"""A connection that sends nothing for so long is closed."""
_SAFE = {
    "Content-Security-Policy": "default-src 'none'; img-src blob: data:; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'; connect-src 'self'; form-action 'none'; frame-ancestors 'none'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}

Reply = dict[str, Any]


class Refused(Exception):
    """A request that gets no answer, with the status that says why."""

    def __init__(self, status: HTTPStatus, reason: str) -> None:
        super().__init__(reason)
        self.status = status


def load_asking(path: Path, overrides: tuple[str, ...] = ()) -> Asking:
    """A model that answers about single photos.

    Raises:
        UserError: there is none at `path`, or it reads something else.
    """
    asking = Asking(load_exported(path, read_run(path, overrides, open_keys=open_keys(looks=True, pnp=False))), path)
    asking.answers([(Image.new("RGB", (8, 8)),)], ["is it there?"])  # refuses what answers no photo before anybody asks
    return asking


def reply_about(asking: Asking, data: bytes, question: str) -> Reply:
    """What is said about a photo: answer, probability, notes, points and an overlay as a data URI.

    Raises:
        UserError: the bytes are no photo, or the question is none.
    """
    photo, asked = photo_in(data, "photo"), check_question(question)
    (answered,) = asking.answers([(photo,)], [asked])
    notes = doubts(asking, (photo,), asked, answered)
    reply = {"question": asked, "answer": answered.text, "probability": answered.confidence, "notes": list(notes)}
    try:
        found = asking.look(photo, asked, answered.text)
    except ConfigError as error:  # the run trained nothing that looks
        return {**reply, "points": [], "overlay": None, "no_overlay": str(error)}
    out = io.BytesIO()
    picture(photo, found, asked, answered, notes).save(out, "PNG")
    points = to_pixels(found.points[0], found.refined.shape[-1], photo.size)
    return {**reply, "points": [list(point) for point in points], "overlay": data_uri(out.getvalue())}


def overlay_of(asking: Asking, data: bytes, question: str, answer: str, probability: float | None) -> str:
    """What a model looked at for an answer that it gave, as a data URI.

    Raises:
        UserError: the bytes are no photo, or the model does not look.
    """
    photo = photo_in(data, "photo")
    found = asking.look(photo, question, answer)
    drawn = picture(photo, found, question, Answered(answer, math.nan if probability is None else probability))
    out = io.BytesIO()
    drawn.save(out, "PNG")
    return data_uri(out.getvalue())


def data_uri(png: bytes) -> str:
    """A picture inside of a page."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


class Server(ThreadingHTTPServer):
    """Listens, and answers one question at a time.

    Args:
        reply: (bytes of a photo, question) -> what is said.

    Raises:
        UserError: nobody can listen there.
    """

    daemon_threads = True

    def __init__(self, host: str, port: int, reply: Callable[[bytes, str], Reply]) -> None:
        self.reply, self.computing, self.room = reply, Lock(), BoundedSemaphore(MAX_WAITING)
        try:
            self.local = ipaddress.ip_address("127.0.0.1" if host == "localhost" else host).is_loopback
        except ValueError:
            raise ConfigError(f"--address {host}: is no address; expected such as 127.0.0.1 or 0.0.0.0") from None
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            super().__init__((host, port), _Handler)
        except OverflowError:
            raise ConfigError(f"--port {port}: is no port; expected 0 to 65535") from None
        except OSError as error:
            raise UserError(f"--port {port}: cannot listen on {host}: {error.strerror}; give another --port") from None

    @property
    def url(self) -> str:
        """Where the page is."""
        host, port = self.server_address[:2]
        return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that went away is nobody's fault; a fault of ours was answered with 500 and is shown."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: Server
    server_version, sys_version, timeout = "duoflow", "", IDLE_SECONDS

    def do_GET(self) -> None:
        try:
            self._check_origin()
            if urlsplit(self.path).path != "/":
                raise Refused(HTTPStatus.NOT_FOUND, "the page is /, and questions go to POST /answer?question=...")
        except Refused as error:
            self._send_json(error.status, {"error": str(error)})
        else:
            self._send(HTTPStatus.OK, "text/html; charset=utf-8", PAGE.encode())

    def do_POST(self) -> None:
        try:
            status, reply = HTTPStatus.OK, self._answered()
        except Refused as error:
            status, reply = error.status, {"error": str(error)}
            self.close_connection = True
        except UserError as error:
            status, reply = HTTPStatus.BAD_REQUEST, {"error": str(error)}
        except Exception:
            self._send_json(HTTPStatus.INTERNAL_SERVER_ERROR, {"error": "the model failed; its terminal says why"})
            raise
        self._send_json(status, reply)

    def _answered(self) -> Reply:
        self._check_origin()
        asked = urlsplit(self.path)
        if asked.path != "/answer":
            raise Refused(HTTPStatus.NOT_FOUND, "questions go to POST /answer?question=...")
        questions = parse_qs(asked.query).get("question", [])
        if len(questions) != 1:
            raise UserError("question: expected once, as /answer?question=What+color+is+it%3F")
        size = self.headers.get("Content-Length", "")
        if not size.isascii() or not size.isdigit():
            raise Refused(HTTPStatus.LENGTH_REQUIRED, "photo: its size is not said (Content-Length)")
        if int(size) > MAX_PHOTO_BYTES:
            raise Refused(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"photo: {int(size):,} bytes; at most {MAX_PHOTO_BYTES:,} are read"
            )
        if not self.server.room.acquire(blocking=False):
            raise Refused(HTTPStatus.SERVICE_UNAVAILABLE, f"{MAX_WAITING} questions are waiting; ask again")
        try:
            data = self.rfile.read(int(size))
            with self.server.computing:
                return self.server.reply(data, questions[0])
        finally:
            self.server.room.release()

    def _check_origin(self) -> None:
        """Pages of other sites may send here, and a name of theirs may lead here: neither gets anything."""
        host = self.headers.get("Host", "")
        name = urlsplit(f"//{host}").hostname or ""
        if self.server.local and name not in ("localhost", "127.0.0.1", "::1"):
            raise Refused(HTTPStatus.FORBIDDEN, f"Host: {host!r} is not this machine; open {self.server.url}")
        origin = self.headers.get("Origin")
        if origin is not None and urlsplit(origin).netloc != host:
            raise Refused(HTTPStatus.FORBIDDEN, "Origin: a page of another site may not ask here")

    def _send_json(self, status: HTTPStatus, value: Reply) -> None:
        self._send(status, "application/json", json.dumps(value, ensure_ascii=False).encode("utf-8", "replace"))

    def _send(self, status: HTTPStatus, kind: str, content: bytes) -> None:
        self.send_response(status)
        for name, value in {**_SAFE, "Content-Type": kind, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *values: object) -> None:
        """Questions are nobody's business but the asker's."""
