"""One sequence from its prompt to its end, a bounded step at a time; no clock, no sockets."""

import hashlib
from collections.abc import Sequence

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from edge_agent.reference.model import END, VOCABULARY, Cache, Logits, Model, encode

# A prompt goes in by pieces of this many tokens, so that no step keeps a pause waiting for long.
CHUNK_TOKENS = 32
CANARY_PROMPT = "canary"
CANARY_TOKENS = 4


class Wish(Struct, frozen=True, kw_only=True):
    """What is to be decoded.

    Args:
        temperature: 0 = always the likeliest token. seed: of the draw otherwise.
    """

    prompt: str
    max_tokens: int
    temperature: float = 0.0
    seed: int = 0
    stops: tuple[str, ...] = ()


class Canary(Struct, frozen=True, kw_only=True):
    """The model's answer to a fixed question, to the last bit of its logits."""

    text: str
    logits_sha256: str


def _printable() -> NDArray[np.bool_]:
    allowed = np.zeros(VOCABULARY, dtype=np.bool_)
    allowed[32:127] = allowed[10] = allowed[END] = True
    return allowed


# Drawn weights know no language: only what is text may be said, so that every answer is UTF-8.
_PRINTABLE = _printable()


class Decoding:
    """One sequence on its way.

    Args:
        cache: its own; closed by whoever made it.
    """

    def __init__(self, wish: Wish, cache: Cache) -> None:
        self.cache = cache
        self.finish: str | None = None
        self.tokens_out = 0
        self.prompt_tokens = encode(wish.prompt)
        self._wish = wish
        self._feed: Sequence[int] = self.prompt_tokens
        self._text = ""
        self._told = 0
        self._rng = np.random.default_rng(wish.seed)
        self._digest = hashlib.sha256()
        self._hold = max((len(stop) for stop in wish.stops), default=1) - 1

    @property
    def logits_sha256(self) -> str:
        """Give the digest of all logits that tokens were chosen from, so far."""
        return self._digest.hexdigest()

    def step(self, model: Model) -> str:
        """Take in a piece of the prompt, or choose a token; give the text that is certain now."""
        piece, self._feed = self._feed[:CHUNK_TOKENS], self._feed[CHUNK_TOKENS:]
        logits = model.forward(self.cache, piece)
        if self._feed:
            return ""
        self._digest.update(logits.tobytes())
        token = self._choose(logits)
        self.tokens_out += 1
        if token == END:
            self.finish = "stop"
        else:
            self._text += chr(token)
            self._feed = [token]
            self._look_for_stop()
        if self.finish is None and self.tokens_out >= self._wish.max_tokens:
            self.finish = "length"
        return self._tell()

    def _choose(self, logits: Logits) -> int:
        scores = np.where(_PRINTABLE, logits, np.float32(-np.inf))
        if self._wish.temperature == 0:
            return int(scores.argmax())
        scores = (scores - scores.max()) / self._wish.temperature
        shares = np.exp(scores.astype(np.float64))
        return int(self._rng.choice(VOCABULARY, p=shares / shares.sum()))

    def _look_for_stop(self) -> None:
        found = [at for stop in self._wish.stops if (at := self._text.find(stop)) >= 0]
        if found:
            self._text, self.finish = self._text[: min(found)], "stop"

    def _tell(self) -> str:
        """Give what no stop can take back any more."""
        upto = len(self._text) if self.finish else max(self._told, len(self._text) - self._hold)
        told, self._told = self._text[self._told : upto], max(self._told, upto)
        return told


def ask_canary(model: Model, prompt: str = CANARY_PROMPT) -> Canary:
    """Decode a few tokens greedily in a cache of their own."""
    cache = model.new_cache()
    try:
        decoding = Decoding(Wish(prompt=prompt, max_tokens=CANARY_TOKENS), cache)
        text = ""
        while decoding.finish is None:
            text += decoding.step(model)
        return Canary(text=text, logits_sha256=decoding.logits_sha256)
    finally:
        cache.close()
