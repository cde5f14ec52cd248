"""One sandbox's life on a real machine, and what its guest sees."""

from __future__ import annotations

import json
import os
import signal
import ssl
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fakes.gateway import Gateway
from tests.fakes.waiting import until
from tests.system.machines import INSTANCE, Driver, Host
from tests.system.stage import WITHOUT_TEMPLATES
from vmdriver._proto import admin_pb2 as admin
from vmdriver._proto import compute_driver_pb2 as pb

NASTY = {
    "SPACES": "  a  b  ",
    "QUOTES": 'it\'s "quoted" `x` $HOME \\n',
    "NEWLINES": "one\ntwo\n",
    "UTF8": "é ü 漢字 🎉",
    "IFS": "x",
    "OPTIND": "not a number",
    "EMPTY": "",
}


def test_a_sandbox_lives_stops_starts_and_goes(booting: Driver) -> None:
    driver, gateway = booting, booting.gateway
    resources = pb.DriverResourceRequirements(cpu_limit="1500m", memory_limit="640Mi")
    sandbox = driver.create(
        template=pb.DriverSandboxTemplate(image=driver.host.image, resources=resources),
        environment=NASTY,
        sandbox_token="secret-token-4711",
    )
    driver.wait(sandbox, "Running")
    a_fraction_of_a_cpu_and_memory_are_given(driver, sandbox)
    hello = gateway.session(sandbox).hellos[0]["environment"]
    expected = {
        "OPENSHELL_USER_ENVIRONMENT": json.dumps(
            {**NASTY, "LANG": "C.UTF-8"}, ensure_ascii=False, sort_keys=True
        ),
        "HOME": "/sandbox",
        "USER": "sandbox",
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "TERM": "xterm",
        "OPENSHELL_ENDPOINT": f"http://host.openshell.internal:{gateway.port}",
        "OPENSHELL_SANDBOX_ID": sandbox,
        "OPENSHELL_SANDBOX": "box",
        "OPENSHELL_SSH_SOCKET_PATH": "/run/openshell/ssh.sock",
        "OPENSHELL_LOG_LEVEL": "info",
        "OPENSHELL_TELEMETRY_ENABLED": "true",
        "OPENSHELL_NETWORK_RUNTIME_CAPABILITIES": "",
        "OPENSHELL_SANDBOX_TOKEN_FILE": "/opt/openshell/auth/sandbox.jwt",
        "OPENSHELL_MAIN_PROCESS_SPEC": hello["OPENSHELL_MAIN_PROCESS_SPEC"],
    }
    hello.pop("LC_CTYPE", None)  # python3 adds it to itself
    assert hello == expected, "exactly this, every byte; the user's is not among it"
    program = (
        "for p in /proc/[0-9]*; do [ $(cat $p/comm) != sleep ] || cat $p/environ; done"
    )
    theirs = gateway.shell(sandbox, program).split("\0")
    assert {f"{name}={value}" for name, value in NASTY.items()} <= set(theirs)
    assert gateway.session(sandbox).tokens == ["secret-token-4711"]
    check_guest(driver, sandbox)
    check_no_secret(driver, sandbox, "secret-token-4711")

    gateway.shell(
        sandbox,
        "dd if=/dev/urandom of=/sandbox/data bs=1M count=8 2>/dev/null; md5sum /sandbox/data > /sandbox/sum",
    )
    gateway.shell(
        sandbox, "sed -i /^sandbox:/d /etc/passwd /etc/group"
    )  # as an image without the user
    begun = time.monotonic()
    driver.stop(sandbox)
    assert time.monotonic() - begun < 10
    assert driver.condition(sandbox)[:2] == ("Suspended=True", "Stopped")
    driver.start_sandbox(sandbox)
    gateway.wait_hello(sandbox, 2)
    assert "OK" in gateway.shell(sandbox, "cd / && md5sum -c /sandbox/sum"), (
        "written without sync, and there after the stop"
    )
    line = gateway.shell(sandbox, "grep ^sandbox: /etc/passwd")
    assert line == "sandbox:x:10001:10001::/sandbox:/bin/sh\n", (
        "the user is made where there is none"
    )
    driver.wait(sandbox, "Running")
    assert driver.delete(sandbox)
    assert not driver.delete(sandbox)


def a_fraction_of_a_cpu_and_memory_are_given(driver: Driver, sandbox: str) -> None:
    assert driver.gateway.shell(sandbox, "nproc") == "2\n"
    memory = "awk '/MemTotal/ {print $2}' /proc/meminfo"
    kib = int(driver.gateway.shell(sandbox, memory))
    assert 540 * 1024 < kib < 640 * 1024


def check_guest(driver: Driver, sandbox: str) -> None:
    shell = driver.gateway.shell
    assert shell(sandbox, "stat -c '%U %a' /sandbox") == "sandbox 755\n"
    assert (
        shell(sandbox, "stat -c '%U %a' /opt/openshell/auth/sandbox.jwt")
        == "root 600\n"
    )
    assert shell(sandbox, "hostname") == "box\n"
    known = shell(sandbox, "grep host.openshell.internal /etc/hosts").split()[0]
    assert known == "192.168.127.254", "the same in every sandbox"
    assert "/init" in shell(sandbox, "tr '\\0' ' ' < /proc/1/cmdline"), (
        "our init stays PID 1"
    )
    shell(sandbox, "for i in 1 2 3 4 5; do (sleep 0.1 &) ; done; sleep 1")
    assert (
        shell(sandbox, "cat /proc/[0-9]*/stat | awk '$3 == \"Z\"' | wc -l") == "0\n"
    ), "PID 1 reaps orphans"
    assert shell(sandbox, "unshare -U true && echo yes") == "yes\n", (
        "user namespaces work: we are in no chroot"
    )
    shell(
        sandbox,
        "ip netns add x && ip link add va type veth peer name vb && nft add table inet t && ip netns del x",
    )
    assert "ext4" in shell(sandbox, "grep ' / ' /proc/mounts")
    assert shell(sandbox, "grep -c secret /proc/cmdline || true") == "0\n"


def check_no_secret(driver: Driver, sandbox: str, secret: str) -> None:
    directory = driver.directory(sandbox)
    pid = driver.machine_pid(sandbox)
    assert secret.encode() not in Path(f"/proc/{pid}/cmdline").read_bytes()
    assert secret.encode() not in Path(f"/proc/{pid}/environ").read_bytes()
    for path in [
        *directory.rglob("*"),
        *(driver.host.state / "libvirt").rglob("*"),
        driver.log,
    ]:
        if (
            path.is_file()
            and path.stat().st_size < 2**22
            and secret.encode() in path.read_bytes()
        ):
            assert path.name in {"token", "seed.img"}, path
            assert path.stat().st_mode & 0o077 == 0, f"{path} can be read by others"
    status = Path(f"/proc/{pid}/status").read_text()
    assert "Seccomp:\t2" in status, "QEMU runs in libvirt's sandbox"
    assert "\nUid:\t0" not in status, "and not as root"


@pytest.mark.parametrize("code", [0, 3])
def test_the_end_of_the_main_process_is_reported_with_its_code(
    driver: Driver, code: int
) -> None:
    sandbox = driver.create(wait=False, command=["/bin/sh", "-c", f"exit {code}"])
    message = driver.wait(sandbox, "MainProcessExited")
    assert message == f"the main process ended with exit code {code}"
    assert driver.gateway.wait_exit(sandbox) == code


def test_a_guest_panic_is_a_crash_and_shows_the_console(driver: Driver) -> None:
    sandbox = driver.create()
    driver.wait(sandbox, "Running")
    driver.gateway.session(sandbox).jobs.put(
        {"job": 0, "run": ["/bin/sh", "-c", "echo c > /proc/sysrq-trigger"]}
    )
    message = driver.wait(sandbox, "MachineCrashed")
    assert "console" in message
    assert driver.delete(sandbox)


def test_a_killed_qemu_is_a_crash_that_is_restarted_when_configured(
    new_driver: Callable[..., Driver],
) -> None:
    driver = new_driver("--crash-restarts", "1")
    sandbox = driver.create()
    driver.wait(sandbox, "Running")
    os.kill(driver.machine_pid(sandbox), signal.SIGKILL)
    driver.gateway.wait_hello(sandbox, 2)
    driver.wait(sandbox, "Running")
    os.kill(driver.machine_pid(sandbox), signal.SIGKILL)
    driver.wait(sandbox, "MachineCrashed")


def test_the_gateways_certificate_is_verified_for_its_host_name(
    new_driver: Callable[..., Driver], tmp_path: Path
) -> None:
    files = {
        name: tmp_path / name for name in ("ca.crt", "ca.key", "tls.crt", "tls.key")
    }
    make_certificates(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files["tls.crt"], files["tls.key"])
    context.load_verify_locations(files["ca.crt"])
    context.verify_mode = ssl.CERT_REQUIRED
    gateway = Gateway(tls=context)
    try:
        driver = new_driver(
            *(
                "--guest-tls-ca",
                str(files["ca.crt"]),
                "--guest-tls-cert",
                str(files["tls.crt"]),
            ),
            *("--guest-tls-key", str(files["tls.key"])),
            gateway=gateway,
        )
        sandbox = driver.create()
        hello = gateway.session(sandbox).hellos[0]["environment"]
        assert (
            hello["OPENSHELL_ENDPOINT"]
            == f"https://host.openshell.internal:{gateway.port}"
        )
        assert (
            gateway.shell(sandbox, "stat -c '%a' /opt/openshell/tls/tls.key") == "600\n"
        )
    finally:
        driver.delete(sandbox)
        gateway.close()


def make_certificates(directory: Path) -> None:
    def openssl(*arguments: str) -> None:
        subprocess.run(
            ["openssl", *arguments], cwd=directory, check=True, capture_output=True
        )

    openssl(
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        "2",
        "-keyout",
        "ca.key",
        "-out",
        "ca.crt",
        "-subj",
        "/CN=test ca",
        "-addext",
        "keyUsage=critical,keyCertSign",
    )
    openssl(
        "req",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-keyout",
        "tls.key",
        "-out",
        "tls.csr",
        "-subj",
        "/CN=gateway",
    )
    (directory / "san").write_text("subjectAltName=DNS:host.openshell.internal\n")
    openssl(
        "x509",
        "-req",
        "-in",
        "tls.csr",
        "-CA",
        "ca.crt",
        "-CAkey",
        "ca.key",
        "-days",
        "2",
        "-out",
        "tls.crt",
        "-extfile",
        "san",
    )


def test_extensions_of_both_kinds_add_drop_ins_and_environment(
    new_driver: Callable[..., Driver], fresh_host: Host, tmp_path: Path
) -> None:
    """Of a boot: a fork is told of otherwise."""
    drop_ins = tmp_path / "init.d"
    drop_ins.mkdir()
    (drop_ins / "10-first").write_text(
        '#!/bin/sh\necho "$OPENSHELL_VM_INIT_PHASE $OPENSHELL_VM_DATA_X" > "$ROOT_PREFIX/sandbox/from-drop-in"\n'
    )
    config = tmp_path / "config.toml"
    config.write_text(
        'extensions = ["audit-log", "operator-drop-ins", "labels-and-placement"]\n'
        f'[extension.audit-log]\npath = "{tmp_path / "audit"}"\n'
        '[extension.labels-and-placement.default]\nenvironment = { POOL = "large" }\n'
        f'[extension.operator-drop-ins]\ndirectory = "{drop_ins}"\n'
        'environment = { OPENSHELL_X = "1" }\n'
    )
    options = [*WITHOUT_TEMPLATES, "--config", str(config)]
    driver = new_driver(*options, host=fresh_host)
    sandbox = driver.create(wait=False)
    assert "belongs to the driver" in driver.wait(sandbox, "ProvisioningFailed")
    text = config.read_text().replace("OPENSHELL_X", "COLOUR")
    config.write_text(text)
    driver.restart()
    sandbox = driver.create()
    assert (
        driver.gateway.shell(sandbox, "cat /sandbox/from-drop-in").strip()
        == "before-supervisor"
    )
    environment = driver.gateway.session(sandbox).hellos[0]["environment"]
    assert (environment["COLOUR"], environment["POOL"]) == ("1", "large")
    driver.kill()
    driver.start()
    # A delete does not wait until what is to go has been adopted.
    until(lambda: '"after_restore"' in (tmp_path / "audit").read_text(), limit_s=60)
    driver.delete(sandbox)
    lines = [json.loads(line) for line in (tmp_path / "audit").read_text().splitlines()]
    told = [
        (line["actor"], line["phase"]) for line in lines if line["sandbox"] == sandbox
    ]
    assert told == [
        *(("labels-and-placement", "prepare_plan"), ("audit-log", "after_create")),
        *(("operator-drop-ins", "configure_launch"),),
        *(("operator-drop-ins", "before_launch"),),
        *(("operator-drop-ins", "before_restore"),),
        *(("operator-drop-ins", "after_restore"),),
        *(("operator-drop-ins", "after_launch_failed"),),
        *(("operator-drop-ins", "after_delete"), ("audit-log", "after_delete")),
    ]
    (drop_ins / "20-broken").write_text("#!/bin/sh\nexit 4\n")
    sandbox = driver.create(wait=False)
    message = driver.wait(sandbox, "ProvisioningFailed")
    assert "20-broken" in message
    assert "status 4" in message


def test_commands_show_what_there_is(driver: Driver) -> None:
    sandbox = driver.create()
    driver.wait(sandbox, "Running")
    assert [row["id"] for row in driver.cli("ls")] == [sandbox]
    found = driver.cli("inspect", sandbox)
    assert found == driver.inspect(sandbox)
    assert found["record"]["phase"] == "running"
    assert found["machine"]["running"]
    assert [e["key"] for e in found["ledger"]][-1] == "machine"
    assert found["guest"]["phase"] == "started"
    stream = driver.admin.Observe(admin.ObserveRequest(interval_ms=1000))
    for picture in stream:
        (seen,) = picture.sandboxes
        if seen.HasField("use") and seen.stored_bytes:
            break
    stream.cancel()
    assert (seen.id, seen.phase) == (sandbox, "running")
    assert 0 < seen.use.own_bytes < seen.use.memory_bytes + seen.use.shared_bytes
    assert seen.use.cpu_seconds > 0
    assert picture.disk_free_bytes > 0
    assert [event.sandbox for event in picture.events][-1] == sandbox
    assert driver.cli("config")["mem_mib"] == {"value": 512, "source": "flag --mem-mib"}
    subprocess.run(
        [
            "ip",
            "link",
            "add",
            "vmdorphan",
            "type",
            "veth",
            "peer",
            "name",
            "vmdorphan2",
        ],
        check=True,
    )
    subprocess.run(
        ["ip", "link", "set", "vmdorphan", "alias", f"vmdriver/{INSTANCE}/nobody"],
        check=True,
    )
    swept = driver.cli("sweep", "--dry-run")
    assert [o["name"] for o in swept["orphans"]] == ["vmdorphan"]
    driver.cli("sweep")
    assert driver.cli("sweep")["orphans"] == []
    assert (
        "vmdorphan"
        not in subprocess.run(
            ["ip", "link"], capture_output=True, text=True, check=True
        ).stdout
    )
