"""The text of a mail as it is kept."""

import zlib

import sqlalchemy as sa
from sqlalchemy.orm import Session

from webapp.delivery.models import Content

MAX_BYTES = 256 * 1024 * 1024
"""Far over the largest mail that is taken; a damaged row must not fill the memory."""


def stored_mail(session: Session | sa.Connection, message_id: int) -> bytes | None:
    """The mail itself; None when it is no longer kept, or cannot be read."""
    packed = session.scalar(sa.select(Content.raw).where(Content.message_id == message_id))
    if packed is None:
        return None
    try:
        return zlib.decompressobj().decompress(packed, MAX_BYTES)
    except zlib.error:
        return None
