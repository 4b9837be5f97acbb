"""Texts without passwords: everything of an address or an error that is printed, logged or stored goes through here."""

import re


def without_password(text: str) -> str:
    """Return a text whose addresses show *** in place of user and password."""
    return re.sub(r"//[^/@\s]*@", "//***@", text)


def first_line(error: BaseException) -> str:
    """Return an error's first line, at most 300 characters, without passwords."""
    return without_password((str(error).strip().splitlines() or [type(error).__name__])[0][:300])
