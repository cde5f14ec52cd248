"""Images whose files are made against what is root in the guest before its workload: our init, and the supervisor."""

from __future__ import annotations

import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fakes.oci_layout import Fill, Layout, directory, entry, layer, link
from tests.fakes.registry import push
from tests.system.machines import Driver, Host
from tests.system.stage import WITHOUT_TEMPLATES
from vmdriver._proto import compute_driver_pb2 as pb

SUPERVISOR = r"""
#include <pwd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

extern char **environ;
static struct stat found;
static int there(const char *path) { return lstat(path, &found) == 0; }

int main(void) {  /* 7: all is as it should be */
    /* Nothing of the image has run, and nothing was written to where its links lead: PID 1's own root directory. */
    if (there("/evil-ran") || there("/proc/1/root/evil-ran"))
        return 10;
    if (there("/proc/1/root/made-by-init") || there("/made-by-init"))
        return 11;
    if (!there("/proc/1/root/bin") || found.st_uid != 0 || !there("/proc/1/root/bin/become") || found.st_uid != 0)
        return 12;
    if (there("/proc/1/root/bin/.sandbox-owner-normalized") || there("/proc/1/root/bin/openshell"))
        return 13;
    /* What the supervisor relies on is the kernel's, ours, or in the image. */
    struct statfs kernels;
    if (statfs("/proc", &kernels) || kernels.f_type != 0x9fa0 || statfs("/sys", &kernels) || kernels.f_type != 0x62656572)
        return 14;
    if (statfs("/run", &kernels) || kernels.f_type != 0x01021994 || statfs("/tmp", &kernels) || kernels.f_type != 0x01021994)
        return 15;
    if (!there("/etc/resolv.conf") || !S_ISREG(found.st_mode) || !there("/etc/hosts") || !S_ISREG(found.st_mode))
        return 16;
    struct passwd *user = getpwnam("sandbox");
    if (!user || user->pw_uid != 10001 || !there("/sandbox") || !S_ISDIR(found.st_mode) || found.st_uid != 10001)
        return 17;
    /* Its environment is the driver's: neither the request's nor the image's words. */
    if (getenv("LD_PRELOAD") || getenv("GLIBC_TUNABLES") || getenv("SSL_CERT_FILE") || getenv("HTTPS_PROXY") || getenv("FROM_IMAGE"))
        return 18;
    const char *theirs = getenv("OPENSHELL_USER_ENVIRONMENT");
    return theirs && strstr(theirs, "LD_PRELOAD") && strstr(theirs, "FROM_IMAGE") ? 7 : 19;
}
"""
EVIL = r"""
#include <fcntl.h>
void __attribute__((constructor)) ran(void) { open("/evil-ran", O_CREAT | O_WRONLY, 0644); }
"""
LIBC = ("/lib64/ld-linux-x86-64.so.2", "/lib/x86_64-linux-gnu/libc.so.6")
PROGRAMS = ("bin/sh", "bin/busybox", "bin/mount", "bin/tar", "bin/chown", "bin/cat", "bin/grep", "sbin/init", "sbin/modprobe", "sbin/ip", "init", "bin/become")  # fmt: skip
ORDERS = {
    "LD_PRELOAD": "/lib/evil.so",
    "GLIBC_TUNABLES": "glibc.malloc.check=3",
    "SSL_CERT_FILE": "/evil.pem",
    "HTTPS_PROXY": "http://evil",
}


def compiled(text: str, path: Path, *options: str) -> bytes:
    command = ["gcc", "-x", "c", "-", "-o", str(path), *options]
    subprocess.run(command, input=text.encode(), check=True)
    return path.read_bytes()


def links(names: dict[str, str]) -> tuple[Fill, ...]:
    return tuple(link(name, target) for name, target in names.items())


def fifos(*names: str) -> tuple[Fill, ...]:
    return tuple(entry(name, kind=tarfile.FIFOTYPE) for name in names)


USERS = "root:x:0:0::/:/bin/sh"
AS_LINKS = links(
    {
        "etc/passwd": "/made-by-init",
        "etc/group": "../../../../made-by-init",
        "etc/hosts": "/made-by-init",
        "etc/resolv.conf": "/proc/1/root/made-by-init",
        "etc/hostname": "/dev/vda",
        "etc/machine-id": "/made-by-init",
        "opt": "/bin",
        "sandbox": "/bin",
        "run": "/etc",
        "dev": "/bin",
        "tmp": "../../bin",
        "proc": "/",
        "sys": "/nowhere",
    }
)
HOSTILE = {
    "links": (directory("etc"), *AS_LINKS),
    "the folder itself": (*links({"etc": "/etc", "opt": "/made-by-init"}), directory("sandbox"), link("sandbox/x", "/bin", hard=False)),
    "FIFOs": fifos("opt", "sandbox", "run", "dev", "tmp", "proc", "sys", *(f"etc/{name}" for name in ("passwd", "group", "hosts", "hostname", "resolv.conf", "machine-id"))),
    "files": (*(entry(name, "x") for name in ("opt", "sandbox", "run", "dev", "tmp", "proc", "sys")), entry("etc/passwd", USERS)),
    "within opt": (directory("opt"), link("opt/openshell", "/bin"), entry("etc/passwd", USERS)),
    "marker": (directory("opt/openshell"), link("opt/openshell/.sandbox-owner-normalized", "/made-by-init"), directory("sandbox"), entry("etc/passwd", USERS)),
}  # fmt: skip


@pytest.fixture
def supervised(
    new_driver: Callable[..., Driver], fresh_host: Host, tmp_path: Path
) -> Driver:
    """A driver whose supervisor is a dynamic program."""
    layout = Layout(tmp_path / "supervisor")
    program = compiled(SUPERVISOR, tmp_path / "program")
    files = [entry("openshell-sandbox", program, mode=0o755)]
    files += [entry(path[1:], Path(path).read_bytes(), mode=0o755) for path in LIBC]
    layout.image("supervisor", [layer(*files)])
    supervisor = f"{fresh_host.registry}/supervisor:1"
    push(layout.path, "supervisor", supervisor)
    options = ["--supervisor-path", "", "--supervisor-image", supervisor]
    return new_driver(*WITHOUT_TEMPLATES, *options, host=fresh_host)


def traps(tmp_path: Path) -> list[Fill]:
    """Programs and libraries that are there to be run or loaded by mistake."""
    program = compiled(EVIL + "int main(void) { return 0; }", tmp_path / "evil", "-static")  # fmt: skip
    library = compiled(EVIL, tmp_path / "evil.so", "-shared", "-fPIC")
    found = [entry(name, program, mode=0o755) for name in PROGRAMS]
    for folder in ("lib", "usr/lib", "lib64", "lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu"):  # fmt: skip
        names = ("evil.so", "libc.so.6", "ld-linux-x86-64.so.2", "libnss_evil.so.2")
        found += [entry(f"{folder}/{name}", library, mode=0o755) for name in names]
    return found


def test_nothing_of_a_hostile_image_is_obeyed_before_its_workload(
    supervised: Driver, tmp_path: Path
) -> None:
    driver, found = supervised, {}
    listeners = {
        "etc/ld.so.preload": "/lib/evil.so\n",
        "etc/ld.so.conf": "/lib\n",
        "etc/nsswitch.conf": "passwd: evil files\nhosts: evil files\n",
        "etc/profile": "touch /evil-ran\n",
        "etc/modprobe.d/x.conf": "install af_alg /bin/sh\n",
    }
    below = layer(*traps(tmp_path))
    for name, fills in HOSTILE.items():
        words = [entry(path, text) for path, text in listeners.items()]
        if name == "the folder itself":
            words = []  # they would make it a folder again
        layout, tag = Layout(tmp_path / name), name.replace(" ", "-").lower()
        config = {"Env": ["FROM_IMAGE=1", "LD_PRELOAD=/lib/evil.so"]}
        layout.image(tag, [below, layer(*words, *fills)], config=config)
        image = f"{driver.host.registry}/{tag}:1"
        push(layout.path, tag, image)
        template = pb.DriverSandboxTemplate(image=image)
        sandbox = driver.create(wait=False, template=template, environment=ORDERS)
        driver.wait(sandbox, "MainProcessExited")
        failure = driver.inspect(sandbox)["record"]["failure"]
        found[name] = failure["exit_code"]
        assert driver.delete(sandbox)
    assert found == dict.fromkeys(HOSTILE, 7)


def test_a_users_file_without_end_ends_the_start_with_the_reason(
    new_driver: Callable[..., Driver], fresh_host: Host, tmp_path: Path
) -> None:
    driver = new_driver(*WITHOUT_TEMPLATES, host=fresh_host)
    layout = Layout(tmp_path / "layout")
    layout.image("huge", [layer(entry("etc/passwd", b"x" * (64 << 20)))])
    image = f"{fresh_host.registry}/huge:1"
    push(layout.path, "huge", image)
    sandbox = driver.create(wait=False, template=pb.DriverSandboxTemplate(image=image))
    text = driver.wait(sandbox, "ProvisioningFailed")
    assert "etc/passwd: File too large" in text
