"""The simulator's md5-crypt against another program's."""

import shutil
import subprocess

import pytest

from simulators.asic_md5crypt import md5crypt


@pytest.mark.parametrize(
    "password", ["admin", "a", "sixteen letters.", "a longer password than that"]
)
def test_openssl_gives_the_same_hash(password: str) -> None:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("no openssl on this machine")
    done = subprocess.run(
        [openssl, "passwd", "-1", "-salt", "BQ5hoXV9", "-stdin"],
        input=password, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == f"$1$BQ5hoXV9${md5crypt(password, 'BQ5hoXV9')}"
