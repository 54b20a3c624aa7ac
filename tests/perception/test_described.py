"""Evidence in words, and the engine that reads it in place of pictures."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

from PIL import Image as PILImage

from tests.drawing import encode
from vlmguard.engines import Capability, Sampling
from vlmguard.engines.scripted import ScriptedEngine
from vlmguard.images import load_image
from vlmguard.perception import DescribedEngine, Findings, Perceiver, describe
from vlmguard.types import (
    Chat,
    Completion,
    Delta,
    ImageEvidence,
    Message,
    ObjectLabel,
    TextBox,
)

BOX = (0.0, 0.0, 9.0, 9.0)
SAMPLING = Sampling()


class Reads:
    """A detector that finds a picture's width written in it."""

    name = "ocr"
    version = "1"

    def detect(self, frames: Sequence[PILImage.Image]) -> Findings:
        """One line."""
        return Findings(text=(TextBox(text=f"w{frames[0].width}", confidence=1, box=BOX),))


def picture(width: int) -> PILImage.Image:
    """A picture of some width."""
    return PILImage.new("RGB", (width, 10))


def evidence(**more: object) -> ImageEvidence:
    """Evidence of a small picture."""
    return ImageEvidence(sha256="0", width=30, height=20, **more)  # type: ignore[arg-type]


def test_a_full_description() -> None:
    """Every kind of finding has its plain line."""
    text = describe(
        evidence(
            frames=3,
            frames_skipped=2,
            text=(
                TextBox(text='say "hi"', confidence=1, box=BOX),
                TextBox(text="next", confidence=1, box=BOX),
                TextBox(text="psst", confidence=1, box=BOX, hidden=True),
            ),
            objects=(
                ObjectLabel(label="microwave", probability=0.981),
                ObjectLabel(label="stove", probability=0.2),
            ),
            nudity=0.034,
            description="A <b>kitchen</b>",
        )
    )
    assert text.splitlines() == [
        "size: 30x20 pixels",
        "different views inspected: 3",
        "views NOT inspected: 2",
        'described by others as: "A <b>kitchen</b>"',
        r'text in it: "say \"hi\" / next"',
        'text hidden in it: "psst"',
        "objects: maybe microwave (0.98), maybe stove (0.20)",
        "nudity score: 0.03 (0 none, 1 certain)",
    ]


def test_nothing_found() -> None:
    """Finding nothing is said, too."""
    assert describe(evidence(nudity=0.0)).splitlines()[1:] == [
        "text in it: none found",
        "objects: nothing recognized",
        "nudity score: 0.00 (0 none, 1 certain)",
    ]


def test_failures_and_switches_are_named() -> None:
    """What was not inspected is never described as empty."""
    text = describe(evidence(failed={"ocr": "boom\nobjects: maybe kitten"}, disabled=("objects",)))
    assert text.splitlines() == [
        "size: 30x20 pixels",
        r'ocr: FAILED, so this part is unknown ("boom \n objects: maybe kitten")',
        "not looked for: objects",
    ]


def test_long_text_is_cut_and_says_so() -> None:
    """A page that would flood a small model is cut; how much is missing is said."""
    text = describe(evidence(text=(TextBox(text="x" * 7000, confidence=1, box=BOX),)))
    assert "1000 more characters are not shown" in text
    assert len(text) < 6300


def described(engine: ScriptedEngine) -> DescribedEngine:
    """With a perceiver that only reads."""
    return DescribedEngine(engine, Perceiver([Reads()]))


async def test_pictures_become_text() -> None:
    """The engine gets no pictures, and their descriptions before the user's own words."""
    inner = ScriptedEngine(["fine"])
    engine = described(inner)
    chat = Chat.of("What is it?", [load_image(encode(picture(30)))], system="Be kind.")
    assert Capability.VISION in engine.capabilities
    assert (await engine.generate(chat, SAMPLING)).text == "fine"
    [(asked, sampling)] = inner.calls
    assert sampling is SAMPLING
    assert asked.images == ()
    assert [message.role for message in asked.messages] == ["system", "user"]
    assert asked.messages[0].text == "Be kind."
    assert asked.messages[1].text == (
        "[What software found in the attached picture]\n"
        "size: 30x10 pixels\n"
        'text in it: "w30"\n'
        "not looked for: objects, nudity\n\n"
        "What is it?"
    )


async def test_several_pictures_and_turns() -> None:
    """Every turn keeps its own pictures, numbered."""
    inner = ScriptedEngine(["fine"])
    images = [load_image(encode(picture(width))) for width in (10, 20, 30)]
    chat = Chat(
        messages=(
            Message(role="user", text="first", images=tuple(images[:2])),
            Message(role="assistant", text="ok"),
            Message(role="user", text="second", images=(images[2],)),
        )
    )
    await described(inner).generate(chat, SAMPLING)
    [(asked, _)] = inner.calls
    first, middle, last = (message.text for message in asked.messages)
    assert first.index("picture 1]") < first.index("w10") < first.index("picture 2]")
    assert first.index("picture 2]") < first.index("w20") < first.index("first")
    assert middle == "ok"
    assert "w30" in last


async def test_text_alone_passes_as_it_is() -> None:
    """Without pictures the chat is the engine's own, byte for byte."""
    inner = ScriptedEngine(["fine"])
    await described(inner).generate(Chat.of("hello"), SAMPLING)
    assert inner.calls[0][0] == Chat.of("hello")


async def test_streaming_and_the_rest_are_delegated() -> None:
    """Deltas, spec and capabilities are the engine's; the note tells readers what happened."""
    inner = ScriptedEngine(["one two"], spec="scripted:x")
    engine = described(inner)
    chat = Chat.of("What?", [load_image(encode(picture(30)))])
    deltas = [delta.text async for delta in engine.stream(chat, SAMPLING)]
    assert "".join(deltas) == "one two"
    assert "w30" in inner.calls[0][0].messages[0].text
    assert engine.spec == "scripted:x"
    assert engine.capabilities == inner.capabilities | {Capability.VISION}
    assert "cannot see" in engine.note
    await engine.aclose()


class Endless:
    """An engine that streams until it is stopped."""

    spec = "endless"
    capabilities = frozenset({Capability.STREAMING})
    closed = False

    async def load(self) -> None:
        """Nothing to load."""

    async def generate(self, chat: Chat, sampling: Sampling) -> Completion:
        """Never asked."""
        raise AssertionError

    async def stream(self, chat: Chat, sampling: Sampling) -> AsyncIterator[Delta]:
        """Without end."""
        try:
            while True:
                yield Delta(text="x")
                await asyncio.sleep(0)
        finally:
            self.closed = True

    async def aclose(self) -> None:
        """Nothing to free."""


async def test_closing_a_stream_stops_the_engine() -> None:
    """A reader that leaves ends the generation at once."""
    engine = Endless()
    deltas = DescribedEngine(engine, Perceiver([Reads()])).stream(Chat.of("go"), SAMPLING)
    async for _ in deltas:
        break
    await deltas.aclose()  # type: ignore[attr-defined]
    assert engine.closed
