"""Batches: the same tensors that each model's own processor would make of several records."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training import common
from tests.training.conftest import Folders
from tests.training.test_skew import examples_for, made
from vlmguard.images import decode, load_image
from vlmguard.training.base_model import load_base
from vlmguard.training.batches import IGNORED, Collator, join, rows_of

VLMS = ["idefics3", "llava", "qwen2_vl"]


@pytest.mark.parametrize("family", VLMS)
def test_pictures_are_batched_as_the_processor_does(
    folder: Folders, tmp_path: Path, family: str
) -> None:
    """One picture, two of them, and other sizes: joined one by one, they equal a joint batch."""
    base = load_base(common.recipe(folder(family), Path("x"), Path("y")))
    sizes = [((40, 40),), ((64, 30), (50, 90)), ((130, 60),)]
    prompts, texts, pictures = [], [], []
    for shapes in sizes:
        refs = [common.picture_ref(tmp_path, "red", shape) for shape in shapes]
        record = common.text_record(0, "train", risky=False, images=tuple(refs))
        example = made(examples_for(base, folder(family)), record, tmp_path)
        prompts.append(base.format.encode(example.chat()))
        texts.append(base.format._render(list(example.chat().messages)))
        pictures.append([decode(load_image(path)).frames[0] for path in example.pictures])
    processor: Any = base.processor
    bos = base.tokenizer.bos_token
    whole = processor(
        text=texts,
        images=pictures,
        padding=True,
        padding_side="right",
        return_tensors="pt",
        add_special_tokens=not (bos and texts[0].startswith(bos)),
    )
    joined = join(prompts, [()] * len(prompts), pad=base.tokenizer.pad_token_id)
    assert joined.keys() == whole.keys()
    for key, tensor in joined.items():
        assert torch.equal(tensor, whole[key]), key


@pytest.mark.parametrize("family", VLMS)
def test_records_without_pictures_share_a_batch_with_others(
    folder: Folders, tmp_path: Path, family: str
) -> None:
    """Their logits are those that they have alone, and so are the others'."""
    base = load_base(common.recipe(folder(family), Path("x"), Path("y")))
    maker = examples_for(base, folder(family))
    records = common.picture_records(tmp_path)
    chosen = [records[12], records[1], records[3]]  # none, one picture, two
    examples = [made(maker, record, tmp_path) for record in chosen]
    collator = Collator(examples=examples, format=base.format, pad=base.tokenizer.pad_token_id)
    together = logits(base.model, collator([{"row": at} for at in range(3)]))
    for at, example in enumerate(examples):
        alone = logits(base.model, collator([{"row": at}]))[0]
        assert len(alone) == example.length
        assert torch.allclose(together[at, : len(alone)], alone, atol=1e-3)


def logits(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Of a batch, without what is for the loss."""
    given = {key: batch[key] for key in batch if key not in {"labels", "weights", "verdicts"}}
    with torch.no_grad():
        found: torch.Tensor = model(**given).logits
    return found


def test_labels_stand_on_the_completion_alone(folder: Folders, tmp_path: Path) -> None:
    """Neither prompt nor padding is trained, every token of the completion is, end included."""
    base = load_base(common.recipe(folder("llama"), Path("x"), Path("y")))
    maker = examples_for(base, folder("llama"))
    examples = [made(maker, record, tmp_path) for record in common.text_records()[:3]]
    pad = base.tokenizer.pad_token_id
    batch = Collator(examples=examples, format=base.format, pad=pad)(
        [{"row": row} for row in rows_of(examples)["row"]]
    )
    for at, example in enumerate(examples):
        trained = batch["labels"][at] != IGNORED
        assert batch["labels"][at][trained].tolist() == list(example.completion.ids)
        assert batch["weights"][at][trained].tolist() == list(example.completion.weights)
        assert int(batch["attention_mask"][at].sum()) == example.length
        place, risky = batch["verdicts"][at].tolist()
        assert risky == example.risky
        assert batch["weights"][at, place] == 10
