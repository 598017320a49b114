"""Errors of the workload host.

Tree::

    HostError                    code
    ├── RefusedError             an act that did not happen, with the code that the node is told
    ├── SilentEngineError        whether an act on an engine happened is unknown
    └── UpstreamError            an engine's HTTP answer did not come, or broke off
"""


class HostError(Exception):
    """Base of every error that this package raises itself."""

    code = "host"


class RefusedError(HostError):
    """An act did not happen.

    Args:
        answer_code: stable: ``no_gpu``, ``no_instance``, ``no_engine``, ``busy``, ``gpu_lost``,
            ``not_ready``, ``canary_mismatch``, ``still_hashing``, ``bad_request``.
        detail: one sentence for a person.
    """

    code = "refused"

    def __init__(self, answer_code: str, detail: str) -> None:
        super().__init__(f"{answer_code}: {detail}")
        self.answer_code = answer_code
        self.detail = detail


class SilentEngineError(HostError):
    """An engine did not answer in time."""

    code = "engine_silent"


class UpstreamError(HostError, ConnectionError):
    """An engine's HTTP answer did not come, or broke off.

    Args:
        reason: stable: ``unreachable``, ``timeout``, ``broken``, ``garbage``.
        detail: one sentence for a person.
    """

    code = "upstream"

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
