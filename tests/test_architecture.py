"""Imports go down only: a room knows the floors under it, and a machine knows no other machine."""

import ast
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent / "stagealign"
FLOORS = {
    0: "errors spec registry records judged tables texts picking store results paper claims "  # words
    "length_prior mirrors devices seals hidden atomic locks shapes comparisons",
    1: "losses logps boundary statistics world diversity verdicts length_control labels cost finite "  # numbers
    "disentangled",
    2: "lm sources preferences recorded sample oracle train evaluate sft assets "  # machines
    "pairrm rewards judge checkpoints server served describe official_lc alpaca capability ultrafeedback "
    "vllm_sample vllm_worker parts",
    3: "cli runs show pipeline plan execute report meter measuring __init__ "  # house
    "cluster lc_win_rate estimate outlook export train_worker terminal doctor to_judge variants needs bucket",
}
FLOOR = {room: floor for floor, rooms in FLOORS.items() for room in rooms.split()}
COMMON = {"lm", "assets", "checkpoints", "server", "preferences"}  # the machines that other machines may use
HEAVY = {"torch", "transformers", "trl", "spacy", "sklearn", "pandas", "matplotlib", "numpy"}


def imports(tree: ast.AST, everywhere: bool = True) -> set[str]:
    """Dotted names that a module imports, with `from a import b` as `a.b`; or only those outside functions."""
    names = set()
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import; write `from stagealign.ROOM import ...`"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif everywhere or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            names |= imports(node, everywhere)
    return names


def test_imports_go_down_only():
    wrong = []
    for path in sorted(PACKAGE.rglob("*.py")):
        room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        assert room in FLOOR, f"{path.name}: room {room!r} has no floor; give it one in FLOORS"
        tree = ast.parse(path.read_text(encoding="utf-8"))
        ours = [name for name in imports(tree) if name.split(".")[0] == "stagealign"]
        for used in sorted({f"{name}.__init__".split(".")[1] for name in ours}):
            target = used if used in FLOOR else "__init__"  # `from stagealign import __version__`
            up = FLOOR[target] > FLOOR[room]
            across = FLOOR[target] == FLOOR[room] == 2 and target != room and target not in COMMON
            machine = room == "report" and FLOOR[target] == 2  # a report reads files only
            if up or across or machine:
                wrong.append(f"{room} (floor {FLOOR[room]}) imports {target} (floor {FLOOR[target]})")
        if FLOOR[room] == 0:
            outside = {name.split(".")[0] for name in imports(tree, everywhere=False)} - set(sys.stdlib_module_names)
            wrong += [f"{room} (floor 0) imports {name}, not standard library" for name in outside - {"stagealign"}]
    assert not wrong, "\n".join(wrong)


def test_command_line_starts_without_heavy_libraries():
    code = f"import sys, stagealign.cli; print(*sorted({HEAVY!r} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not found, f"`import stagealign.cli` also imports {', '.join(found)}; import them where they are used"
