"""Postroom: one dashboard for the outgoing mail of many sites."""

__version__ = "0.1.0"
