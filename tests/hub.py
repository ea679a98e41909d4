"""A Hugging Face hub on loopback with one data set: as much of its protocol as reading files takes."""

import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0" * 40


@contextlib.contextmanager
def hub(files: Path, *, name: str = "team/gqa", token: str | None = None) -> Iterator[str]:
    """Serve the files below a directory as a data set of this name; gives the endpoint.

    Args:
        token: what a request has to carry; None lets everybody read.
    """

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            if token is not None and self.headers.get("Authorization") != f"Bearer {token}":
                self._send(401, b"", {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted"})
            elif path in (f"/api/datasets/{name}", f"/api/datasets/{name}/revision/main"):
                self._json({"id": name, "sha": COMMIT, "private": False, "tags": [], "downloads": 0, "likes": 0})
            elif path.startswith(f"/api/datasets/{name}/tree/main"):
                self._tree(path.removeprefix(f"/api/datasets/{name}/tree/main").strip("/"))
            elif path.startswith(f"/datasets/{name}/resolve/main/"):
                self._file(files / path.removeprefix(f"/datasets/{name}/resolve/main/"))
            else:
                self._send(404, b"", {"X-Error-Code": "RepoNotFound"})

        do_HEAD = do_GET

        def _tree(self, folder: str) -> None:
            if not (files / folder).is_dir():
                self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
                return
            found = [
                {"type": "file", "path": str(path.relative_to(files)), "size": path.stat().st_size, "oid": COMMIT}
                if path.is_file()
                else {"type": "directory", "path": str(path.relative_to(files)), "oid": COMMIT}
                for path in sorted((files / folder).iterdir())
            ]
            self._json(found)

        def _file(self, path: Path) -> None:
            if not path.is_file():
                self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
                return
            data = path.read_bytes()
            first, _, last = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")
            part = data[int(first) : int(last) + 1 if last else len(data)]
            given = {"ETag": f'"{path.name}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
            if "Range" in self.headers:
                given["Content-Range"] = f"bytes {first}-{int(first) + len(part) - 1}/{len(data)}"
            self._send(206 if "Range" in self.headers else 200, part, given)

        def _json(self, value: Any) -> None:
            self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

        def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for header, value in headers.items():
                self.send_header(header, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Keep silent."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
