"""The table of Xids against what the vendor and the notes of this project say of each."""

import pytest

from firmware_bridges.nvml.xid import XIDS, Effect, Need, row_of


def test_each_xid_stands_once() -> None:
    assert len({row.xid for row in XIDS}) == len(XIDS)


@pytest.mark.parametrize("xid", [13, 31, 43])
def test_an_xid_of_the_workload_leaves_the_card_alone(xid: int) -> None:
    assert (row_of(xid).effect, row_of(xid).need) == (Effect.WORKLOAD, Need.NONE)


@pytest.mark.parametrize("xid", [48, 63, 64, 74, 79, 94, 95, 119, 120])
def test_an_xid_that_must_stop_a_switch_does(xid: int) -> None:
    row = row_of(xid)
    assert row.effect in {Effect.HOLD, Effect.FENCE}
    assert row.need is not Need.NONE


# Immediate actions of NVIDIA's catalog for H100.
@pytest.mark.parametrize(
    ("xid", "action"),
    [
        (13, "RESTART_APP"), (31, "RESTART_APP"), (45, "RESTART_APP"), (46, "RESET_GPU"),
        (48, "WORKFLOW_XID_48"), (62, "RESET_GPU"), (63, "IGNORE"), (64, "RESET_GPU"),
        (74, "WORKFLOW_NVLINK_ERR"), (79, "RESTART_BM"), (92, "IGNORE"), (94, "RESTART_APP"),
        (95, "RESET_GPU"), (109, "RESET_GPU"), (119, "RESET_GPU"), (120, "RESET_GPU"),
        (140, "RESET_GPU"), (143, "RESET_GPU"), (156, "RESET_GPU"), (158, "RESET_GPU"),
    ],
)  # fmt: skip
def test_the_vendors_action_stands_in_the_row(xid: int, action: str) -> None:
    assert row_of(xid).action == action


def test_whatever_is_milder_than_the_vendor_says_why() -> None:
    for row in XIDS:
        if row.action == "RESET_GPU" and row.effect is not Effect.FENCE:
            assert row.why, row
        if row.action == "RESTART_BM":
            assert (row.effect, row.need) == (Effect.FENCE, Need.REBOOT)


def test_an_xid_that_nobody_has_read_about_holds_the_card() -> None:
    assert (row_of(9_999).effect, row_of(9_999).need) == (Effect.HOLD, Need.INSPECT)
