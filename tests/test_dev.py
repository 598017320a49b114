"""The pure helpers of ./dev, and that it leaves stdout to the program it starts."""

import hashlib
import importlib.machinery
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def dev() -> ModuleType:
    loader = importlib.machinery.SourceFileLoader("hcp_dev", str(ROOT / "dev"))
    spec = importlib.util.spec_from_loader("hcp_dev", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("argv", "seeds", "rest"),
    [
        ([], None, []),
        (["-q", "tests/hub"], None, ["-q", "tests/hub"]),
        (["--seeds", "500"], 500, []),
        (["-x", "--seeds=12", "-k", "a or b"], 12, ["-x", "-k", "a or b"]),
    ],
)
def test_seeds_are_taken_out_of_the_pytest_arguments(
    dev: ModuleType, argv: list[str], seeds: int | None, rest: list[str]
) -> None:
    assert dev.split_test_args(argv) == (seeds, rest)


@pytest.mark.parametrize(
    "argv", [["--seeds"], ["--seeds", "-q"], ["--seeds=0"], ["--seeds=x"], ["--seeds=²"]]
)
def test_seeds_must_be_a_number_above_zero(dev: ModuleType, argv: list[str]) -> None:
    with pytest.raises(ValueError, match="--seeds wants a whole number above 0"):
        dev.split_test_args(argv)


def test_package_names_are_read_from_what_apt_prints(dev: ModuleType) -> None:
    text = (
        "Reading package lists...\n"
        "The following NEW packages will be installed:\n  libdlt2 mosquitto\n"
        "'http://deb.example/pool/d/libdlt2_2.18.8-6_amd64.deb' libdlt2_2.18.8-6_amd64.deb 55 MD5\n"
        "'http://deb.example/pool/m/mosquitto_2.0.11-1.2%2bdeb12u1_amd64.deb' "
        "mosquitto_2.0.11-1.2+deb12u1_amd64.deb 2 SHA256:x\n"
    )
    assert dev.packages_in_uris(text) == ["libdlt2", "mosquitto"]
    assert dev.packages_in_uris("E: Unable to locate package\n") == []


def test_lines_that_name_a_host_are_found(dev: ModuleType) -> None:
    text = (
        "a==1 \\\n    --hash=sha256:00\n--index-url https://index.example/simple\nb @ file:///x\n"
    )
    assert dev.urls_in(text) == ["--index-url https://index.example/simple", "b @ file:///x"]


def test_digest_is_sha256(dev: ModuleType) -> None:
    assert dev.digest_of(b"lock") == hashlib.sha256(b"lock").hexdigest()


def test_python_of_the_distribution_is_asked_first_and_each_only_once(
    dev: ModuleType, tmp_path: Path
) -> None:
    shims = tmp_path / "bin"
    pyenv = tmp_path / ".pyenv" / "versions" / "3.12.1" / "bin"
    for folder, name in ((shims, "python3.12"), (shims, "python3"), (pyenv, "python3")):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("#!/bin/sh\n")
        (folder / name).chmod(0o755)
    running = str(shims / "python3")
    assert dev.python_candidates(running, str(shims), str(tmp_path)) == [
        "/usr/bin/python3.11",
        running,
        str(shims / "python3.12"),
        str(pyenv / "python3"),
    ]


def test_broker_that_does_not_start_is_refused(
    dev: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "mosquitto"
    broken.write_text("#!/bin/sh\nexit 127\n")
    broken.chmod(0o755)
    assert not dev.broker_works(str(broken))
    assert not dev.broker_works(str(tmp_path / "absent"))
    monkeypatch.setenv("HCP_MOSQUITTO", str(broken))
    with pytest.raises(dev.DevError, match="does not run") as caught:
        dev.provide_broker()
    assert caught.value.command == "unset HCP_MOSQUITTO"


def test_own_words_go_to_stderr(dev: ModuleType, capfd: pytest.CaptureFixture[str]) -> None:
    assert dev.run(["sh", "-c", "echo out"])
    assert not dev.run(["no-such-program-anywhere"])
    captured = capfd.readouterr()
    assert captured.out == ""
    assert "dev: $ sh -c echo out\nout\n" in captured.err


def dev_script(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "dev"), *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "LC_ALL": "C"},
    )


def test_help_names_every_command() -> None:
    shown = dev_script("--help")
    assert shown.returncode == 0
    for command in ("demo", "test", "check", "bench", "fmt", "lock", "build-deb"):
        assert f"\n  {command} " in shown.stdout


def test_unknown_command_is_a_usage_error() -> None:
    done = dev_script("lunch")
    assert done.returncode == 2
    assert "invalid choice: 'lunch'" in done.stderr


def test_wrong_seeds_are_a_usage_error() -> None:
    done = dev_script("test", "--seeds", "many")
    assert done.returncode == 2
    assert "--seeds wants a whole number above 0" in done.stderr
