"""Measures the code: `python -m tests.repo.measure [CHECKOUT]` prints what architecture is judged by.

Only reads source files, so that any checkout, of any age, can be measured by it.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path


@dataclass(frozen=True)
class ClassSize:
    """A class with all that it inherits from classes of ours."""

    name: str
    lines: int
    methods: int


class Tree:
    """The modules of a checkout's vmdriver, by dotted name; generated code is left out."""

    def __init__(self, root: Path) -> None:
        self.files = {
            ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(
                ".__init__"
            ): path
            for path in sorted((root / "vmdriver").rglob("*.py"))
            if "_proto" not in path.parts
        }

    @cached_property
    def lines(self) -> int:
        """Of production code, as `wc -l` counts them."""
        return sum(path.read_text().count("\n") for path in self.files.values())

    @cached_property
    def modules(self) -> Mapping[str, ast.Module]:
        return {name: ast.parse(path.read_text()) for name, path in self.files.items()}

    @cached_property
    def _names(self) -> Mapping[str, Mapping[str, tuple[str, str]]]:
        """Module -> name in it -> module and name that it was imported as."""
        return {
            module: {
                alias.asname or alias.name: (node.module or "", alias.name)
                for node in ast.walk(tree)
                if isinstance(node, ast.ImportFrom)
                for alias in node.names
            }
            for module, tree in self.modules.items()
        }

    def imports(self, module: str) -> set[str]:
        """Modules of ours that this one imports, wherever in it."""
        found: set[str] = set()
        for node in ast.walk(self.modules[module]):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            if isinstance(node, ast.ImportFrom) and node.module:
                parts = {f"{node.module}.{alias.name}" for alias in node.names}
                inside = parts & self.files.keys()
                found |= inside
                if inside != parts:
                    found.add(node.module)
        return (found & self.files.keys()) - {module}

    def graph(self, below: str) -> dict[str, set[str]]:
        """Imports among the modules below a package (its __init__ files left out)."""
        inside = {
            name
            for name in self.files
            if name.startswith(f"{below}.") and self.files[name].stem != "__init__"
        }
        return {name: self.imports(name) & inside for name in inside}

    def classes(self) -> Iterator[ClassSize]:
        """Every class, largest first."""
        sizes = [
            self._size(module, node)
            for module, tree in self.modules.items()
            for node in ast.walk(tree)
            if isinstance(node, ast.ClassDef)
        ]
        yield from sorted(sizes, key=lambda size: size.lines, reverse=True)

    def _size(self, module: str, node: ast.ClassDef) -> ClassSize:
        lines = methods = 0
        for part in self._with_bases(module, node).values():
            lines += (part.end_lineno or 0) - part.lineno + 1
            methods += sum(
                isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef)
                for inner in part.body
            )
        return ClassSize(f"{module}.{node.name}", lines, methods)

    def _with_bases(self, module: str, node: ast.ClassDef) -> dict[str, ast.ClassDef]:
        found = {f"{module}.{node.name}": node}
        for base in node.bases:
            place = self._resolve(module, base)
            if place is not None:
                found |= self._with_bases(*place)
        return found

    def _resolve(self, module: str, base: ast.expr) -> tuple[str, ast.ClassDef] | None:
        """Where a base class is written; None: it is not one of ours."""
        if isinstance(base, ast.Subscript):
            base = base.value
        if isinstance(base, ast.Attribute) and isinstance(base.value, ast.Name):
            package, inner = self._names[module].get(base.value.id, ("", ""))
            module, name = f"{package}.{inner}", base.attr
        elif isinstance(base, ast.Name):
            name = base.id
        else:
            return None
        while module in self.modules:
            for node in self.modules[module].body:
                if isinstance(node, ast.ClassDef) and node.name == name:
                    return module, node
            module, name = self._names[module].get(name, ("", ""))
        return None


def levels(graph: Mapping[str, Iterable[str]]) -> int:
    """Nodes on the longest path; what is in a circle counts as one level.

    >>> levels({"a": ["b", "c"], "b": ["c"], "c": []})
    3
    >>> levels({"a": ["b"], "b": ["a", "c"], "c": []})
    2
    """
    depths: dict[frozenset[str], int] = {}
    circles = {node: frozenset(_circle(graph, node)) for node in graph}

    def depth(circle: frozenset[str]) -> int:
        if circle not in depths:
            below = {circles[to] for node in circle for to in graph[node]} - {circle}
            depths[circle] = 1 + max((depth(other) for other in below), default=0)
        return depths[circle]

    return max((depth(circle) for circle in circles.values()), default=0)


def _circle(graph: Mapping[str, Iterable[str]], node: str) -> set[str]:
    """A node and those that it reaches and that reach it."""
    reached = _reached(graph, node)
    return {node} | {other for other in reached if node in _reached(graph, other)}


def _reached(graph: Mapping[str, Iterable[str]], node: str) -> set[str]:
    found: set[str] = set()
    todo = [node]
    while todo:
        for to in graph[todo.pop()]:
            if to not in found:
                found.add(to)
                todo.append(to)
    return found


def _room(module: str, below: str) -> str:
    """The folder right below a package; its own files are one room, named ""."""
    inner = module.removeprefix(f"{below}.")
    return inner.partition(".")[0] if "." in inner else ""


def report(root: Path, core: str = "vmdriver.lifecycle") -> Iterator[str]:
    """The lines that are printed."""
    tree = Tree(root)
    graph = tree.graph(core)
    rooms: dict[str, set[str]] = {_room(module, core): set() for module in graph}
    within = across = 0
    for module, others in graph.items():
        room = _room(module, core)
        leaving = {other for other in others if _room(other, core) != room}
        within, across = within + len(others - leaving), across + len(leaving)
        rooms[room] |= {_room(other, core) for other in leaving}
    ways = sum(map(len, rooms.values()))
    yield f"production code: {tree.lines} lines in {len(tree.files)} files"
    yield f"{core}: {len(graph)} files in {len(rooms)} rooms"
    yield f"  levels of files {levels(graph)}, of rooms {levels(rooms)}"
    yield f"  imports among files {within + across}: {within} within a room, {across} across"
    yield f"  rooms that know another {ways}"
    yield "largest classes, with what they inherit:"
    for size in list(tree.classes())[:8]:
        yield f"  {size.lines:5} lines {size.methods:3} methods  {size.name}"


if __name__ == "__main__":
    place = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[2]
    print("\n".join(report(place)))
