"""LiteLLM's hook without the proxy: what is judged, told and recorded."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from tests.gateway.common import Rules, data_url, image_part, png
from vlmguard import Guard
from vlmguard.errors import ConfigError, EngineUnavailable
from vlmguard.images.fetch import Fetcher
from vlmguard.rewriting import Policy
from vlmguard.types import Image

Json = dict[str, Any]
Make = Callable[..., Any]


@pytest.fixture(scope="module")
def make() -> Make:
    """Makes the guardrail as LiteLLM does; imports LiteLLM once."""
    from vlmguard.integrations.litellm import VLMGuard

    def made(policy: Policy | None = None, rules: Rules | None = None, **given: Any) -> VLMGuard:
        guard = Guard(rules or Rules(), policy=policy or Policy())
        more: Json = {"guardrail_name": "g", "event_hook": "pre_call", "default_on": True}
        return VLMGuard(guard=guard, **(more | given))

    return made


async def run(guardrail: Any, data: Json, call_type: str = "acompletion") -> Json:
    told: Json = await guardrail.async_pre_call_hook(None, None, data, call_type)
    return told


def user(content: Any) -> Json:
    return {"model": "m", "messages": [{"role": "user", "content": content}], "metadata": {}}


def record_of(data: Json, bucket: str = "metadata") -> Json:
    [record] = data[bucket]["standard_logging_guardrail_information"]
    told: Json = record
    return told


async def test_a_risky_request_is_rewritten_and_recorded(make: Make) -> None:
    """LiteLLM's own record of guardrails says what was decided, without any content."""
    data = await run(make(), user("bad words"))
    assert data["messages"][0]["content"] == "safe good words"
    record = record_of(data)
    assert record["guardrail_status"] == "guardrail_intervened"
    assert record["guardrail_response"]["action"] == "rewrite"
    assert "words" not in str(record)
    assert data["metadata"]["applied_guardrails"] == ["g"]


@pytest.mark.parametrize(
    ("call_type", "field", "value", "wanted"),
    [
        ("atext_completion", "prompt", ["hi", "bad"], ["hi", "safe good"]),
        ("aresponses", "input", "bad", "safe good"),
        (
            "anthropic_messages",
            "messages",
            [{"role": "user", "content": "bad"}],
            [{"role": "user", "content": "safe good"}],
        ),
    ],
)
async def test_all_kinds_of_calls_are_guarded(
    make: Make, call_type: str, field: str, value: Any, wanted: Any
) -> None:
    """Each in its own form."""
    data = await run(make(), {"model": "m", field: value}, call_type)
    assert data[field] == wanted


async def test_pictures_of_tools_and_remote_ones_are_judged(make: Make) -> None:
    """All turns; a remote one is fetched once, and its bytes are sent."""

    class Known(Fetcher):
        async def fetch_image(self, url: str) -> Image:
            return Image(data=png(), media_type="image/png")

    rules = Rules()
    data = user([image_part("https://pictures.example/a.png")])
    data["messages"].append({"role": "tool", "content": [image_part(data_url(png("tool")))]})
    await run(make(rules=rules, fetcher=Known()), data)
    assert [len(chat.messages[-1].images) for chat in rules.seen] == [1, 1]
    assert data["messages"][0]["content"] == [image_part(data_url(png()))]


async def test_a_refusal_answers_in_place_of_the_model(make: Make) -> None:
    """By the exception that LiteLLM turns into an answer."""
    from litellm.exceptions import ModifyResponseException

    data = user("bad")
    with pytest.raises(ModifyResponseException, match="No, thanks"):
        await run(make(Policy(default_action="refuse", refusal="No, thanks.")), data)
    assert record_of(data)["guardrail_status"] == "guardrail_intervened"


async def test_failures_are_closed_and_open_by_choice(make: Make) -> None:
    """Closed: an error without the failure's words. Open: the original, recorded as a failure."""
    from litellm.proxy._types import ProxyException

    rules = Rules()
    rules.before = down
    data = user("bad")
    with pytest.raises(ProxyException) as caught:
        await run(make(rules=rules), data)
    assert caught.value.code == "503"
    assert "secret-host" not in caught.value.message
    assert record_of(data)["guardrail_status"] == "guardrail_failed_to_respond"
    data = await run(make(Policy(on_failure="open"), rules), user("bad"))
    assert data["messages"][0]["content"] == "bad"
    assert record_of(data)["guardrail_status"] == "guardrail_failed_to_respond"


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ({"extra_body": {"messages": []}}, "messages"),
        ({"extra_body": "x"}, "extra_body"),
        ({"fallbacks": [{"model": "m", "messages": []}]}, "fallbacks"),
        ({"content_policy_fallbacks": "m"}, "content_policy_fallbacks"),
        ({"documents": ["x"]}, "documents"),
    ],
)
async def test_detours_are_refused(make: Make, more: Json, named: str) -> None:
    """Fields that would put other content in place of what is reviewed."""
    from litellm.proxy._types import ProxyException

    with pytest.raises(ProxyException) as caught:
        await run(make(), user("hello") | more)
    assert caught.value.code == "400"
    assert caught.value.param == named


async def test_harmless_fallbacks_pass(make: Make) -> None:
    """Names of models, and fields of servers that hold no content."""
    more = {"fallbacks": ["a", {"model": "b"}], "extra_body": {"top_k": 3}}
    assert await run(make(), user("hello") | more)


async def test_other_calls_are_refused_unless_listed(make: Make) -> None:
    """Embeddings pass; pictures are made only where the operator says so."""
    from litellm.proxy._types import ProxyException

    assert await run(make(), {"input": "bad"}, "aembedding") == {"input": "bad"}
    with pytest.raises(ProxyException, match="allow_calls"):
        await run(make(), {"prompt": "bad"}, "aimage_generation")
    listed = make(vlmguard={"allow_calls": ["aimage_generation"]})
    assert await run(listed, {"prompt": "bad"}, "aimage_generation") == {"prompt": "bad"}


async def test_shadow_and_off_change_nothing(make: Make) -> None:
    """A shadow decision is made beside the request and recorded as flagged."""
    rules = Rules()
    guardrail = make(rules=rules, vlmguard={"mode": "shadow"})
    data = await run(guardrail, user("bad"))
    await guardrail._reviewer.aclose()
    assert data["messages"][0]["content"] == "bad"
    assert record_of(data)["guardrail_status"] == "guardrail_flagged"
    assert await run(make(rules=rules, vlmguard={"mode": False}), user("bad")) == user("bad")
    assert len(rules.seen) == 1


async def test_headers_tell_the_decision_of_their_own_request(make: Make) -> None:
    """By LiteLLM's object of the request, which no client can name."""

    class Logging:
        pass

    guardrail = make()
    data = user("bad") | {"litellm_logging_obj": Logging()}
    await asyncio.create_task(run(guardrail, data))
    headers = await guardrail.async_post_call_response_headers_hook(data, None, None)
    assert headers["x-vlmguard-action"] == "rewrite"
    other = user("x") | {"litellm_logging_obj": Logging()}
    assert await guardrail.async_post_call_response_headers_hook(other, None, None) is None
    assert await guardrail.async_post_call_response_headers_hook({}, None, None) is None


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"event_hook": "post_call"}, "pre_call only"),
        ({"run_in_parallel": True}, "run_in_parallel"),
        ({"vlmguard": {"polcy": "x"}}, "litellm_params.vlmguard"),
        ({"vlmguard": "strict"}, "must be a mapping"),
    ],
)
def test_wrong_settings_are_no_value_errors(make: Make, given: Json, said: str) -> None:
    """LiteLLM would start without the guardrail."""
    with pytest.raises(ConfigError, match=said) as caught:
        make(**given)
    assert not isinstance(caught.value, ValueError | TypeError)


async def down() -> None:
    raise EngineUnavailable("secret-host:8000 is down")
