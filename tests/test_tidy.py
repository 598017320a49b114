"""The repository tests itself: sizes, leftovers, reasons, and files that must or must not exist."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CODE_FOLDERS = (
    "protocol",
    "firmware_bridges",
    "edge_agent",
    "hub",
    "simulators",
    "bench",
    "tests",
    "packaging",
)
RUNTIME_FOLDERS = ("protocol", "firmware_bridges", "edge_agent", "hub", "simulators")
TEXT_SUFFIXES = {
    "",
    ".cfg",
    ".conf",
    ".html",
    ".in",
    ".js",
    ".json",
    ".lock",
    ".md",
    ".py",
    ".service",
    ".sh",
    ".toml",
    ".yml",
}
NOT_OURS = {".cache", ".git", ".hypothesis", ".venv", "__pycache__", "dist", "site-data"}
FUNCTION_LINES_MAX = 60
MODULE_LINES_MAX = 600
# Spelled in pieces: this file is checked too.
LEFTOVERS = re.compile(r"\b(" + "|".join(("TO" + "DO", "FIX" + "ME", "NotImpl" + "emented")) + ")")
MACHINE_PATHS = re.compile("|".join(("/wo" + "rk/", "/ho" + r"me/\w", "/ro" + r"ot/\w")))
EXEMPTION = re.compile(
    r"#\s*(no" + r"qa|type:\s*ig" + r"nore)"
    r"(?P<codes>:\s*[A-Z]+[0-9]+(,\s*[A-Z]+[0-9]+)*|\[[a-z, -]+\])?"
    r"(?P<reason>.*)"
)


def python_files() -> list[Path]:
    found = [path for folder in CODE_FOLDERS for path in (ROOT / folder).rglob("*.py")]
    return sorted([ROOT / "dev", *found])


def text_files() -> list[Path]:
    return sorted(
        path
        for path in ROOT.rglob("*")
        if path.suffix in TEXT_SUFFIXES
        and not NOT_OURS.intersection(path.relative_to(ROOT).parts)
        and path.is_file()
    )


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), filename=name_of(path))


def functions(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def lines_without_docstring(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    lines = (function.end_lineno or function.lineno) - function.lineno + 1
    first = function.body[0]
    if ast.get_docstring(function) is not None:
        lines -= (first.end_lineno or first.lineno) - first.lineno + 1
    return lines


def imported_modules(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or "")


def lines_matching(paths: list[Path], pattern: re.Pattern[str]) -> list[str]:
    return [
        f"{name_of(path)}:{number}: {line.strip()}"
        for path in paths
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if pattern.search(line)
    ]


def test_function_is_short() -> None:
    long = [
        f"{name_of(path)}:{function.lineno} {function.name}: {lines} lines"
        for path in python_files()
        for function in functions(tree_of(path))
        if (lines := lines_without_docstring(function)) > FUNCTION_LINES_MAX
    ]
    assert long == [], "\n".join(long)


def test_module_is_short() -> None:
    long = [
        f"{name_of(path)}: {lines} lines"
        for path in python_files()
        if (lines := len(path.read_text().splitlines())) > MODULE_LINES_MAX
    ]
    assert long == [], "\n".join(long)


def test_nothing_is_left_for_later() -> None:
    found = lines_matching(text_files(), LEFTOVERS)
    assert found == [], "\n".join(found)


def test_no_file_names_a_path_of_one_machine() -> None:
    found = lines_matching(text_files(), MACHINE_PATHS)
    assert found == [], "\n".join(found)


def test_init_holds_only_a_docstring() -> None:
    inits = [path for path in python_files() if path.name == "__init__.py"]
    wrong = [
        name_of(path)
        for path in inits
        if ast.get_docstring(tree := tree_of(path)) is None or len(tree.body) != 1
    ]
    assert wrong == [], "\n".join(wrong)


def test_folders_of_files_are_no_packages() -> None:
    # a top-level package called `packaging` would shadow the one pip and pytest import
    found = [path for name in ("packaging", "systemd") for path in (ROOT / name).rglob("__init__*")]
    assert found == [], "\n".join(map(str, found))


def test_lock_files_name_no_host() -> None:
    locks = [ROOT / "requirements.lock", ROOT / "requirements-dev.lock"]
    found = lines_matching(locks, re.compile("://"))
    assert found == [], "\n".join(found)


def test_every_direct_dependency_is_locked() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    runtime, dev = project["project"]["dependencies"], project["dependency-groups"]["dev"]

    def missing(wanted: list[str], lock: str) -> list[str]:
        pinned = set(re.findall(r"^([a-z0-9-]+)==", (ROOT / lock).read_text(), re.MULTILINE))
        names = [re.split(r"[^A-Za-z0-9._-]", line)[0].lower() for line in wanted]
        return [name for name in names if name not in pinned]

    assert missing(runtime, "requirements.lock") == []
    assert missing(runtime + dev, "requirements-dev.lock") == []


def test_every_program_has_the_version_of_the_project() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    for module in ("edge_agent/version.py", "hub/version.py"):
        assert f'\nVERSION = "{version}"\n' in (ROOT / module).read_text()


def test_every_locked_package_has_a_hash() -> None:
    for lock in ("requirements.lock", "requirements-dev.lock"):
        blocks = re.split(r"\n(?=\S)", (ROOT / lock).read_text().strip())
        assert [block for block in blocks if "--hash=sha256:" not in block] == []


def test_decision_records_have_their_sections() -> None:
    records = sorted((ROOT / "docs" / "adr").glob("*.md"))
    assert records, "docs/adr holds the decisions"
    lacking = [
        f"{record.name}: {section}"
        for record in records
        for section in ("Context", "Decision", "Consequences")
        if not re.search(rf"^## {section}$", record.read_text(), re.MULTILINE)
    ]
    assert lacking == [], "\n".join(lacking)
    numbers = [record.name[:4] for record in records]
    assert len(set(numbers)) == len(numbers), "each decision has its own number"


def test_lint_exemptions_of_the_project_carry_a_reason() -> None:
    lines = (ROOT / "pyproject.toml").read_text().splitlines()
    bare = [line for line in lines if re.fullmatch(r'\s+"[A-Z]+[0-9]*",?\s*', line)]
    assert bare == [], "\n".join(bare)


def test_exemptions_in_code_name_their_rule_and_their_reason() -> None:
    # the reason follows on the line or stands in the comment above; a test gives wrong types on
    # purpose and need not say so each time
    bare = []
    for path in python_files():
        above = ""
        for number, line in enumerate(path.read_text().splitlines(), start=1):
            match = EXEMPTION.search(line)
            reasoned = match is None or (
                re.search(r"\w", match["reason"])
                or above.lstrip().startswith("#")
                or path.is_relative_to(ROOT / "tests")
            )
            if match and not (match["codes"] and reasoned):
                bare.append(f"{name_of(path)}:{number}: {line.strip()}")
            above = line
    assert bare == [], "\n".join(bare)


def skip_without_reason(call: ast.Call) -> bool:
    words = ast.unparse(call.func)
    reason = [word.value for word in call.keywords if word.arg in {"reason", "msg"}]
    if words.endswith(("mark.skip", "mark.skipif", "mark.xfail")):
        return not reason
    if words in {"pytest.skip", "pytest.xfail"}:
        return not (reason or call.args)
    return False


def test_no_test_is_skipped_without_a_reason() -> None:
    bare = []
    for path in sorted((ROOT / "tests").rglob("*.py")):
        tree = tree_of(path)
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
        called = {id(call.func) for call in calls}
        bare += [f"{name_of(path)}:{call.lineno}" for call in calls if skip_without_reason(call)]
        bare += [
            f"{name_of(path)}:{node.lineno}"
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute)
            and id(node) not in called
            and ast.unparse(node).endswith(("mark.skip", "mark.skipif", "mark.xfail"))
        ]
    assert bare == [], "\n".join(bare)


def test_command_line_tool_of_the_agent_needs_the_standard_library_only() -> None:
    # its start-up time is promised; every third-party import costs 20 ms or more
    folder = ROOT / "edge_agent"
    files = [path for path in (folder / "cli.py", *folder.glob("cli/**/*.py")) if path.exists()]
    foreign = [
        f"{name_of(path)}: {module}"
        for path in files
        for module in imported_modules(tree_of(path))
        if module.split(".")[0] not in sys.stdlib_module_names
        and module != "edge_agent.cli"
        and not module.startswith(("edge_agent.cli.", "."))
    ]
    assert foreign == [], "\n".join(foreign)


def test_every_task_belongs_to_a_group() -> None:
    loose = re.compile(r"asyncio\.(create_task|ensure_future)|loop\.create_task")
    paths = [path for path in python_files() if path.relative_to(ROOT).parts[0] in RUNTIME_FOLDERS]
    found = lines_matching(paths, loose)
    assert found == [], "\n".join(found)
