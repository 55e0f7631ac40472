"""Mailers against servers on loopback; `fakes` holds the servers, for other tests too."""
