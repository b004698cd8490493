"""An HTTP server that misbehaves on purpose, over a folder or in front of another server (moto's S3)."""

import argparse
import http.client
import json
import random
import socket
import struct
import sys
import threading
import time
from collections import Counter, deque
from dataclasses import dataclass
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Self
from urllib.parse import parse_qs, unquote, urlsplit


@dataclass(frozen=True)
class Fault:
    """What happens to a request instead of an answer, or to its answer."""

    status: int | None = None
    headers: tuple[tuple[str, str], ...] = ()
    drop: bool = False  # the connection, without a word
    truncate: bool = False  # half of the body, then the connection is dropped
    short: bool = False  # half of the body, as if it were all
    flip: bool = False  # one byte of the body is another
    delay: float = 0.0  # seconds before the answer


class FaultyServer(ThreadingHTTPServer):
    """Serves ``folder``, or what ``upstream`` (host:port) answers. ``faults`` are used up by the next GETs of a path that
    ends with ``only``."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, folder: Path | None = None, upstream: str | None = None, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.folder, self.upstream = folder, upstream
        self.faults: deque[Fault] = deque()
        self.only = ".tar"
        self.latency, self.error_rate, self.ranges, self.google = 0.0, 0.0, True, False
        self.random = random.Random(0)
        self.seen: Counter[str] = Counter()  # "GET path"
        self.tokens: dict[str, str | None] = {}  # Authorization, by a part of the path
        self.busy, self.most_busy = 0, 0
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()

    def gets(self, end: str = ".tar") -> int:
        """How many GETs there were of paths that end so."""
        return sum(
            count for name, count in self.seen.items() if name.startswith("GET") and name.endswith(end)
        )

    def next_fault(self, path: str) -> Fault:
        with self.lock:
            if path.endswith(self.only):
                if self.faults:
                    return self.faults.popleft()
                if self.random.random() < self.error_rate:
                    return Fault(status=503)
            return Fault()

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that went away are expected here."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: FaultyServer

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        with self.server.lock:
            self.server.seen[f"{self.command} {path}"] += 1
            self.server.tokens["resolve" if "/resolve/" in path else "set"] = self.headers.get(
                "Authorization"
            )
            self.server.busy += 1
            self.server.most_busy = max(self.server.busy, self.server.most_busy)
        try:
            fault = self.server.next_fault(path) if self.command == "GET" else Fault()
            time.sleep(self.server.latency + fault.delay)
            self._answer(path, fault)
        finally:
            with self.server.lock:
                self.server.busy -= 1

    do_HEAD = do_GET  # noqa: N815

    def _answer(self, path: str, fault: Fault) -> None:
        if fault.drop:
            self._hang_up()
            return
        if fault.status is not None:
            self._send(fault.status, dict(fault.headers), b"")
            return
        status, headers, body = self._relay() if self.server.upstream else self._file(path)
        if fault.flip:
            body = body[:-1] + bytes([body[-1] ^ 1])
        if fault.short:
            body = body[: len(body) // 2]
        if fault.truncate:
            self._send(status, headers, body[: len(body) // 2], length=len(body))
            self._hang_up()
            return
        self._send(status, headers, body)

    def _file(self, path: str) -> tuple[int, dict[str, str], bytes]:
        assert self.server.folder is not None
        if self.server.google:
            if "/download/" not in self.path:
                return self._google_metadata(path)
            path = path.partition("/o/")[2]
        file = self.server.folder / path.lstrip("/")
        if not file.is_file():
            return 404, {}, b""
        size, stamp = file.stat().st_size, file.stat().st_mtime
        headers = {"ETag": f'"{stamp}-{size}"', "Last-Modified": formatdate(stamp, usegmt=True)}
        asked = self.headers.get("Range") if self.server.ranges else None
        if asked is None:
            return 200, headers, file.read_bytes()
        first, _, last = asked.removeprefix("bytes=").partition("-")
        if int(first) >= size:
            return 416, {"Content-Range": f"bytes */{size}"}, b""
        stop = min(size, int(last) + 1)
        with file.open("rb") as opened:
            opened.seek(int(first))
            body = opened.read(stop - int(first))
        return 206, headers | {"Content-Range": f"bytes {first}-{stop - 1}/{size}"}, body

    def _google_metadata(self, path: str) -> tuple[int, dict[str, str], bytes]:
        """Of one object, ``/storage/v1/b/BUCKET/o/NAME``, or of those that begin with ``prefix``."""
        name = path.partition("/o/")[2] or parse_qs(urlsplit(self.path).query).get("prefix", [""])[0]
        found = [
            {"name": str(file.relative_to(self.server.folder)), "size": str(file.stat().st_size), "etag": "1"}
            for file in sorted(self.server.folder.rglob(f"{name}*" if "/o/" in path else f"{name}/*"))
        ]
        if "/o/" in path and not found:
            return 404, {}, b"{}"
        return (
            200,
            {"Content-Type": "application/json"},
            json.dumps(found[0] if "/o/" in path else {"items": found}).encode(),
        )

    def _relay(self) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection(str(self.server.upstream))
        connection.request(self.command, self.path, headers=dict(self.headers))
        answer = connection.getresponse()
        headers = dict(answer.getheaders())
        body = answer.read()
        connection.close()
        if self.command == "HEAD":
            self._length = headers.get("Content-Length")
        for name in ("Content-Length", "Connection", "Transfer-Encoding", "Date", "Server"):
            headers = {key: value for key, value in headers.items() if key.lower() != name.lower()}
        return answer.status, headers, body

    _length: str | None = None

    def _send(self, status: int, headers: dict[str, str], body: bytes, length: int | None = None) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        told = (
            self._length
            if self.command == "HEAD" and self._length
            else str(len(body) if length is None else length)
        )
        self.send_header("Content-Length", told)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _hang_up(self) -> None:
        self.wfile.flush()
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, *_: object) -> None:
        """Quiet."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--latency", type=float, default=0.0, help="seconds before each answer")
    parser.add_argument(
        "--errors", type=float, default=0.0, help="share of requests for tars answered with 503"
    )
    arguments = parser.parse_args()
    server = FaultyServer(arguments.folder)
    server.latency, server.error_rate = arguments.latency, arguments.errors
    sys.stdout.write(server.url + "\n")
    sys.stdout.flush()
    server.serve_forever()


if __name__ == "__main__":
    main()
