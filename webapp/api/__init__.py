"""The HTTP API: programs hand mail in, and read what became of it."""
