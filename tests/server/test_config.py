"""Settings: which source wins, and what a bad value says."""

from pathlib import Path
from typing import Any

import pytest

from server.config import BadSettings, Settings, load_settings
from server.keys import Key


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(f"GRAINSERVE_{name.upper()}", raising=False)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "grainserve.toml"


def test_a_flag_goes_before_the_environment_which_goes_before_the_file(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write_text("port = 1\nhost = 'file'\nmax_waiting = 1\n")
    monkeypatch.setenv("GRAINSERVE_PORT", "2")
    monkeypatch.setenv("GRAINSERVE_HOST", "environment")
    settings = load_settings({"port": 3, "host": None}, file)
    assert (settings.port, settings.host, settings.max_waiting) == (3, "environment", 1)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("GRAINSERVE_SERVICE_HOST", "10.0.0.1"),
        ("GRAINSERVE_PORT_80_TCP_ADDR", "10.0.0.1"),
        ("GRAINSERVE_PORT", "tcp://10.0.0.1:80"),
    ],
)
def test_what_kubernetes_sets_for_a_service_of_that_name_is_told_as_such(
    variable: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(BadSettings, match="enableServiceLinks: false"):
        load_settings({})


def test_a_setting_of_a_file_that_is_spelt_as_its_flag_is_told_its_name(file: Path) -> None:
    file.write_text("api-key = ['a']")
    with pytest.raises(BadSettings, match="did you mean api_key"):
        load_settings({}, file)


def test_defaults_are_safe() -> None:
    settings = load_settings({})
    assert (settings.host, settings.port, settings.api_key) == ("127.0.0.1", 8000, ())
    assert settings.store.parts[-2:] == ("grainserve", "profiles")
    assert settings.cache_dir.name == "grainserve"


def test_keys_come_comma_separated_from_the_environment_and_as_a_list_from_elsewhere(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = (Key.of("a"), Key.of("b"))
    file.write_text("api_key = ['a', 'b']")
    assert load_settings({}, file).api_key == wanted
    assert load_settings({"api_key": ["a", "b"]}).api_key == wanted
    monkeypatch.setenv("GRAINSERVE_API_KEY", " a, b,")
    assert load_settings({}).api_key == wanted


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("port", 65536),
        ("port", "eighty"),
        ("device", "gpu"),
        ("device", "cuda:x"),
        ("dtype", "int8"),
        ("max_batch_size", 0),
        ("max_strength", float("inf")),
        ("max_strength", float("nan")),
        ("kv_cache_gb", 0),
        ("api_key", [""]),
        ("api_key", ","),
        ("api_key", [7]),
        ("api_key_file", "/nowhere/keys"),
        ("log_level", "loud"),
        ("model", ""),
    ],
)
def test_a_bad_value_names_its_setting(name: str, value: Any) -> None:
    with pytest.raises(BadSettings) as refused:
        load_settings({name: value})
    assert str(refused.value).startswith(name)
    assert f"GRAINSERVE_{name.upper()}" in str(refused.value)


def test_a_bad_key_is_not_repeated() -> None:
    with pytest.raises(BadSettings) as refused:
        load_settings({"api_key": ["hush", ""], "port": "hush"})
    assert "hush" not in str(refused.value)


@pytest.mark.parametrize("text", ["prot = 1", "[server]\nport = 1"])
def test_an_unknown_setting_in_the_file_is_an_error(file: Path, text: str) -> None:
    file.write_text(text)
    with pytest.raises(BadSettings, match="there is no such setting"):
        load_settings({}, file)


@pytest.mark.parametrize("content", [b"port = ", b"\xff"])
def test_a_file_that_is_not_toml_is_an_error(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    with pytest.raises(BadSettings, match="is not TOML"):
        load_settings({}, file)


def test_a_file_that_is_not_there_is_an_error(file: Path) -> None:
    with pytest.raises(BadSettings, match="cannot read"):
        load_settings({}, file)


def test_a_home_directory_is_expanded() -> None:
    assert load_settings({"store": Path("~/p")}).store == Path.home() / "p"


def test_a_variable_that_is_nearly_a_setting_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAINSERVE_API_KYE", "secret")
    with pytest.raises(BadSettings, match=r"GRAINSERVE_API_KYE.*GRAINSERVE_API_KEY\?") as refusal:
        load_settings({})
    assert "secret" not in str(refusal.value)


@pytest.mark.parametrize(
    "said",
    ["eager=true, block-size=64", '{"eager": true, "block_size": 64}', '["eager=true", "block_size=64"]'],
)
def test_arguments_of_vllms_are_pairs_or_json(said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAINSERVE_ENGINE_ARG", said)
    assert load_settings({}).engine_arg == {"eager": True, "block_size": 64}


@pytest.mark.parametrize(
    ("said", "why"),
    [('{"a": 1', "engine_arg: not JSON"), ("eager", "write name=value, or all as a JSON object")],
)
def test_arguments_that_are_neither_are_refused(said: str, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAINSERVE_ENGINE_ARG", said)
    with pytest.raises(BadSettings, match=why):
        load_settings({})
