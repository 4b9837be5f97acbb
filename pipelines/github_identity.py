"""GitHub's identity of a running job (OIDC) as the credentials for KFP: nothing is stored, and it is renewed.

A job with `permissions: id-token: write` gets an address where it can ask for such tokens; each is good for minutes,
and a run is followed for hours.
"""

import base64
import json
import math
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

from kfp.client.token_credentials_base import TokenCredentialsBase

ASK_URL, ASK_TOKEN = "ACTIONS_ID_TOKEN_REQUEST_URL", "ACTIONS_ID_TOKEN_REQUEST_TOKEN"
RENEW_SECONDS = 60  # before the end of a token
TIMEOUT_SECONDS = 30


class GitHubIdentity(TokenCredentialsBase):
    """Tokens of this job for an audience.

    Args:
        audience: whom they are for, as the KFP server checks it.
    """

    def __init__(self, audience: str) -> None:
        self.audience = audience
        self._token, self._end = "", -math.inf

    def refresh_api_key_hook(self, config: Any) -> None:
        """Put a token that is still good into a request's configuration.

        Raises:
            ConnectionError: GitHub gives none.
        """
        if time.monotonic() > self._end - RENEW_SECONDS:
            asked = time.monotonic()
            self._token = self._ask()
            self._end = asked + _lifetime(self._token)
        config.api_key["authorization"] = self._token

    def _ask(self) -> str:
        url = os.environ[ASK_URL]
        joint = "&" if "?" in url else "?"
        address = f"{url}{joint}{urllib.parse.urlencode({'audience': self.audience})}"
        request = urllib.request.Request(address, headers={"Authorization": f"Bearer {os.environ[ASK_TOKEN]}"})
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as answer:
                return str(json.load(answer)["value"])
        except (OSError, ValueError, KeyError) as error:
            raise ConnectionError(f"GitHub gave no identity for {self.audience!r}: {error}") from None


def _lifetime(token: str) -> float:
    """Return for how many seconds a new token is good, by GitHub's own clock; 0: it does not say."""
    try:
        claims = token.split(".")[1]
        content = json.loads(base64.urlsafe_b64decode(claims + "=" * (-len(claims) % 4)))
        return float(content["exp"]) - float(content.get("iat", time.time()))
    except (IndexError, ValueError, KeyError, TypeError):
        return 0.0
