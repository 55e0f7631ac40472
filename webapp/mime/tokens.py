"""One tokeniser for search, used by SQLite FTS5 and PostgreSQL alike, for storing and for asking.

Words are runs of letters and digits, folded to one case. Chinese, Japanese and Korean have no
blanks between words, so a run of their characters becomes overlapping pairs and, at its end, the
last character alone: "订单号" is stored as 订单 单号 号. So every piece of a run is found: one
character as the beginning of a pair or as the last one, a longer piece as a phrase.

What comes out holds only letters and digits, which FTS5's unicode61 (with `remove_diacritics 0`)
takes as they are: its own folding changes nothing and it splits nothing further (21 rare letters
of two scripts excepted, and those alike for storing and asking).
"""

import re
import unicodedata
from collections.abc import Iterator, Sequence

MAX_TOKEN = 40
"""Characters kept of one word; longer words are found by their beginning."""

MAX_TOKENS = 16_383
"""Tokens kept of one text unless told otherwise: the highest position PostgreSQL knows."""

MAX_PHRASES = 16
MAX_PHRASE_TOKENS = 64

_ASCII_WORD = re.compile("[a-z0-9]+")
_CJK = (
    "\u1100-\u11ff\u3005-\u3007\u3021-\u3029\u3031-\u3035\u3041-\u3096\u309d-\u309f"
    "\u30a1-\u30fa\u30fc-\u30ff\u3105-\u312f\u3131-\u318e\u31a0-\u31bf\u31f0-\u31ff"
    "\u3400-\u4dbf\u4e00-\u9fff\ua960-\ua97c\uac00-\ud7a3\ud7b0-\ud7fb\uf900-\ufaff"
    "\U00020000-\U0003fffd"
)
# [^\W_] is a letter or digit; the first group is a run of CJK, the second any other word.
_RUN = re.compile(rf"((?:(?=[^\W_])[{_CJK}])+)|((?:(?![{_CJK}])[^\W_])+)")


def tokens(text: str, limit: int = MAX_TOKENS) -> list[str]:
    """The tokens to store for a text, in order, at most `limit` of them."""
    found: list[str] = []
    for word, cjk in _words(text):
        if cjk:
            found.extend(_pairs(word))
            found.append(word[-1])
        else:
            found.append(word)
        if len(found) >= limit:
            break
    return found[:limit]


def query_terms(text: str) -> list[list[str]]:
    """What a person typed, as phrases: one for each piece between blanks.

    The tokens of a phrase must follow each other, and its last one may be the beginning of a word.
    """
    phrases: list[list[str]] = []
    for piece in text.split():
        phrase = _phrase(piece)
        if phrase:
            phrases.append(phrase)
        if len(phrases) >= MAX_PHRASES:
            break
    return phrases


def fts5_query(text: str) -> str | None:
    """The MATCH expression for FTS5; None when there is nothing to search for."""
    return " AND ".join(f'"{" ".join(phrase)}"*' for phrase in query_terms(text)) or None


def tsquery(text: str) -> str | None:
    """The text to cast to `tsquery`; None when there is nothing to search for."""
    return " & ".join(_followed(phrase) for phrase in query_terms(text)) or None


def tsvector_literal(stored: Sequence[str]) -> str:
    """The text to cast to `tsvector` for tokens from `tokens`, with their positions."""
    return " ".join(
        f"{_lexeme(token)}:{min(position, MAX_TOKENS)}"
        for position, token in enumerate(stored, start=1)
    )


def _words(text: str) -> Iterator[tuple[str, bool]]:
    """Words in order, and whether each is a run of CJK."""
    if text.isascii():
        for found in _ASCII_WORD.finditer(text.lower()):
            yield found[0][:MAX_TOKEN], False
        return
    for found in _RUN.finditer(fold(text)):
        if found[1]:
            yield found[1], True
        else:
            yield found[2][:MAX_TOKEN], False


def fold(text: str) -> str:
    """One spelling for what people take for the same: full width, ligatures, upper case."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())


def _pairs(run: str) -> list[str]:
    return [run[i : i + 2] for i in range(len(run) - 1)]


def _phrase(piece: str) -> list[str]:
    """Like `tokens`, but a run of CJK at the very end may go on in the text that is found."""
    words = list(_words(piece))
    phrase: list[str] = []
    for i, (word, cjk) in enumerate(words):
        if not cjk:
            phrase.append(word)
            continue
        phrase.extend(_pairs(word))
        if i < len(words) - 1 or len(word) == 1:
            phrase.append(word[-1])
    return phrase[:MAX_PHRASE_TOKENS]


def _followed(phrase: Sequence[str]) -> str:
    parts = [_lexeme(token) for token in phrase]
    expression = " <-> ".join(parts) + ":*"
    return f"({expression})" if len(parts) > 1 else expression


def _lexeme(token: str) -> str:
    return "'" + token.replace("\\", "\\\\").replace("'", "''") + "'"
