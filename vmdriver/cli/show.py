"""Commands that read and show: config, console. They need none of the driver's parts."""

from __future__ import annotations

import codecs
import json
import time

from vmdriver.cli.files import find
from vmdriver.cli.terminal import print_json, print_table, write_raw
from vmdriver.config import Loaded
from vmdriver.host import console_file
from vmdriver.host.visible import visible_lines


def config(loaded: Loaded, *, as_json: bool) -> int:
    """Every setting, its value and where that came from; extensions' own tables apart."""
    table = loaded.table()
    if as_json:
        print_json(
            {key: {"value": value, "source": source} for key, value, source in table}
        )
        return 0
    rows = []
    for key, value, source in table:
        if key != "extension":
            rows.append(("driver", key, json.dumps(value), source))
            continue
        for name, settings in value.items():
            owner = f"extension {name}"
            rows += [(owner, k, json.dumps(v), source) for k, v in settings.items()]
    print_table(("owner", "setting", "value", "source"), rows)
    return 0


def console(
    loaded: Loaded, sandbox: str, *, follow: bool, raw: bool, as_json: bool
) -> int:
    """The console file, once or as it grows. `raw`: the guest's own bytes, escapes and all."""
    path = find(loaded, sandbox).console
    if as_json:
        print_json({"console": console_file.tail(path, console_file.ROOM)})
        return 0
    reader = console_file.Reader(path)
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    while True:
        try:
            data = reader.more()
        except FileNotFoundError:
            data = b""
        if raw:
            write_raw(data)
        else:
            print(visible_lines(decoder.decode(data)), end="", flush=True)
        if not follow:
            return 0
        time.sleep(0.2)
