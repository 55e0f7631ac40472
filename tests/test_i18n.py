"""Every sentence that the program can show is in the Chinese catalogue, and nothing else is."""

from io import BytesIO
from pathlib import Path

import pytest
from babel.messages.catalog import Catalog
from babel.messages.pofile import read_po

from webapp import i18n


def test_the_catalogue_is_complete() -> None:
    found = i18n.faults(i18n.load(i18n.catalogue_file()), i18n.extract())
    assert found == [], "run: python -m webapp.i18n update, and translate what is empty"


def test_the_catalogue_is_written_as_update_writes_it(tmp_path: Path) -> None:
    copy = tmp_path / "messages.po"
    copy.write_bytes(i18n.catalogue_file().read_bytes())
    i18n.update(copy)
    assert copy.read_text(encoding="utf-8") == i18n.catalogue_file().read_text(encoding="utf-8")


def a_catalogue(text: str) -> Catalog:
    return read_po(BytesIO(f"{i18n.HEADER}{text}".encode()), locale=i18n.CHINESE)


@pytest.mark.parametrize(
    ("text", "wanted", "fault"),
    [
        ("", "Save", "untranslated: 'Save'"),
        ('msgid "Save"\nmsgstr ""\n', "Save", "untranslated: 'Save'"),
        ('msgid "Old"\nmsgstr "旧"\n', "", "obsolete: 'Old'"),
        ('msgid "To %(a)s"\nmsgstr "给 %(b)s"\n', "To %(a)s", "other placeholders"),
        ('msgid "To {a}"\nmsgstr "给 {b}"\n', "To {a}", "other placeholders"),
        ('msgid "To {a}"\nmsgstr "给"\n', "To {a}", "other placeholders"),
        ('#, fuzzy\nmsgid "Save"\nmsgstr "存"\n', "Save", "other placeholders than the source, or"),
    ],
)
def test_what_is_wrong_with_a_catalogue_is_named(text: str, wanted: str, fault: str) -> None:
    (found,) = i18n.faults(a_catalogue(text), {wanted} - {""})
    assert found.startswith(fault)


def test_a_singular_may_leave_the_number_out() -> None:
    sentence = ("one mail", "%(num)s mails")
    catalogue = a_catalogue(
        'msgid "one mail"\nmsgid_plural "%(num)s mails"\nmsgstr[0] "%(num)s 封邮件"\n'
    )
    assert i18n.faults(catalogue, {sentence}) == []


def test_sentences_are_found_in_modules_and_in_templates() -> None:
    found = i18n.extract()
    assert {"Retrying", "Skip to content", "You are signed out."} <= found
    assert any(isinstance(sentence, tuple) for sentence in found)


def test_a_catalogue_is_compiled_once_and_again_when_it_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "source" / "zh_Hans" / "LC_MESSAGES" / "messages.po"
    source.parent.mkdir(parents=True)
    monkeypatch.setattr(i18n, "CATALOGUES", tmp_path / "source")

    def compiled(text: str) -> tuple[bytes, int]:
        source.write_text(f"{i18n.HEADER}{text}", encoding="utf-8")
        folder = i18n.compile_catalogues(tmp_path / "instance")
        target = folder / "zh_Hans" / "LC_MESSAGES" / "messages.mo"
        return target.read_bytes(), target.stat().st_ino

    first = compiled('msgid "Save"\nmsgstr "保存"\n')
    assert compiled('msgid "Save"\nmsgstr "保存"\n') == first
    assert "存盘".encode() in compiled('msgid "Save"\nmsgstr "存盘"\n')[0]
