"""House rules: the size of functions, classes and lines, and imports that import-linter cannot see."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import ROOT

MOST_LINES, MOST_LINES_OF_CLASS, MOST_PARAMETERS, MOST_COLUMNS = 60, 200, 5, 100
SCRIPTS = {"model", "train", "eval", "infer"}
MAY_IMPORT_SCRIPTS = {"hogwear/commands", *(f"{name}.py" for name in SCRIPTS)}
PRODUCT = sorted(
    file.relative_to(ROOT) for file in (*ROOT.glob("*.py"), *(ROOT / "hogwear").rglob("*.py"))
)

RULES = ("long function", "many parameters", "long class", "long line", "import by name")


def place(path: Path) -> str:
    """The wing or script that a file belongs to; its path is relative to the project."""
    return "/".join(path.parts[:2]) if len(path.parts) > 2 else str(path)


def count_lines(node: ast.FunctionDef | ast.ClassDef) -> int:
    """Lines from `def` or `class` to the end; decorators do not count."""
    return (node.end_lineno or node.lineno) - node.lineno + 1


def count_parameters(function: ast.FunctionDef) -> int:
    """All but self and cls."""
    arguments = function.args
    named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    return len([argument for argument in named if argument.arg not in ("self", "cls")])


def imported_by_name(call: ast.Call) -> list[str]:
    """The module in importlib.import_module("NAME") or __import__("NAME")."""
    if ast.unparse(call.func).rpartition(".")[2] not in ("import_module", "__import__"):
        return []
    return [str(argument.value) for argument in call.args if isinstance(argument, ast.Constant)]


def violations(text: str, path: Path) -> Iterator[tuple[str, str]]:
    """(rule, what breaks it) for the source text of a file; its path is relative to the project."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            lines, parameters = count_lines(node), count_parameters(node)
            if lines > MOST_LINES:
                yield "long function", f"{path}: {node.name} has {lines} lines"
            if parameters > MOST_PARAMETERS:
                yield "many parameters", f"{path}: {node.name} has {parameters} parameters"
        elif isinstance(node, ast.ClassDef) and count_lines(node) > MOST_LINES_OF_CLASS:
            yield "long class", f"{path}: {node.name} has {count_lines(node)} lines"
        elif isinstance(node, ast.Call) and place(path) not in MAY_IMPORT_SCRIPTS:
            for name in SCRIPTS.intersection(imported_by_name(node)):
                yield "import by name", f"{path} imports {name}"
    for number, line in enumerate(text.splitlines(), start=1):
        if len(line) > MOST_COLUMNS:
            yield "long line", f"{path}:{number} has {len(line)} columns"


@pytest.mark.parametrize("rule", RULES)
def test_product_code_keeps_the_house_rules(rule: str) -> None:
    found = [
        what
        for path in PRODUCT
        for broken, what in violations((ROOT / path).read_text(), path)
        if broken == rule
    ]
    assert found == []


@pytest.mark.parametrize(
    "code, rule",
    [
        ("def f(" + ", ".join("abcdef") + "): pass", "many parameters"),
        ("class A:\n    def f(self, " + ", ".join("abcdef") + "): pass", "many parameters"),
        ("def f():\n" + "    pass\n" * MOST_LINES, "long function"),
        ("class A:\n" + "    pass\n" * MOST_LINES_OF_CLASS, "long class"),
        ("x = 1  # " + "x" * MOST_COLUMNS, "long line"),
        ("import importlib\nimportlib.import_module('model')", "import by name"),
        ("__import__('train')", "import by name"),
    ],
)
def test_a_violation_is_found(code: str, rule: str) -> None:
    assert [broken for broken, _ in violations(code, Path("hogwear/data/new.py"))] == [rule]
