"""Errors of the reference workloads.

Tree::

    WorkloadProgramError      code
    ├── OptionError           an option makes no sense
    ├── StratumError          the pool said what the protocol does not allow
    ├── BackendError          a backend does not work, or computes wrong hashes
    │   └── BackendMissingError   this machine has none of that kind: another may do
    └── RefusedError          a request that is answered with a status and a code
"""


class WorkloadProgramError(Exception):
    """Base of every error that a reference workload raises itself."""

    code = "reference"


class OptionError(WorkloadProgramError):
    """An option makes no sense."""

    code = "option"


class StratumError(WorkloadProgramError):
    """The pool said what the protocol does not allow."""

    code = "stratum"


class BackendError(WorkloadProgramError):
    """A backend does not work here, or computes what hashlib does not."""

    code = "backend"


class BackendMissingError(BackendError):
    """This machine has no such backend; ``auto`` takes another."""

    code = "no_backend"


class RefusedError(WorkloadProgramError):
    """A request that is answered with a status.

    Args:
        status: HTTP status. code: stable, for programs. detail: one sentence for a person.
        retry_after_s: when to try again; None = no header.
    """

    code = "refused"

    def __init__(
        self, status: int, code: str, detail: str, *, retry_after_s: int | None = None
    ) -> None:
        super().__init__(f"{code}: {detail}")
        self.status = status
        self.answer_code = code
        self.detail = detail
        self.retry_after_s = retry_after_s
