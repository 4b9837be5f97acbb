"""Whether text can be stored and sent at all, and one form for what looks alike."""

import unicodedata


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
