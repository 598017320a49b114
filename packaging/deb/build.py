"""Builds the hcp-agent and hcp-hub packages into dist/: `./dev build-deb [--fast] [--out DIR]`.

The locked libraries and our own modules are laid out first, each program in a private folder that
no other Python program sees; debhelper then turns the two trees into packages.
"""

import argparse
import dataclasses
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DEB = ROOT / "packaging" / "deb"
PYTHON = "3.11"  # the interpreter of Debian 12; compiled libraries fit this one only
LAUNCHER = """\
#!/usr/bin/python{python} -IS
import sys

sys.path.append("/usr/lib/{package}")
from {module}.__main__ import main

sys.exit(main())
"""
# Nothing here is read at run time. faker (25 MB) comes along for Litestar's test helpers.
NEEDLESS = (
    "bin", "faker", "faker-*.dist-info", "example.py", ".lock", "**/.gitignore",
    "**/__pycache__", "**/tests", "numpy/_core/include", "pyarrow/include",
    "numpy/testing/print_coercion_tables.py",
    "*.dist-info/direct_url.json", "*.dist-info/REQUESTED", "*.dist-info/uv_cache.json",
    "**/*.a", "**/*.c", "**/*.cc", "**/*.cpp", "**/*.h", "**/*.hpp",
    "**/*.pxd", "**/*.pxi", "**/*.pyi", "**/*.pyx",
    # zstandard's second implementation (the C one is used)
    "zstandard/_cffi.*.so",
    # pyarrow: RPC, object stores, self-tests, and copies of libraries under their link-time names
    "pyarrow/_flight.*.so", "pyarrow/_s3fs.*.so", "pyarrow/_gcsfs.*.so", "pyarrow/_azurefs.*.so",
    "pyarrow/_hdfs.*.so", "pyarrow/_pyarrow_cpp_tests.*.so", "pyarrow/libarrow_flight.so.*",
    "pyarrow/libarrow_s3.so.*", "pyarrow/libarrow_python_flight.so*",
    "pyarrow/libarrow_python*.so", "pyarrow/libarrow_python*.so.*.*.*",
)  # fmt: skip


class BuildError(Exception):
    """The packages cannot be built; the message says what to do."""


@dataclasses.dataclass(frozen=True, slots=True)
class Program:
    """One package to build.

    Args:
        package: Debian package, launcher and private folder.
        module: package whose `__main__.main()` the launcher runs, as `python -m` does.
        sources: our own top-level packages inside it.
        config: files below packaging/conf that become conffiles.
        left_out: locked distributions it does not use.
        placed: further files of ours, each with the folder that it is installed into.
    """

    package: str
    module: str
    sources: tuple[str, ...]
    config: tuple[str, ...]
    left_out: frozenset[str] = frozenset()
    placed: tuple[tuple[str, str], ...] = ()


def programs() -> tuple[Program, ...]:
    """Describe the packages."""
    hub_only = frozenset((DEB / "hub-only.txt").read_text().split())
    return (
        Program(
            package="hcp-agent",
            module="edge_agent",
            sources=("edge_agent", "firmware_bridges", "protocol"),
            config=("agent.toml", "node.toml", "host.toml", "gpu-control.toml"),
            left_out=hub_only,
            placed=(
                ("packaging/polkit/60-hcp-engine.rules", "usr/share/polkit-1/rules.d"),
                # a template is neither enabled nor started: no script of the package is about it
                ("systemd/hcp-engine@.service", "usr/lib/systemd/system"),
            ),
        ),
        Program(
            package="hcp-hub",
            module="hub",
            sources=("hub", "protocol"),
            config=("hub.toml", "mosquitto.conf", "mosquitto.acl"),
        ),
    )


def without(lock_text: str, left_out: frozenset[str]) -> str:
    """Drop distributions, with their hashes, from a lock file's text."""
    blocks = re.split(r"\n(?=[A-Za-z0-9])", lock_text.strip())
    kept = [block for block in blocks if block.partition("==")[0] not in left_out]
    return "\n".join(kept) + "\n"


def run(command: list[str], cwd: Path = ROOT, **env: str) -> None:
    """Run a tool with its output on stderr.

    Raises:
        BuildError: it failed or is missing.
    """
    try:
        subprocess.run(command, cwd=cwd, check=True, stdout=sys.stderr, env={**os.environ, **env})
    except (OSError, subprocess.CalledProcessError) as error:
        raise BuildError(f"{command[0]}: {error}") from error


def install_command(target: Path, lock: Path) -> list[str]:
    """Compose the call of uv, or of pip where there is no uv."""
    own_uv = ROOT / ".venv" / "bin" / "uv"
    uv = str(own_uv) if own_uv.exists() else shutil.which("uv")
    common = ["--target", str(target), "--python-version", PYTHON, "--no-deps"]
    common += ["--require-hashes", "--only-binary", ":all:", "-r", str(lock)]
    if uv:
        only = [uv, "pip", "install", "--quiet", "--python", sys.executable]
        return [*only, "--link-mode", "copy", *common]
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    return [*pip, "--no-compile", *common]


def remove_needless(tree: Path) -> None:
    """Delete what is not read at run time."""
    for pattern in NEEDLESS:
        for path in list(tree.glob(pattern)):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


def lay_out(program: Program, work: Path) -> None:
    """Make the tree of one package below `work/stage`."""
    stage = work / "stage" / program.package
    library = stage / "usr" / "lib" / program.package
    library.mkdir(parents=True)
    lock = work / f"{program.package}.lock"
    lock.write_text(without((ROOT / "requirements.lock").read_text(), program.left_out))
    run(install_command(library, lock))
    remove_needless(library)
    for source in program.sources:
        if not (ROOT / source).is_dir():
            raise BuildError(f"the folder {source}/ is missing")
        ignore = shutil.ignore_patterns("__pycache__", "*.pyc")
        shutil.copytree(ROOT / source, library / source, ignore=ignore)
    launcher = stage / "usr" / "bin" / program.package
    launcher.parent.mkdir(parents=True)
    launcher.write_text(
        LAUNCHER.format(python=PYTHON, package=program.package, module=program.module)
    )
    launcher.chmod(0o755)
    config = stage / "etc" / program.package
    config.mkdir(parents=True)
    for name in program.config:
        shutil.copy(ROOT / "packaging" / "conf" / name, config / name)
    place_files(program, stage)


def place_files(program: Program, stage: Path) -> None:
    """Put the further files of a package into its tree."""
    for source, folder in program.placed:
        (stage / folder).mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / source, stage / folder)


def lay_out_debian(work: Path) -> None:
    """Put the debhelper folder, the units and the man pages together."""
    debian = work / "debian"
    shutil.copytree(DEB / "debian", debian)
    (debian / "rules").chmod(0o755)
    for unit, owner in (
        ("hcp-agent", ""),
        ("hcp-node", "hcp-agent."),
        ("hcp-gpu-control", "hcp-agent."),
        ("hcp-host", "hcp-agent."),
        ("hcp-hub", ""),
    ):
        shutil.copy(ROOT / "systemd" / f"{unit}.service", debian / f"{owner}{unit}.service")
    for package in ("hcp-agent", "hcp-hub"):
        shutil.copy(ROOT / "systemd" / f"{package}.sysusers", debian)
        shutil.copy(ROOT / "packaging" / "man" / f"{package}.8", debian)


def check_version() -> None:
    """Refuse to build when the package's version is not the project's.

    Raises:
        BuildError: they differ.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    first = (DEB / "debian" / "changelog").read_text().partition("\n")[0]
    if not re.match(rf"hcp \({re.escape(project)}~", first):
        raise BuildError(f"packaging/deb/debian/changelog starts with {first!r}, not {project}")


def build(out: Path, *, fast: bool) -> list[Path]:
    """Build both packages.

    Args:
        out: folder for the .deb files.
        fast: leave them uncompressed, as the tests do.

    Returns:
        The files made.

    Raises:
        BuildError: a tool or a source is missing, or fails.
    """
    check_version()
    for tool in ("dpkg-buildpackage", "dh"):
        if shutil.which(tool) is None:
            raise BuildError(f"{tool} is missing: apt-get install -y debhelper")
    work = out / ".hcp-deb-build" / "hcp"
    shutil.rmtree(work.parent, ignore_errors=True)
    work.mkdir(parents=True)
    for program in programs():
        lay_out(program, work)
    lay_out_debian(work)
    compression = "-Znone" if fast else "-Zxz"
    # -d: the list of build dependencies names a compiler, which nothing here needs
    run(["dpkg-buildpackage", "-b", "-us", "-uc", "-d"], cwd=work, HCP_DEB_OPTIONS=compression)
    made = [deb.replace(out / deb.name) for deb in sorted(work.parent.glob("*.deb"))]
    shutil.rmtree(work.parent)
    return made


def main() -> int:
    """Build and print one line a package; exit status 1 with a message when that fails."""
    parser = argparse.ArgumentParser(prog="./dev build-deb", description="Build the .deb packages.")
    parser.add_argument("--fast", action="store_true", help="do not compress (tests)")
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="default: dist/")
    arguments = parser.parse_args()
    try:
        for package in build(arguments.out.resolve(), fast=arguments.fast):
            print(f"{package}  {package.stat().st_size / 1e6:.1f} MB")
    except BuildError as error:
        print(f"build-deb: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
