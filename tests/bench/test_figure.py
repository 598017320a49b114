"""Figures are written as JSON, whatever a bench has computed them with."""

import msgspec
import numpy as np

from bench.figure import at_least, at_most


def test_a_figure_of_numpy_is_a_number_of_json() -> None:
    for made in (
        at_most("a", np.float64(1.25), "ms", 2.0, {}),
        at_least("a", np.float64(3.0), "%", 2.0, {}),
    ):
        told = msgspec.json.decode(msgspec.json.encode(made))
        assert told["ok"] is True
        assert told["value"] in (1.25, 3.0)
