"""LoRA adapters beside their base."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.engines.transformers.common import (
    FAMILIES,
    PROMPT,
    SHORT,
    Engines,
    as_text,
    loaded_model,
    open_model,
)
from tests.tiny_fixtures import Folders
from vlmguard.errors import (
    ConfigError,
)

# PEFT 0.21 asks models for a property that transformers 5.24 renamed.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")


@pytest.mark.parametrize("family", FAMILIES)
async def test_adapter_beside_its_base(family: str, folder: Folders, engines: Engines) -> None:
    """An adapter changes the answer, shares the base's weights, and leaves the base as it was."""
    base = engines(family)
    before = await base.generate(PROMPT, SHORT)
    adapted = open_model(folder(family), adapter=folder(f"{family}-lora"))
    other = open_model(folder(family), adapter=folder(f"{family}-lora2"))
    answers = await asyncio.gather(
        *(engine.generate(PROMPT, SHORT) for engine in (adapted, base, other, adapted, base))
    )
    texts = [answer.text for answer in answers]
    assert texts[0] == texts[3]
    assert texts[1] == texts[4] == before.text
    assert len(set(texts)) == 3
    assert adapted._host is base._host is other._host
    await adapted.aclose()
    await other.aclose()
    assert (await base.generate(PROMPT, SHORT)).text == before.text


async def test_adapter_equals_peft_itself(folder: Folders, engines: Engines) -> None:
    """The adapted answer is the one of a model that PEFT loaded."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    adapted = open_model(folder("llama"), adapter=folder("llama-lora"))
    completion = await adapted.generate(PROMPT, SHORT)
    await adapted.aclose()
    loaded = await loaded_model(engines("llama"))
    plain = AutoModelForCausalLM.from_pretrained(folder("llama"))
    model: Any = PeftModel.from_pretrained(plain, str(folder("llama-lora")))
    ids = loaded.format.encode(PROMPT)["input_ids"]
    tokens = model.generate(input_ids=ids, max_new_tokens=8, do_sample=False)
    assert completion.text == as_text(loaded, tokens[0, ids.shape[1] :].tolist())


async def test_adapter_of_another_model(folder: Folders) -> None:
    """An adapter that fits nowhere would have no effect: it is refused, and spoils nothing else."""
    base = open_model(folder("llama"))
    unfit = open_model(folder("llama"), adapter=folder("qwen2_vl-lora"))
    fit = open_model(folder("llama"), adapter=folder("llama-lora"))
    text = (await base.generate(PROMPT, SHORT)).text
    for _ in range(2):
        with pytest.raises(ConfigError, match="does not fit"):
            await unfit.generate(PROMPT, SHORT)
    assert (await base.generate(PROMPT, SHORT)).text == text
    adapted = (await fit.generate(PROMPT, SHORT)).text
    for engine in (base, unfit, fit):
        await engine.aclose()
    alone = open_model(folder("llama"), adapter=folder("llama-lora"))
    assert (await alone.generate(PROMPT, SHORT)).text == adapted
    await alone.aclose()


async def test_adapter_of_another_kind(folder: Folders, tmp_path: Path) -> None:
    """Prompt tuning changes the prompt and not the weights, and is not supported."""
    from peft import PromptTuningConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    plain = AutoModelForCausalLM.from_pretrained(folder("llama"))
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    get_peft_model(plain, config).save_pretrained(str(tmp_path / "soft"))
    engine = open_model(folder("llama"), adapter=tmp_path / "soft")
    with pytest.raises(ConfigError, match="PROMPT_TUNING; use a LoRA"):
        await engine.generate(PROMPT, SHORT)
    await engine.aclose()
