"""What `vmdriver doctor` says of what runs in guests: boot files, supervisor, default image."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from vmdriver.cli.doctor.finding import Finding, failed
from vmdriver.config import Config
from vmdriver.config.images import PUBLISHED_IMAGE
from vmdriver.errors import DriverError
from vmdriver.lifecycle.launch.supervisor import GATEWAY_VERSION
from vmdriver.oci import files
from vmdriver.oci import kept as kept_names
from vmdriver.oci.cache import Cache
from vmdriver.oci.image_service import KEPT
from vmdriver.storage.programs import boot
from vmdriver.storage.programs.needed import SUPERVISOR_WAY_OUT, missing_supervisor
from vmdriver.storage.programs.provided_boot import provided

_NOT_YET = "it is fetched when the driver needs it first"


def guest_findings(config: Config) -> Iterator[Finding]:
    """A line for each."""
    yield _boot_files(config)
    yield _supervisor(config)
    yield _default_image(config)


def _boot_files(config: Config) -> Finding:
    """Those of new launches."""
    check = "boot files"
    try:
        found = boot.load(config.driver.state_dir / "boot")
    except DriverError as error:
        installed = provided(config.guest.boot_files)
        if installed is None or error.reason != "BootFilesMissing":
            return failed(check, error)
        text = f"{installed.digest}, kernel {installed.kernel_release}: as installed"
        return Finding(check, "ok", text)
    return Finding(check, "ok", f"{found.digest}, kernel {found.kernel_release}")


def _supervisor(config: Config) -> Finding:
    program, image = config.guest.supervisor_path, config.guest.supervisor_image
    if program is not None and program.is_file():
        found = f"{program}, sha256:{files.digest(program)}"
        return Finding("supervisor", "ok", found)
    if program is None and image:
        return _supervisor_image(config.driver.state_dir / "images", image)
    why = missing_supervisor(program, image)
    return Finding("supervisor", "fail", why, SUPERVISOR_WAY_OUT)


def _supervisor_image(images: Path, image: str) -> Finding:
    """The digest that new launches get, as far as it is known."""
    kept, offline = kept_names.read(images / KEPT), ""
    beginning, follows, _ = image.partition(GATEWAY_VERSION)
    if follows:
        names = [name for name in kept if name.startswith(beginning)]
        image = names[-1] if names else image
        offline = (
            "without the network: set supervisor_path to the openshell-sandbox program"
        )
    entries = Cache(images).tree_entries()
    known = [entry.digest for _, entry in entries if image in entry.references]
    digest = kept.get(image) or next(iter(known), "")
    if digest:
        return Finding("supervisor", "ok", f"{image}, {digest}")
    return Finding("supervisor", "ok", f"{image}, {_NOT_YET}", offline)


def _default_image(config: Config) -> Finding:
    check, image = "default image", config.images.default_image
    if not image:
        return Finding(check, "ok", "none: each request names its own")
    kept = kept_names.read(config.driver.state_dir / "images" / KEPT)
    if digest := kept.get(image):
        return Finding(check, "ok", f"{image}, {digest}")
    if image == PUBLISHED_IMAGE:
        offline = "without the network: set default_image, or name images in requests"
        return Finding(check, "ok", f"{image}, {_NOT_YET}", offline)
    return Finding(check, "ok", image)
