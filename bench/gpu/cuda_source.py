"""Where the miner's kernels stand."""

from pathlib import Path

SOURCE = Path(__file__).with_name("sha256d.cu")
