"""Configuration: precedence, sources, clear errors."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_type_hints

import pytest
from pydantic import TypeAdapter

from vmdriver.cli import show
from vmdriver.cli.compose import FLAGS
from vmdriver.cli.main import main
from vmdriver.cli.reload import reload
from vmdriver.compose.config import load as load_compose
from vmdriver.config import SETTINGS, load
from vmdriver.config.views import settings_from
from vmdriver.errors import ConfigError
from vmdriver.lifecycle.ports.settings import Settings


def loaded(
    tmp_path: Path,
    text: str = "",
    flags: dict[str, str] | None = None,
    **environment: str,
):
    file = tmp_path / "c.toml"
    file.write_text(text)
    return load(file=file, flags=flags, environment=environment)


def test_file_environment_flag_in_rising_precedence(tmp_path: Path) -> None:
    text = "vcpus = 3\nmem_mib = 300\negress = 'none'"
    result = loaded(
        tmp_path, text, {"vcpus": "5"}, VMDRIVER_VCPUS="4", VMDRIVER_MEM_MIB="400"
    )
    assert (
        result.config.machines.vcpus,
        result.config.machines.mem_mib,
        result.config.network.egress,
    ) == (
        5,
        400,
        "none",
    )
    sources = {key: source for key, _, source in result.table()}
    assert sources["vcpus"] == "flag --vcpus"
    assert sources["mem_mib"] == "environment VMDRIVER_MEM_MIB"
    assert sources["egress"].startswith("file ")
    assert sources["stop_grace_s"] == "default"


def test_upstreams_environment_names_are_read_below_ours(tmp_path: Path) -> None:
    result = loaded(
        tmp_path, OPENSHELL_VM_DRIVER_VCPUS="7", OPENSHELL_GRPC_ENDPOINT="http://x:1"
    )
    assert result.config.machines.vcpus == 7
    assert (
        loaded(
            tmp_path, OPENSHELL_VM_DRIVER_VCPUS="7", VMDRIVER_VCPUS="8"
        ).config.machines.vcpus
        == 8
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("vcpu = 3", ["'vcpu'", "did you mean 'vcpus'?"]),
        ("vcpus = 0", ["vcpus", "greater than or equal to 1"]),
        ("egress = 'some'", ["egress", "private-denied"]),
        ("address_pool = '10.0.0.0/31'", ["address_pool", "/30"]),
        ("address_pool = '10.0.0.1/24'", ["address_pool"]),
        ("instance = 'A b'", ["instance"]),
        ("log_level = 'loud'", ["log_level", "debug"]),
        ("openshell_endpoint = 'x'", ["openshell_endpoint"]),
        ("openshell_endpoint = 'https://x'", ["guest_tls_ca"]),
        ("guest_tls_ca = '/x'", ["all or none"]),
        ("dns = ['x']", ["dns"]),
        ("vcpus = ", ["cannot be read"]),
        ("host_access = 'some'", ["host_access", '"gateway", "all"', "TCP ports"]),
        ("host_access = []", ["host_access", "TCP ports"]),
        ("host_access = [0]", ["host_access", "0 is no TCP port"]),
        ("host_access = [70000]", ["host_access", "70000 is no TCP port"]),
        ("host_access = [true]", ["host_access", "no TCP port"]),
        ("host_access = [80, '80']", ["host_access", "port 80 twice"]),
        ("host_alias = 'x'", ["host_alias"]),
        ("host_alias = '127.0.0.1'", ["host_alias", "127.0.0.1"]),
        ("host_alias = '10.0.200.1'", ["host_alias", "address_pool"]),
        ("host_alias = '10.200.0.7'", ["host_alias", "supervisor"]),
        ("host_alias = '9.9.9.9'\ndns = ['9.9.9.9']", ["host_alias", "name server"]),
        ("openshell_endpoint = 'http://192.168.127.254:1'", ["host_alias", "gateway"]),
    ],
)
def test_errors_name_the_setting_and_the_way_out(
    tmp_path: Path, text: str, words: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        loaded(tmp_path, text)
    for word in words:
        assert word in caught.value.text()


def test_a_missing_file_that_was_named_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        load(file=tmp_path / "none", environment={})


def test_lists_are_comma_separated_outside_the_file(tmp_path: Path) -> None:
    result = loaded(
        tmp_path, flags={"insecure_registries": "a:1, b:2"}, VMDRIVER_DNS="192.0.2.1"
    )
    assert result.config.images.insecure_registries == ["a:1", "b:2"]
    assert result.config.network.dns == ["192.0.2.1"]
    for text, expected in (
        ("all", "all"),
        ("gateway", "gateway"),
        ("8000, 1", [8000, 1]),
    ):
        result = loaded(tmp_path, flags={"host_access": text})
        assert result.config.network.host_access == expected
    assert loaded(tmp_path, "host_access = [11434]").config.network.host_access == [
        11434
    ]


def test_what_looks_secret_is_hidden_and_owners_are_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigError, match="extension: x is configured and not loaded"):
        loaded(tmp_path, "[extension.x]\nplain = 1")
    with pytest.raises(ConfigError, match="request_parameters: y"):
        loaded(tmp_path, "request_parameters = ['y']")
    result = loaded(
        tmp_path, "extensions = ['x']\n[extension.x]\napi_token = 'hush'\nplain = 1"
    )
    table = {key: value for key, value, _ in result.table()}
    assert table["extension"] == {"x": {"api_token": "**********", "plain": 1}}
    assert show.config(result, as_json=False) == 0
    printed = capsys.readouterr().out
    assert re.search(r"extension x +plain +1 +file", printed)
    assert re.search(r"driver +mem_mib +\d+ +default", printed)
    assert "hush" not in printed


SECRETS_IN_A_TABLE = """
connection = "qemu+ssh://me:hush@host/system"
default_image = "robot:hush@registry.example.org/image:1"
insecure_registries = ["https://robot:hush@registry.example.org:5000"]
extensions = ["x"]
[extension.x]
url = "https://robot:hush@example.org/path?q=1"
"Api-Key" = "hush"
apiKey = "hush"
passwd = "hush"
key = "hush"
headers = { Authorization = "hush", Cookie = "hush", Accept = "text/plain" }
credentials = { user = "hush", nested = ["hush"] }
image = "registry.example.org/image:1@sha256:0123"
[[extension.x.accounts]]
user = "one"
password = "hush"
"""


def test_secrets_are_hidden_in_lists_below_names_and_in_addresses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = loaded(tmp_path, SECRETS_IN_A_TABLE)
    for as_json in (False, True):
        assert show.config(result, as_json=as_json) == 0
        printed = capsys.readouterr().out
        assert "hush" not in printed
        for told in (
            *("qemu+ssh://***@host/system", "https://***@example.org/path?q=1"),
            *("***@registry.example.org/image:1", "text/plain"),
            *("https://***@registry.example.org:5000", "image:1@sha256:0123", "one"),
        ):
            assert told in printed
    assert result.config.driver.connection == "qemu+ssh://me:hush@host/system"


def test_a_changed_secret_is_a_changed_setting(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is not shown is compared all the same."""
    monkeypatch.setattr("vmdriver.host.log.set_up", lambda *_: None)
    text = "extensions = ['x']\n[extension.x]\ntoken = '{}'"
    before = loaded(tmp_path, text.format("hush-1"))
    with caplog.at_level("INFO", "vmdriver"):
        reload(before, lambda: loaded(tmp_path, text.format("hush-1")))
        assert "not as the driver was started" not in caplog.text
        reload(before, lambda: loaded(tmp_path, text.format("hush-2")))
    assert "extension: not as the driver was started" in caplog.text
    assert "hush" not in caplog.text


def test_two_state_directories_are_two_instances(tmp_path: Path) -> None:
    one, two = (
        loaded(tmp_path, f"state_dir = '/srv/{n}'").config.driver.instance for n in "ab"
    )
    assert one != two
    assert one == loaded(tmp_path, "state_dir = '/srv/a'").config.driver.instance
    assert loaded(tmp_path).config.driver.instance == "vmdriver"
    assert (
        loaded(tmp_path, "state_dir = '/srv/a'\ninstance = 'x'").config.driver.instance
        == "x"
    )


def test_every_flag_of_a_stock_gateway_is_a_setting() -> None:
    for flag in (
        "bind-socket expected-peer-pid log-level otlp-endpoint openshell-endpoint state-dir default-image bootstrap-image "
        "krun-log-level vcpus mem-mib overlay-disk-mib guest-tls-ca guest-tls-cert guest-tls-key allow-same-uid-peer"
    ).split():
        assert flag.replace("-", "_") in SETTINGS


def test_a_launchers_number_that_no_process_can_have_is_refused(tmp_path: Path) -> None:
    for number in ("0", "-1", str(2**31), "99999999999"):
        with pytest.raises(ConfigError, match="expected_peer_pid"):
            loaded(tmp_path, f"expected_peer_pid = {number}")


def test_what_the_core_is_given_is_what_it_says_it_wants(tmp_path: Path) -> None:
    text = (
        "host_access = [1]\ndns = ['192.0.2.1']\nsupervisor_path = '/x'\n"
        + "\n".join(f"guest_tls_{name} = '/{name}'" for name in ("ca", "cert", "key"))
    )
    for given in ("", text):
        settings = settings_from(loaded(tmp_path, given).config)
        for name, kind in get_type_hints(Settings).items():
            value = getattr(settings, name)
            assert TypeAdapter(kind).validate_python(value, strict=True) == value, name


def test_a_key_is_of_one_section_and_sections_are_nothing_that_operators_write(
    tmp_path: Path,
) -> None:
    keys = [key for key, _, _ in loaded(tmp_path).table()]
    assert keys == list(SETTINGS), "two sections with one key would shadow each other"
    with pytest.raises(ConfigError, match="'machines' is not a setting"):
        loaded(tmp_path, "[machines]\nvcpus = 1")


def test_operators_commands_in_guests_take_somebodys_word(tmp_path: Path) -> None:
    assert settings_from(loaded(tmp_path).config).operator_exec is False
    said = loaded(tmp_path, "operator_exec = true").config
    assert settings_from(said).operator_exec is True


TLS = {
    "bind_tls": "0.0.0.0:7443",
    "tls_ca": "/t/ca.crt",
    "tls_certificate": "/t/host.crt",
    "tls_key": "/t/host.key",
    "tls_clients": "one.test, two.test",
}


def test_other_hosts_are_served_with_all_that_it_takes_or_not_at_all(
    tmp_path: Path,
) -> None:
    remote = loaded(tmp_path, flags=TLS).config.remote
    assert remote.tls_clients == ["one.test", "two.test"]
    for key in TLS.keys() - {"bind_tls"}:
        with pytest.raises(ConfigError, match=f"bind_tls needs {key}, too"):
            loaded(tmp_path, flags={k: v for k, v in TLS.items() if k != key})
    only = {"tls_ca": "/t/ca.crt"}
    assert loaded(tmp_path, flags=only).config.remote.bind_tls == "", (
        "off, whatever else"
    )


@pytest.mark.parametrize(
    ("key", "value"),
    [("bind_tls", "7443"), ("bind_tls", "::1:7443"), ("tls_clients", "*.test")],
)
def test_who_is_served_is_said_exactly(tmp_path: Path, key: str, value: str) -> None:
    with pytest.raises(ConfigError, match=key):
        loaded(tmp_path, flags={**TLS, key: value})


def test_a_base_on_another_host_has_keys_and_one_on_this_host_none(
    tmp_path: Path,
) -> None:
    path = tmp_path / "compose.toml"
    path.write_text('base = "tls:host.test:7443"\nbind_socket = "/c"\n')
    keys = {key: f"/t/{key}" for key in ("tls_ca", "tls_certificate", "tls_key")}
    assert load_compose(path, keys).keys() is not None
    for key in keys:
        with pytest.raises(ConfigError, match=f"needs {key}, too"):
            load_compose(path, {k: v for k, v in keys.items() if k != key})
    with pytest.raises(ConfigError, match="tls_ca goes with a base of tls:"):
        load_compose(path, {**keys, "base": "unix:/b"})
    with pytest.raises(ConfigError, match="HOST:PORT"):
        load_compose(path, {**keys, "base": "tls:host.test"})


@pytest.mark.parametrize(
    ("command", "way_out"),
    [("config", "set it in {}"), ("compose", "set it in {}, or as --base")],
)
def test_a_missing_base_is_told_with_the_ways_that_command_takes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, way_out: str
) -> None:
    path = tmp_path / "compose.toml"
    path.write_text('bind_socket = "/c"\n')
    words = ["config", "--compose"] if command == "config" else ["compose"]
    assert main([*words, "--config", str(path)]) == 2
    out, said = capsys.readouterr()
    way = way_out.format(path)
    assert (out, said) == ("", f"vmdriver: base: it is needed, and not set: {way}\n")


def test_a_setting_that_is_no_flag_is_not_told_as_one(tmp_path: Path) -> None:
    path = tmp_path / "compose.toml"
    path.write_text('base = "unix:/b"\nbind_socket = "/c"\nbase_wait_s = -1\n')
    with pytest.raises(ConfigError, match="base_wait_s") as caught:
        load_compose(path, {}, FLAGS)
    assert caught.value.resolution == f"set it in {path}"
