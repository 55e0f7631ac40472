"""Sealing: only the right key, purpose and row open it."""

import pytest

from webapp.crypto import Keyring, SealError, new_key, parse_key


def a_ring(*keys: str) -> Keyring:
    return Keyring([parse_key(key) for key in keys])


def test_what_was_sealed_opens_again() -> None:
    ring = a_ring(new_key())
    token = ring.seal("connection", "connection:1", {"password": "geheim"})
    assert "geheim" not in token
    assert ring.unseal("connection", "connection:1", token) == {"password": "geheim"}


def test_another_row_purpose_or_key_does_not_open_it() -> None:
    key = new_key()
    token = a_ring(key).seal("connection", "connection:1", "geheim")
    with pytest.raises(SealError):
        a_ring(key).unseal("connection", "connection:2", token)
    with pytest.raises(SealError):
        a_ring(key).unseal("grant", "connection:1", token)
    with pytest.raises(SealError):
        a_ring(new_key()).unseal("connection", "connection:1", token)
    with pytest.raises(SealError):
        a_ring(key).unseal("connection", "connection:1", token[:-4])


def test_the_old_key_opens_and_the_new_one_seals() -> None:
    old, new = new_key(), new_key()
    token = a_ring(old).seal("connection", "connection:1", "geheim")
    both = a_ring(new, old)
    fresh = both.rotate("connection", token)
    assert a_ring(new).unseal("connection", "connection:1", fresh) == "geheim"
    with pytest.raises(SealError):
        a_ring(old).unseal("connection", "connection:1", fresh)


@pytest.mark.parametrize("text", ["", "short", "!" * 44, "A" * 36])
def test_what_is_no_key_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="44 characters"):
        parse_key(text)
