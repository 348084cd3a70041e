"""The rooms import one another in one direction only, and none of them is a lumber room."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "segadapt"


def test_imports_run_one_way() -> None:
    command = [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"]
    checked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout
    assert "3 kept, 0 broken" in checked.stdout


def modules_with_forbidden_names(package: Path) -> list[str]:
    forbidden = {"utils", "util", "helpers", "helper", "common", "base", "misc"}
    return sorted(str(path.relative_to(package)) for path in package.rglob("*") if path.stem in forbidden)


def test_no_module_is_named_after_nothing() -> None:
    assert modules_with_forbidden_names(PACKAGE) == []


@pytest.mark.parametrize("name", ["utils.py", "output/helpers.py", "common/__init__.py", "base.py"])
def test_such_a_name_is_found(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("")
    assert modules_with_forbidden_names(tmp_path)


def test_every_module_and_public_function_says_what_it_is() -> None:
    seen, silent = 0, []
    for path in sorted(PACKAGE.rglob("*.py")):
        module = ast.parse(path.read_text())
        named = [node for node in module.body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
        for name, node in [("", module), *((node.name, node) for node in named if not node.name.startswith("_"))]:
            seen += 1
            if not ast.get_docstring(node):
                silent.append(f"{path.relative_to(PACKAGE)} {name}")
    assert silent == []
    assert seen > 100
