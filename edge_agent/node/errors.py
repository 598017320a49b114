"""Errors of the node and its link.

Tree::

    NodeError                    code
    ├── NodeStoreError           node.sqlite belongs to another node or site
    ├── LinkError                the link broke a rule of the protocol (their fault)
    └── EvidenceError            an act was acknowledged, but its effect could not be seen
"""


class NodeError(Exception):
    """Base of every error that this package raises itself."""

    code = "node"


class NodeStoreError(NodeError):
    """The store was made for another node or site."""

    code = "node_store"


class LinkError(NodeError, ConnectionError):
    """The peer broke a rule of the node link; the connection ends."""

    code = "link"


class EvidenceError(NodeError):
    """The effect of an act could not be confirmed.

    Args:
        reason: stable code, e.g. ``canary_mismatch``.
        detail: one sentence for a person.
    """

    code = "evidence"

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
