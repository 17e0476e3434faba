"""The map in CONTRIBUTING.md is true: who may import whom, no name twice, one door to mlx-lm."""

import ast
from collections import Counter
from pathlib import Path

import pytest

from jvlm_mlx.cli.main import SUBCOMMANDS

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "jvlm_mlx"
FILES = sorted(PACKAGE.rglob("*.py"))
LEVELS = (
    ("config",),
    ("model",),
    ("processing",),
    ("checkpoint",),
    ("generation",),
    ("conversion", "training", "evaluation", "serving", "demo", "diagnostics"),
    ("cli",),
    ("subcommands",),
)
"""Rooms from the lowest to the highest, above the modules that belong to none. Those of one level
do not import each other."""
GROUND = -1


def room_of(module):
    """Return where a module, such as `cli.main`, belongs; None for a module of the ground."""
    if module in {one.module for one in SUBCOMMANDS.values()}:
        return "subcommands"
    first = module.partition(".")[0]
    return first if (PACKAGE / first).is_dir() else None


def level_of(room):
    return GROUND if room is None else next(n for n, rooms in enumerate(LEVELS) if room in rooms)


def module_of(file):
    return ".".join(file.relative_to(PACKAGE).with_suffix("").parts)


def imports_of(file):
    """Yield (line, module of this package or name of another package) of all imports in a file."""
    folder = file.relative_to(PACKAGE).parts[:-1]
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.lineno, node.module
        elif isinstance(node, ast.ImportFrom):
            start = [*folder[: len(folder) - node.level + 1], *(node.module or "").split(".")]
            path = PACKAGE.joinpath(*filter(None, start))
            if path.with_suffix(".py").is_file():
                yield node.lineno, module_of(path)
                continue
            for alias in node.names:
                inside = path / alias.name
                found = inside if inside.with_suffix(".py").is_file() or inside.is_dir() else path
                yield node.lineno, module_of(found)


# The package's own __init__.py names what all rooms offer.
@pytest.mark.parametrize(
    "file", [one for one in FILES if one != PACKAGE / "__init__.py"], ids=module_of
)
def test_imports_run_downwards(file):
    own = room_of(module_of(file))
    for line, module in imports_of(file):
        assert not module.startswith("jvlm_mlx"), f"line {line}: inside, imports are relative"
        if not ((PACKAGE / module.replace(".", "/")).with_suffix(".py").is_file()):
            module = module.partition(".")[0]
            if module not in {room for rooms in LEVELS for room in rooms}:
                continue  # another package
        other = room_of(module)
        assert other == own or level_of(other) < level_of(own), f"line {line}: {module}"


def test_no_file_name_is_there_twice():
    names = Counter(file.name for file in FILES if not file.name.startswith("__"))
    assert [name for name, count in names.items() if count > 1] == []


def test_mlx_lm_is_imported_in_one_place():
    found = {
        module_of(file)
        for file in FILES
        for _, module in imports_of(file)
        if module.partition(".")[0] == "mlx_lm"
    }
    assert found <= {"_mlx_lm"}


@pytest.mark.parametrize("name", SUBCOMMANDS)
def test_a_subcommand_is_a_module_with_its_flags_and_its_work(name):
    file = PACKAGE / f"{SUBCOMMANDS[name].module.replace('.', '/')}.py"
    defined = {
        node.name for node in ast.parse(file.read_text()).body if isinstance(node, ast.FunctionDef)
    }
    assert {"add_arguments", "run"} <= defined


def test_every_room_is_on_the_map():
    written = (ROOT / ".github" / "CONTRIBUTING.md").read_text()
    rooms = {file.parent.relative_to(PACKAGE).parts[0] for file in FILES if file.parent != PACKAGE}
    missing = {room for room in rooms if f"`jvlm_mlx/{room}/`" not in written}
    modules = {one.module for one in SUBCOMMANDS.values() if "." not in one.module}
    missing |= {module for module in modules if f"{module}.py" not in written}
    assert missing - {"demo"} == set()
