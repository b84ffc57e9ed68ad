"""A small HTTP server on this machine that speaks the Hugging Face Hub's routes, and misbehaves as told."""

import base64
import hashlib
import json
import ssl
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

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
    refusal: tuple[int, str] | None = None  # status and the Hub's code for the reason, instead of the file
    refuses_contents_only: bool = False  # and answers what the file is
    etag: str | None = None  # to state instead of the SHA-256
    commit: str | None = None  # to state instead of the one that was asked for
    location: str | None = None  # where to redirect to


@dataclass
class HubServer:
    """Serves `files` by path, `<repository>/<file name>`, at all revisions; use it as a context manager.

    Takes commits to repositories, too, and serves as an HTTP proxy to itself.

    Args:
        certificate: File with a key and a certificate of 127.0.0.1; the server then speaks https.
    """

    files: dict[str, HostedFile] = field(default_factory=dict)
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)  # method, path, headers
    certificate: str | None = None

    def __enter__(self) -> "HubServer":
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self) -> None:
                hub.respond(self, with_body=False)

            def do_GET(self) -> None:
                hub.respond(self, with_body=True)

            def do_POST(self) -> None:
                hub.take(self)

            def log_message(self, *args) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        scheme = "http"
        if self.certificate is not None:
            scheme, context = "https", ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(self.certificate)
            self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        self.endpoint = f"{scheme}://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *exception) -> None:
        self.server.shutdown()
        self.server.server_close()

    def count(self, method: str) -> int:
        return sum(request[0] == method for request in self.requests)

    def respond(self, handler: BaseHTTPRequestHandler, with_body: bool) -> None:
        self.requests.append((handler.command, handler.path, dict(handler.headers)))
        address = urlsplit(handler.path)  # a whole one where this is the proxy
        path = address.path.lstrip("/")
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

        if hosted.refusal and (with_body or not hosted.refuses_contents_only):
            status, code = hosted.refusal
            headers = {"X-Error-Code": code, "X-Error-Message": f"Refused: {code}."} if code else {}
            return self.send(handler, status, headers, b"No" if with_body else b"")

        announced = hosted.content if hosted.announced is None else hosted.announced
        digest = hosted.etag or hashlib.sha256(announced).hexdigest()
        headers = {
            "X-Repo-Commit": hosted.commit or commit,
            "X-Linked-Etag": f'"{digest}"',
            "X-Linked-Size": str(len(announced)),
            "ETag": f'"{digest}"',
        }
        if hosted.location is not None:
            return self.send(handler, 302, headers | {"Location": hosted.location}, b"")
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

    def take(self, handler: BaseHTTPRequestHandler) -> None:
        """Answers what `huggingface_hub` asks to make a repository and to commit files to it."""
        body = handler.rfile.read(int(handler.headers.get("Content-Length", 0)))
        self.requests.append((handler.command, handler.path, dict(handler.headers)))
        path = handler.path.strip("/").split("?")[0].split("/")
        if path == ["api", "validate-yaml"]:
            answer = {"errors": [], "warnings": []}
        elif path == ["api", "repos", "create"]:
            asked = json.loads(body)
            answer = {"url": f"{self.endpoint}/{asked.get('organization') or 'me'}/{asked['name']}"}
        elif path[-2] == "preupload":
            files = json.loads(body)["files"]
            modes = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in files]
            answer = {"files": modes}
        elif path[-2] == "commit":
            repository = "/".join(path[2:4])
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    content = base64.b64decode(line["value"]["content"])
                    self.files[f"{repository}/{line['value']['path']}"] = HostedFile(content)
            address = f"{self.endpoint}/{repository}/commit/{COMMIT}"
            answer = {"success": True, "commitOid": COMMIT, "commitUrl": address, "hookOutput": ""}
        else:
            return self.send(handler, 404, {}, b"")
        return self.send(handler, 200, {"Content-Type": "application/json"}, json.dumps(answer).encode())

    @staticmethod
    def send(handler: BaseHTTPRequestHandler, status: int, headers: dict[str, str], body: bytes) -> None:
        handler.send_response(status)
        for key, value in headers.items():
            handler.send_header(key, value)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)
