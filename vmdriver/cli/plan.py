"""vmdriver plan: what a request would become, without doing anything."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

from vmdriver.app import Driver
from vmdriver.config import Loaded
from vmdriver.errors import ConfigError
from vmdriver.hypervisor.kvm import outcome as kvm_outcome
from vmdriver.lifecycle.control import checks
from vmdriver.lifecycle.extending.draft import PlanDraft
from vmdriver.lifecycle.launch import planner
from vmdriver.lifecycle.launch.addresses import AddressPool
from vmdriver.lifecycle.launch.environment import guest_endpoint
from vmdriver.model.image import ImageConfig
from vmdriver.model.plan import LaunchPlan
from vmdriver.service.codec import sandbox_from_json


async def _plan(loaded: Loaded, text: str) -> LaunchPlan:
    driver = Driver(loaded.config)
    settings = driver.settings
    try:
        spec, token = sandbox_from_json(text, loaded.config.images.default_image)
        checks.check(spec, settings)
        endpoint = guest_endpoint(settings.endpoint)
        addresses = AddressPool(settings.instance, settings.address_pool)
        uids = driver.users.uids
        user = uids.user(uids.numbers[0])
        boot, volumes = driver.paths.boot(), driver.core.volumes
        folders, paths = driver.core.host_mounts, driver.paths.of(spec.id)
        await volumes.look()
        facts = planner.HostFacts(
            accelerator=kvm_outcome.likely(
                loaded.config.driver.accelerator, driver.layout.accelerator
            ),
            boot=boot,
            base_disk="(made from the image at create)",
            layers=(driver.paths.new_layer(spec.id, user),),
            image_digest="(resolved at create)",
            image_config=ImageConfig(),
            supervisor_disk="(made from supervisor_path)",
            paths=paths,
            lease=addresses.take(spec.id, await driver.network.taken()),
            own_networks=await driver.network.own_networks(),
            ipv6=await driver.network.way_to_ipv6() if settings.egress_ipv6 else None,
            gateway_address=None
            if endpoint.on_host_loopback
            else await driver.network.resolve(endpoint.host),
            has_token=token is not None,
            volumes=volumes.disks(spec, boot, driver.paths.volume),
            host_mounts=folders.planned(spec, paths.folders),
        )
        return planner.with_user(
            planner.resolve(spec, settings, facts, PlanDraft()), user
        )
    finally:
        driver.release_threads()


def plan(loaded: Loaded, request: str) -> int:
    """Print the plan as JSON. What extensions would add is not in it: their hooks may
    act.
    """
    try:
        text = sys.stdin.read() if request == "-" else Path(request).read_text()
        json.loads(text)
    except (OSError, ValueError) as error:
        raise ConfigError(f"request {request}: {error}") from error
    found = asyncio.run(_plan(loaded, text))
    if found.network.no_ipv6:
        note = f"vmdriver: the machine would have no IPv6: {found.network.no_ipv6}"
        print(note, file=sys.stderr)
    print(found.model_dump_json(indent=2))
    return 0
