"""extensions new: a package with an extension that works and a test that passes."""

from __future__ import annotations

import re
from pathlib import Path
from string import Template

from vmdriver.errors import ConfigError

_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")

_PROJECT = """\
[project]
name = "$name"
version = "0.1"
description = "A vmdriver extension"
requires-python = ">=3.11"
dependencies = ["vmdriver"]

[project.entry-points."vmdriver.extensions"]
$name = "$module:$kind"

[build-system]
requires = ["setuptools>=68"]
build-backend = "setuptools.build_meta"

[tool.setuptools]
py-modules = ["$module"]

[tool.pytest.ini_options]
asyncio_mode = "auto"
"""

_MODULE = '''\
"""Gives each sandbox a number from a file, and takes it back.

extensions = ["$name"]

[extension.$name]
directory = "/var/lib/$name"
"""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from vmdriver.extension import Context, Draft, Exhausted, Extension, Hold


class Table(BaseModel):
    """The extension's table in the configuration."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    directory: Path
    most: int = 100


class $kind(Extension):
    """Active for every sandbox."""

    name = "$name"
    version = "0.1"
    configuration = Table

    async def before_create(self, context: Context, draft: Draft) -> None:
        """Hold first, then act: whatever happens in between is undone."""
        table: Table = context.config
        table.directory.mkdir(parents=True, exist_ok=True)
        for number in range(table.most):
            path = table.directory / str(number)
            if path.is_symlink():
                continue
            await context.hold("number", str(number), {"path": str(path)})
            try:
                path.symlink_to(context.sandbox.id)  # made in one step, with its owner
            except FileExistsError:
                continue  # somebody was faster
            draft.set_environment("NUMBER", str(number))
            return
        raise Exhausted(f"all {table.most} numbers are given out")

    async def undo(self, context: Context, hold: Hold) -> None:
        """Idempotent; fine with what never came to be, or became somebody else's."""
        path = Path(hold.data["path"])
        if path.is_symlink() and str(path.readlink()) == context.sandbox.id:
            path.unlink()
'''

_TEST = '''\
"""vmdriver.testing's own page is the tutorial: python -m pydoc vmdriver.testing"""

from __future__ import annotations

from pathlib import Path

from $module import $kind
from vmdriver.testing import check_every_failure, check_every_kill, lived


async def test_a_sandbox_has_its_number(tmp_path: Path) -> None:
    numbers = tmp_path / "numbers"
    seen = await lived($kind, tmp_path, config={"directory": str(numbers)})
    assert seen.environment == {"NUMBER": "0"}
    assert list(numbers.iterdir()) == []


async def test_nothing_is_left_over_after_a_kill_anywhere(tmp_path: Path) -> None:
    numbers = tmp_path / "numbers"
    numbers.mkdir()
    config = {"directory": str(numbers)}

    def left() -> list[Path]:
        return list(numbers.iterdir())

    await check_every_kill($kind, tmp_path, left, config=config)
    await check_every_failure($kind, tmp_path, left, config=config)
'''


def new_extension(name: str, parent: Path) -> list[Path]:
    """Write `parent`/NAME. The files that were written. ConfigError for a name that cannot be
    one, or a directory that is there already.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{name!r} cannot be an extension's name",
            resolution="use small letters, digits and single hyphens, as in seat-claims",
        )
    directory = parent / name
    if directory.exists():
        raise ConfigError(
            f"{directory} is there already", resolution="remove it, or use another name"
        )
    module = name.replace("-", "_")
    kind = "".join(part.capitalize() for part in name.split("-"))
    written = []
    for path, text in (
        (directory / "pyproject.toml", _PROJECT),
        (directory / f"{module}.py", _MODULE),
        (directory / "tests" / f"test_{module}.py", _TEST),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        filled = Template(text).substitute(name=name, module=module, kind=kind)
        path.write_text(filled)
        written.append(path)
    return written


def command(name: str, parent: Path) -> int:
    """Write it, and print where each file is."""
    for path in new_extension(name, parent):
        print(path)
    return 0
