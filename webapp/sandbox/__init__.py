"""A stand-in for Microsoft on this machine: sign-in, consent, tokens, Graph, and an inbox.

Nothing of Postroom uses it but the command that starts it, and it needs no installation.
"""
