"""Which members of each machine other files use: the sign that a file was cut in the wrong place.

Types are read from annotations alone: a parameter's, and an attribute's that an ``__init__`` sets from such a parameter
or from a call of the class. What is not annotated is not counted, so a figure is a lower bound.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator, Mapping, Set
from functools import cache
from pathlib import Path

from tests.parts.house import PACKAGE, modules


@cache
def outside_members(package: Path = PACKAGE) -> dict[str, set[str]]:
    """ "module.Class" -> names of its members that files other than its own use."""
    trees = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in modules(package).items()}
    machines = {
        f"{name}.{node.name}"
        for name, tree in trees.items()
        for node in tree.body
        if isinstance(node, ast.ClassDef) and not _is_value(node)
    }
    used: dict[str, set[str]] = defaultdict(set)
    for module, tree in trees.items():
        for owner, member in _uses(tree, _known(module, tree, machines)):
            if owner and owner.rpartition(".")[0] != module:
                used[owner].add(member)
    return dict(used)


def _known(module: str, tree: ast.Module, machines: Set[str]) -> dict[str, str]:
    """Name in a module -> the machine it means: defined there, or imported from where it is defined."""
    known = {name.rpartition(".")[2]: name for name in machines if name.rpartition(".")[0] == module}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("agent_memory."):
            home = (node.module or "").removeprefix("agent_memory.")
            known |= {a.asname or a.name: f"{home}.{a.name}" for a in node.names if f"{home}.{a.name}" in machines}
    return known


def _is_value(node: ast.ClassDef) -> bool:
    """True if a class is a frozen value, whose fields are there to be read."""
    return any("frozen" in ast.unparse(decorator) for decorator in node.decorator_list)


def _uses(tree: ast.Module, homes: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """(class, member) of each access; "" for a class that no annotation tells."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            attributes = _attributes(node, homes)
            for function in _functions(node):
                yield from _uses_in(function, homes, attributes)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _uses_in(node, homes, {})


def _functions(node: ast.ClassDef) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    return [child for child in node.body if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)]


def _parameters(function: ast.FunctionDef | ast.AsyncFunctionDef, homes: Mapping[str, str]) -> dict[str, str]:
    arguments = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    return {arg.arg: found for arg in arguments if arg.annotation and (found := _class_of(arg.annotation, homes))}


def _class_of(annotation: ast.expr, homes: Mapping[str, str]) -> str | None:
    """The one class of this package that an annotation names, None beside it allowed."""
    if isinstance(annotation, ast.BinOp):
        sides = [side for side in (annotation.left, annotation.right) if not isinstance(side, ast.Constant)]
        return _class_of(sides[0], homes) if len(sides) == 1 else None
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        return homes.get(annotation.value)
    return homes.get(annotation.id) if isinstance(annotation, ast.Name) else None


def _attributes(node: ast.ClassDef, homes: Mapping[str, str]) -> dict[str, str]:
    """Attribute of ``self`` -> its class."""
    found = {}
    for child in node.body:
        if isinstance(child, ast.AnnAssign) and isinstance(child.target, ast.Name):
            found[child.target.id] = _class_of(child.annotation, homes) or ""
    for function in _functions(node):
        if function.name == "__init__":
            known = _parameters(function, homes)
            for statement in ast.walk(function):
                if isinstance(statement, ast.Assign):
                    for target in statement.targets:
                        found.update(_assigned(target, statement.value, known, homes))
    return found


def _assigned(target: ast.expr, value: ast.expr, known: Mapping[str, str], homes: Mapping[str, str]) -> dict[str, str]:
    if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
        pairs = zip(target.elts, value.elts, strict=True)
        return {name: owner for t, v in pairs for name, owner in _assigned(t, v, known, homes).items()}
    if not (isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name) and target.value.id == "self"):
        return {}
    if isinstance(value, ast.Name) and value.id in known:
        return {target.attr: known[value.id]}
    if isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id in homes:
        return {target.attr: homes[value.func.id]}
    return {}


def _uses_in(
    function: ast.FunctionDef | ast.AsyncFunctionDef, homes: Mapping[str, str], attributes: Mapping[str, str]
) -> Iterator[tuple[str, str]]:
    known = _parameters(function, homes)
    for node in ast.walk(function):
        if not isinstance(node, ast.Attribute):
            continue
        inner = node.value
        if isinstance(inner, ast.Name) and inner.id in known:
            yield known[inner.id], node.attr
        elif isinstance(inner, ast.Attribute) and isinstance(inner.value, ast.Name) and inner.value.id == "self":
            yield attributes.get(inner.attr, ""), node.attr


if __name__ == "__main__":
    for name, members in sorted(outside_members().items(), key=lambda item: -len(item[1]))[:25]:
        print(f"{len(members):3} {name}: {' '.join(sorted(members))[:120]}")
