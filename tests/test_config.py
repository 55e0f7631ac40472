"""Settings: where they come from, and what is refused."""

from pathlib import Path

import pytest

from webapp.config import ConfigError, load


def of(tmp_path: Path, **environ: str) -> dict[str, str]:
    return {"POSTROOM_INSTANCE": str(tmp_path), **environ}


def test_defaults_stay_on_this_machine(tmp_path: Path) -> None:
    settings = load(of(tmp_path))
    assert settings.http_listen == "127.0.0.1:8025"
    assert settings.submission_listen == "127.0.0.1:2525"
    assert settings.url == "http://localhost:8025"
    assert settings.database == f"sqlite:///{tmp_path}/postroom.db"


def test_the_environment_wins_over_the_file(tmp_path: Path) -> None:
    (tmp_path / "postroom.toml").write_text(
        'http_listen = "127.0.0.1:9000"\nhttp_threads = 3\ntrusted_proxies = ["10.0.0.1"]\n'
    )
    settings = load(of(tmp_path, POSTROOM_HTTP_LISTEN="127.0.0.1:9001"))
    assert (settings.http_listen.port, settings.http_threads) == (9001, 3)
    assert settings.trusted_proxies == ("10.0.0.1",)


def test_a_name_nobody_knows_is_refused_with_a_hint(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Did you mean POSTROOM_PUBLIC_URL"):
        load(of(tmp_path, POSTROOM_PUBLIK_URL="https://x.example"))
    (tmp_path / "postroom.toml").write_text('publik_url = "https://x.example"')
    with pytest.raises(ConfigError, match="Did you mean public_url"):
        load(of(tmp_path))


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("HTTP_LISTEN", "8025", "HOST:PORT"),
        ("HTTP_LISTEN", "127.0.0.1:0", "HOST:PORT"),
        ("SUBMISSION_LISTEN", "127.0.0.1:70000", "HOST:PORT"),
        ("PUBLIC_URL", "post.example.org", "whole address"),
        ("TLS_CERT", "/tmp/cert.pem", "belong together"),
        ("MICROSOFT_AUTHORITY", "https://login.example", "belong together"),
        ("MICROSOFT_GRAPH", "http://graph.example", "https address"),
        ("HTTP_THREADS", "many", "POSTROOM_HTTP_THREADS"),
    ],
)
def test_a_value_that_cannot_work_says_how_to_write_it(
    tmp_path: Path, name: str, value: str, words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        load(of(tmp_path, **{f"POSTROOM_{name}": value}))


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "postroom.toml").write_text("public_url = ")
    with pytest.raises(ConfigError, match=r"postroom\.toml cannot be read"):
        load(of(tmp_path))


def test_a_secret_is_not_shown(tmp_path: Path) -> None:
    settings = load(of(tmp_path, POSTROOM_SECRET_KEYS="geheim", POSTROOM_METRICS_TOKEN="token"))
    assert "geheim" not in repr(settings)
    assert "token" not in repr(settings).replace("metrics_token", "")


def test_postgresql_is_always_spoken_to_by_the_same_driver(tmp_path: Path) -> None:
    for scheme in ("postgres", "postgresql"):
        settings = load(of(tmp_path, POSTROOM_DATABASE_URL=f"{scheme}://u@h/d"))
        assert settings.database == "postgresql+psycopg://u@h/d"
