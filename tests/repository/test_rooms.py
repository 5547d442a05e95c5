"""Tests of the package's structure: the order of its imports, the home of its tags, the first words of its modules."""

from __future__ import annotations

import ast
import graphlib
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import mlflow_tfmon

PACKAGE = Path(mlflow_tfmon.__file__).parent
HOW = PACKAGE.parent / "docs" / "how.md"


def imported(path: Path) -> Iterator[str]:
    """The modules of the package that a module imports, at its top or when it needs them."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (one.name for one in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module and not node.level, f"{path}: a relative import"
            yield from (
                [f"{node.module}.{one.name}" for one in node.names]
                if node.module == "mlflow_tfmon"
                else [node.module]
            )


def imports() -> dict[str, set[str]]:
    """By room (a folder, or a module beside them) the rooms that it imports."""
    found = defaultdict[str, set[str]](set)
    for path in PACKAGE.rglob("*.py"):
        room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        found[room] |= {name.split(".")[1] for name in imported(path) if name.startswith("mlflow_tfmon.")} - {
            room
        }
    return dict(found)


def test_no_room_imports_one_that_imports_it() -> None:
    graphlib.TopologicalSorter(imports()).prepare()  # a CycleError says which, in a circle


def test_rooms_are_listed_in_the_order_in_which_they_import() -> None:
    table = HOW.read_text("utf-8").split("## The rooms")[1]
    listed = [
        name for row in re.findall(r"^\| (`.*?) \|", table, re.M) for name in re.findall(r"`(\w+)/`", row)
    ]
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert set(listed) == folders
    for room, others in imports().items():
        for other in others & folders:
            assert room not in folders or listed.index(other) < listed.index(room), f"{room} imports {other}"


def test_every_tag_stands_in_one_module() -> None:
    others = [path for path in PACKAGE.rglob("*.py") if path.name != "tags.py"]
    for path in others:
        strings = [
            node.value
            for node in ast.walk(ast.parse(path.read_text("utf-8")))
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        ]
        assert not [one for one in strings if re.fullmatch(r"tfmon\.[a-z_.]*", one)], path


def test_a_module_says_first_what_it_is() -> None:
    """With a noun of the field, not with a question that the reader would have to answer."""
    questions = ("what", "which", "where", "when", "how", "why", "who", "whose", "whether")
    asking = [
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if (ast.get_docstring(ast.parse(path.read_text("utf-8"))) or "").lower().startswith(questions)
    ]
    assert asking == []
