"""Languages: which there are, and the catalogues behind them.

The catalogue is a sorted `.po` without line numbers, so that a change shows as what it is. It is
compiled into `instance/translations` at start. After a change of a sentence run:

    python -m webapp.i18n update
"""

import hashlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from babel.messages.catalog import Catalog
from babel.messages.extract import DEFAULT_KEYWORDS, extract_from_dir
from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po, write_po

ENGLISH = "en"
CHINESE = "zh_Hans"
LANGUAGES = {ENGLISH: "English", CHINESE: "中文"}
"""Locale names as Babel spells them, and what each language calls itself."""

HTML_LANG = {ENGLISH: "en", CHINESE: "zh-Hans"}
DATE_TIME = {ENGLISH: "d MMM y, HH:mm:ss", CHINESE: "y年M月d日 HH:mm:ss"}
DATE = {ENGLISH: "d MMM y", CHINESE: "y年M月d日"}

PACKAGE = Path(__file__).parent
CATALOGUES = PACKAGE / "translations"
KEYWORDS = {**DEFAULT_KEYWORDS, "N_": None, "_l": None, "lazy_ngettext": (1, 2)}
HEADER = """\
msgid ""
msgstr ""
"Content-Type: text/plain; charset=utf-8\\n"
"Language: zh_Hans\\n"
"Plural-Forms: nplurals=1; plural=0;\\n"

"""

MessageId = str | tuple[str, str]
"""A sentence, or its singular and plural."""

_NAMED = re.compile(r"%\((\w+)\)[sd]|(?<!\{)\{(\w*)\}(?!\})")


def resource(name: str) -> Path:
    """The folder `templates` or `static`: inside the package when installed, else beside it."""
    inside = PACKAGE / name
    return inside if inside.is_dir() else PACKAGE.parent / name


def compile_catalogues(instance: Path) -> Path:
    """Compile every catalogue that changed since; returns the folder for Flask-Babel."""
    folder = instance / "translations"
    for source in sorted(CATALOGUES.glob("*/LC_MESSAGES/messages.po")):
        digest = hashlib.sha256(source.read_bytes()).hexdigest()
        target = folder / source.relative_to(CATALOGUES).with_suffix(".mo")
        stamp = target.with_suffix(".sha256")
        if target.exists() and stamp.exists() and stamp.read_text() == digest:
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        fresh = target.with_suffix(".new")
        with fresh.open("wb") as file:
            write_mo(file, load(source))
        fresh.replace(target)
        stamp.write_text(digest)
    return folder


def catalogue_file(locale: str = CHINESE) -> Path:
    """Where the sentences of a language stand."""
    return CATALOGUES / locale / "LC_MESSAGES" / "messages.po"


def load(path: Path, locale: str = CHINESE) -> Catalog:
    """One `.po` file."""
    with path.open("rb") as file:
        return read_po(file, locale=locale)


def extract() -> set[MessageId]:
    """Every sentence that the program can show: from modules and from templates."""
    templates = resource("templates")
    jinja = {"silent": "false", "trimmed": "true"}
    return set(_sentences(PACKAGE, "**.py", "python", {})) | set(
        _sentences(templates, "**.html", "jinja2", jinja)
    )


def _sentences(
    folder: Path, pattern: str, method: str, options: dict[str, str]
) -> Iterator[MessageId]:
    found = extract_from_dir(
        folder, [(pattern, method)], {pattern: options}, keywords=KEYWORDS, strip_comment_tags=True
    )
    for _file, _line, message, _comments, _context in found:
        if isinstance(message, str) and message:
            yield message
        elif isinstance(message, tuple):
            yield message[0], message[1]


def placeholders(sentence: str) -> set[str]:
    """The names a sentence leaves open: `%(name)s` and `{name}`."""
    return {match[1] or match[2] for match in _NAMED.finditer(sentence)}


def faults(catalogue: Catalog, wanted: set[MessageId]) -> list[str]:
    """What keeps a catalogue from being complete: one line for each sentence concerned."""
    lines = []
    known = {message.id: message for message in catalogue if message.id}
    for sentence in wanted:
        message = known.get(sentence)
        texts = _texts(message.string) if message else []
        if message is None or not any(texts):
            lines.append(f"untranslated: {sentence!r}")
            continue
        source = _texts(sentence)
        names = [set().union(*map(placeholders, group)) for group in (source, texts)]
        if message.fuzzy or names[0] != names[1]:
            lines.append(f"other placeholders than the source, or fuzzy: {sentence!r}")
    lines.extend(f"obsolete: {sentence!r}" for sentence in known if sentence not in wanted)
    return sorted(lines)


def _texts(value: object) -> list[str]:
    return [str(text) for text in value] if isinstance(value, (tuple, list)) else [str(value)]


def update(path: Path) -> tuple[int, int]:
    """Rewrite a catalogue: new sentences are added, others dropped; (sentences, untranslated)."""
    known = {m.id: m.string for m in load(path) if m.id} if path.exists() else {}
    fresh = Catalog(locale=CHINESE, fuzzy=False)
    missing = 0
    for sentence in extract():
        translated = known.get(sentence, "")
        missing += not any(_texts(translated))
        fresh.add(sentence, translated)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(HEADER.encode())
        write_po(file, fresh, sort_output=True, no_location=True, omit_header=True, width=100)
    return len(fresh), missing


if __name__ == "__main__":
    if sys.argv[1:] != ["update"]:
        sys.exit("usage: python -m webapp.i18n update")
    total, open_ = update(catalogue_file())
    sys.stdout.write(f"{total} sentences, {open_} without a translation\n")
