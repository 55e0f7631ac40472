"""Pictures of pages made small: a PNG with at most 256 colours, most of them exact.

A page has few colours and their shades at the edges of letters; what is rarest takes the nearest of
the others.
"""

import struct
import zlib
from collections import Counter
from pathlib import Path

SIGNATURE = b"\x89PNG\r\n\x1a\n"
MOST = 256
Colour = tuple[int, int, int]


def shrink(path: Path) -> None:
    """Write a picture of a browser (8 bits a channel, not interlaced) anew."""
    width, height, pixels = read(path.read_bytes())
    palette = chosen(Counter(pixel for row in pixels for pixel in row))
    indexes = [bytes(palette[pixel] for pixel in row) for row in pixels]
    colours = [b""] * MOST
    for pixel, index in palette.items():
        colours[index] = colours[index] or bytes(pixel)
    raw = b"".join(b"\0" + row for row in indexes)
    path.write_bytes(
        SIGNATURE
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0))
        + chunk(b"PLTE", b"".join(colours))
        + chunk(b"IDAT", zlib.compress(raw, 9))
        + chunk(b"IEND", b"")
    )


def read(raw: bytes) -> tuple[int, int, list[list[Colour]]]:
    """Width, height, and the rows of a picture."""
    place, packed, header = len(SIGNATURE), b"", b""
    while place < len(raw):
        (size,) = struct.unpack_from(">I", raw, place)
        kind, content = raw[place + 4 : place + 8], raw[place + 8 : place + 8 + size]
        header = content if kind == b"IHDR" else header
        packed += content if kind == b"IDAT" else b""
        place += size + 12
    width, height, depth, kind_of = struct.unpack(">IIBB", header[:10])
    step = {2: 3, 6: 4}[kind_of]
    assert depth == 8
    rows, above = [], bytearray(width * step)
    lines = zlib.decompress(packed)
    for start in range(0, len(lines), width * step + 1):
        line = bytearray(lines[start + 1 : start + 1 + width * step])
        unfilter(lines[start], line, above, step)
        rows.append([(line[at], line[at + 1], line[at + 2]) for at in range(0, len(line), step)])
        above = line
    return width, height, rows


def unfilter(how: int, line: bytearray, above: bytearray, step: int) -> None:
    """Undo what PNG does to a row, in place."""
    for at in range(len(line)):
        left = line[at - step] if at >= step else 0
        corner = above[at - step] if at >= step else 0
        guess = (0, left, above[at], (left + above[at]) // 2, paeth(left, above[at], corner))[how]
        line[at] = (line[at] + guess) & 255


def paeth(left: int, above: int, corner: int) -> int:
    """Whichever of the three is nearest to left + above - corner."""
    guess = left + above - corner
    return min((left, above, corner), key=lambda one: abs(guess - one))


def chosen(counted: Counter[Colour]) -> dict[Colour, int]:
    """The place in the palette of each colour."""
    kept = [colour for colour, _ in counted.most_common(MOST)]
    places = {colour: place for place, colour in enumerate(kept)}
    for colour in counted.keys() - places.keys():
        nearest = min(
            kept, key=lambda one: sum((a - b) ** 2 for a, b in zip(one, colour, strict=True))
        )
        places[colour] = places[nearest]
    return places


def chunk(kind: bytes, content: bytes) -> bytes:
    """A part of a PNG."""
    return (
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
    )
