"""Texts without secrets: everything that is printed, logged or stored goes through `masked`.

`hide_secrets` puts it before this process' output, so that what libraries print, and tracebacks, pass it as well;
StabnError's text and what goes to MLflow pass it on their own.
"""

import os
import re
import sys
import urllib.parse
from collections.abc import Iterable, Iterator
from typing import Any

HIDDEN = "***"
MIN_SECRET = 8  # characters of a variable's value that is hidden wherever it stands; shorter ones may be any word
MIN_PASSWORD = 6  # the same for a password within the address that a variable holds
_SECRET_NAME = re.compile(
    r"SECRET|PASSWORD|PASSWD|PASSPHRASE|TOKEN|COOKIE|CREDENTIAL|(ACCESS|API|PRIVATE)_?KEY|_(PASS|PWD|PAT|KEY)$",
    re.IGNORECASE,
)
_NO_SECRET_NAME = re.compile(r"(SECRETS|_PATH|_FILE|_DIR|_URL|_URI|_NAME|_HOST)$", re.IGNORECASE)  # these tell where
_WITH_USER = re.compile(r"[A-Za-z][\w+.-]*://(?P<user>[^\s]*)@")
_PATTERNS = (
    re.compile(r"(://)(?:[^/?#\s'\"<>]*|[^/?#\s'\"<>:@]+:(?!\d+[/?#])[^\s'\"<>@]*)@"),  # a password may have a slash
    re.compile(r"(?i)([?&;](?:x-amz-(?:signature|credential|security-token)|signature|sig|awsaccesskeyid|passwd|pwd"
               r"|(?:[a-z]+[_-])*(?:token|password|secret)|(?:api|access|secret)[_-]?key)=)[^&#\s'\"<>]+"),
    re.compile(r"(?i)(authorization['\"]?\s*[:=]\s*['\"]?(?:[a-z]+\s+)?)[^\s'\",}]+"),
    re.compile(r"(?i)(\b(?:cookie|x-api-key|x-auth-token)['\"]?\s*:\s*['\"]?)[^\s'\",}][^'\"\n}]*"),
    re.compile(r"(?i)((?:password|passwd|pwd)(?:=|['\"]\s*[:=]\s*)['\"]?)[^\s&#'\"<>,;}]+"),
)  # fmt: skip


def masked(text: str) -> str:
    """Return a text with *** in place of secrets.

    Those are user and password of addresses, signatures of presigned ones and tokens in their queries, credentials of
    requests, and the values of this process' variables that hold a secret, wherever they stand.
    """
    for pattern in _PATTERNS:
        text = pattern.sub(lambda match: match[1] + (f"{HIDDEN}@" if match[1] == "://" else HIDDEN), text)
    for secret in sorted(_secrets(), key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    return text


def first_line(error: BaseException) -> str:
    """Return an error's first line, at most 300 characters, without secrets."""
    return masked((str(error).strip().splitlines() or [type(error).__name__])[0])[:300]


def hide_secrets() -> None:
    """Let all that this process prints from now on, tracebacks included, pass `masked`; again: nothing changes."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None and not isinstance(stream, _MaskedStream):
            setattr(sys, name, _MaskedStream(stream))


class _MaskedStream:
    """A text stream that masks what is written to it."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        text_shown = masked(text)
        try:
            self._stream.write(text_shown)
        except UnicodeEncodeError:  # a name in characters that this terminal has not ends no work
            code = self._stream.encoding or "ascii"
            self._stream.write(text_shown.encode(code, "backslashreplace").decode(code))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _secrets() -> Iterator[str]:
    """Yield what this process' variables hold of secrets, also as it stands in an address."""
    for name, value in os.environ.items():
        found = []
        if "://" in value and (match := _WITH_USER.search(value)):
            user, colon, password = match["user"].partition(":")
            # a password that is also the name of the user or the database says nothing
            shown = f"{user if colon else ''} {value[match.end() :]}"
            found = [text for text in (password if colon else user,) if len(text) >= MIN_PASSWORD and text not in shown]
        elif len(value) >= MIN_SECRET and _SECRET_NAME.search(name) and not _NO_SECRET_NAME.search(name):
            found = [value]
        for text in found:
            yield from {text, urllib.parse.unquote(text), urllib.parse.quote(text, safe="")}
