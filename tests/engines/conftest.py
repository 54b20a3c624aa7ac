"""The embedded model, loaded once for all tests of the engines."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xllamacpp
from gguf import GGUFWriter

from vlmguard import models
from vlmguard.engines.llamacpp import LlamaCppEngine, open_smollm2
from vlmguard.engines.spec import EngineSpec

KEY = "key-of-the-test-server"
SMALL = "smollm2?ctx=1024&parallel=8&threads=1"
"""The embedded model with little memory (eight contexts of 1,024 tokens take 0.2 GB) and one
thread: two that wait for each other are slow on a machine that is busy with other things."""


@pytest.fixture(scope="session")
def smollm2_file() -> Path:
    """The GGUF file of the embedded model."""
    return models.ensure("smollm2")


@pytest.fixture(scope="session")
def smollm2(smollm2_file: Path) -> Iterator[LlamaCppEngine]:
    """The embedded model."""
    engine = open_smollm2(EngineSpec.parse(SMALL))
    yield engine
    asyncio.run(engine.aclose())


@pytest.fixture(scope="session")
def adapter_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA adapter of the embedded model with random weights, strong enough to be seen."""
    return write_adapter(tmp_path_factory.mktemp("adapter") / "random.gguf", seed=1)


def write_adapter(path: Path, *, seed: int, hidden: int = 576, rank: int = 4) -> Path:
    """Write a LoRA adapter on the query projections of the first ten layers."""
    random = np.random.default_rng(seed)
    writer = GGUFWriter(path, "llama")
    writer.add_string("general.type", "adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 16.0)
    for layer in range(10):
        name = f"blk.{layer}.attn_q.weight"
        for part, shape in (("lora_a", (rank, hidden)), ("lora_b", (hidden, rank))):
            weights = random.normal(0, 0.3, shape).astype(np.float32)
            writer.add_tensor(f"{name}.{part}", weights)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="session")
def llama_server(smollm2_file: Path) -> Iterator[str]:
    """The URL of a real llama.cpp HTTP server with the embedded model, without ``/v1``."""
    params: Any = xllamacpp.CommonParams()
    params.model.path = str(smollm2_file)
    params.n_ctx, params.n_parallel = 2048, 4
    params.verbosity, params.warmup, params.fit_params = -1, False, False
    params.cache_ram_mib, params.cpuparams.n_threads = 0, 1
    params.api_keys = [KEY]
    server = xllamacpp.Server(params)
    server.handle_completions({"prompt": "a", "max_tokens": 1})
    yield server.listening_address
    del server
