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


# --- the python of a GPU machine --------------------------------------------------------------


def test_a_locked_package_keeps_its_version_and_every_hash(dev: ModuleType) -> None:
    text = (
        "msg==1.0 \\\n    --hash=sha256:aa\nmsgspec==0.22.0 ; python_version >= '3' \\\n"
        "    --hash=sha256:bb \\\n    --hash=sha256:cc\nnumpy==2.4.6 \\\n    --hash=sha256:dd\n"
    )
    wanted = dev.locked(text, "msgspec").replace("\\\n", " ").split()
    assert wanted == ["msgspec==0.22.0", "--hash=sha256:bb", "--hash=sha256:cc"]
    assert dev.locked(text, "torch") is None
    real = dev.locked((ROOT / "requirements.lock").read_text(), "msgspec")
    assert real.count("--hash=sha256:") > 10


def test_what_an_interpreter_lacks_is_asked_of_it(dev: ModuleType, tmp_path: Path) -> None:
    assert dev.missing_of(sys.executable, ["msgspec", "no_such_package"]) == ["no_such_package"]
    assert dev.missing_of(tmp_path / "no-python", ["msgspec"]) is None


def test_the_first_python_that_has_torch_and_cupy_is_taken(
    dev: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    has = {"/a/python3": {"torch"}, "/b/python": {"torch", "cupy", "msgspec"}}
    monkeypatch.setattr(dev, "gpu_pythons", lambda: ["/none", *has])
    monkeypatch.setattr(
        dev,
        "missing_of",
        lambda python, names: [n for n in names if n not in has[python]] if python in has else None,
    )
    assert dev.gpu_python() == ("/b/python", {})
    has["/b/python"].discard("cupy")
    assert dev.gpu_python() is None


def test_msgspec_is_put_beside_a_python_that_lacks_only_it_or_the_way_is_told(
    dev: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dev, "CACHE", tmp_path)
    monkeypatch.setattr(dev, "gpu_pythons", lambda: [sys.executable])
    monkeypatch.setattr(
        dev, "missing_of", lambda _python, names: [n for n in names if n == "msgspec"]
    )
    # An index that has nothing, as on a machine from which nothing can be reached.
    for name, value in {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(dev.DevError, match="has torch and cupy, but not msgspec") as told:
        dev.gpu_python()
    assert "PIP_FIND_LINKS=DIR ./dev bench gpu-switch" in told.value.command
    monkeypatch.setattr(dev, "install_beside", lambda _python, target: target.mkdir() or True)
    (tmp_path / "gpu").mkdir(exist_ok=True)
    monkeypatch.setenv("PYTHONPATH", "/theirs")
    python, env = dev.gpu_python()
    assert python == sys.executable
    assert env["PYTHONPATH"].endswith(f"{os.pathsep}/theirs")


def test_a_gpu_bench_asks_for_no_broker(dev: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    class BecameError(Exception):
        pass

    def become(command: list[str], _env: dict[str, str]) -> None:
        raise BecameError(command)

    monkeypatch.setattr(dev, "become", become)
    monkeypatch.setattr(dev, "provide_broker", lambda: pytest.fail("a broker was asked for"))
    monkeypatch.setattr(dev, "gpu_python", lambda: ("/b/python", {}))
    with pytest.raises(BecameError) as command:
        dev.bench(["gpu-switch", "--json"])
    assert command.value.args == (["/b/python", "-m", "bench", "gpu-switch", "--json"],)
