"""Whose object store the environment names, for those who must know without speaking to it."""

import os
import urllib.parse

CHECKSUMS = ("AWS_REQUEST_CHECKSUM_CALCULATION", "AWS_RESPONSE_CHECKSUM_VALIDATION")


def own_endpoint() -> str:
    """Return the address of the S3 endpoint that the environment names; empty: none, so AWS itself."""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""


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
