"""Who asks: accounts or a proxy's header, signed session cookies, CSRF tokens, and a limit on guessing passwords."""

import asyncio
import contextlib
import hashlib
import hmac
import ipaddress
import os
import secrets
import time
import unicodedata
import urllib.parse
from collections import defaultdict, deque
from dataclasses import dataclass

from itsdangerous import BadSignature, URLSafeTimedSerializer
from starlette.requests import Request
from starlette.responses import Response

from stabn.config import EditorConfig
from stabn.editor.accounts import Accounts
from stabn.editor.http import ApiError, run_in_threadpool
from stabn.errors import StabnError

COOKIE = "stabn_session"
SECRET_VARIABLE = "STABN_EDITOR_SECRET"
MIN_SECRET = 32
MAX_NAME = 128  # as `stabn editor-accounts` takes them
WINDOW_SECONDS = 300.0
ATTEMPTS_PER_ADDRESS = 10  # times login_attempts: many people share one address
HASHES_AT_ONCE = 2  # argon2 takes 64 MiB each
LOOPBACK = ("127.0.0.1", "::1", "localhost")


class AuthError(StabnError):
    """The settings would let in the wrong people, or nobody."""


@dataclass(frozen=True)
class User:
    """Who sent a request.

    Attributes:
        csrf: token that every request that changes something must carry.
    """

    name: str
    role: str
    csrf: str

    @property
    def is_lead(self) -> bool:
        """Whether this person may see everybody's work."""
        return self.role == "lead"


class Authenticator:
    """Tell who sent a request, sign people in and out, and refuse forged requests."""

    def __init__(self, config: EditorConfig) -> None:
        self.config = config
        self.https = config.public_url.startswith("https://")
        self.secret = _secret()
        self.accounts = Accounts(config.accounts_uri) if config.auth == "accounts" else None
        if config.auth == "open" and config.host not in LOOPBACK:
            raise AuthError(
                f"editor.auth = open with editor.host = {config.host}: anybody in the network could change the round; "
                "use accounts or proxy, or listen on 127.0.0.1"
            )
        self._networks = [ipaddress.ip_network(text, strict=False) for text in config.trusted_proxies]
        self._sessions = URLSafeTimedSerializer(self.secret, salt="stabn editor session")
        self._by_name = RateLimit(config.login_attempts, WINDOW_SECONDS)
        self._by_address = RateLimit(config.login_attempts * ATTEMPTS_PER_ADDRESS, WINDOW_SECONDS)
        self._hashing = asyncio.Semaphore(HASHES_AT_ONCE)

    async def user(self, request: Request) -> User:
        """Return who sent a request, and check that the page itself sent it if it changes something.

        Raises:
            ApiError: 401 nobody is signed in, 403 a forged request or an untrusted proxy.
        """
        self.check_host(request)
        user = self._proxy_user(request) if self.config.auth == "proxy" else await self._session_user(request)
        if request.method not in ("GET", "HEAD"):
            self.check_origin(request)
            if not hmac.compare_digest(request.headers.get("x-csrf-token", "").encode(), user.csrf.encode()):
                raise ApiError(403, "csrf", "the request did not come from this page; reload the page")
        return user

    async def sign_in(self, request: Request, name: str, password: str, response: Response) -> User:
        """Check a name and password and put a session into the response's cookie.

        Raises:
            ApiError: 401 they do not belong together, 429 too many attempts.
        """
        self.check_host(request)
        self.check_origin(request)
        if self.config.auth == "proxy":
            raise ApiError(400, "bad_request", "the proxy in front of this page signs people in")
        name = name.strip()
        if not 0 < len(name) <= MAX_NAME or not name.isprintable():
            raise ApiError(400, "bad_request", f"give a name of 1 to {MAX_NAME} characters")
        stamp = ""
        if self.accounts is not None:
            address = self.address(request)
            limits = ((self._by_name, name), (self._by_address, address))
            for limit, key in limits:
                if wait := limit.wait(key):
                    raise ApiError(429, "too_many", f"too many attempts; try again in {wait} seconds", retry_after=wait)
            for limit, key in limits:  # before the check, so that guesses sent at once count as well
                limit.add(key)
            async with self._hashing:
                account = await run_in_threadpool(self.accounts.check, name, password[:1000])
            if account is None:
                raise ApiError(401, "wrong_password", "name and password do not belong together")
            for limit, key in limits:
                limit.take_back(key)
            stamp = _stamp(account.password_hash)
        session = {"name": name, "id": secrets.token_hex(8), "stamp": stamp}
        response.set_cookie(
            COOKIE,
            self._sessions.dumps(session),  # type: ignore[arg-type]
            max_age=int(self.config.session_hours * 3600),
            httponly=True,
            samesite="lax",
            secure=self.https,
        )
        return self._user(name, "lead" if self.accounts is None else account.role, session["id"])  # type: ignore[union-attr]

    def sign_out(self, response: Response) -> None:
        """Remove the session's cookie."""
        response.delete_cookie(COOKIE, httponly=True, samesite="lax", secure=self.https)

    def check_host(self, request: Request) -> None:
        """Refuse names that another site may have pointed at this address (DNS rebinding)."""
        host = _parts(f"//{request.headers.get('host', '')}").hostname or ""
        allowed = [*LOOPBACK] if self.config.auth == "open" else []
        if self.config.public_url:
            allowed += [urllib.parse.urlsplit(self.config.public_url).hostname or "", *LOOPBACK]
        if allowed and host not in allowed:
            raise ApiError(403, "host", f"this page is not served as {host!r:.80}; use its own address")

    def check_origin(self, request: Request) -> None:
        """Refuse a request that another site's page sent."""
        site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin")
        own = {request.headers.get("host", ""), urllib.parse.urlsplit(self.config.public_url).netloc} - {""}
        is_own = origin is None or _parts(origin).netloc in own  # "null": a sandboxed page, or a file
        if site not in (None, "same-origin") or not is_own:
            raise ApiError(403, "csrf", "the request came from another site; use the editor's own page")

    def address(self, request: Request) -> str:
        """Return the address a request came from, as a trusted proxy saw it if there is one."""
        peer = request.client.host if request.client else ""
        if self._is_trusted(peer) and (forwarded := request.headers.get("x-forwarded-for")):
            return forwarded.rpartition(",")[2].strip()
        return peer

    def _is_trusted(self, peer: str) -> bool:
        try:
            address = ipaddress.ip_address(peer)
        except ValueError:
            return False
        return any(address in network for network in self._networks)

    def _proxy_user(self, request: Request) -> User:
        peer = request.client.host if request.client else ""
        if not self._is_trusted(peer):
            raise ApiError(403, "proxy", f"requests from {peer} are not believed; come through the proxy")
        names = request.headers.getlist(self.config.user_header)
        name = _proxy_name(names[0]) if len(names) == 1 else ""
        if not 0 < len(name) <= 200 or not name.isprintable():
            raise ApiError(401, "sign_in", f"the proxy sent no usable {self.config.user_header}; sign in there")
        return self._user(name, "lead" if name in map(_folded, self.config.leads) else "annotator", name)

    async def _session_user(self, request: Request) -> User:
        try:
            session, signed = self._sessions.loads(request.cookies.get(COOKIE, ""), return_timestamp=True)
        except BadSignature:
            raise ApiError(401, "sign_in", "sign in to go on") from None
        # Of another server the time may lie ahead of this one's, which `max_age` would refuse.
        if time.time() - signed.timestamp() > self.config.session_hours * 3600:
            raise ApiError(401, "sign_in", "sign in to go on")
        if self.accounts is None:
            return self._user(session["name"], "lead", session["id"])
        if self.accounts.is_stale():
            account = await run_in_threadpool(self.accounts.get, session["name"])
        else:
            account = self.accounts.get(session["name"])
        if account is None or _stamp(account.password_hash) != session["stamp"]:
            raise ApiError(401, "sign_in", "sign in to go on")
        return self._user(account.name, account.role, session["id"])

    def _user(self, name: str, role: str, session_id: str) -> User:
        token = hmac.new(self.secret.encode(), f"csrf\n{name}\n{session_id}".encode(), hashlib.sha256)
        return User(name, role, token.hexdigest())


class RateLimit:
    """Count events per key in a sliding window."""

    def __init__(self, allowed: int, window_seconds: float) -> None:
        self.allowed, self.window = allowed, window_seconds
        self._events: dict[str, deque[float]] = defaultdict(deque)

    def add(self, key: str) -> None:
        """Count an event now, and forget keys whose events are all past."""
        now = time.monotonic()
        if len(self._events) > 10_000:
            for old in [name for name, events in self._events.items() if not events or events[-1] < now - self.window]:
                del self._events[old]
        self._events[key].append(now)

    def take_back(self, key: str) -> None:
        """Do not count the newest event."""
        events = self._events.get(key)
        if events:
            events.pop()

    def wait(self, key: str) -> int:
        """Return the seconds until another event is allowed; 0: now."""
        events = self._events.get(key)
        if not events:
            return 0
        now = time.monotonic()
        while events and events[0] < now - self.window:
            events.popleft()
        return 0 if len(events) < self.allowed else max(1, int(events[0] + self.window - now) + 1)


def _proxy_name(header: str) -> str:
    """Return the user of a proxy's header, which carries bytes: UTF-8, or else Latin-1."""
    with contextlib.suppress(UnicodeDecodeError):
        header = header.encode("latin-1").decode()
    return _folded(header)


def _folded(name: str) -> str:
    """Return a proxy's user as they are kept: an address is the same in any case, and an é in either spelling."""
    return unicodedata.normalize("NFC", name.strip()).lower()


def _parts(address: str) -> urllib.parse.SplitResult:
    """Return the parts of an address that somebody sent; of one that is none, empty ones."""
    try:
        return urllib.parse.urlsplit(address)
    except ValueError:
        return urllib.parse.urlsplit("")


def _secret() -> str:
    secret = os.environ.get(SECRET_VARIABLE, "")
    if secret and len(secret) < MIN_SECRET:
        raise AuthError(f"{SECRET_VARIABLE} has {len(secret)} characters: use at least {MIN_SECRET} random ones")
    return secret or secrets.token_hex(32)  # sessions then end with this process


def _stamp(password_hash: str) -> str:
    """Return what a session remembers of a password: it ends when the password changes."""
    return hashlib.sha256(password_hash.encode()).hexdigest()[:16]
