"""A small HTTP server on this machine: serves bytes, understands Range, and breaks off or lies on request."""

import base64
import contextlib
import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Files:
    """What is served, how, and what was asked.

    Attributes:
        content: bytes by path.
        break_after: bytes of each answer's body before the connection is cut, one entry an answer; None = whole.
        refuse: status to answer with instead, one entry an answer; None = none.
        ranges: whether Range is understood.
        version: part of the ETag.
        md5: tell this MD5 (base64), as Google's storage does; "right" for the right one.
        head: whether the server tells about files without sending them.
        requests: Range header of each request for content ("" without).
    """

    def __init__(self, content: dict[str, bytes]) -> None:
        self.content = content
        self.break_after: list[int | None] = []
        self.refuse: list[int | None] = []
        self.ranges, self.head, self.version, self.md5 = True, True, "1", ""
        self.requests: list[str] = []
        self.address = ""

    def url(self, name: str) -> str:
        return f"{self.address}/{name}"


@contextlib.contextmanager
def serve(files: Files) -> Iterator[Files]:
    """Serve until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            body = files.content.get(self.path.lstrip("/"))
            if body is None or not files.head:
                self.send_error(404 if body is None else 405)
                return
            self.send_response(200)
            self.describe(body, len(body))

        def describe(self, body: bytes, length: int) -> None:
            self.send_header("Content-Length", str(length))
            self.send_header("ETag", f'"{files.version}-{len(body)}"')
            if files.md5:
                right = base64.b64encode(hashlib.md5(body, usedforsecurity=False).digest()).decode()
                self.send_header("x-goog-hash", "crc32c=AAAAAA==")
                self.send_header("x-goog-hash", f"md5={right if files.md5 == 'right' else files.md5}")
            self.end_headers()

        def do_GET(self) -> None:
            wanted = self.headers.get("Range", "")
            files.requests.append(wanted)
            status = files.refuse.pop(0) if files.refuse else None
            body = files.content.get(self.path.lstrip("/"))
            if status or body is None:
                self.send_error(status or 404)
                return
            etag = f'"{files.version}-{len(body)}"'
            start = 0
            if wanted and files.ranges and self.headers.get("If-Range", etag) == etag:
                start = int(wanted.removeprefix("bytes=").rstrip("-"))
            if start >= len(body) > 0:
                self.send_error(416)
                return
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
            self.describe(body, len(body) - start)
            limit = files.break_after.pop(0) if files.break_after else None
            self.wfile.write(body[start : None if limit is None else start + limit])
            self.close_connection = limit is not None

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    files.address = f"http://127.0.0.1:{server.server_port}"
    try:
        yield files
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
