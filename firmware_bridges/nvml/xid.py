"""What an Xid means for the card: data rows.

Three readings of an Xid: the *workload's* fault (the card is fine, and so is the next workload), a
*hold* (what runs may go on, nothing new is started), and a *fence* (the card is made safe). What
ends a hold or a fence is a person's word, after the need was met.

An Xid that is not in the table holds the card: most are drivers' news of no weight, but one that
nobody has read about must not be given to a customer.

Source of every row: NVIDIA's Xid catalog for Ampere and newer (docs.nvidia.com/deploy/xid-errors,
"Analyzing Xid Errors with the Xid Catalog"), its immediate action in the last column. Where this
table is stricter than the catalog, `why` says so.
"""

from enum import StrEnum
from typing import Final

from msgspec import Struct


class Effect(StrEnum):
    """What an Xid does to the card's standing."""

    WORKLOAD = "workload"
    NOTE = "note"
    HOLD = "hold"
    FENCE = "fence"


class Need(StrEnum):
    """What must be done before the card works again."""

    NONE = "none"
    RESET = "reset"
    REBOOT = "reboot"
    INSPECT = "inspect"


class XidRow(Struct, frozen=True):
    """One Xid.

    Args:
        action: immediate action of NVIDIA's catalog, as it is written there.
        why: in what this row differs from it.
    """

    xid: int
    meaning: str
    effect: Effect
    need: Need
    action: str
    why: str = ""


_WORKLOAD, _NOTE, _HOLD, _FENCE = Effect.WORKLOAD, Effect.NOTE, Effect.HOLD, Effect.FENCE
_NO, _RESET, _REBOOT, _INSPECT = Need.NONE, Need.RESET, Need.REBOOT, Need.INSPECT

XIDS: Final = (
    XidRow(8, "an engine was idle for too long", _WORKLOAD, _NO, "RESTART_APP"),
    XidRow(13, "graphics engine exception", _WORKLOAD, _NO, "RESTART_APP"),
    XidRow(31, "page fault of the GPU", _WORKLOAD, _NO, "RESTART_APP"),
    XidRow(43, "the GPU stopped processing a channel", _WORKLOAD, _NO, "RESTART_APP",
           "accompanies a fault of the workload (notes of this project)"),
    XidRow(45, "channels removed after another fault", _NOTE, _NO, "RESTART_APP",
           "follows other Xids, or a workload that was killed: its cause counts"),
    XidRow(41, "copy engine exception", _WORKLOAD, _NO, "RESTART_APP"),
    XidRow(46, "the GPU timed out", _FENCE, _RESET, "RESET_GPU"),
    XidRow(48, "double-bit ECC error", _FENCE, _RESET, "WORKFLOW_XID_48"),
    XidRow(60, "error of the security engine", _WORKLOAD, _NO, "RESTART_APP"),
    XidRow(62, "the power controller halted", _FENCE, _RESET, "RESET_GPU"),
    XidRow(63, "a memory row is to be remapped", _HOLD, _RESET, "IGNORE",
           "the row is remapped at the next reset; until then no customer is put there"),
    XidRow(64, "a memory row could not be remapped", _FENCE, _RESET, "RESET_GPU"),
    XidRow(66, "register access refused by the front end", _NOTE, _NO, "IGNORE"),
    XidRow(67, "front end violation", _NOTE, _NO, "IGNORE"),
    XidRow(69, "class error of the graphics engine", _WORKLOAD, _NO, "RESTART_APP"),
    XidRow(74, "NVLink error", _FENCE, _INSPECT, "WORKFLOW_NVLINK_ERR"),
    XidRow(79, "the GPU fell off the bus", _FENCE, _REBOOT, "RESTART_BM"),
    XidRow(80, "corrupted data sent to the GPU", _WORKLOAD, _NO, "RESTART_APP"),
    XidRow(92, "many single-bit ECC errors", _NOTE, _NO, "IGNORE"),
    XidRow(94, "ECC error contained to one workload", _HOLD, _RESET, "RESTART_APP",
           "others run on, and a reset is advised when convenient"),
    XidRow(95, "uncontained ECC error", _FENCE, _RESET, "RESET_GPU"),
    XidRow(106, "test message", _NOTE, _NO, "IGNORE"),
    XidRow(107, "silent test message", _NOTE, _NO, "IGNORE"),
    XidRow(108, "address error of a remote GPU", _NOTE, _NO, "IGNORE"),
    XidRow(109, "a context switch timed out", _FENCE, _RESET, "RESET_GPU"),
    XidRow(110, "security fault", _FENCE, _RESET, "RESET_GPU"),
    XidRow(119, "the GPU's firmware does not answer", _FENCE, _RESET, "RESET_GPU"),
    XidRow(120, "error in the GPU's firmware", _FENCE, _RESET, "RESET_GPU"),
    XidRow(121, "error of the link between chips", _NOTE, _NO, "IGNORE"),
    XidRow(136, "an NVLink could not be trained", _FENCE, _RESET, "RESET_GPU"),
    XidRow(137, "NVLink privilege error", _NOTE, _NO, "IGNORE"),
    XidRow(140, "unrecovered ECC error", _FENCE, _RESET, "RESET_GPU"),
    XidRow(143, "the GPU could not be set up", _FENCE, _RESET, "RESET_GPU"),
    XidRow(154, "the recovery action changed", _NOTE, _NO, "XID_154",
           "the action itself is read in each sweep"),
    XidRow(155, "NVLink error found by software", _FENCE, _RESET, "RESET_GPU"),
    XidRow(156, "a resource is to be retired", _HOLD, _RESET, "RESET_GPU",
           "what runs may end first"),
    XidRow(157, "a resource could not be retired", _HOLD, _INSPECT, "IGNORE",
           "to be told to the vendor, and no customer is put there until then"),
    XidRow(158, "fatal timeout of the GPU", _FENCE, _RESET, "RESET_GPU"),
    # copy engines 3-9 and 10-19, video decoders, JPEG decoders, optical flow
    *(
        XidRow(xid, "error of an engine", _WORKLOAD, _NO, "RESTART_APP")
        for xid in (68, 70, 71, 72, 75, 76, 77, *range(82, 87), 88, 89, *range(96, 106),
                    *range(126, 136), 139)
    ),
)  # fmt: skip

_BY_XID: Final = {row.xid: row for row in XIDS}


def row_of(xid: int) -> XidRow:
    """Give the row of an Xid; one that is not in the table holds the card."""
    known = _BY_XID.get(xid)
    if known is not None:
        return known
    return XidRow(xid, "not in the table", Effect.HOLD, Need.INSPECT, "", "unknown is not harmless")
