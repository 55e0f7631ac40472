"""HTTP out: one kind of session for every service we call, sign-in and mail alike.

Proxies come from the environment; what is trusted comes from our own file alone, or an address of
certificates in the environment would silently win over it. Every call has a time limit.
"""

from typing import Any
from urllib.parse import urlsplit

import requests
from requests.utils import get_environ_proxies

from webapp import __version__

TIME_LIMIT = (10.0, 30.0)
"""Seconds to connect, and to wait for the next byte of an answer."""
USER_AGENT = f"Postroom/{__version__}"


class Outward(requests.Session):
    """A session that trusts `ca_file` (None: what `requests` trusts) and never waits for ever."""

    def __init__(
        self,
        *args: Any,
        ca_file: str | None = None,
        time_limit: tuple[float, float] = TIME_LIMIT,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.trust_env = False  # neither .netrc, which would replace our tokens, nor certificates
        self.verify = ca_file or True
        self.time_limit = time_limit
        self.headers["User-Agent"] = USER_AGENT
        self._proxies_of: dict[str, dict[str, str]] = {}

    def request(self, method: str, url: str, *args: Any, **kwargs: Any) -> requests.Response:  # type: ignore[override]
        """As the library's, with our time limit where the caller names none."""
        if kwargs.get("timeout") is None:
            kwargs["timeout"] = self.time_limit
        return super().request(method, url, *args, **kwargs)

    def merge_environment_settings(
        self,
        url: Any,
        proxies: Any,
        stream: Any,
        verify: Any,
        cert: Any,
    ) -> Any:
        """Proxies of the environment, by host; everything else as the session says."""
        merged = super().merge_environment_settings(url, proxies, stream, verify, cert)
        if not proxies:
            merged["proxies"] = self._environment_proxies(str(url))
        return merged

    def _environment_proxies(self, url: str) -> dict[str, str]:
        host = urlsplit(url).netloc
        found = self._proxies_of.get(host)
        if found is None:
            found = self._proxies_of[host] = dict(get_environ_proxies(url, no_proxy=None))
        return found
