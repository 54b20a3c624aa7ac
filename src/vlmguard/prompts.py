"""Prompts are Markdown files beside the module that uses them; they are filled strictly."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from string import Template

from vlmguard.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A prompt template.

    Attributes:
        name: ``package/file.md``, for messages.
        text: the template; placeholders read ``${name}``.
        hash: first 12 hex digits of the SHA-256 of ``text``; goes into records and adapters, so
            that a changed prompt is noticed.
    """

    name: str
    text: str
    hash: str

    def fill(self, **variables: str) -> str:
        """The prompt with every placeholder replaced.

        Raises:
            ConfigError: a variable is missing, or there is no placeholder for one.
        """
        template = Template(self.text)
        wanted = set(template.get_identifiers())
        if wanted != variables.keys():
            missing = sorted(wanted - variables.keys())
            extra = sorted(variables.keys() - wanted)
            raise ConfigError(
                f"prompt {self.name}: missing variables {missing}, unknown variables {extra}"
            )
        return template.substitute(variables)


@cache
def load_prompt(package: str, file: str) -> Prompt:
    """Read a prompt that lies beside the modules of ``package``.

    Raises:
        ConfigError: there is no such file.
    """
    resource = files(package).joinpath(file)
    try:
        text = resource.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        raise ConfigError(f"there is no prompt file {file} in {package}") from None
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    return Prompt(name=f"{package}/{file}", text=text, hash=digest)
