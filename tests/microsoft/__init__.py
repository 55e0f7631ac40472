"""The Microsoft link."""
