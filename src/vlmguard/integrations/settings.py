"""What can be set where the guard runs inside somebody else's server."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from vlmguard.errors import ConfigError
from vlmguard.gateway.modes import ModeField
from vlmguard.gateway.settings import Settings, problems_of, route_of


class GuardSettings(BaseModel):
    """How requests are reviewed. The names are those of the gateway's settings.

    Attributes:
        policy: a preset or a file.
        rewriter: the model that judges and rewrites; ``None`` for ``VLMGUARD_REWRITER`` and then
            the embedded one.
        detectors: eyes of a rewriter that cannot see; ``None`` is all of them, none is an empty
            list.
        mode: ``enforce`` carries decisions out, ``shadow`` only notes them, ``off`` makes none.
        on_failure: what happens when the guard cannot decide, in place of what the policy says.
        cache_size: decisions to remember.
        allow_uninspected: types of content parts, and fields, that may pass though nobody looks
            into them, e.g. ``input_audio``.
        remote_images: fetch pictures from http(s) URLs.
        image_domains: the only hosts to fetch from: ``example.com``, ``*.example.com``.
        private_images: also fetch from private addresses (never from metadata services).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    policy: str = "balanced"
    rewriter: str | None = None
    detectors: tuple[str, ...] | None = None
    mode: ModeField = "enforce"
    on_failure: Literal["closed", "open"] | None = None
    cache_size: Annotated[int, Field(ge=0)] = 4096
    allow_uninspected: tuple[str, ...] = ()
    remote_images: bool = True
    image_domains: tuple[str, ...] | None = None
    private_images: bool = False

    @classmethod
    def read(cls, given: Mapping[str, Any], where: str) -> Self:
        """Settings from fields that a user wrote.

        Args:
            given: field → value.
            where: they stand, for messages.

        Raises:
            ConfigError: a field is wrong; every wrong field is listed.
        """
        try:
            return cls.model_validate(dict(given))
        except ValidationError as error:
            raise ConfigError(f"{where}: {problems_of(error, cls)}") from None


class LiteLLMSettings(GuardSettings):
    """`GuardSettings` inside LiteLLM's proxy.

    Attributes:
        allow_calls: LiteLLM's names of further calls that may pass unreviewed, e.g.
            ``aimage_generation``.
    """

    allow_calls: tuple[str, ...] = ()


class MiddlewareSettings(GuardSettings):
    """`GuardSettings` in front of an ASGI application.

    Attributes:
        allow_routes: further routes to pass on unreviewed: ``GET /health``, ``/v1/files/*``.
        max_body_bytes: of a request that is reviewed.
        body_timeout_s: for a client to send it.
    """

    allow_routes: tuple[str, ...] = ()
    max_body_bytes: Annotated[int, Field(gt=0)] = Settings.model_fields["max_body_bytes"].default
    body_timeout_s: Annotated[float, Field(gt=0)] = Settings.model_fields["body_timeout_s"].default

    @field_validator("allow_routes")
    @classmethod
    def _routes(cls, routes: tuple[str, ...]) -> tuple[str, ...]:
        try:
            Settings(allow_routes=routes)  # the same form as the gateway's
        except ValidationError as error:
            told = error.errors()[0]["msg"].removeprefix("Value error, ")
            raise ValueError(told) from None
        return routes

    @property
    def routes(self) -> tuple[tuple[str | None, str, bool], ...]:
        """Method (``None`` for all), path, and whether everything below it is meant."""
        return tuple([route_of(text) for text in self.allow_routes])
