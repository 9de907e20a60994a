"""The way through the house: rooms import only what the map allows, and `import supple` stays light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import supple

SRC = Path(supple.__file__).parent
BASE = {"checksum", "errors", "layouts", "processes", "records", "status", "stepping"}

# room -> rooms it may import at module level or inside functions
MAY_IMPORT: dict[str, set[str]] = {
    "functional": set(),
    "topology": {"functional"},
    "observe": {"functional", "topology"},
    "fresh": set(),
    "diagnose": {"observe", "interventions", "topology", "functional", "fresh"},
    "interventions": {"functional", "topology", "fresh"},
    "nn": {"functional", "topology", "fresh"},
    "models": {"nn"},
    "agents": {"models"},
    "scan": {"functional", "diagnose"},
    "streams": set(),
    "store": set(),
    "report": {"diagnose", "store"},
}
EXTRAS = {
    "scipy", "sklearn", "pyarrow", "PIL", "gymnasium", "stable_baselines3", "minatar", "dm_control", "mujoco",
    "ale_py", "procgen", "transformers", "peft", "lightning", "tensorboard", "wandb", "mlflow", "trackio",
    "ray", "optuna", "tyro", "rich", "matplotlib", "jinja2",
}  # fmt: skip
# joins of rooms that the map names, made inside functions only
JOINS = {("observe", "api"), ("scan", "report"), ("diagnose", "report"), ("diagnose", "api")}


def imports(path: Path) -> list[tuple[str, bool]]:
    """(module, at_top_level) of every import outside `if TYPE_CHECKING`."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found: list[tuple[str, bool]] = []

    def walk(node: ast.AST, top: bool) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
            if isinstance(child, ast.Import):
                found.extend((a.name, top) for a in child.names)
            elif isinstance(child, ast.ImportFrom) and child.module and child.level == 0:
                names = [child.module]
                if child.module == "supple":
                    names = [f"supple.{a.name}" for a in child.names]
                found.extend((n, top) for n in names)
            walk(child, top and not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda))

    walk(tree, True)
    return found


@pytest.mark.parametrize("room", sorted(MAY_IMPORT))
def test_rooms_import_only_what_the_map_allows(room: str) -> None:
    wrong = []
    for path in sorted((SRC / room).rglob("*.py")):
        for module, top in imports(path):
            parts = module.split(".")
            if parts[0] != "supple" or len(parts) < 2 or parts[1] in BASE | {room}:
                continue
            allowed = parts[1] in MAY_IMPORT[room] or (not top and (room, parts[1]) in JOINS)
            if not allowed:
                wrong.append(f"{path.relative_to(SRC)} imports {module}")
    assert not wrong, "\n".join(wrong)


def test_functional_imports_torch_only() -> None:
    outside = {
        module.split(".")[0]
        for path in (SRC / "functional").rglob("*.py")
        for module, _ in imports(path)
        if module.split(".")[0] not in sys.stdlib_module_names
    }
    assert outside <= {"torch", "supple"}


def test_extras_are_imported_inside_functions() -> None:
    wrong = [
        f"{path.relative_to(SRC)} imports {module} at the top"
        for path in SRC.rglob("*.py")
        for module, top in imports(path)
        if top and module.split(".")[0] in EXTRAS
    ]
    assert not wrong, "\n".join(wrong)


def test_every_room_says_what_belongs_there() -> None:
    for room in [*MAY_IMPORT, "bench", "integrations", "cli"]:
        text = ast.get_docstring(ast.parse((SRC / room / "__init__.py").read_text(encoding="utf-8")))
        assert text, room
        assert len(text) > 60, room


def test_import_is_light_and_lazy() -> None:
    code = (
        "import sys, torch; before = set(sys.modules); import supple; new = set(sys.modules) - before;"
        "print('\\n'.join(sorted(m for m in new)))"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert [m for m in out if not m.startswith("supple")] == []
    assert len(out) < 5


def test_unknown_public_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        supple.nonsense  # noqa: B018


def test_public_names_resolve() -> None:
    for name in supple.__all__:
        assert getattr(supple, name) is not None
