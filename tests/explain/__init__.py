"""Explanations: the texts, and how one is chosen."""
