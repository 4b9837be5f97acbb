"""A small S3 store as there are old ones: no checksums in its API, request bodies kept as they come, no conditions."""

import contextlib
import datetime
import email.utils
import hashlib
import http.server
import ipaddress
import ssl
import threading
import time
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from xml.sax.saxutils import escape

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

_time = time.time  # the store's own clock, whatever a test does to this machine's


@dataclass
class OldStore:
    """What the store holds, and how it behaves.

    Attributes:
        conditions: what becomes of If-None-Match: `ignored`, or `unknown`: answered with 501.
        answer: status, headers and body that every request gets instead; None: none.
        requests: method and headers of each.
    """

    endpoint: str = ""
    conditions: str = "ignored"
    lists: bool = True
    answer: tuple[int, dict[str, str], bytes] | None = None
    objects: dict[str, bytes] = field(default_factory=dict)
    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list)


class _Handler(http.server.BaseHTTPRequestHandler):
    store: OldStore
    protocol_version = "HTTP/1.1"

    def handle_any(self) -> None:
        url = urllib.parse.urlsplit(self.path)
        path, query = urllib.parse.unquote(url.path), dict(urllib.parse.parse_qsl(url.query))
        body = self._body()
        store = self.store
        store.requests.append((self.command, {name.lower(): value for name, value in self.headers.items()}))
        if store.answer is not None:
            status, headers, data = store.answer
            return self.reply(status, data, **headers)
        if self.command == "PUT":
            if "If-None-Match" in self.headers and store.conditions == "unknown":
                return self.reply(501, b"<Error><Code>NotImplemented</Code><Message>If-None-Match</Message></Error>")
            store.objects[path] = body
            return self.reply(200, b"")
        if self.command == "DELETE":
            store.objects.pop(path, None)
            return self.reply(204, b"")
        if "list-type" in query:
            return self.reply(200, self._listing(path.strip("/"), query.get("prefix", "")))
        if path not in store.objects:
            return self.reply(404, b"<Error><Code>NoSuchKey</Code></Error>")
        data = store.objects[path]
        if begin := self.headers.get("Range"):
            first, _, last = begin.removeprefix("bytes=").partition("-")
            return self.reply(206, data[int(first) : int(last) + 1])
        return self.reply(200, data)

    do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = handle_any

    def _body(self) -> bytes:
        """Return a body as it comes, but for HTTP's own chunks."""
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _listing(self, bucket: str, prefix: str) -> bytes:
        names = {path.removeprefix(f"/{bucket}/"): data for path, data in self.store.objects.items()}
        found = [
            f"<Contents><Key>{escape(name)}</Key><Size>{len(data)}</Size>"
            f"<ETag>{hashlib.md5(data).hexdigest()}</ETag></Contents>"
            for name, data in sorted(names.items())
            if name.startswith(prefix) and self.store.lists
        ]
        return f"<ListBucketResult><IsTruncated>false</IsTruncated>{''.join(found)}</ListBucketResult>".encode()

    def reply(self, status: int, data: bytes, **headers: str) -> None:
        self.send_response_only(status)
        headers.setdefault("Date", email.utils.formatdate(_time(), usegmt=True))
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *args: object) -> None:
        pass


@contextlib.contextmanager
def old_store(tls_folder: Path | None = None) -> Iterator[OldStore]:
    """Run a store on a free port; with a folder over TLS, its certificate being `certificate.pem` there."""
    store = OldStore()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"store": store}))
    server.daemon_threads = True
    if tls_folder is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(_certificate(tls_folder))
        server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    store.endpoint = f"{'http' if tls_folder is None else 'https'}://127.0.0.1:{server.server_port}"
    try:
        yield store
    finally:
        server.shutdown()
        server.server_close()


def _certificate(folder: Path) -> Path:
    """Write a key and its own certificate for 127.0.0.1 into one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "old store")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path = folder / "certificate.pem"
    path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM) + private)
    return path
