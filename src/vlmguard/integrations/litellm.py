"""The guard inside LiteLLM's proxy, as a custom guardrail.

::

    guardrails:
      - guardrail_name: vlmguard
        litellm_params:
          guardrail: vlmguard.integrations.litellm.VLMGuard
          mode: pre_call
          default_on: true
          vlmguard:            # `LiteLLMSettings`; all of it is optional
            policy: balanced
            on_failure: closed

LiteLLM fetches its price list from the network when it is imported, unless
``LITELLM_LOCAL_MODEL_COST_MAP`` is set. This module sets it where it is not; inside the proxy,
which has imported LiteLLM by then, it has to be in the environment.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary

from vlmguard.errors import ConfigError, MissingExtra, VLMGuardError
from vlmguard.images.fetch import Fetcher
from vlmguard.integrations.settings import LiteLLMSettings

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
try:
    from litellm.exceptions import ModifyResponseException, RejectedRequestError
    from litellm.integrations.custom_guardrail import CustomGuardrail
    from litellm.proxy._types import ProxyException
    from litellm.proxy.common_utils.callback_utils import (
        add_guardrail_to_applied_guardrails_header,
    )
    from litellm.types.guardrails import GuardrailEventHooks
    from litellm.types.utils import GuardrailStatus

    from vlmguard.gateway.chat_completions import read_chat
    from vlmguard.gateway.completions import read_completion
    from vlmguard.gateway.drafts import Json, refuse_fields
    from vlmguard.gateway.errors import ApiError, as_api_error, uninspected
    from vlmguard.gateway.guarding import Decision, PreparingDefence
    from vlmguard.gateway.ledger import decision_headers
    from vlmguard.gateway.messages import read_messages
    from vlmguard.gateway.responses import read_response
    from vlmguard.integrations.reviewing import Outcome, Reader, Reviewer, facts_of
except ImportError as error:  # pragma: no cover - tests run with the extra
    raise MissingExtra("the LiteLLM guardrail", "litellm") from error

_log = logging.getLogger(__name__)

_READERS: Mapping[str, Reader] = {
    "completion": read_chat,
    "acompletion": read_chat,
    "text_completion": read_completion,
    "atext_completion": read_completion,
    "responses": read_response,
    "aresponses": read_response,
    "anthropic_messages": read_messages,
    "aanthropic_messages": read_messages,
}
"""LiteLLM's name of a call → what finds the conversation in its data."""
_PASSED = frozenset(
    {
        "embedding",
        "aembedding",
        "moderation",
        "amoderation",
        "rerank",
        "arerank",
        "aget_responses",
        "adelete_responses",
        "acancel_responses",
        "alist_input_items",
    }
)
"""Calls by which no model is asked for an answer."""
_FALLBACKS = ("fallbacks", "context_window_fallbacks", "content_policy_fallbacks")
_CONTENT = (
    "messages",
    "prompt",
    "suffix",
    "input",
    "instructions",
    "system",
    "contents",
    "previous_response_id",
    "conversation",
    "chat_template",
    "documents",
    "prompt_embeds",
    "prompt_token_ids",
    "images",
    "image_data",
    "multi_modal_data",
    "extra_body",
)
_STATUS: Mapping[str, GuardrailStatus] = {
    "allow": "success",
    "monitor": "guardrail_flagged",
    "rewrite": "guardrail_intervened",
    "refuse": "guardrail_intervened",
}
"""Action → the status of a guardrail in LiteLLM's logs."""


class VLMGuard(CustomGuardrail):
    """Reviews what LiteLLM is about to send: all pictures and texts of all user turns.

    A risky request reaches the model rewritten; a refused one is answered in place of the model,
    with the finish reason ``content_filter``; one that cannot be reviewed is an error, unless
    ``on_failure`` is ``open``.

    LiteLLM leaves a guardrail out, and starts, when its constructor raises a ``ValueError``. This
    one raises `ConfigError`, so that a wrong setting stops the proxy instead.

    Args:
        vlmguard: fields of `LiteLLMSettings`.
        guard: in place of the one that they describe.
        fetcher: in place of the one that fetches remote pictures.
        given: LiteLLM's own parameters.

    Raises:
        ConfigError: a setting is wrong, or LiteLLM would not carry decisions out.
    """

    use_native_lifecycle_hooks = True
    """LiteLLM's unified hook never sees a request that holds only pictures."""
    records_own_guardrail_information = True

    def __init__(
        self,
        *,
        vlmguard: Mapping[str, Any] | None = None,
        guard: PreparingDefence | None = None,
        fetcher: Fetcher | None = None,
        **given: Any,
    ) -> None:
        if vlmguard is not None and not isinstance(vlmguard, Mapping):
            raise ConfigError("vlmguard: must be a mapping of settings")
        for name in ("run_in_parallel", "scan_raw_request"):
            if given.get(name):
                raise ConfigError(
                    f"{name}: LiteLLM drops what such a guardrail rewrites; leave it out"
                )
        try:
            super().__init__(supported_event_hooks=[GuardrailEventHooks.pre_call], **given)
        except ValueError as error:
            raise ConfigError(f"mode: the guard runs as pre_call only ({error})") from None
        self._settings = LiteLLMSettings.read(vlmguard or {}, "litellm_params.vlmguard")
        self._reviewer = Reviewer(self._settings, guard=guard, fetcher=fetcher)
        # By LiteLLM's object of a request, which no client can name; data may be copied on its way.
        self._told: WeakKeyDictionary[object, dict[str, str]] = WeakKeyDictionary()

    async def async_pre_call_hook(
        self,
        user_api_key_dict: object,  # noqa: ARG002  # LiteLLM's signature
        cache: object,  # noqa: ARG002
        data: Json,
        call_type: str,
    ) -> Json:
        """Review a request, and write into ``data`` what the model is to receive.

        Raises:
            ProxyException: what the client is told in place of an answer.
            ModifyResponseException, RejectedRequestError: LiteLLM's ways to answer in place of the
                model.
        """
        if self._settings.mode == "off":
            return data
        reader = _READERS.get(str(call_type))
        if reader is None and (call_type in _PASSED or call_type in self._settings.allow_calls):
            return data
        start = time.time()
        if self._settings.mode == "shadow":
            if reader is not None:
                self._reviewer.observe(
                    reader, data, lambda outcome: self._record(data, outcome, start, shadow=True)
                )
            return data
        try:
            decision = await self._review(reader, data, str(call_type))
        except VLMGuardError as error:
            self._record(data, error, start)
            raise _proxy_error(as_api_error(error)) from error
        self._record(data, decision, start)
        self._tell(data, decision)
        if decision.refusal is not None:
            raise self._refusal(data, decision, decision.refusal, str(call_type))
        return data

    async def async_post_call_response_headers_hook(
        self,
        data: Json,
        user_api_key_dict: object,  # noqa: ARG002  # LiteLLM's signature
        response: object,  # noqa: ARG002
        request_headers: object = None,  # noqa: ARG002
        litellm_call_info: object = None,  # noqa: ARG002
    ) -> dict[str, str] | None:
        """The ``x-vlmguard-…`` headers of a reviewed request."""
        request = data.get("litellm_logging_obj")
        return None if request is None else self._told.get(request)

    async def _review(self, reader: Reader | None, data: Json, call_type: str) -> Decision:
        if reader is None:
            raise ApiError(
                403,
                f"The guard cannot review calls of the kind {call_type!r:.60}, so it is not passed "
                "on. The operator can list it under allow_calls",
                code="call_not_allowed",
            )
        _refuse_detours(data, self._settings.allow_uninspected)
        draft = reader(data, self._settings.allow_uninspected)
        return await self._reviewer.review(draft)

    def _refusal(self, data: Json, decision: Decision, text: str, call_type: str) -> Exception:
        """What makes LiteLLM answer in place of the model."""
        model = str(data.get("model") or "")
        if data.get("stream") is True and call_type in {"text_completion", "atext_completion"}:
            # LiteLLM 1.108 loses the text of the other exception in streamed text completions.
            rejected = RejectedRequestError(
                message=text, model=model, llm_provider="", request_data=data
            )
            rejected.message = text  # it puts its own name before
            return rejected
        return ModifyResponseException(
            message=text,
            model=model,
            request_data=data,
            guardrail_name=self.guardrail_name,
            detection_info=facts_of(decision),
        )

    def _tell(self, data: Json, decision: Decision) -> None:
        add_guardrail_to_applied_guardrails_header(data, self.guardrail_name)
        request = data.get("litellm_logging_obj")
        if request is not None:
            self._told[request] = {
                name.decode(): value.decode("ascii") for name, value in decision_headers(decision)
            }

    def _record(self, data: Json, outcome: Outcome, start: float, *, shadow: bool = False) -> None:
        """Put a decision into LiteLLM's logs."""
        now = time.time()
        facts: dict[str, Any]
        if isinstance(outcome, Decision):
            action = outcome.rewrite.action if outcome.rewrite else "allow"
            facts = dict(facts_of(outcome))
            status = _STATUS[action]
            if outcome.failure is not None:
                status = "guardrail_failed_to_respond"
            elif shadow and action != "allow":
                status = "guardrail_flagged"
        else:
            told = as_api_error(outcome)
            facts = {"failure": told.code}
            status = "guardrail_failed_to_respond" if told.status >= 500 else "guardrail_intervened"
        self.add_standard_logging_guardrail_information_to_request_data(
            guardrail_json_response=facts | {"shadow": shadow},
            request_data=data,
            guardrail_status=status,
            start_time=start,
            end_time=now,
            duration=now - start,
            guardrail_provider="vlmguard",
            event_type=GuardrailEventHooks.pre_call,
        )


def _refuse_detours(data: Json, allowed: tuple[str, ...]) -> None:
    """Refuse fields by which LiteLLM would put other content in place of what is reviewed.

    Raises:
        ApiError: names the field.
    """
    extra = data.get("extra_body")
    if extra is not None and "extra_body" not in allowed:
        if not isinstance(extra, dict):
            raise uninspected("extra_body", "a body that is not an object")
        refuse_fields(extra, _CONTENT, allowed)
    for name in _FALLBACKS:
        entries = data.get(name)
        if entries is None or name in allowed:
            continue
        if not isinstance(entries, list) or not all(_names_a_model(entry) for entry in entries):
            raise uninspected(name, "a fallback that is more than a model's name")


def _names_a_model(entry: object) -> bool:
    if isinstance(entry, dict):
        return entry.keys() <= {"model"} and isinstance(entry.get("model"), str)
    return isinstance(entry, str)


def _proxy_error(error: ApiError) -> ProxyException:
    """The error as LiteLLM sends it: its ``code`` there is the status, ours stands beside it."""
    return ProxyException(
        message=str(error),
        type=error.kind,
        param=error.param,
        code=error.status,
        openai_code=error.code,
        headers=dict(error.headers),
        provider_specific_fields={"code": error.code},
    )
