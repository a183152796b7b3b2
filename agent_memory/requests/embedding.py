"""The resident model as an embedder: the mean state of its early layers, each number standardised.

Raw hidden states of a language model lie in a narrow cone, where everything is near everything. Standardised by the
mean and spread over a fixed set of sentences, those from a fifth of the depth tell texts apart; later layers do not.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from agent_memory.errors import UnsupportedModelError
from agent_memory.protocols import ModelRunner
from agent_memory.scheduler.engine import Engine

if TYPE_CHECKING:
    import numpy as np

DEPTH = 0.2  #: share of the layers
MOST_TOKENS = 256  #: of one text
_ROWS = 16  #: in one pass
_VERSION = 1  #: goes up with the sentences, or how they are used


class ResidentEmbedder:
    """An ``Embedder`` on the model of a Memory. Any thread: the engine thread computes, between two ticks.

    Its vectors belong to one model: with another one they are made anew, in idle time.
    """

    def __init__(self, runner: ModelRunner, engine: Engine) -> None:
        self._runner, self._engine = runner, engine
        self._lock = threading.Lock()
        self._scale: tuple[Any, Any] | None = None

    def forget_model(self) -> None:
        """Forget what belongs to one model: another one is loaded."""
        self._scale = None
        for name in ("fingerprint", "dim"):
            self.__dict__.pop(name, None)

    @cached_property
    def fingerprint(self) -> str:
        """Of weights, tokenizer, depth and standardisation."""
        import hashlib

        identity = self._runner.identity
        named = "|".join(f"{name}={identity[name]}" for name in sorted(identity))
        digest = hashlib.sha256(f"{named}|{DEPTH}|{MOST_TOKENS}|{_VERSION}".encode()).hexdigest()[:32]
        return f"resident-{digest}"

    @cached_property
    def dim(self) -> int:
        """Numbers in a vector. Computes one at first."""
        return int(self._states(["a"]).shape[1])

    def embed(self, texts: Sequence[str]) -> np.ndarray[Any, Any]:
        """Return one vector a text: (len(texts), dim) float32 of length 1. Raises UnsupportedModelError."""
        import numpy as np

        mean, spread = self._standard()
        vectors = (self._states(texts) - mean) / spread
        lengths = np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        return np.asarray(vectors / lengths, np.float32)

    def _standard(self) -> tuple[Any, Any]:
        scale = self._scale
        if scale is None:
            states = self._states(SENTENCES)
            self._scale = scale = states.mean(0), states.std(0) + 1e-6
        return scale

    def _states(self, texts: Sequence[str]) -> np.ndarray[Any, Any]:
        import numpy as np

        tokenizer = self._runner.tokenizer
        early_states = getattr(self._runner, "early_states", None)
        if early_states is None:
            raise UnsupportedModelError(f"{self._runner.name}: this runner has no early_states(), so it embeds nothing")
        rows = [tokenizer.encode(text)[:MOST_TOKENS] or [0] for text in texts]
        order = sorted(range(len(rows)), key=lambda place: len(rows[place]))  # rows of like length share a pass
        found: dict[int, Any] = {}
        for start in range(0, len(order), _ROWS):
            part = order[start : start + _ROWS]
            states = self._engine.call(partial(early_states, [rows[place] for place in part], DEPTH))
            found.update(zip(part, states, strict=True))
        return np.stack([found[place] for place in range(len(rows))])


#: Of many kinds, so that what all sentences share is told from what tells them apart.
SENTENCES = tuple(
    """The train to the coast leaves at seven and arrives before noon.
My sister is a nurse and works nights at the city hospital.
We decided to use PostgreSQL for the billing service.
The test failed because the file was not found.
Please answer in short sentences and leave out the examples.
She bought two tickets for the concert on Saturday.
The function returns a list of integers in ascending order.
I am allergic to peanuts, so no satay for me.
Rain is expected over the hills until late in the evening.
He painted the kitchen green and the hall a pale yellow.
The meeting was moved from Tuesday to Thursday at ten.
Our cat sleeps on the warm roof of the garden shed.
The invoice number is 4417 and it is due next month.
A good soup needs onions, patience and a little salt.
They won the match by three goals to one.
The server ran out of memory while it was building the index.
I would like to learn Italian before we move to Rome.
The museum is closed on Mondays and on public holidays.
What did you think of the second chapter of the book?
The doctor told him to walk for half an hour each day.
Deploy the new version only after the backup is done.
My favourite colour is blue, and I like the sea.
The price of copper rose by four percent this week.
We talked about the holiday in Norway and the old boat.
The key is under the third stone beside the gate.
Her thesis is about the migration of birds in spring.
The bridge was built in 1931 and repaired twice since then.
I forgot the password of the staging database again.
Children under six travel free of charge.
The committee approved the budget without any change.
He plays the violin in a small orchestra near the lake.
The bug is fixed in the latest release of the library.
There is no milk left, could you bring some on the way home?
The company has offices in Lagos, Lima and Lisbon.
Thank you for the flowers, they are beautiful.
The experiment showed no difference between the two groups.
Turn left after the church and follow the river.
The loan must be paid back within ten years.
They adopted a dog called Biscuit from the shelter.
The lecture covers matrices, vectors and their products.""".splitlines()
)
