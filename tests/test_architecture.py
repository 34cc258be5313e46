"""The house: packages in one order, imports go one way, and rooms that can be read in one sitting."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from stagealign.cli.app import COMMANDS

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "stagealign"
MAY_IMPORT = {
    "base": "",
    "stats": "base",
    "store": "base",
    "grid": "base",
    "data": "base store grid",
    "policy": "base stats store grid data",
    "scoring": "base stats store data policy",
    "oracle": "base stats store grid data policy scoring",
    "evaluate": "base stats store grid data policy scoring",
    "train": "base stats store grid data policy",
    "pipeline": "base stats store grid data",
    "plan": "base store grid pipeline",
    "execute": "base store grid data policy evaluate train pipeline plan",
    "boundary": "base stats store grid data policy scoring oracle",
    "report": "base stats store grid boundary",
    "cli": "base stats store grid data policy scoring oracle evaluate train pipeline plan execute boundary report",
}
"""Package -> packages that it may import, from the bottom up: each imports only what stands above it in this table.

`train`, `oracle` and `evaluate` never import each other: they hand each other files, and what they share lies below
them. `report` reads files, and of the meter its measurement.
"""
LIGHT_LIBRARY = "rich"
"""What the terminal is written with."""
LIGHT = ("base", "store", "grid", "pipeline", "plan")
"""Packages whose modules import nothing outside of the standard library, so that `stagealign list` starts at once."""
HEAVY = {"torch", "transformers", "trl", "spacy", "sklearn", "pandas", "matplotlib", "numpy"}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def package_of(path: Path) -> str:
    """Package of a module of ours; empty for `stagealign/__init__.py` and `__main__.py`."""
    parts = path.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else ""


def imports(tree: ast.AST, everywhere: bool = True) -> Iterator[str]:
    """Dotted names that a module imports, with `from a import b` as `a.b`; or only those outside functions."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import; write `from stagealign.ROOM import ...`"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif everywhere or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from imports(node, everywhere)


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def test_the_order_is_one_list():
    packages = list(MAY_IMPORT)
    assert sorted(packages) == sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py"))
    for place, (package, allowed) in enumerate(MAY_IMPORT.items()):
        assert set(allowed.split()) <= set(packages[:place]), f"{package} may import what stands below it"
    machines = {"train", "oracle", "evaluate"}
    assert not any(machines & set(MAY_IMPORT[machine].split()) for machine in machines)


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_imports_go_one_way(package):
    allowed = {package, *MAY_IMPORT[package].split()}
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in modules()
        if package_of(path) == package
        for name in imports(tree_of(path))
        if name.split(".")[0] == "stagealign" and name.split(".")[1] not in allowed
    ]
    assert not wrong, "\n".join([f"{package} may import {', '.join(sorted(allowed))}", *wrong])


def test_light_packages_import_the_standard_library_alone():
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in modules()
        if package_of(path) in LIGHT
        for name in imports(tree_of(path), everywhere=False)
        if name.split(".")[0] not in {*sys.stdlib_module_names, "stagealign", LIGHT_LIBRARY}
    ]
    assert not wrong, "\n".join(wrong)


def test_every_package_says_what_lives_there():
    lacking = [
        str(path.relative_to(ROOT))
        for path in PACKAGE.rglob("__init__.py")
        if len(ast.get_docstring(tree_of(path)) or "") < 30
    ]
    assert not lacking, lacking


def test_command_line_starts_without_heavy_libraries():
    code = f"import sys, stagealign.cli.app; print(*sorted({HEAVY!r} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not found, f"the command line also imports {', '.join(found)}; import them where they are used"


def public_signatures(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """(name, annotation) of each parameter and result of public functions, and of public methods of public classes."""
    bodies = [tree.body, *(node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name[0] != "_")]
    for node in (node for body in bodies for node in body):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if node.name.startswith("_") and not node.name.endswith("__"):
            continue
        given = node.args
        taken = [*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg]
        annotations = [argument.annotation for argument in taken if argument is not None]
        yield from ((node.name, ast.unparse(one)) for one in [*annotations, node.returns] if one is not None)


@pytest.mark.parametrize("package", list(MAY_IMPORT)[: list(MAY_IMPORT).index("boundary")])
def test_no_public_signature_hides_what_a_mapping_holds(package):
    """A record is a typed structure, from `base` to `execute`: `dict[str, Any]` tells a reader nothing."""
    wrong = [
        f"{path.relative_to(ROOT)}: {name}: {annotation}"
        for path in modules()
        if package_of(path) == package
        for name, annotation in public_signatures(tree_of(path))
        if "dict[str, Any]" in annotation.replace("'", "").replace("Dict", "dict")
    ]
    assert not wrong, "\n".join(wrong)


def test_the_check_of_signatures_finds_them():
    text = """
def public(given: list[dict[str, Any]]) -> "dict[str, Any]": ...
def _private(given: dict[str, Any]): ...
class Public:
    def __init__(self, given: dict[str, Any]): ...
    def method(self) -> dict[str, object]: ...
class _Private:
    def method(self) -> dict[str, Any]: ...
"""
    found = [name for name, annotation in public_signatures(ast.parse(text)) if "dict[str, Any]" in annotation]
    assert found == ["public", "public", "__init__"]


LINES = {"stagealign": 300, "benchmarks": 300, "tests": 400}
"""Most lines of a file."""
FUNCTION_LINES, PARAMETERS = 50, 6
PUBLIC = {"measure_boundary"}
"""Public Python functions, which take as many parameters as their users need; commands do too."""


def test_files_and_functions_can_be_read_in_one_sitting():
    wrong = []
    for folder, most in LINES.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            text = path.read_text(encoding="utf-8")
            name, count = path.relative_to(ROOT), len(text.splitlines())
            wrong += [f"{name}: {count} lines, at most {most}"] * (count > most)
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                    wrong += [f"{name}: {node.name}: {fault}" for fault in _faults(node, path)]
    assert not wrong, "\n".join(wrong)


def _faults(node: ast.FunctionDef | ast.AsyncFunctionDef, path: Path) -> Iterator[str]:
    lines = (node.end_lineno or node.lineno) - node.lineno + 1
    if lines > FUNCTION_LINES:
        yield f"{lines} lines, at most {FUNCTION_LINES}"
    given = [arg.arg for arg in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
    count = len(given) - (given[:1] in (["self"], ["cls"])) + bool(node.args.vararg) + bool(node.args.kwarg)
    command = path.parent == PACKAGE / "cli" and node.name in {command.__name__ for command in COMMANDS.values()}
    test = path.name.startswith("test_") and node.name.startswith("test_")  # its parameters are cases and fixtures
    if count > PARAMETERS and not (command or test or node.name in PUBLIC):
        yield f"{count} parameters, at most {PARAMETERS}; pass a frozen value"


def test_tests_mirror_the_packages():
    folders = {path.name for path in (ROOT / "tests").iterdir() if path.is_dir() and any(path.glob("test_*.py"))}
    assert folders == set(MAY_IMPORT)


def test_what_tests_share_is_a_factory():
    """No test file imports another: a helper of two stands in `tests/factories`."""
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in sorted((ROOT / "tests").rglob("*.py"))
        for name in imports(tree_of(path))
        if name.startswith("tests.") and not name.startswith("tests.identities.")
    ]
    assert not wrong, "\n".join(wrong)


def test_a_class_name_has_one_meaning():
    places: dict[str, list[str]] = {}
    for path in modules():
        for node in tree_of(path).body:
            if isinstance(node, ast.ClassDef):
                places.setdefault(node.name, []).append(str(path.relative_to(PACKAGE)))
    assert not {name: files for name, files in places.items() if len(files) > 1}
