"""A small HTTP server on this machine that speaks the Hugging Face Hub's routes, and misbehaves as told."""

import hashlib
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class HostedFile:
    """A file that the server offers, and how it is sent."""

    content: bytes
    announced: bytes | None = None  # contents whose checksum and size are stated; the real ones by default
    ranges: bool = True  # whether a part can be asked for
    cut_after: int | None = None  # bytes after which a response breaks off
    cuts: int = 10**9  # how many responses break off
    length: int | None = None  # Content-Length to state instead of the true one
    pause: float = 0.0  # seconds before each quarter of the contents
    on_other_host: bool = False  # redirect to another host name, as the Hub does to its CDN


@dataclass
class HubServer:
    """Serves `files` by path, `<repository>/<file name>`, at all revisions; use it as a context manager."""

    files: dict[str, HostedFile] = field(default_factory=dict)
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)  # method, path, headers

    def __enter__(self) -> "HubServer":
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self) -> None:
                hub.respond(self, with_body=False)

            def do_GET(self) -> None:
                hub.respond(self, with_body=True)

            def log_message(self, *args) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *exception) -> None:
        self.server.shutdown()
        self.server.server_close()

    def count(self, method: str) -> int:
        return sum(request[0] == method for request in self.requests)

    def respond(self, handler: BaseHTTPRequestHandler, with_body: bool) -> None:
        self.requests.append((handler.command, handler.path, dict(handler.headers)))
        path = handler.path.lstrip("/")
        is_cdn = path.startswith("cdn/")
        repository, _, rest = path.removeprefix("cdn/").partition("/resolve/")
        name = f"{repository}/{rest.partition('/')[2]}" if rest else repository
        revision = rest.partition("/")[0]
        commit = revision if len(revision) == 40 else COMMIT  # a branch has a commit, a commit is its own
        hosted = self.files.get(name)
        if hosted is None:
            known = any(key.startswith(f"{repository}/") for key in self.files)
            headers = {"X-Error-Code": "EntryNotFound" if known else "RepoNotFound", "X-Repo-Commit": commit}
            return self.send(handler, 404, headers, b"Not Found" if with_body else b"")

        announced = hosted.content if hosted.announced is None else hosted.announced
        digest = hashlib.sha256(announced).hexdigest()
        headers = {
            "X-Repo-Commit": commit,
            "X-Linked-Etag": f'"{digest}"',
            "X-Linked-Size": str(len(announced)),
            "ETag": f'"{digest}"',
        }
        if hosted.on_other_host and not is_cdn:
            port = self.server.server_port
            headers["Location"] = f"http://localhost:{port}/cdn/{repository}/resolve/{rest}"
            return self.send(handler, 302, headers, b"")

        content, status, start = hosted.content, 200, 0
        wanted = handler.headers.get("Range")
        if wanted and hosted.ranges and with_body:
            start = int(wanted.removeprefix("bytes=").split("-")[0])
            if start >= len(content):
                return self.send(handler, 416, {"Content-Range": f"bytes */{len(content)}"}, b"")
            status, headers["Content-Range"] = 206, f"bytes {start}-{len(content) - 1}/{len(content)}"
        if hosted.ranges:
            headers["Accept-Ranges"] = "bytes"
        body = content[start:]
        handler.send_response(status)
        for key, value in headers.items():
            handler.send_header(key, value)
        handler.send_header("Content-Length", str(len(body) if hosted.length is None else hosted.length))
        handler.end_headers()
        if not with_body:
            return None
        if hosted.cut_after is not None and hosted.cuts > 0:
            hosted.cuts -= 1
            handler.wfile.write(body[: max(hosted.cut_after - start, 0)])
            handler.close_connection = True
            handler.wfile.flush()
            return None
        quarter = -(-len(body) // 4) or 1
        for first in range(0, len(body), quarter):
            time.sleep(hosted.pause)
            handler.wfile.write(body[first : first + quarter])
        if hosted.length is not None:
            handler.close_connection = True
        return None

    @staticmethod
    def send(handler: BaseHTTPRequestHandler, status: int, headers: dict[str, str], body: bytes) -> None:
        handler.send_response(status)
        for key, value in headers.items():
            handler.send_header(key, value)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)
