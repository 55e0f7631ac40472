"""Authlib's HTTP session with our time limits, trusted certificates and proxies."""

from typing import Any

from authlib.integrations.requests_client import OAuth2Session

from webapp.outward import Outward


class OAuthSession(OAuth2Session, Outward):  # type: ignore[misc]  # Authlib has no types
    """A client at an OAuth 2.0 provider."""

    def __init__(self, *args: Any, ca_file: str | None = None, **kwargs: Any) -> None:
        OAuth2Session.__init__(self, *args, **kwargs)
        Outward.__init__(self, ca_file=ca_file)  # second, as the first resets what it sets
