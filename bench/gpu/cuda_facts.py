"""Versions of what lies under a figure taken on a GPU; unknown ones are left out."""

import contextlib
from typing import Any


def facts_of() -> dict[str, Any]:
    """Give the driver and the card as the driver itself names them; changes nothing."""
    facts: dict[str, Any] = {"backend": "cuda"}
    with contextlib.suppress(Exception):  # a figure is worth having without its driver's version
        import pynvml  # noqa: PLC0415 - only where a GPU is

        pynvml.nvmlInit()
        try:
            facts["driver"] = str(pynvml.nvmlSystemGetDriverVersion())
            handle = pynvml.nvmlDeviceGetHandleByIndex(0)
            facts["vram_mib"] = int(pynvml.nvmlDeviceGetMemoryInfo(handle).total) >> 20
            facts["pcie_generation"] = int(pynvml.nvmlDeviceGetMaxPcieLinkGeneration(handle))
        finally:
            pynvml.nvmlShutdown()
    return facts
