"""A guest's processor, of what the kernel or libvirt says. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from xml.etree import ElementTree as Xml

from vmdriver.model.plan import Processor

_NAMES = (
    *("vendor_id", "cpu family", "model", "stepping", "model name"),
    *("CPU implementer", "CPU variant", "CPU part", "CPU revision"),
)


def passed_through(entry: Mapping[str, str], nests: Mapping[str, str]) -> Processor:
    """The host's own. `entry`: of /proc/cpuinfo; `nests`: by kernel module, as facts.kvm_nests."""
    words = {name: " ".join(value.split()) for name, value in entry.items()}
    flags = words.get("flags", words.get("Features", "")).split()
    flags += [f"{module}.nested={value.strip()}" for module, value in nests.items()]
    return Processor(
        model=" ".join(words[name] for name in _NAMES if name in words),
        microcode=words.get("microcode", ""),
        flags=tuple(sorted(set(flags))),
    )


def emulated(capabilities: str) -> Processor:
    """QEMU's own, without KVM. `capabilities`: libvirt's of a domain, which say what model it is
    most like, and what it has more or less (virConnectGetDomainCapabilities).
    """
    root = Xml.fromstring(capabilities)  # noqa: S314 - libvirt's own output
    mode = root.find("cpu/mode[@name='host-model']")
    like = mode.findtext("model", "") if mode is not None else ""
    features = mode.findall("feature") if mode is not None else []
    words = {
        f"{'' if feature.get('policy') == 'require' else 'no '}{feature.get('name')}"
        for feature in features
    }
    model = f"QEMU's own, like {like}" if like else "QEMU's own"
    return Processor(model=model, flags=tuple(sorted(words)))
