"""The package build: its pure parts, and (root, slow) the packages themselves, unpacked and run."""

import ast
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
DEBIAN_PYTHON = Path("/usr/bin/python3.11")
PROGRAMS = {"hcp-agent": "edge_agent", "hcp-hub": "hub"}
# module names of the distributions in packaging/deb/hub-only.txt
HUB_ONLY_MODULES = {
    "argon2": "argon2-cffi",
    "_argon2_cffi_bindings": "argon2-cffi-bindings",
    "jinja2": "jinja2",
    "joserfc": "joserfc",
    "markupsafe": "markupsafe",
    "pyarrow": "pyarrow",
    "websockets": "websockets",
}


@pytest.fixture(scope="module")
def build() -> ModuleType:
    path = ROOT / "packaging" / "deb" / "build.py"
    spec = importlib.util.spec_from_file_location("hcp_build_deb", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_left_out_distributions_go_with_their_hashes(build: ModuleType) -> None:
    lock = (
        "aiomqtt==2.5.1 \\\n    --hash=sha256:aa\n"
        "pyarrow==26.0.1 \\\n    --hash=sha256:bb \\\n    --hash=sha256:cc\n"
        "uvloop==0.23.0 ; sys_platform != 'win32' \\\n    --hash=sha256:dd\n"
    )
    assert build.without(lock, frozenset({"pyarrow"})) == (
        "aiomqtt==2.5.1 \\\n    --hash=sha256:aa\n"
        "uvloop==0.23.0 ; sys_platform != 'win32' \\\n    --hash=sha256:dd\n"
    )
    assert build.without(lock, frozenset()) == lock


def test_only_needless_files_are_removed(build: ModuleType, tmp_path: Path) -> None:
    kept = ["litestar/openapi/spec/example.py", "numpy/_core/core.so", "pkg/bin/tool.py"]
    gone = ["example.py", "bin/tool", "faker/a.py", "faker-40.dist-info/RECORD", "pkg/tests/a.py"]
    for name in (*kept, *gone):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    build.remove_needless(tmp_path)
    assert sorted(
        path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()
    ) == sorted(kept)


def test_package_has_the_version_of_the_project(build: ModuleType) -> None:
    build.check_version()


def test_what_the_agent_leaves_out_is_locked() -> None:
    left_out = set((ROOT / "packaging/deb/hub-only.txt").read_text().split())
    locked = set(
        re.findall(r"^([a-z0-9-]+)==", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    )
    assert left_out <= locked
    assert left_out == set(HUB_ONLY_MODULES.values())


def test_agent_imports_nothing_its_package_leaves_out() -> None:
    wrong = []
    for folder in ("edge_agent", "firmware_bridges", "protocol"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                if isinstance(node, ast.ImportFrom) and node.level == 0:
                    names = [node.module or ""]
                wrong += [
                    f"{path.relative_to(ROOT)}: {name}"
                    for name in names
                    if name.split(".")[0] in HUB_ONLY_MODULES
                ]
    assert wrong == []


def test_the_agents_package_holds_what_its_host_asks_of_systemd(
    build: ModuleType, tmp_path: Path
) -> None:
    for program in build.programs():
        build.place_files(program, tmp_path / program.package)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.relative_to(tmp_path).as_posix() for path in files} == {
        "hcp-agent/usr/share/polkit-1/rules.d/60-hcp-engine.rules",
        "hcp-agent/usr/lib/systemd/system/hcp-engine@.service",
    }


def test_configuration_files_are_valid_toml(build: ModuleType) -> None:
    shipped = {name for program in build.programs() for name in program.config}
    files = sorted((ROOT / "packaging" / "conf").iterdir())
    assert {path.name for path in files} == shipped
    for path in files:
        if path.suffix == ".toml":  # the broker's are read by the broker, in tests/e2e/test_tls.py
            tomllib.loads(path.read_text())


# --- the packages themselves -----------------------------------------------------------------


class Unpacked(NamedTuple):
    tree: Path
    files: frozenset[str]


def unpack(package: Path, tree: Path) -> Unpacked:
    subprocess.run(["dpkg", "-x", package, tree], check=True)
    package.unlink()
    return Unpacked(tree, frozenset(path.relative_to(tree).as_posix() for path in tree.rglob("*")))


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Unpacked]]:
    """Build both packages and unpack each into a folder of its own."""
    if os.geteuid() != 0:
        pytest.skip("building packages is tested as root only")
    for tool in ("dh", "dpkg-buildpackage", "dpkg"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is missing: apt-get install -y debhelper")
    if not DEBIAN_PYTHON.exists():
        pytest.skip(f"{DEBIAN_PYTHON} is missing: the packages are for Debian 12")
    out = tmp_path_factory.mktemp("deb")
    made = subprocess.run(
        [sys.executable, ROOT / "packaging/deb/build.py", "--fast", "--out", out],
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 0, made.stderr[-4000:]
    yield {name: unpack(next(out.glob(f"{name}_*.deb")), out / name) for name in PROGRAMS}
    shutil.rmtree(out)  # 400 MB


def run_from(tree: Path, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run an unpacked launcher: the one line that names the library's place is moved with it."""
    launcher = tree / "usr" / "bin" / name
    installed, here = f'"/usr/lib/{name}"', f'"{tree}/usr/lib/{name}"'
    text = launcher.read_text()
    assert text.startswith("#!/usr/bin/python3.11 -IS\n")
    assert text.count(installed) == 1
    moved = tree / name
    moved.write_text(text.replace(installed, here))
    moved.chmod(0o755)
    return subprocess.run([moved, *arguments], capture_output=True, text=True, check=False, cwd="/")


@pytest.mark.slow
@pytest.mark.root
@pytest.mark.timeout(300)
def test_unpacked_agent_tells_its_version(unpacked: dict[str, Unpacked]) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    shown = run_from(unpacked["hcp-agent"].tree, "hcp-agent", "version")
    assert shown.returncode == 0, shown.stderr
    assert version in shown.stdout


@pytest.mark.slow
@pytest.mark.root
@pytest.mark.timeout(300)
def test_unpacked_hub_shows_its_help(unpacked: dict[str, Unpacked]) -> None:
    shown = run_from(unpacked["hcp-hub"].tree, "hcp-hub", "--help")
    assert shown.returncode == 0, shown.stderr
    assert "serve" in shown.stdout


@pytest.mark.slow
@pytest.mark.root
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", PROGRAMS)
def test_every_module_in_the_package_finds_its_libraries(
    unpacked: dict[str, Unpacked], name: str
) -> None:
    library = unpacked[name].tree / "usr" / "lib" / name
    code = (
        "import importlib, pkgutil, sys\n"
        f"sys.path.append({str(library)!r})\n"
        "for top in sys.argv[1:]:\n"
        "    root = importlib.import_module(top)\n"
        "    for found in pkgutil.walk_packages(root.__path__, top + '.'):\n"
        "        if not found.name.endswith('.__main__'):\n"
        "            importlib.import_module(found.name)\n"
    )
    ours = ("edge_agent", "firmware_bridges", "hub", "protocol")
    present = [top for top in ours if (library / top).is_dir()]
    assert PROGRAMS[name] in present
    done = subprocess.run(
        [DEBIAN_PYTHON, "-IS", "-c", code, *present], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.root
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", PROGRAMS)
def test_package_holds_units_manual_user_and_no_leftovers(
    unpacked: dict[str, Unpacked], name: str
) -> None:
    files = unpacked[name].files
    assert f"lib/systemd/system/{name}.service" in files
    assert f"usr/lib/sysusers.d/{name}.conf" in files
    assert f"usr/share/man/man8/{name}.8.gz" in files
    assert any(re.fullmatch(rf"etc/{name}/\w+\.toml", file) for file in files)
    # what the host may ask of systemd, and the template of which it may ask it
    for file in (
        "usr/share/polkit-1/rules.d/60-hcp-engine.rules",
        "usr/lib/systemd/system/hcp-engine@.service",
    ):
        assert (file in files) == (name == "hcp-agent")
    library = f"usr/lib/{name}"
    absent = {f"{library}/{leftover}" for leftover in ("bin", "pip", "faker", "uv", "pytest")}
    assert files & absent == set()
    assert [file for file in files if "__pycache__" in file] == []
    assert (f"{library}/pyarrow" in files) == (name == "hcp-hub")
