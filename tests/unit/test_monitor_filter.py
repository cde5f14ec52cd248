"""The library between QEMUs' monitors and libvirt: what it lets libvirt's functions be asked, and what is without it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from vmdriver.hypervisor.wall.libraries import place_of
from vmdriver.hypervisor.wall.monitor_filter import MonitorFilter

SOURCE = Path(__file__).parents[2] / "vmdriver/hypervisor/wall/monitor_filter.c"
LOADED = """
import asyncio, ctypes, json, sys
from pathlib import Path
from vmdriver.hypervisor.wall.monitor_filter import MonitorFilter
if "earlier" in sys.argv:
    ctypes.CDLL("libvirt.so.0", mode=ctypes.RTLD_GLOBAL)  # as its QEMU driver has it
found = MonitorFilter(Path(sys.argv[1]))
asyncio.run(found.prepare())
print(found.problem)
if "earlier" in sys.argv:
    sys.exit()
import libvirt
seen = ctypes.CDLL(None)
for name in ("FromString", "ObjectGet", "ArrayGet", "ObjectStealArray"):
    getattr(seen, "virJSONValue" + name).restype = ctypes.c_void_p
seen.virJSONValueObjectGetString.restype = seen.virJSONValueToString.restype = ctypes.c_char_p

def read(text):
    value = seen.virJSONValueFromString(text.encode())
    return ctypes.c_void_p(value)

def get(value, key):
    return ctypes.c_void_p(seen.virJSONValueObjectGet(value, key))

number = ctypes.c_longlong()
event = read('{"event": "STOP", "list": [1, 2], "text": "x"}')
assert seen.virJSONValueObjectGetString(event, b"event") == b"STOP"
assert seen.virJSONValueArraySize(get(event, b"list")) == 2
nothing = get(event, b"data")
assert not nothing.value
assert seen.virJSONValueObjectGetNumberLong(nothing, b"offset", ctypes.byref(number)) == -1
assert seen.virJSONValueObjectGetString(nothing, b"device") is None
assert not seen.virJSONValueObjectHasKey(nothing, b"device")
assert seen.virJSONValueObjectKeysNumber(nothing) == -1
assert seen.virJSONValueArrayGet(nothing, 0) is None
assert seen.virJSONValueToString(nothing, False) is None
assert seen.virJSONValueArraySize(nothing) == seen.virJSONValueArraySize(get(event, b"text")) == 0
assert seen.virJSONValueArrayToStringList(get(event, b"text")) == 0

for name, data, known in (
    ("RTC_CHANGE", {"offset": 1}, False),
    ("BLOCK_IO_ERROR", {}, False),
    ("BLOCK_IO_ERROR", None, False),
    ("BLOCK_IO_ERROR", {"device": "a", "operation": "read", "action": "stop"}, False),
    ("BLOCK_IO_ERROR", {"device": 1, "operation": "read", "action": "stop", "reason": "x"}, False),
    ("BLOCK_IO_ERROR", {"device": "a", "operation": "read", "action": "stop", "reason": "x"}, True),
    ("MIGRATION", [], False),
    ("MIGRATION", {"status": "completed"}, True),
    ("RESUME", None, True),
    (None, None, False),
):
    told = read(json.dumps({"timestamp": {"seconds": 1}, "event": name, "data": data}))
    assert seen.virJSONValueObjectGetString(told, b"event") == (name.encode() if known else b"IGNORED")
    assert bool(get(told, b"data").value) == known

chain = "0"
for _ in range(200):
    chain = '{"image": {"backing-image": %s, "format": "qcow2"}}' % chain
assert read(chain).value
assert read(json.dumps({"return": [{"name": str(n), "more": {"a": [n]}} for n in range(20000)]})).value
assert read(json.dumps({"a": "[" * 5000 + "{" * 5000})).value, "that is a string"
for text in ("[" * 5_000_000, "[" * 5000 + "]" * 5000, '{"a":' * 5000 + "1" + "}" * 5000):
    assert not read(text).value
    assert "nested too deeply" in str(libvirt.virGetLastErrorMessage())
assert not read("{" + ",".join(f'"{n}":1' for n in range(5000)) + "}").value
assert not read("[" + "1," * 200000 + "1]").value
assert not read('"' + "\\\\").value
print("read")
"""


def in_a_process(*arguments: str) -> list[str]:
    command = [sys.executable, "-c", LOADED, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_libvirts_questions_to_what_is_not_there_are_answered(tmp_path: Path) -> None:
    """isolation: libvirt 9.0 followed the null pointer, or ran out of its stack, and the driver was gone."""
    assert in_a_process(str(tmp_path / "with space")) == ["", "read"]
    (made,) = (tmp_path / "with space").iterdir()
    written = made.stat().st_mtime_ns
    assert in_a_process(str(tmp_path / "with space")) == ["", "read"]
    assert made.stat().st_mtime_ns == written


def test_a_libvirt_that_was_loaded_earlier_is_told(tmp_path: Path) -> None:
    (said,) = in_a_process(str(tmp_path), "earlier")
    assert "was loaded before it" in said


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (("libvirt.so.0", "libm.so.6"), "other names for reading JSON"),
        (("libvirt.so.0", "libnobody.so.0"), "libnobody.so.0"),
        (("SHOWN const char *vmdriver_begin", "const char *vmdriver_start"), "ended"),
        (("void *libvirt = dlopen", "__builtin_trap(); void *libvirt = dlopen"), ""),
        (("#include <dlfcn.h>", "#include <nobody.h>"), "gcc ended"),
    ],
    ids=[
        "other names",
        "no libvirt",
        "no beginning",
        "it ends who loads it",
        "no headers",
    ],
)
async def test_a_library_that_does_not_fit_is_told_and_not_loaded(
    tmp_path: Path, change: tuple[str, str], reason: str
) -> None:
    """It is tried by somebody else first."""
    text = SOURCE.read_text()
    assert change[0] in text
    source = tmp_path / "monitor_filter.c"
    source.write_text(text.replace(*change))
    tried = MonitorFilter(tmp_path / "made", source)
    await tried.prepare()
    assert tried.problem
    assert reason in tried.problem
    assert "monitor-filter" not in Path("/proc/self/maps").read_text()


@pytest.mark.parametrize("content", [b"", b"\x7fELF" + b"\0" * 60])
async def test_a_torn_library_is_told(tmp_path: Path, content: bytes) -> None:
    place_of(SOURCE, tmp_path).write_bytes(content)
    tried = MonitorFilter(tmp_path)
    await tried.prepare()
    assert tried.problem
