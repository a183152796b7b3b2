"""The house in figures: rooms, their sizes, the imports between files, cycles, and members used from other files.

    python tests/parts/house.py

Imports count wherever they stand: at the top, in functions and under TYPE_CHECKING.
"""

from __future__ import annotations

import ast
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "agent_memory"

#: module -> the modules of this package that it imports
Graph = Mapping[str, frozenset[str]]


def modules(package: Path = PACKAGE) -> dict[str, Path]:
    """Every module by its name within the package; a room's ``__init__`` has the room's name."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def room(module: str) -> str:
    """The room of a module; a flat file is a room of its own."""
    return module.partition(".")[0]


@cache
def import_graph(package: Path = PACKAGE) -> Graph:
    """Who imports whom. The package's own ``__init__`` is left out: its names load on first use."""
    names = modules(package)
    graph = {}
    for module, path in names.items():
        if module:
            tree = ast.parse(path.read_text(encoding="utf-8"))
            graph[module] = frozenset(_imported(tree, names)) - {module}
    return graph


def _imported(tree: ast.AST, names: Mapping[str, Path]) -> Iterator[str]:
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("agent_memory"):
            continue
        base = (node.module or "").removeprefix("agent_memory").lstrip(".")
        for alias in node.names:
            deeper = f"{base}.{alias.name}".lstrip(".")
            if deeper in names:
                yield deeper
            elif base:
                yield base


def cycles(graph: Graph) -> list[list[str]]:
    """Groups of modules that import one another, directly or by way of others (Tarjan's components)."""
    number: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(module: str) -> None:
        number[module] = low[module] = len(number)
        stack.append(module)
        for other in sorted(graph.get(module, ())):
            if other not in number:
                visit(other)
                low[module] = min(low[module], low[other])
            elif other in stack:
                low[module] = min(low[module], number[other])
        if low[module] == number[module]:
            group = stack[stack.index(module) :]
            del stack[stack.index(module) :]
            if len(group) > 1:
                found.append(sorted(group))

    for module in sorted(graph):
        if module not in number:
            visit(module)
    return found


def room_graph(graph: Graph) -> Graph:
    """The same between rooms."""
    rooms: dict[str, set[str]] = defaultdict(set)
    for module, others in graph.items():
        rooms[room(module)] |= {room(other) for other in others} - {room(module)}
    return {name: frozenset(others) for name, others in rooms.items()}


def lines(package: Path = PACKAGE) -> Counter[str]:
    """Lines by room."""
    count: Counter[str] = Counter()
    for module, path in modules(package).items():
        count[room(module)] += path.read_text(encoding="utf-8").count("\n")
    return count


def code_lines(path: Path) -> int:
    """Lines of a file less blank lines, comments and docstrings."""
    source = path.read_text(encoding="utf-8")
    tree = ast.parse(source)
    taken: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.body:
            first = node.body[0]
            if isinstance(first, ast.Expr) and isinstance(getattr(first.value, "value", None), str):
                taken |= set(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    return sum(
        number not in taken and bool(text.strip()) and not text.strip().startswith("#")
        for number, text in enumerate(source.splitlines(), start=1)
    )


def arrows_within(graph: Graph, name: str) -> int:
    """Imports from a file of a room to another file of it."""
    return sum(room(other) == name for module, others in graph.items() if room(module) == name for other in others)


def main() -> None:
    """Print the house."""
    graph = import_graph()
    sizes = lines()
    total = sum(sizes.values())
    for name, size in sizes.most_common():
        arrows = arrows_within(graph, name)
        print(f"{name or '__init__':12} {size:6,} lines {size / total:6.1%} {arrows:4} arrows within")
    print(f"{total:,} lines, {sum(code_lines(path) for path in modules().values()):,} of code")
    print(f"arrows between rooms: {sum(map(len, room_graph(graph).values()))}")
    print(f"cycles of rooms: {cycles(room_graph(graph)) or 'none'}")
    print(f"cycles of files: {cycles(graph) or 'none'}")


if __name__ == "__main__":
    main()
