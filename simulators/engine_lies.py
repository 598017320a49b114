"""What engines are known to lie about, and how a stand-in is told to."""

from __future__ import annotations

from enum import StrEnum

from simulators.errors import SettingError


class Lie(StrEnum):
    """What is wrong with the answer to one path."""

    # Whatever the engine is: the wire.
    HTML = "html"
    """A page with status 200, as of a captive proxy."""
    GATEWAY = "gateway"
    """A gateway's error page, status 502: what the engine did is unknown."""
    GARBAGE = "garbage"
    """No JSON, and called JSON."""
    SHAPE = "shape"
    """JSON of another shape."""
    FLOOD = "flood"
    """More than any answer has."""
    HANG = "hang"
    """Takes the request and never answers."""
    DRIP = "drip"
    """One byte a second."""
    CUT = "cut"
    """Half of the answer, and the end."""
    LOST = "lost"
    """Does what is asked, and ends the connection without an answer."""
    DIES = "dies"
    """The engine ends in the midst of it."""
    ERROR = "error"
    """Status 500, with a reason in JSON."""
    # What engines do.
    FALSE = "false"
    """Says yes at once and does nothing: vllm#45518."""
    EARLY = "early"
    """Says yes at once and does it later: THUDM/slime#579, radixark/miles#86."""
    OUT_OF_MEMORY = "oom"
    """Status 500, as when memory is short on waking: vllm#34600."""
    KEEPS_MEMORY = "keeps-memory"
    """Sleeps, says so, and frees half of its memory: llm-d-fast-model-actuation#746."""
    RUBBISH = "rubbish"
    """Does it, and its weights are rubbish from then on: vllm#28783, #39934, #16564."""
    WORKS_ON = "works-on"
    """A miner that calls itself paused and hashes on."""


EVERY_PATH = "*"


class Lies:
    """The lies in force, by path; `EVERY_PATH` stands for all."""

    def __init__(self) -> None:
        self._by_path: dict[str, Lie] = {}

    def tell(self, path: str, lie: Lie | None) -> None:
        """Lie about a path from now on; None = be honest again."""
        if lie is None:
            self._by_path.pop(path, None)
        else:
            self._by_path[path] = lie

    def about(self, path: str) -> Lie | None:
        """Return the lie in force about a path."""
        return self._by_path.get(path) or self._by_path.get(EVERY_PATH)


def parse_lie(text: str) -> tuple[str, Lie]:
    """Read `/sleep=early`.

    Raises:
        SettingError: naming what cannot be read.
    """
    path, _, name = text.partition("=")
    try:
        return path, Lie(name)
    except ValueError:
        known = ", ".join(Lie)
        raise SettingError("lie", f"{text!r} is not PATH=LIE with LIE one of {known}") from None
