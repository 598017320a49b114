"""Errors of the switching parts.

Tree::

    WorkloadError
    └── BookError      stored latencies that cannot be read back
"""

from edge_agent.workloads.errors import WorkloadError


class BookError(WorkloadError):
    """Stored latencies that cannot be read back."""

    code = "bad_book"
