"""What each client is asked to do, and how it may end."""

from __future__ import annotations

from dataclasses import dataclass

from nexus_gateway.testing import Reply

FIRST, SECOND = "Is it raining anywhere?", "And where is it dry?"
ANSWER, ERROR, WAITING = "answer", "error", "waiting"


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """One column of the table.

    Args:
        name: in the table, and for `--scenario`.
        prompts: what the user says, one after the other.
        stream: whether the client streams, if it can be told.
        calls: how many tools the backend calls at once, in its first answer.
        thinking: whether the backend thinks, and the client shows it if it can.
        image: whether the first prompt has a picture.
        backend: its name in `backends.BACKENDS`.
        first: what the first key answers instead, always.
        every: what every key answers instead, always.
        once: what the first request is answered with, of whichever key.
        ends: how the client may end.
    """

    name: str
    prompts: tuple[str, ...] = (FIRST,)
    stream: bool = True
    calls: int = 0
    thinking: bool = False
    image: bool = False
    backend: str = "chat"
    first: Reply | None = None
    every: Reply | None = None
    once: Reply | None = None
    ends: tuple[str, ...] = (ANSWER,)

    @property
    def needs(self) -> set[str]:
        """What a client must be able to do, beyond a streamed text."""
        needed = {
            **{"plain": not self.stream, "image": self.image, "tools": self.calls > 0},
            "second": len(self.prompts) > 1,
        }
        return {name for name, is_needed in needed.items() if is_needed}


def _long(name: str) -> Scenario:
    return Scenario(name=name, prompts=(FIRST, SECOND), calls=2, thinking=True, backend=name)


def _refused(status: int, *ends: str) -> Scenario:
    return Scenario(name=f"all-{status}", every=Reply(status=status), ends=(ERROR, *ends))


SCENARIOS = (
    Scenario(name="plain", stream=False),
    Scenario(name="stream"),
    Scenario(name="tool", calls=1),
    Scenario(name="two-tools", calls=2),
    Scenario(name="thinking", thinking=True),
    Scenario(name="image", image=True),
    Scenario(name="second", prompts=(FIRST, SECOND)),
    Scenario(name="fail-over", first=Reply(status=500)),
    _refused(429, WAITING),
    _refused(500),
    _refused(401),
    # An error, or the whole answer after a second request: never a part of it that looks complete.
    Scenario(name="cut", once=Reply(cut_after=3), ends=(ANSWER, ERROR)),
    *(
        _long(name)
        for name in ("anthropic", "responses", "gemini", "deepseek", "mistral", "groq", "template")
    ),
)
