"""Text from outside: whether it can be stored and sent at all, one form for what looks alike, and its JSON."""

import json
import unicodedata
from typing import Any


def is_unicode(text: str) -> bool:
    """Tell whether a text is valid Unicode: halves of characters (lone surrogates), as JSON may hold, are not."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def composed(text: str) -> str:
    """Return a text with each letter and its accents as one character (NFC), as macOS's file names are not."""
    return unicodedata.normalize("NFC", text)


def parse_json(data: bytes | str, **options: Any) -> Any:
    """Return a JSON document's value, as `json.loads` does.

    Raises:
        ValueError: not JSON, in no encoding of Unicode, nested too deeply, or a text in it holds half a character.
    """
    try:
        content = json.loads(data, **options)
        if not is_unicode(json.dumps(content, ensure_ascii=False)):
            raise ValueError("a text holds half a character, a lone surrogate")
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    return content
