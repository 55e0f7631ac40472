"""The installation's settings: environment first, then `instance/postroom.toml`, then defaults.

Nothing else reads `os.environ`. A name that is not known is refused with a hint, in both places.
"""

import difflib
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Self
from urllib.parse import urlsplit

from pydantic import (
    BeforeValidator,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

PREFIX = "POSTROOM_"


class ConfigError(Exception):
    """The installation is set up in a way that cannot work; the text says what to change."""


def default_instance() -> Path:
    """`instance/` beside the checkout, or in the working directory when installed as a package."""
    checkout = Path(__file__).resolve().parent.parent
    if (checkout / "pyproject.toml").exists():
        return checkout / "instance"
    return Path.cwd() / "instance"


def split_list(value: object) -> object:
    """Comma- or space-separated text as a tuple; TOML lists pass through."""
    if isinstance(value, str):
        return tuple(part for part in value.replace(",", " ").split() if part)
    return value


TextList = Annotated[tuple[str, ...], NoDecode, BeforeValidator(split_list)]


class Listen(str):
    """`host:port`, `[v6]:port`."""

    @property
    def host(self) -> str:
        """The address part, without brackets."""
        return self.rpartition(":")[0].strip("[]")

    @property
    def port(self) -> int:
        """The port part."""
        return int(self.rpartition(":")[2])

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it."""
        return self.host == "::1" or self.host == "localhost" or self.host.startswith("127.")


def parse_listen(value: object) -> Listen:
    """Raises ValueError with a sentence for anything that is not HOST:PORT."""
    text = str(value).strip()
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdigit() or not 1 <= int(port) <= 65535:
        raise ValueError("write HOST:PORT, for example 127.0.0.1:8025")
    return Listen(text)


Address = Annotated[Listen, BeforeValidator(parse_listen)]


class Settings(BaseSettings):
    """Everything that is decided outside the database."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, frozen=True, extra="forbid", arbitrary_types_allowed=True
    )

    instance: Path
    database_url: str = ""
    public_url: str = ""
    http_listen: Address = Listen("127.0.0.1:8025")
    submission_listen: Address = Listen("127.0.0.1:2525")
    tls_cert: Path | None = None
    tls_key: Path | None = None
    trusted_proxies: TextList = ()
    secret_keys: Annotated[tuple[SecretStr, ...], NoDecode, BeforeValidator(split_list)] = ()
    secret_keys_file: Path | None = None
    ca_bundle: Path | None = None
    microsoft_authority: str = ""
    microsoft_graph: str = ""
    google_authority: str = ""
    google_gmail: str = ""
    allow_plain_auth: bool = False
    metrics_token: SecretStr | None = None

    max_message_bytes: int = 50 * 1024 * 1024
    max_recipients: int = 1000
    max_submission_connections: int = 500
    max_data_memory_bytes: int = 400 * 1024 * 1024
    disk_reserve_bytes: int = 500 * 1024 * 1024
    delivery_threads: int = 48
    http_threads: int = 8
    api_per_minute: Annotated[int, Field(gt=0)] = 600
    log_json: bool = False
    demo_inbox: str = ""
    """Set by `postroom demo`: where the sandbox shows what arrived. Every page then says that this
    is a demo."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only what `load` hands in: it has already merged environment and TOML."""
        return (init_settings,)

    @field_validator("public_url")
    @classmethod
    def _check_public_url(cls, value: str) -> str:
        parts = urlsplit(value)
        if value and (parts.scheme not in {"http", "https"} or not parts.netloc or parts.query):
            raise ValueError("write the whole address, for example https://post.example.org")
        return value.rstrip("/")

    @field_validator("microsoft_authority", "microsoft_graph", "google_authority", "google_gmail")
    @classmethod
    def _check_cloud_root(cls, value: str) -> str:
        parts = urlsplit(value)
        if value and (parts.scheme != "https" or not parts.netloc or parts.query):
            raise ValueError("write an https address, for example https://login.example.org")
        return value.rstrip("/")

    @model_validator(mode="after")
    def _check_cloud_pair(self) -> Self:
        if bool(self.microsoft_authority) != bool(self.microsoft_graph):
            raise ValueError(
                "POSTROOM_MICROSOFT_AUTHORITY and POSTROOM_MICROSOFT_GRAPH belong together: "
                "set both"
            )
        if bool(self.google_authority) != bool(self.google_gmail):
            raise ValueError(
                "POSTROOM_GOOGLE_AUTHORITY and POSTROOM_GOOGLE_GMAIL belong together: set both"
            )
        return self

    @model_validator(mode="after")
    def _check_tls_pair(self) -> Self:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("POSTROOM_TLS_CERT and POSTROOM_TLS_KEY belong together: set both")
        return self

    @property
    def url(self) -> str:
        """The address people open, without a slash at the end."""
        return self.public_url or f"http://localhost:{self.http_listen.port}"

    @property
    def database(self) -> str:
        """The SQLAlchemy URL; SQLite under the instance folder unless one was given."""
        url = self.database_url or f"sqlite:///{self.instance / 'postroom.db'}"
        for plain in ("postgresql://", "postgres://"):
            if url.startswith(plain):
                url = "postgresql+psycopg://" + url.removeprefix(plain)
        return url

    @property
    def hostname(self) -> str:
        """The name this installation gives itself in SMTP and in Received lines."""
        return urlsplit(self.url).hostname or "localhost"


def _known_names() -> dict[str, str]:
    return {PREFIX + name.upper(): name for name in Settings.model_fields}


def _hint(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f" Did you mean {close[0]}?" if close else ""


def _from_environment(environ: Mapping[str, str]) -> dict[str, object]:
    names = _known_names()
    found: dict[str, object] = {}
    for key, value in environ.items():
        if not key.startswith(PREFIX):
            continue
        if key not in names:
            raise ConfigError(f"{key} is not a setting of Postroom.{_hint(key, list(names))}")
        if value != "":
            found[names[key]] = value
    return found


def _from_toml(path: Path) -> dict[str, object]:
    if not path.exists():
        return {}
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path.name} cannot be read: {error}") from error
    fields = [name for name in Settings.model_fields if name != "instance"]
    for key in found:
        if key not in fields:
            raise ConfigError(f"{path.name}: {key} is not a setting.{_hint(key, fields)}")
    return found


def load(environ: Mapping[str, str] | None = None) -> Settings:
    """Read the settings; raises ConfigError with a sentence per mistake."""
    given = _from_environment(os.environ if environ is None else environ)
    instance = Path(str(given.pop("instance", default_instance()))).expanduser().resolve()
    merged = _from_toml(instance / "postroom.toml") | given
    try:
        return Settings(instance=instance, **merged)  # type: ignore[arg-type]
    except ValidationError as error:
        raise ConfigError(_sentences(error)) from error


def replace_environment(values: Mapping[str, str]) -> None:
    """Make these our only settings in the environment, for this process and its children; what is
    on this machine is reached without a proxy."""
    for name in [name for name in os.environ if name.startswith(PREFIX)]:
        del os.environ[name]
    os.environ.update(values)
    for name in ("NO_PROXY", "no_proxy"):
        kept = os.environ.get(name, "")
        os.environ[name] = ",".join(filter(None, (kept, "localhost", "127.0.0.1")))


def environment_certificates() -> list[Path]:
    """Files of trusted certificates that the environment names for other programs."""
    names = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
    return [Path(os.environ[name]) for name in names if os.environ.get(name)]


def _sentences(error: ValidationError) -> str:
    lines = []
    for problem in error.errors(include_input=False, include_url=False):
        name = ".".join(str(part) for part in problem["loc"])
        text = problem["msg"].removeprefix("Value error, ")
        lines.append(f"{PREFIX}{name.upper()}: {text}" if name else text)
    return "\n".join(lines)
