"""host.open_files on this host's own /proc."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

from vmdriver.host.open_files import open_elsewhere


def test_a_file_that_a_hanging_process_has_open_is_seen_under_any_name(
    tmp_path: Path,
) -> None:
    layer, below, link = tmp_path / "layer", tmp_path / "below", tmp_path / "link"
    layer.touch()
    below.touch()
    link.symlink_to(layer)
    with layer.open() as file:
        paths = (str(link), str(below), str(tmp_path / "absent"))
        assert open_elsewhere(paths) == set(), "our own descriptors do not count"
        holder = subprocess.Popen(["/bin/sleep", "600"], stdin=file)
    try:
        holder.send_signal(signal.SIGSTOP)
        assert open_elsewhere(paths) == {str(link)}
    finally:
        holder.kill()
        holder.wait()
    assert open_elsewhere(paths) == set()
