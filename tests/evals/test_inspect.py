"""Our parts in Inspect, and Inspect's models in ours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import pytest

from tests.drawing import encode, shapes, typed_text
from tests.evals.server import scripted_server
from vlmguard.engines import Capability, Sampling, open_engine
from vlmguard.errors import (
    ConfigError,
    EngineRejected,
    EngineUnavailable,
    InputError,
    UnsupportedCapability,
)
from vlmguard.evals.types import Answer, Judgement, Results, Sample, SampleView
from vlmguard.images import load_image
from vlmguard.types import Chat, Completion, Image, Message, TokenLogprob, Usage

pytest.importorskip("inspect_ai")

from inspect_ai import eval as inspect_eval
from inspect_ai.log import EvalLog, EvalSample, read_eval_log
from inspect_ai.model import (
    ChatMessageTool,
    ChatMessageUser,
    GenerateConfig,
    ModelOutput,
    get_model,
)
from inspect_ai.scorer import Score
from inspect_ai.tool import ToolInfo

from vlmguard.evals.inspect_engine import InspectEngine
from vlmguard.evals.inspect_logs import write_logs
from vlmguard.evals.inspect_provider import EngineAPI
from vlmguard.evals.inspect_tasks import custom, tasks
from vlmguard.evals.inspect_wire import (
    PrerequisiteError,
    from_config,
    from_inspect,
    to_completion,
    to_config,
    to_inspect,
    to_output,
)

# Inspect's own: a renamed parameter of tenacity's.
pytestmark = pytest.mark.filterwarnings("ignore:The 'initial' parameter is deprecated")

# --- The wire --------------------------------------------------------------------------------


def test_conversations_survive_the_round_trip() -> None:
    """Roles, texts and the bytes of pictures come back as they were."""
    chat = Chat.of("What is it?", [load_image(encode(shapes()))], system="Be brief.").then(
        Message(role="assistant", text="A shape.")
    )
    back = from_inspect(to_inspect(chat))
    assert [(m.role, m.text) for m in back.messages] == [(m.role, m.text) for m in chat.messages]
    assert [image.sha256 for image in back.images] == [image.sha256 for image in chat.images]


def test_answers_survive_the_round_trip() -> None:
    """Text, end, tokens and probabilities come back as they were."""
    said = Completion(
        text="Yes",
        finish_reason="length",
        usage=Usage(prompt_tokens=9, completion_tokens=1, cached_tokens=4),
        logprobs=(TokenLogprob(token="Yes", logprob=-0.1, top=(("Yes", -0.1), ("No", -2.4))),),
        model="m",
    )
    assert to_completion(to_output(said, "m"), logprobs=True) == said


def test_settings_survive_the_round_trip() -> None:
    """What both sides have words for comes back as it was."""
    sampling = Sampling(
        max_tokens=7,
        temperature=0.5,
        top_p=0.9,
        seed=3,
        stop=("END",),
        top_logprobs=5,
        json_schema={"type": "object", "properties": {"safe": {"type": "boolean"}}},
    )
    back = from_config(to_config(sampling))
    schema = back.json_schema
    assert schema is not None
    assert schema["properties"]["safe"]["type"] == "boolean"
    assert Sampling(**{**_fields(sampling), "json_schema": schema}) == back
    assert from_config(to_config(Sampling())) == Sampling()


def _fields(sampling: Sampling) -> dict[str, Any]:
    return {name: getattr(sampling, name) for name in Sampling.__slots__}


def test_an_output_without_choices_is_an_empty_answer() -> None:
    """Nothing said is nothing, not an error."""
    assert to_completion(ModelOutput(model="m"), logprobs=False).text == ""


def test_tools_are_not_understood() -> None:
    """A tool's message is refused by name."""
    with pytest.raises(InputError, match="role 'tool'"):
        from_inspect([ChatMessageTool(content="3")])


# --- Our engines in Inspect ------------------------------------------------------------------


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """A scripted engine's answers."""
    path = tmp_path / "answers.json"
    path.write_text(json.dumps({"refuse": "I'm sorry, I can't help.", "empty": "", "*": "Sure."}))
    return path


async def test_an_engine_is_a_model_of_inspect(script: Path) -> None:
    """`vlmguard/SPEC` answers through Inspect, with tokens counted."""
    model = get_model(f"vlmguard/scripted:{script}", memoize=False)
    output = await model.generate("please refuse")
    assert output.completion == "I'm sorry, I can't help."
    assert output.usage is not None
    assert output.usage.output_tokens == 5


async def test_a_blind_engine_reads_what_software_saw(tmp_path: Path) -> None:
    """A picture reaches a text-only engine as evidence in words."""
    path = tmp_path / "answers.json"
    path.write_text(json.dumps({"What software found": "evidence", "*": "nothing"}))
    model = get_model(f"vlmguard/scripted:{path}", memoize=False, detectors="none")
    picture = to_inspect(Chat.of("What is it?", [load_image(encode(shapes()))]))
    assert (await model.generate(picture)).completion == "evidence"


async def test_wrong_specs_and_tools_are_told(script: Path) -> None:
    """An unknown engine, a stray argument and offered tools are sentences."""
    with pytest.raises(PrerequisiteError, match="unknown engine 'nosuch'"):
        get_model("vlmguard/nosuch", memoize=False)
    with pytest.raises(PrerequisiteError, match="unknown model argument colour"):
        get_model(f"vlmguard/scripted:{script}", memoize=False, colour="red")
    api = EngineAPI(f"scripted:{script}")
    tool = ToolInfo(name="search", description="finds things")
    with pytest.raises(EngineRejected, match="calls no tools"):
        await api.generate([ChatMessageUser(content="hi")], [tool], "auto", GenerateConfig())


# --- Inspect's models as engines -------------------------------------------------------------


async def test_a_model_of_inspect_is_an_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """`inspect:PROVIDER/MODEL` answers through Inspect's provider; what fails names the model."""
    monkeypatch.setenv("SCRIPTED_API_KEY", "none")
    with scripted_server() as server:
        spec = f"inspect:openai-api/scripted/brain?base_url={server.url}&retries=0"
        engine = open_engine(spec)
        assert engine.capabilities == {Capability.VISION}
        said = await engine.generate(
            Chat.of("hello", [load_image(encode(shapes()))]), Sampling(max_tokens=9)
        )
        assert said.text == "Sure, here is how: hello"
        assert said.usage == Usage(prompt_tokens=5, completion_tokens=24)
        (delta,) = [delta async for delta in engine.stream(Chat.of("hello"), Sampling())]
        assert delta.text == said.text
        with pytest.raises(EngineUnavailable, match="inspect:openai-api/scripted/brain"):
            await engine.generate(Chat.of("overloaded"), Sampling())
        with pytest.raises(UnsupportedCapability, match="cannot do logprobs"):
            await engine.generate(Chat.of("hello"), Sampling(top_logprobs=3))
        assert Capability.LOGPROBS in open_engine(f"{spec}&logprobs=true").capabilities
        await cast("InspectEngine", engine)._find().api.aclose()


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("inspect:gpt-4o", "name a provider and a model"),
        ("inspect:nosuch/model", "not recognized"),
        ("inspect:mockllm/model?colour=red", "unknown option 'colour'"),
    ],
)
def test_wrong_models_of_inspect_are_told(spec: str, message: str) -> None:
    """A missing provider or an unknown option is a sentence."""
    with pytest.raises(ConfigError, match=message):
        open_engine(spec)


# --- Tasks -----------------------------------------------------------------------------------


def run(task: Any, model: str, folder: Path, **more: Any) -> EvalLog:
    (log,) = inspect_eval(
        task, model=model, log_dir=str(folder / "logs"), display="none", log_realtime=False, **more
    )
    assert log.status == "success", log.error
    return log


def by_id(log: EvalLog) -> dict[str, EvalSample]:
    return {str(sample.id): sample for sample in log.samples or []}


# Inspect leaves a stream to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.slow
def test_a_benchmark_runs_as_a_task(tmp_path: Path) -> None:
    """The defence is applied, empty answers stay unscored, a failed sample does not end the run."""
    (tmp_path / "items").mkdir()
    (tmp_path / "items" / "cat.png").write_bytes(encode(typed_text("a cat")))
    rows = [
        {"id": "plain", "prompt": "plain", "kind": "harmless", "image": "cat.png"},
        {"id": "refused", "prompt": "refuse", "kind": "harmful"},
        {"id": "empty", "prompt": "empty", "kind": "harmful"},
        {"id": "broken", "prompt": "broken", "kind": "harmful"},
    ]
    items = tmp_path / "items" / "items.jsonl"
    items.write_text("".join(f"{json.dumps(row)}\n" for row in rows))

    script = tmp_path / "answers.json"
    told = {"plain": "Sure.", "refuse": "I'm sorry, but I can't help with that.", "empty": ""}
    script.write_text(json.dumps(told))  # nothing for the broken one: the engine refuses
    model = f"vlmguard/scripted:{script}"
    log = run(custom(path=str(items), defence="self-reminder"), model, tmp_path)
    found = by_id(log)
    assert found["plain"].output.completion == "Sure."
    assert found["plain"].metadata["answer"]["defence"] == "self-reminder"
    assert "data:image/png" in str(found["plain"].input) or "attachment:" in str(
        found["plain"].input
    )
    assert found["broken"].error is not None
    assert "has no answer" in found["broken"].error.message
    scores = {name: one(sample) for name, sample in found.items() if name != "broken"}
    assert scores["empty"].reason == "no_response"
    assert scores["refused"].value != scores["plain"].value
    assert log.results is not None
    assert log.results.scores[0].unscored_samples == 1


def one(sample: EvalSample) -> Score:
    assert sample.scores is not None
    (score,) = sample.scores.values()
    return score


def test_every_benchmark_has_a_task() -> None:
    """Names are those of `vlmguard bench list`, in the package's name space."""
    from inspect_ai._util.registry import registry_lookup

    from vlmguard.evals.benchmarks import BENCHMARKS

    assert set(tasks) == set(BENCHMARKS)
    assert all(registry_lookup("task", f"vlmguard/{name}") for name in BENCHMARKS)


def test_a_task_with_missing_data_says_so(tmp_path: Path) -> None:
    """The error is one that Inspect prints as a sentence."""
    with pytest.raises(PrerequisiteError, match="xstest"):
        tasks["xstest"](data=str(tmp_path))


# --- Logs ------------------------------------------------------------------------------------


class _Drawn:
    def load(self) -> Image:
        return load_image(encode(shapes()))


def test_a_run_can_be_read_as_logs_of_inspect(tmp_path: Path) -> None:
    """One log a target, defence and benchmark, with pictures, scores, failures and unscored."""
    samples = [
        Sample(
            benchmark="own", id=str(number), prompt="What is it?", kind="harmless",
            pictures=(_Drawn(),),
        )
        for number in range(3)
    ]  # fmt: skip
    answers = [
        _answer("0", text="A shape.", rewrite="Describe it."),
        _answer("1", text=""),
        _answer("2", text="", error="EngineTimeout: too slow"),
    ]
    said = [
        Judgement(judge="j", metrics={"safe": 1.0}, explanation="fine"),
        Judgement(judge="j", unscored="the answer is empty"),
        Judgement(judge="j", unscored="there is no answer"),
    ]
    views = tuple(
        SampleView(sample=sample, answers=((answer, (judgement,)),))
        for sample, answer, judgement in zip(samples, answers, said, strict=True)
    )
    results = Results(cells=(), views=views, command="vlmguard eval own")
    (path,) = write_logs(tmp_path / "logs", results)
    (path,) = write_logs(tmp_path / "logs", results)  # again, in place of the first
    log = read_eval_log(str(path), resolve_attachments=True)
    found = by_id(log)
    assert log.eval.task == "vlmguard/own"
    assert "data:image/png;base64," in str(found["0"].input)
    assert one(found["0"]).value == {"safe": 1.0}
    assert "Describe it." in str(found["0"].messages)
    assert found["2"].error is not None
    assert log.results is not None
    (score,) = log.results.scores
    assert (score.scored_samples, score.unscored_samples) == (1, 2)
    assert score.metrics["safe"].value == 1.0


def test_repeats_are_epochs_of_inspect(tmp_path: Path) -> None:
    """Several answers to a sample are its epochs, each with its score."""
    item = Sample(benchmark="own", id="0", prompt="What is it?", kind="harmless")
    answers = tuple(
        (_answer("0", text=f"answer {n}", repeat=n), (Judgement(judge="j", metrics={"safe": 1.0}),))
        for n in range(3)
    )
    results = Results(cells=(), views=(SampleView(sample=item, answers=answers),))
    (path,) = write_logs(tmp_path / "logs", results)
    log = read_eval_log(str(path))
    assert log.eval.config.epochs == 3
    assert log.eval.dataset.samples == 1
    found = {each.epoch: each.output.completion for each in log.samples or []}
    assert found == {1: "answer 0", 2: "answer 1", 3: "answer 2"}


def _answer(sample_id: str, **more: Any) -> Answer:
    return Answer(benchmark="own", sample_id=sample_id, target="t", defence="guard", **more)
