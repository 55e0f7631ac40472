"""The browser rig finds what it is there to find."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Page

from tests.rig import browser as rig
from tests.rig.browser import Complaints, OpenPage, axe

STRICT = "<meta http-equiv=Content-Security-Policy content=\"default-src 'none'\">"


def a_document(body: str, *, head: str = "") -> str:
    return (
        "<!doctype html><html lang=en><head><meta charset=utf-8><title>A page</title>"
        f"{head}</head><body><main><h1>A page</h1>{body}</main></body></html>"
    )


def test_axe_finds_a_picture_without_words_and_a_field_without_a_label(page: Page) -> None:
    page.set_content(a_document("<img src='data:,'><input name=host>"))
    assert {violation.rule for violation in axe(page)} == {"image-alt", "label"}


def test_axe_has_nothing_to_say_about_a_clean_page(page: Page) -> None:
    page.set_content(a_document("<label>Host <input name=host></label>"))
    assert axe(page) == []


def test_axe_works_under_a_policy_that_forbids_every_script(page: Page) -> None:
    page.set_content(a_document("<input name=host>", head=STRICT))
    assert [violation.rule for violation in axe(page)] == ["label"]


def test_an_error_on_a_page_is_heard(page: Page, complaints: Complaints) -> None:
    page.set_content(a_document("<script>console.error('broken'); setTimeout(none, 0)</script>"))
    page.wait_for_timeout(1)
    heard = complaints.unexpected()
    complaints.forgive("broken")
    complaints.forgive("none is not defined")
    assert len(heard) == 2
    assert complaints.unexpected() == []


def test_an_error_that_was_announced_is_forgiven(
    page: Page, forgive: Callable[[str], None]
) -> None:
    forgive("^as announced")
    page.set_content(a_document("<script>console.error('as announced')</script>"))


def test_a_page_has_the_language_size_and_colours_asked_for(open_page: OpenPage) -> None:
    opened = open_page(locale="zh-CN", width=390, dark=True)
    assert opened.evaluate("navigator.language") == "zh-CN"
    assert opened.evaluate("innerWidth") == 390
    assert opened.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")


def test_chinese_is_drawn_with_glyphs_of_its_own(page: Page) -> None:
    """Where no font has them, every character is the same empty box."""
    page.set_content(a_document("<canvas width=40 height=20></canvas>"))
    drawn = [page.evaluate(DRAW, character) for character in "邮件"]
    if not rig.has_chinese_font():
        pytest.skip("no Chinese font: apt-get install fonts-wqy-microhei")
    assert drawn[0] != drawn[1]


DRAW = """character => {
    const canvas = document.querySelector('canvas'), pen = canvas.getContext('2d');
    pen.clearRect(0, 0, 40, 20); pen.fillText(character, 5, 15);
    return canvas.toDataURL();
}"""


def test_the_choice_of_the_environment_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = tmp_path / "my-chromium"
    chosen.touch(mode=0o755)
    monkeypatch.setenv("TEST_CHROMIUM", str(chosen))
    assert rig.find_chromium(tmp_path / "bundled") == chosen


def test_a_wrong_choice_of_the_environment_is_not_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEST_CHROMIUM", str(tmp_path / "nothing"))
    assert rig.find_chromium(Path(os.devnull)) is None


def test_playwrights_own_is_taken_where_the_system_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundled = tmp_path / "bundled"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert rig.find_chromium(bundled) is None
    bundled.touch()
    assert rig.find_chromium(bundled) == bundled


def test_what_is_missing_is_installed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """apt-get and fc-list are stand-ins here; the first notes how it was called."""
    notes, chromium = tmp_path / "notes", tmp_path / "chromium"
    script = f'#!/bin/sh\necho apt-get "$@" >> {notes}\n: > {chromium}\n/bin/chmod +x {chromium}\n'
    (tmp_path / "apt-get").write_text(script)
    (tmp_path / "apt-get").chmod(0o755)
    (tmp_path / "fc-list").write_text("#!/bin/sh\n")
    (tmp_path / "fc-list").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(rig, "may_use_apt", lambda: True)
    rig.provide_chromium.cache_clear()

    assert rig.provide_chromium(tmp_path / "bundled") == chromium

    rig.provide_chromium.cache_clear()
    lines = notes.read_text().splitlines()
    assert len(lines) == 2
    assert lines[0].endswith(" update")
    assert lines[1].endswith(" install -y --no-install-recommends chromium fonts-wqy-microhei")
