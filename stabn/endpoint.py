"""Whose object store the environment names, for those who must know without speaking to it."""

import base64
import os
import urllib.parse

CHECKSUMS = ("AWS_REQUEST_CHECKSUM_CALCULATION", "AWS_RESPONSE_CHECKSUM_VALIDATION")


def own_endpoint() -> str:
    """Return the address of the S3 endpoint that the environment names; empty: none, so AWS itself."""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""


def without_user(url: str) -> str:
    """Return an address without user and password, as links show it and clients that know none take it."""
    parts = urllib.parse.urlsplit(url)
    if "@" not in parts.netloc:
        return url
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def basic_authorization(url: str) -> dict[str, str]:
    """Return the request header of the user and password that an address holds, none without."""
    user, is_given, _ = urllib.parse.urlsplit(url).netloc.rpartition("@")
    if not is_given:
        return {}
    name, _, password = map(urllib.parse.unquote, user.partition(":"))
    return {"Authorization": f"Basic {base64.b64encode(f'{name}:{password}'.encode()).decode()}"}


def is_aws(url: str) -> bool:
    """Tell whether an address, empty for none, is AWS's own."""
    host = urllib.parse.urlsplit(url).hostname or ""
    return not url or host.endswith((".amazonaws.com", ".amazonaws.com.cn"))


def checksum_variables(*urls: str) -> dict[str, str]:
    """Return the variables that make any AWS client speak to these stores as they understand, but for those set.

    Older stores keep the checksum that newer clients send behind an object inside the object.
    """
    if all(is_aws(url) for url in urls):
        return {}
    return {name: "when_required" for name in CHECKSUMS if not os.environ.get(name)}
