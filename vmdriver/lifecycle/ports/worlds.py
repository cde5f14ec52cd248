"""Every outside world that the core works on, together."""

from __future__ import annotations

from dataclasses import dataclass

from vmdriver.lifecycle.ports.devices import HostDevices
from vmdriver.lifecycle.ports.folders import HostFolders
from vmdriver.lifecycle.ports.gateway import Gateway
from vmdriver.lifecycle.ports.guest import Guest
from vmdriver.lifecycle.ports.host import (
    Disks,
    Hypervisor,
    LaunchFiles,
    MachineUsers,
    Network,
    Records,
    SupervisorDisks,
)
from vmdriver.lifecycle.ports.images import Images
from vmdriver.lifecycle.ports.memory import MachineMemory, MemoryStore
from vmdriver.lifecycle.ports.network_guard import NetworkGuard
from vmdriver.lifecycle.ports.volumes import CopyStore, VolumeStore


@dataclass(frozen=True)
class Ports:
    """Every outside world that the core works on."""

    hypervisor: Hypervisor
    network: Network
    disks: Disks
    launch_files: LaunchFiles
    supervisor_disks: SupervisorDisks
    images: Images
    records: Records
    memory: MachineMemory
    guest: Guest
    memory_store: MemoryStore
    network_guard: NetworkGuard
    machine_users: MachineUsers
    gateway: Gateway
    host_devices: HostDevices
    volumes: VolumeStore
    host_folders: HostFolders
    volume_copies: CopyStore
