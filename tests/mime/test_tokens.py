"""The tokeniser, proved on a real FTS5 table: what is stored is found, and only that."""

import re
import sqlite3
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from webapp.mime.tokens import fts5_query, query_terms, tokens, tsquery, tsvector_literal

Search = Callable[[str, str], bool]


@pytest.fixture(scope="module")
def database() -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(":memory:")
    connection.execute(
        "CREATE VIRTUAL TABLE t USING fts5(text, tokenize='unicode61 remove_diacritics 0')"
    )
    connection.execute("CREATE VIRTUAL TABLE vocabulary USING fts5vocab(t, 'instance')")
    yield connection
    connection.close()


@pytest.fixture(scope="module")
def is_found(database: sqlite3.Connection) -> Search:
    def search(stored: str, asked: str) -> bool:
        database.execute("DELETE FROM t")
        database.execute("INSERT INTO t VALUES (?)", (" ".join(tokens(stored)),))
        match = fts5_query(asked)
        assert match is not None
        return bool(database.execute("SELECT 1 FROM t WHERE t MATCH ?", (match,)).fetchall())

    return search


TEXT = (
    "Re: 您的订单 20430 已发货 from Li.Wen@youxiang.cn, Straße CAFÉ ﬁne ＡＢＣ 한국어 カタカナ号2"
)


@pytest.mark.parametrize(
    "asked",
    [
        "订", "单", "订单", "您的订单", "订单 20430", "订单 204", "发货", "货", "已", "您", "号",
        "li.wen@youx", "LI.WEN@YOUXIANG.CN", "wen youx", "strasse", "STRASSE", "café", "CAFÉ",
        "fine", "abc", "ABC", "ａｂｃ", "한국", "국어", "어", "カタ", "カナ号", "号2", "カナ号2",
        "20430", "发货 订单", '"订单"', "re:", "cafe\u0301",
    ],
)  # fmt: skip
def test_what_is_in_the_text_is_found(is_found: Search, asked: str) -> None:
    assert is_found(TEXT, asked)


@pytest.mark.parametrize(
    "asked",
    [
        "单订", "订货", "订单号", "您订", "wen.li", "li.youx", "ouxiang", "订单 99", "cafe", "カ号",
        "20430已订", "号3", "订单x",
    ],
)  # fmt: skip
def test_what_is_not_in_the_text_is_not_found(is_found: Search, asked: str) -> None:
    assert not is_found(TEXT, asked)


def test_a_piece_typed_without_blanks_is_found_in_a_text_without_blanks(is_found: Search) -> None:
    assert is_found("您的订单20430已发货", "订单20430已发")
    assert is_found("您的订单20430已发货", "单20430")
    assert not is_found("您的订单20430已发货", "您20430")


LETTERS = st.text(st.sampled_from("ab1订单号货é ß.-カ한𠀀"), min_size=1, max_size=14)


@given(before=LETTERS, piece=st.text(st.sampled_from("订单号货ab1"), min_size=1, max_size=6))
def test_every_piece_of_a_run_is_found(is_found: Search, before: str, piece: str) -> None:
    run = re.sub(r"[ab1éß]+$", "", before)  # a piece that begins inside a word is not looked for
    assert is_found(f"{run}{piece}号货 x", piece)


@given(start=st.integers(0, 9), length=st.integers(1, 10))
def test_every_substring_of_a_chinese_run_is_found(
    is_found: Search, start: int, length: int
) -> None:
    run = "甲乙丙丁戊己庚辛壬癸"
    assert is_found(f"x{run}y", run[start : start + length])


@given(st.text(max_size=60))
def test_fts5_splits_and_changes_nothing_further(database: sqlite3.Connection, text: str) -> None:
    # Tokens of 21 letters that are younger than unicode61 are left out.
    stored = [t for t in tokens(text) if not re.search("[\u19b0-\u19c9\u1cf2\u1cf3]", t)]
    database.execute("DELETE FROM t")
    database.execute("INSERT INTO t VALUES (?)", (" ".join(stored),))
    rows = database.execute("SELECT count(*) FROM vocabulary").fetchone()
    assert rows == (len(stored),)


@given(st.text(max_size=80))
def test_any_question_is_answered(database: sqlite3.Connection, text: str) -> None:
    match = fts5_query(text)
    assert (match is None) == (tsquery(text) is None)
    if match is not None:
        database.execute("SELECT 1 FROM t WHERE t MATCH ?", (match,)).fetchall()


@given(st.text(max_size=80))
def test_tokens_are_letters_and_digits_only(text: str) -> None:
    assert all(token.isalnum() and len(token) <= 40 for token in tokens(text))


def test_tokens_of_a_run_are_pairs_and_the_last_character() -> None:
    assert tokens("订单号 A1") == ["订单", "单号", "号", "a1"]
    assert tokens("a订") == ["a", "订"]


def test_words_and_texts_are_capped() -> None:
    assert tokens("x" * 100) == ["x" * 40]
    assert len(tokens("a 订单 " * 100, limit=7)) == 7
    assert len(query_terms("a " * 1000)) == 16
    assert len(query_terms("订" * 1000)[0]) == 64


def test_a_typed_piece_becomes_a_phrase() -> None:
    assert query_terms("li.wen@youx 订单号") == [["li", "wen", "youx"], ["订单", "单号"]]
    assert query_terms("订单20430 订") == [["订单", "单", "20430"], ["订"]]
    assert query_terms(" @ !! ") == []


def test_nothing_to_search_for_is_none() -> None:
    assert fts5_query(" -- ") is None
    assert tsquery("") is None


def test_the_expressions_are_quoted() -> None:
    assert fts5_query('li.wen" OR x') == '"li wen"* AND "or"* AND "x"*'
    assert tsquery("li.wen@youx 20430") == "('li' <-> 'wen' <-> 'youx':*) & '20430':*"
    assert tsvector_literal(["a", "b", "a"]) == "'a':1 'b':2 'a':3"
    assert tsvector_literal(["it's\\"]) == "'it''s\\\\':1"
    assert tsvector_literal(["a"] * 20_000).endswith("'a':16383")
