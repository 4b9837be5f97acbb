"""The bridge from the editor's webhook to GitHub: a finished round becomes a repository_dispatch event.

GitHub takes no webhooks with somebody else's signature. This server checks the editor's and passes the round on with a
token of its own, which therefore is nowhere near the editor. Environment: STABN_WEBHOOK_SECRET (the editor's),
STABN_GITHUB_TOKEN (fine-grained, for the one repository, permission contents: write).
"""

import hashlib
import hmac
import json
import os
import re
import time
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from stabn.errors import StabnError
from stabn.text import parse_json

EVENT = "round-finished"
SECRET_VARIABLE, TOKEN_VARIABLE = "STABN_WEBHOOK_SECRET", "STABN_GITHUB_TOKEN"
MAX_BYTES, MAX_AGE_SECONDS, TIMEOUT_SECONDS = 1 << 16, 300, 10.0
PASSED_ON = ("round_uri", "round_id", "edits_fingerprint", "by", "at")


class BridgeError(StabnError):
    """The bridge's settings are unusable."""


class _Refused(Exception):
    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def make_bridge(repository: str, host: str, port: int, api: str = "https://api.github.com") -> ThreadingHTTPServer:
    """Return the server, ready for `serve_forever`.

    Raises:
        BridgeError: the repository's name, the secret or the token is missing or too short.
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        raise BridgeError(f"--repository {repository!r}: write owner/name")
    for name, length in ((SECRET_VARIABLE, 16), (TOKEN_VARIABLE, 1)):
        if len(os.environ.get(name, "")) < length:
            raise BridgeError(f"{name}: set at least {length} characters")
    settings = {"url": f"{api.rstrip('/')}/repos/{repository}/dispatches", "secret": os.environ[SECRET_VARIABLE]}
    return ThreadingHTTPServer(
        (host, port), type("Bridge", (_Bridge,), settings | {"token": os.environ[TOKEN_VARIABLE]})
    )


def check_signature(secret: str, header: str, body: bytes, now: float) -> bool:
    """Return whether `t=SECONDS,v1=HEX` signs the body with the secret, and recently."""
    match = re.fullmatch(r"t=(\d{1,12}),v1=([0-9a-f]{64})", header)
    if not match or abs(now - int(match[1])) > MAX_AGE_SECONDS:
        return False
    expected = hmac.new(secret.encode(), match[1].encode() + b"." + body, hashlib.sha256).hexdigest()
    return hmac.compare_digest(expected, match[2])


class _Bridge(BaseHTTPRequestHandler):
    url = secret = token = ""
    timeout = TIMEOUT_SECONDS

    def do_GET(self) -> None:
        self._answer(200, "the bridge runs")

    def do_POST(self) -> None:
        try:
            self._dispatch(self._content())
        except _Refused as error:
            self._answer(error.status, str(error))
        else:
            self._answer(202, "passed on")

    def _content(self) -> dict[str, Any]:
        length = self.headers.get("Content-Length", "")
        if not length.isdigit() or int(length) > MAX_BYTES:
            raise _Refused(413, f"send a Content-Length of at most {MAX_BYTES}")
        body = self.rfile.read(int(length))
        if not check_signature(self.secret, self.headers.get("X-Stabn-Signature", ""), body, time.time()):
            raise _Refused(
                401, "the signature is missing, wrong or not of these five minutes: check the secret and both clocks"
            )
        try:
            content = parse_json(body)
        except ValueError:
            content = None
        if not isinstance(content, dict) or content.get("event") != "round.finished":
            raise _Refused(422, "expected the event round.finished")
        if not re.fullmatch(r"s3://[\w./-]{1,500}", str(content.get("round_uri", ""))):
            raise _Refused(422, "round_uri: expected s3://…")
        return content

    def _dispatch(self, content: dict[str, Any]) -> None:
        payload = {name: content[name] for name in PASSED_ON if name in content}
        headers = {
            "Authorization": f"Bearer {self.token}",
            "Accept": "application/vnd.github+json",
            "X-GitHub-Api-Version": "2022-11-28",
            "Content-Type": "application/json",
            "User-Agent": "stabn-bridge",
        }
        body = json.dumps({"event_type": EVENT, "client_payload": payload}).encode()
        try:
            with urllib.request.urlopen(
                urllib.request.Request(self.url, body, headers, method="POST"), timeout=TIMEOUT_SECONDS
            ):
                pass
        except urllib.error.HTTPError as error:
            raise _Refused(502, f"GitHub answered {error.code}") from None
        except OSError as error:
            raise _Refused(502, f"GitHub did not answer: {getattr(error, 'reason', error)}") from None
        print(f"{payload.get('round_id', '')}: passed on", flush=True)

    def _answer(self, status: int, message: str) -> None:
        body = json.dumps({"message": message}).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
