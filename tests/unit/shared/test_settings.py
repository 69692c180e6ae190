"""Settings from the environment, and secrets that stay secret."""

import io
import logging
import os
from pathlib import Path

import pytest
import structlog
from cortex_shared import logs
from cortex_shared.settings import HttpSettings, LogSettings, RedisSettings, ServiceSettings, from_environment
from pydantic import SecretStr, ValidationError


class Sample(ServiceSettings):
    redis: RedisSettings = RedisSettings()
    http: HttpSettings = HttpSettings(port=8087, drain_seconds=2)


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the host's."""
    for name in list(os.environ):
        if name.startswith("CORTEX_"):
            monkeypatch.delenv(name)


def test_nested_names_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CORTEX_NATS__URL", "nats://elsewhere:1")
    monkeypatch.setenv("CORTEX_NATS__CREDENTIALS", "/etc/cortex/node.creds")
    monkeypatch.setenv("CORTEX_LOG__LEVEL", "debug")
    monkeypatch.setenv("CORTEX_SOMETHING_OF_ANOTHER_SERVICE", "x")
    settings = Sample()
    assert settings.nats.url == "nats://elsewhere:1"
    assert settings.nats.credentials == Path("/etc/cortex/node.creds")
    assert settings.log.level == "debug"


def test_setting_one_part_of_a_group_keeps_the_services_defaults_of_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CORTEX_HTTP__HOST", "0.0.0.0")
    settings = Sample()
    assert (settings.http.host, settings.http.port, settings.http.drain_seconds) == ("0.0.0.0", 8087, 2)


@pytest.mark.parametrize(
    ("name", "value"),
    [("CORTEX_HTTP__PORT", "70000"), ("CORTEX_LOG__FORMAT", "xml"), ("CORTEX_HTTP__PORT", "x")],
)
def test_what_makes_no_sense_is_refused(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ValidationError):
        Sample()


def test_a_service_ends_with_a_line_for_each_wrong_setting_and_no_value(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert from_environment(Sample).http.port == 8087
    monkeypatch.setenv("CORTEX_HTTP__PORT", "hunter2")
    monkeypatch.setenv("CORTEX_LOG__LEVEL", "swordfish")
    with pytest.raises(SystemExit) as ended:
        from_environment(Sample)
    assert ended.value.code == 2
    told = capsys.readouterr().err.splitlines()
    assert [line.partition(": ")[0] for line in told] == ["error", "error", "remedy"]
    assert any("CORTEX_HTTP__PORT" in line for line in told)
    assert any("CORTEX_LOG__LEVEL: Input should be 'debug'" in line for line in told)
    assert "hunter2" not in str(told)
    assert "swordfish" not in str(told)


def test_settings_do_not_change() -> None:
    with pytest.raises(ValidationError):
        Sample().http = HttpSettings()


@pytest.mark.parametrize("form", ["json", "console"])
def test_logs_never_hold_a_secret(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], form: str
) -> None:
    monkeypatch.setenv("CORTEX_REDIS__URL", "redis://:hunter2-secret@127.0.0.1:1/0")
    settings = Sample()
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        logs.configure(LogSettings(format="json" if form == "json" else "console"), service="test")
        log = structlog.get_logger(component="test")
        log.info("settings.read", settings=settings, url=settings.redis.url, many=[settings.redis.url])
        logging.getLogger("other").warning("%s", settings)
        try:
            raise RuntimeError(str(settings))
        except RuntimeError:
            log.exception("something.failed")
        written = capsys.readouterr().err
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
        structlog.contextvars.clear_contextvars()
        structlog.reset_defaults()
    assert "settings.read" in written
    assert "RuntimeError" in written
    assert "hunter2-secret" not in written


def test_a_secret_is_shown_only_when_asked_for() -> None:
    stream = io.StringIO()
    print(RedisSettings(url=SecretStr("redis://:hunter2@h")), file=stream)
    assert "hunter2" not in stream.getvalue()
    assert RedisSettings(url=SecretStr("redis://:hunter2@h")).url.get_secret_value() == "redis://:hunter2@h"
