"""A proxy between an S3 client and a real server that lets chosen requests go wrong, as a busy store does."""

import contextlib
import http.client
import http.server
import socket
import struct
import sys
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

FAULTS = ("error_500", "slow_down", "reset", "truncated", "expired")


@dataclass
class Faults:
    """What goes wrong next: the first `count` requests that `matches` accepts get the fault `kind`."""

    kind: str = ""
    count: int = 0
    matches: Callable[[str, str], bool] = lambda method, path: True
    happened: int = 0
    endpoint: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, method: str, path: str) -> str:
        with self.lock:
            if self.happened < self.count and self.matches(method, path):
                self.happened += 1
                return self.kind
        return ""


@contextlib.contextmanager
def faulty_server(endpoint: str) -> Iterator[Faults]:
    """Pass requests on to an S3 endpoint, except those that `Faults` takes."""
    upstream = urllib.parse.urlsplit(endpoint)
    faults = Faults()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            kind = faults.take(self.command, self.path)
            if kind == "error_500":
                return self.answer(500, "InternalError")
            if kind == "slow_down":
                return self.answer(503, "SlowDown")
            if kind == "expired":
                return self.answer(400, "ExpiredToken")
            if kind == "reset":
                return self.reset()
            connection = http.client.HTTPConnection(upstream.hostname, upstream.port, timeout=30)
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                connection.putheader(name, value)
            connection.endheaders(body)
            response = connection.getresponse()
            data = response.read()
            connection.close()
            self.send_response(response.status)
            for name, value in response.getheaders():
                if name.lower() not in ("transfer-encoding", "connection", "date", "server"):
                    self.send_header(name, value)
            if "Content-Length" not in response.headers:
                self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if kind == "truncated":
                self.wfile.write(data[: len(data) // 2])
                return self.reset()
            if self.command != "HEAD":
                self.wfile.write(data)

        do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = handle_any

        def answer(self, status: int, code: str) -> None:
            data = f"<Error><Code>{code}</Code><Message>injected</Message></Error>".encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/xml")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(b"" if self.command == "HEAD" else data)

        def reset(self) -> None:
            self.wfile.flush()
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            self.close_connection = True

        def log_message(self, *args: object) -> None:
            pass

        def finish(self) -> None:
            with contextlib.suppress(OSError, ValueError):
                super().finish()

    class Server(http.server.ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: object, client_address: object) -> None:
            if not isinstance(sys.exc_info()[1], ConnectionError):  # of a client that was killed
                super().handle_error(request, client_address)  # type: ignore[arg-type]

    server = Server(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    faults.endpoint = f"http://127.0.0.1:{server.server_port}"
    try:
        yield faults
    finally:
        server.shutdown()
        server.server_close()
