"""Incidents: what stopped, since when and why, and who is told."""
