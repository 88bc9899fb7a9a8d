"""Settings: their order of precedence, and errors that name the variable."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.server import ROOT, environment
from vit_api.command_line import SettingsError, load_settings, unknown_variables
from vit_api.setting_texts import GROUPS
from vit_api.settings import Settings


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name in Settings.model_fields:
        monkeypatch.delenv(f"VIT_API_{name.upper()}", raising=False)


def test_defaults() -> None:
    """The documented defaults hold."""
    settings = load_settings([])
    assert settings.model == "google/vit-base-patch16-224"
    assert (settings.port, settings.max_batch_size, settings.max_wait_ms) == (7860, 32, 5)
    assert (settings.request_timeout_s, settings.max_upload_mb, settings.max_image_side) == (30, 32, 65_535)


def test_precedence(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command line overrides the environment, which overrides the file."""
    Path(".env").write_text("VIT_API_PORT=8001\nVIT_API_MAX_WAIT_MS=1\nVIT_API_MAX_BATCH_SIZE=4\n")
    monkeypatch.setenv("VIT_API_MAX_WAIT_MS", "2")
    monkeypatch.setenv("VIT_API_MAX_BATCH_SIZE", "8")
    settings = load_settings(["--max-batch-size", "16"])
    assert (settings.port, settings.max_wait_ms, settings.max_batch_size) == (8001, 2, 16)


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        pytest.param("MAX_BATCH_SIZE", "0", "greater than or equal to 1", id="too small"),
        pytest.param("PORT", "seventy", "valid integer", id="not a number"),
        pytest.param("DTYPE", "int4", "'auto', 'float32', 'bfloat16', 'float16', 'int8' or 'fp8'", id="not a choice"),
        pytest.param("DEVICE", "gpu", "cuda:0", id="not a device"),
        pytest.param("QUEUE_SIZE", "30000", "VIT_API_API_SERVERS", id="does not fit another"),
        pytest.param("OPERATOR_KEY", "short", "at least 8", id="too short"),
        pytest.param("OPERATOR_KEY", "naïve key of mine", "ASCII", id="not for a header"),
        pytest.param("API_KEYS", "a-good-key,short", "at least 8", id="short key"),
        pytest.param("API_KEYS", "a-good-key,", "at least 8", id="empty key"),
        pytest.param("API_KEYS", ",", "at least 8", id="no keys"),
        pytest.param("API_KEYS", "one key and another", "no spaces", id="keys with spaces"),
        pytest.param("API_KEYS", "sha256:0123abcd", "64 hexadecimal digits", id="not a digest"),
        pytest.param("RATE_LIMIT", "fast", "600/minute", id="not a rate"),
        pytest.param("RATE_LIMIT", "5/century", "600/minute", id="not a window"),
        pytest.param("RATE_LIMIT", "0/minute", "1 to 1000000000 images", id="no images"),
        pytest.param("RATE_LIMIT", "5/9 years", "400 days", id="long window"),
        pytest.param("RATE_LIMIT", ";".join(["5/minute"] * 9), "at most 8", id="many rates"),
        pytest.param("TRUSTED_PROXIES", "proxy.example", "10.0.0.0/8", id="not an address"),
        pytest.param("TRUSTED_PROXIES", "10.0.0.1/8", "host bits", id="address and network"),
        pytest.param("CORS_ORIGINS", "example.org", "https://example.org:8443", id="not an origin"),
        pytest.param("CORS_ORIGINS", "https://example.org/path", "without a path", id="origin with a path"),
        pytest.param("CORS_ORIGINS", "*,https://example.org", "* alone", id="wildcard and an origin"),
        pytest.param("REDIS_URL", "http://user:word@host", "redis://", id="not a Redis"),
        pytest.param("REDIS_URL", "redis://:se/cret@127.0.0.1:6379/0", "Percent-encode", id="unescaped password"),
        pytest.param("REDIS_URL", "redis://127.0.0.1:99999/0", "redis://", id="invalid port"),
        pytest.param("REDIS_URL", "redis://127.0.0.1/name", "redis://", id="invalid database"),
        pytest.param("REDIS_URL", "redis://127.0.0.1/0?decode_responses=1", "without options", id="unknown option"),
        pytest.param("REDIS_URL", "rediss://127.0.0.1/0?db=1", "ssl_ca_certs", id="option that is not of TLS"),
        pytest.param("REDIS_URL", "redis://127.0.0.1/0?ssl_cert_reqs=none", "rediss://", id="TLS option without TLS"),
        pytest.param("REDIS_URL", "rediss://h/0?ssl_cert_reqs=maybe", "required or none", id="unknown value"),
        pytest.param("REDIS_URL", "rediss://h/0?ssl_ca_certs=/no/ca.pem", "No such file", id="no CA file"),
        pytest.param("REDIS_URL", f"rediss://h/0?ssl_ca_certs={__file__}", "can't be used", id="not a CA file"),
        pytest.param("REDIS_URL", "rediss://h/0?ssl_keyfile=/key.pem", "ssl_certfile", id="key without certificate"),
        pytest.param("REDIS_URL", "redis+sentinel://a,b/main/0", "Sentinel is not supported", id="Sentinel"),
        pytest.param("LOG_LEVEL", "loud", "'warning'", id="not a level"),
    ],
)
def test_an_invalid_value_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str, allowed: str) -> None:
    """The message has the variable, the allowed values and, unless it is a secret, the invalid value."""
    monkeypatch.setenv(f"VIT_API_{name}", value)
    monkeypatch.setenv("VIT_API_API_SERVERS", "2")
    with pytest.raises(SettingsError) as caught:
        load_settings([])
    assert f"VIT_API_{name}" in str(caught.value)
    assert allowed in str(caught.value)
    is_secret = name in ("OPERATOR_KEY", "API_KEYS", "REDIS_URL")
    assert (value in str(caught.value)) is not is_secret


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(["--port", "seventy"], id="pydantic error"),
        pytest.param(["--device", "gpu"], id="not a device"),
        pytest.param(["--rate-limit", "fast"], id="parser error"),
        pytest.param(["--operator-key", "short"], id="secret"),
        pytest.param(["--api-servers", "1", "--queue-size", "30000"], id="too large for another"),
        pytest.param(["--max-pending-mb", "5"], id="too small for another"),
        pytest.param(["--redis-url", "redis://localhost", "--cache-size", "0"], id="requires another"),
        pytest.param(["--port", "seventy", "--device", "gpu"], id="two errors"),
    ],
)
def test_errors_have_one_form(arguments: list[str]) -> None:
    """Each variable has a line with its name and sentences."""
    with pytest.raises(SettingsError) as caught:
        load_settings(arguments)
    lines = str(caught.value).splitlines()
    assert len(lines) == (2 if arguments[0] == "--port" and len(arguments) == 4 else 1)
    assert [line for line in lines if not re.fullmatch(r"VIT_API_[A-Z_]+: [A-Z].*[^.]\.", line)] == []


@pytest.mark.parametrize(
    "url",
    [
        pytest.param("redis://localhost", id="host"),
        pytest.param("redis://:p%2Fw@[::1]:6380/1", id="IPv6 address and password"),
        pytest.param("rediss://user:word@cache.example:6379/0", id="TLS and user"),
        pytest.param("unix:///run/redis", id="socket"),
        pytest.param("rediss://cache.example/0?ssl_cert_reqs=none&ssl_check_hostname=false", id="unverified TLS"),
    ],
)
def test_addresses_of_a_redis(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """URLs that redis-py accepts are accepted."""
    monkeypatch.setenv("VIT_API_REDIS_URL", url)
    shown = load_settings([]).redis_url
    assert shown is not None
    assert shown.get_secret_value() == url


def test_redis_needs_a_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tier behind a disabled cache would never be used."""
    monkeypatch.setenv("VIT_API_REDIS_URL", "redis://localhost")
    assert load_settings([]).redis_url is not None
    with pytest.raises(SettingsError, match="VIT_API_CACHE_SIZE is 0"):
        load_settings(["--cache-size", "0"])


def test_help_lists_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    """`--help` shows each option."""
    with pytest.raises(SystemExit):
        load_settings(["--help"])
    text = capsys.readouterr().out
    assert [name for name in Settings.model_fields if f"--{name.replace('_', '-')}" not in text] == []


def test_help_is_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    """Types and defaults are written as people write them, in the groups of the settings' page, which have all."""
    with pytest.raises(SystemExit):
        load_settings(["--help"])
    text = capsys.readouterr().out
    assert [word for word in ("SecretStr", "factory", "None", "str}", " float ", " int ") if word in text] == []
    assert "default: 32)" in text
    assert [title for title in GROUPS if f"\n{title}:\n" not in text] == []
    assert sorted(name for names in GROUPS.values() for name in names) == sorted(Settings.model_fields)
    assert "{auto,float32,bfloat16,float16,int8,fp8}" in text


@pytest.mark.parametrize(
    ("arguments", "is_on"),
    [
        pytest.param(["--access-log"], True, id="flag"),
        pytest.param(["--no-access-log"], False, id="negated"),
        pytest.param(["--access-log", "1"], True, id="value"),
        pytest.param(["--access-log=off"], False, id="value after ="),
        pytest.param(["--access-log", "False", "--port", "1"], False, id="value before another option"),
        pytest.param(["--access-log", "--port", "1"], True, id="flag before another option"),
    ],
)
def test_a_flag_may_have_a_value(arguments: list[str], is_on: bool) -> None:
    """As the variable of the same setting has one."""
    assert load_settings(arguments).access_log is is_on


@pytest.mark.parametrize("argument", ["--access-log=maybe", "--port=true=1"])
def test_a_wrong_value_is_not_taken_for_one(argument: str) -> None:
    with pytest.raises((SystemExit, SettingsError)):
        load_settings([argument])


@pytest.mark.parametrize(
    ("argument", "hint"),
    [
        pytest.param("--prot=3", " Did you mean --port?", id="near"),
        pytest.param("--max-batchsize", " Did you mean --max-batch-size?", id="near, without a value"),
        pytest.param("--zzz", "", id="far"),
    ],
)
def test_an_unknown_option_is_an_error_of_a_line(argument: str, hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    """It names the nearest option, without the whole usage."""
    with pytest.raises(SystemExit) as raised:
        load_settings([argument])
    assert raised.value.code == 2
    error, help_hint = capsys.readouterr().err.splitlines()
    assert error == f"error: unrecognized arguments: {argument}.{hint}"
    assert "--help" in help_hint


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"VIT_API_MODEL_NAME=caf\xe9\n", id="Latin-1"),
        pytest.param("VIT_API_PORT=8000\n".encode("utf-16"), id="UTF-16"),
    ],
)
def test_a_file_that_is_not_utf_8_is_an_error_of_a_line(content: bytes) -> None:
    """The message names the file and the line, and is no traceback."""
    Path(".env").write_bytes(content)
    with pytest.raises(SettingsError) as raised:
        load_settings([])
    assert str(raised.value) == ".env: The file is not UTF-8, first in line 1. Save it as UTF-8."


def test_a_byte_order_mark_is_no_part_of_a_name() -> None:
    """Windows' editors begin UTF-8 with it."""
    Path(".env").write_bytes(b"\xef\xbb\xbfVIT_API_PORT=8001\n")
    assert load_settings([]).port == 8001
    assert unknown_variables() == []


@pytest.mark.parametrize(
    ("line", "warning"),
    [
        pytest.param("MAX_BATCH_SIZE=8", "Did you mean VIT_API_MAX_BATCH_SIZE?", id="without the prefix"),
        pytest.param("VIT_MODEL=digits", "Did you mean VIT_API_MODEL?", id="half of the prefix"),
        pytest.param(
            "HF_TOKEN=secret", "From .env, only VIT_API_* is read: set it in the environment.", id="another's"
        ),
    ],
)
def test_keys_of_the_file_that_are_no_setting_are_named(line: str, warning: str) -> None:
    """With the nearest setting; the value is never shown."""
    Path(".env").write_text(line + "\n")
    name = line.partition("=")[0]
    assert unknown_variables() == [f"{name} in .env: There is no such setting, so it is ignored. {warning}"]
    load_settings([])


@pytest.mark.parametrize("name", ["API_KEYS", "OPERATOR_KEY"])
def test_keys_without_the_prefix_in_the_file_stop_the_start(name: str) -> None:
    """The server would be open to all."""
    Path(".env").write_text(f"{name}=a-long-secret-key\n")
    with pytest.raises(SettingsError, match=f"Did you mean VIT_API_{name}"):
        load_settings([])


def test_every_setting_is_described() -> None:
    """`--help` and the documentation describe each setting."""
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []


def test_an_invalid_value_stops_the_server() -> None:
    """The process exits non-zero and names the variable, without a traceback."""
    result = subprocess.run(
        [sys.executable, str(ROOT / "server.py")],
        env=environment(max_wait_ms=-1),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode != 0
    assert "VIT_API_MAX_WAIT_MS" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("value", ["", " "])
def test_keys_that_are_set_but_empty_stop_the_start(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    """A secret that was not filled in must not disable authentication."""
    monkeypatch.setenv("VIT_API_API_KEYS", value)
    with pytest.raises(SettingsError, match="VIT_API_API_KEYS: The variable is set but empty"):
        load_settings([])


@pytest.mark.parametrize("where", ["environment", "file"])
@pytest.mark.parametrize("name", ["VIT_API_API_KEY", "VIT_API_KEYS", "VIT_API_APIKEYS", "VIT_API_OPERATER_KEY"])
def test_a_misspelt_key_setting_stops_the_start(monkeypatch: pytest.MonkeyPatch, name: str, where: str) -> None:
    """The message names the variable and the closest setting, and never the key."""
    if where == "file":
        Path(".env").write_text(f"{name}=a-long-secret-key\n")
    else:
        monkeypatch.setenv(name, "a-long-secret-key")
    with pytest.raises(SettingsError, match=f"{name}: There is no such setting. Did you mean VIT_API_") as raised:
        load_settings([])
    assert "secret" not in str(raised.value)


def test_other_unknown_variables_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A warning names each with the closest setting, if any."""
    monkeypatch.setenv("VIT_API_MAX_BATCHSIZE", "8")
    monkeypatch.setenv("VIT_API_ZZZ", "8")
    monkeypatch.setenv("VIT_API_PORT", "8000")
    near, far = [line for line in unknown_variables() if "BATCHSIZE" in line or "ZZZ" in line]
    assert (
        near
        == "VIT_API_MAX_BATCHSIZE: There is no such setting, so it is ignored. Did you mean VIT_API_MAX_BATCH_SIZE?"
    )
    assert far == "VIT_API_ZZZ: There is no such setting, so it is ignored."
    load_settings([])


def test_the_port_of_the_platform_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cloud Run and others set PORT, which our own variable and the command line override."""
    monkeypatch.setenv("PORT", "8080")
    assert load_settings([]).port == 8080
    monkeypatch.setenv("VIT_API_PORT", "8081")
    assert load_settings([]).port == 8081
    assert load_settings(["--port", "8082"]).port == 8082


@pytest.mark.parametrize(("processes", "threads"), [(1, 6), (4, 2), (6, 1), (12, 1)])
def test_a_process_decodes_as_many_images_at_once_as_its_share_of_the_cores(
    processes: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless the number is set."""
    monkeypatch.setattr("vit_api.settings.available_cores", lambda: 6)
    assert load_settings(["--api-servers", str(processes)]).decoded_at_once == threads
    assert load_settings(["--api-servers", str(processes), "--decode-threads", "3"]).decoded_at_once == 3


_MODELS = '[{"name": "a", "version": "1", "model": "digits"}, {"name": "b", "version": "1", "model": "digits"}]'


def test_an_entry_of_the_list_of_models_has_the_settings_that_it_leaves_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a list there are no deployments."""
    assert load_settings([]).deployments == ()
    models = (
        '[{"name": "a", "version": "1", "model": "digits", "dtype": "float32", "max_batch_size": 4},'
        ' {"name": "b", "version": "1", "model": "digits", "thresholds": {"7": 0.5}}]'
    )
    monkeypatch.setenv("VIT_API_MODELS", models)
    one, other = load_settings(["--max-batch-size", "8", "--thresholds", '{"*": 0.9}']).deployments
    assert (one.dtype, one.max_batch_size, one.thresholds, one.workers_per_device) == ("float32", 4, '{"*": 0.9}', 1)
    assert (other.dtype, other.max_batch_size, other.thresholds) == ("auto", 8, '{"7": 0.5}')


@pytest.mark.parametrize(
    ("name", "value"), [("model", "digits"), ("model_name", "digits"), ("revision", "main")], ids=str
)
def test_a_list_of_models_and_a_single_one(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    """One of them would be ignored in silence."""
    monkeypatch.setenv("VIT_API_MODELS", _MODELS)
    monkeypatch.setenv(f"VIT_API_{name.upper()}", value)
    with pytest.raises(SettingsError, match=f"so VIT_API_{name.upper()} would be ignored"):
        load_settings([])


def test_a_model_of_the_platform_gives_way_to_a_list(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is a default, and no contradiction."""
    monkeypatch.setenv("HF_MODEL_ID", "google/vit")
    monkeypatch.setenv("HF_MODEL_REVISION", "main")
    monkeypatch.setenv("VIT_API_MODELS", _MODELS)
    assert [one.name for one in load_settings([]).deployments] == ["a", "b"]


def test_each_version_needs_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    """In every HTTP process, so that none is starved by another."""
    monkeypatch.setenv("VIT_API_MODELS", _MODELS)
    with pytest.raises(SettingsError, match=r"QUEUE_SIZE: Input should be at least 8, which is two for each of 2"):
        load_settings(["--queue-size", "5", "--api-servers", "2"])
    assert len(load_settings(["--queue-size", "8", "--api-servers", "2"]).deployments) == 2


@pytest.mark.parametrize("engine", ["eager", "compile", "cudagraph"])
def test_int8_runs_in_openvino_only(monkeypatch: pytest.MonkeyPatch, engine: str) -> None:
    """Another engine is refused by name, for a list of models too."""
    monkeypatch.setenv("VIT_API_ENGINE", engine)
    monkeypatch.setenv("VIT_API_DTYPE", "int8")
    with pytest.raises(
        SettingsError, match=rf"VIT_API_ENGINE: On the CPU, a model in int8 runs in OpenVINO only.*{engine}"
    ):
        load_settings([])
    monkeypatch.setenv("VIT_API_DTYPE", "auto")
    monkeypatch.setenv("VIT_API_MODELS", '[{"name": "a", "version": "1", "model": "digits", "dtype": "int8"}]')
    with pytest.raises(SettingsError, match="VIT_API_ENGINE: On the CPU, a model in int8 runs in OpenVINO only"):
        load_settings([])
    assert load_settings(["--device", "cuda"]).engine == engine


@pytest.mark.parametrize("value", ["0", "70000"])
def test_a_wrong_port_of_the_platform_is_named(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    """The error names PORT, which was set, unless our own variable was, too."""
    monkeypatch.delenv("VIT_API_PORT", raising=False)
    monkeypatch.setenv("PORT", value)
    with pytest.raises(SettingsError, match=f"^PORT: .* Got '{value}'"):
        load_settings([])
    monkeypatch.setenv("VIT_API_PORT", "0")
    with pytest.raises(SettingsError, match=r"^VIT_API_PORT: "):
        load_settings([])
