"""Whether text can be stored and sent at all."""


def is_unicode(text: str) -> bool:
    """Tell whether a text is valid Unicode: halves of characters (lone surrogates), as JSON may hold, are not."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
