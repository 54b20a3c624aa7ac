"""The pool of AdaShield-A: a JSON file of defence prompts with the embeddings of their examples."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vlmguard.defences.embedding import Vector, cosine
from vlmguard.errors import ConfigError


class Example(BaseModel):
    """A training request, as vectors of length 1. The request itself is not kept."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    image: Vector = Field(min_length=1)
    text: Vector = Field(min_length=1)


class Entry(BaseModel):
    """What training found for one scenario.

    Attributes:
        scenario: its name.
        prompt: the defence prompt.
        refused: share 0..1 of the validation requests that were refused under it.
        rounds: improvements that it took.
        examples: requests that it stands for.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    scenario: str
    prompt: str = Field(min_length=1)
    refused: float = Field(ge=0, le=1)
    rounds: int = Field(ge=0)
    examples: tuple[Example, ...] = Field(min_length=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """The nearest entry, and the mean of the cosines of picture and text, -1..1."""

    entry: Entry
    similarity: float


class Pool(BaseModel):
    """The file.

    Attributes:
        version: of this form.
        embedder: spec of what made the embeddings; the same must read requests.
        target, defender: specs of the models that it was trained with.
        data: hash of the training file.
        entries: one a scenario.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Literal[1] = 1
    embedder: str
    target: str
    defender: str
    data: str
    entries: tuple[Entry, ...] = ()

    def nearest(self, image: Vector, text: Vector) -> Match:
        """The entry of the nearest example.

        Raises:
            ConfigError: the pool is empty, or of vectors of another length.
        """
        best: Match | None = None
        for entry in self.entries:
            for example in entry.examples:
                if (len(example.image), len(example.text)) != (len(image), len(text)):
                    raise ConfigError(
                        f"the pool's embeddings have {len(example.image)} numbers and the "
                        f"request's {len(image)}: they are not of one embedder ({self.embedder})"
                    )
                near = (cosine(image, example.image) + cosine(text, example.text)) / 2
                if best is None or near > best.similarity:
                    best = Match(entry=entry, similarity=near)
        if best is None:
            raise ConfigError("the pool is empty; `vlmguard defence train adashield-a` fills one")
        return best

    def with_entry(self, entry: Entry) -> Pool:
        """This pool with one more entry."""
        return self.model_copy(update={"entries": (*self.entries, entry)})


def load_pool(path: Path) -> Pool:
    """Read a pool.

    Raises:
        ConfigError: no such file, or not a pool; names the first wrong field.
    """
    try:
        return Pool.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ConfigError(
            f"the pool {path} cannot be read ({error.strerror}); "
            "`vlmguard defence train adashield-a` makes one"
        ) from None
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in problem["loc"]) or "the file"
        raise ConfigError(f"{path} is not a pool: {place}: {problem['msg']}") from None


def save_pool(pool: Pool, path: Path) -> None:
    """Write a pool so that a reader sees the old one or the new one, never a part.

    Raises:
        ConfigError: it cannot be written.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(pool.model_dump_json(indent=1), encoding="utf-8")
        part.replace(path)
    except OSError as error:
        raise ConfigError(f"the pool {path} cannot be written: {error}") from error
