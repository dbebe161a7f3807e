"""Who may import whom: the table of docs/architecture.md, held by parsing every file."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TOP_LEVEL = ("kernels", "calib", "bench", "train")

_MAIN_JOB = {"core", "calib", "methods", "models", "nn", "io"}
_ALL_BELOW_BENCH = _MAIN_JOB | {
    "kernels",
    "_cpu",
    "pipeline",
    "manifest",
    "backends",
    "export",
    "loading",
    "decoder",
    "decoder_facts",
    "chat",
}

# Part of soroq → the parts it may import besides itself. A part is soroq.<name>.
MAY_IMPORT: dict[str, set[str]] = {
    "core": set(),
    "kernels": {"core", "_cpu"},
    "calib": {"core"},
    "methods": {"core"},
    "models": {"core"},
    "nn": {"core", "kernels"},
    "io": {"core", "nn"},
    "loading": {"core", "kernels", "models", "nn", "io"},
    "hf": {"core", "kernels", "models", "nn", "io", "loading"},
    "decoder_facts": {"models", "nn"},
    "decoder": {"core", "kernels", "models", "nn", "io", "loading", "decoder_facts", "_cpu"},
    "manifest": _MAIN_JOB,
    "pipeline": _MAIN_JOB | {"manifest"},
    "backends": _MAIN_JOB | {"manifest", "pipeline"},
    "chat": {"core"},
    "planning": {"core", "io"},
    "bundle": {"core", "io"},
    "export": {"chat", "core", "decoder_facts", "kernels", "models", "nn", "io", "loading"},
    "train": _MAIN_JOB - {"nn"} | {"manifest", "pipeline"},
    "bench": _ALL_BELOW_BENCH | {"train"},
    "inspection": _MAIN_JOB | {"manifest", "export"},
    "console": {"core", "pipeline"},
    "commands": _ALL_BELOW_BENCH
    | {"train", "bench", "inspection", "console", "planning", "bundle"},
    "cli": _ALL_BELOW_BENCH
    | {"train", "bench", "inspection", "console", "planning", "bundle", "commands"},
}

# A registry entry is an import too, only later.
_TARGET = re.compile(r"soroq\.(\w+)[\w.]*:\w+")


def source_files() -> list[Path]:
    folders = [ROOT / "soroq", *(ROOT / name for name in TOP_LEVEL)]
    return sorted(p for f in folders if f.is_dir() for p in f.rglob("*.py"))


def part_of(path: Path) -> str:
    """Return the part a file belongs to; '' for soroq/__init__.py."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    if parts[0] == "soroq":
        parts = parts[1:]
    return "" if parts == ("__init__",) else parts[0]


def imported_parts(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield (line, part of soroq) of each import and each "module:function" string."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                first, _, rest = alias.name.partition(".")
                if first == "soroq" and rest:
                    yield node.lineno, rest.split(".")[0]
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            first, _, rest = node.module.partition(".")
            if first != "soroq":
                continue
            if rest:
                yield node.lineno, rest.split(".")[0]
            else:
                for alias in node.names:
                    if alias.name != "__version__":
                        yield node.lineno, alias.name
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            target = _TARGET.fullmatch(node.value)
            if target:
                yield node.lineno, target[1]


def violations(part: str, tree: ast.AST) -> list[str]:
    allowed = MAY_IMPORT[part] | {part}
    return [
        f"line {line}: soroq.{part} may not import soroq.{other}"
        for line, other in imported_parts(tree)
        if other not in allowed
    ]


FILES = source_files()
file_cases = pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))


@file_cases
def test_imports_stay_on_or_below_their_floor(path: Path) -> None:
    part = part_of(path)
    if not part:
        return  # soroq/__init__.py names the public functions, and looks them up on first use
    assert part in MAY_IMPORT, f"soroq.{part} is new: give it a row in MAY_IMPORT"
    assert violations(part, ast.parse(path.read_text("utf-8"))) == []


@file_cases
def test_imports_are_absolute_and_by_the_name_soroq(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            names = [node.module or ""]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        bare = [n for n in names if n.split(".")[0] in TOP_LEVEL]
        assert not bare, f"line {node.lineno}: import it as soroq.{bare[0]}"


def test_command_line_imports_soroq_only_inside_functions() -> None:
    for path in (ROOT / "soroq" / "cli").glob("*.py"):
        tree = ast.parse(path.read_text("utf-8"))
        at_top = [n for n in tree.body if isinstance(n, ast.Import | ast.ImportFrom)]
        assert {part for n in at_top for _, part in imported_parts(n)} <= {"cli"}


@pytest.mark.parametrize("name", TOP_LEVEL)
def test_top_level_folder_is_not_a_package_of_its_own(name: str) -> None:
    assert not (ROOT / name / "__init__.py").exists(), "it would shadow other packages"


@pytest.mark.parametrize(
    ("part", "source"),
    [
        ("core", "import soroq.io.checkpoint"),
        ("kernels", "def f():\n    from soroq.nn import linear"),
        ("nn", "from soroq import pipeline"),
        ("methods", "REGISTRY = {'x': 'soroq.bench.quality:run'}"),
    ],
)
def test_the_check_itself_finds_a_forbidden_import(part: str, source: str) -> None:
    assert len(violations(part, ast.parse(source))) == 1


def test_the_check_itself_allows_what_the_table_allows() -> None:
    source = "import torch\nfrom soroq import __version__, _cpu\nfrom soroq.core import packing"
    assert violations("kernels", ast.parse(source)) == []
