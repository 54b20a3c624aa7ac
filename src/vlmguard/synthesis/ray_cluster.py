"""What a Ray run has in the cluster: the hub, the dataset of seeds, and the workers.

The hub is the one place that the run's own process talks to. Seeds go in there and are read from
there by Ray Data, which hands them to the workers; outcomes come back through the same dataset.
Workers have no store: before and after every call to a model they ask the run's process through
the hub, which is how every answer is committed before anything is done with it.

Imported by the run's process and by the cluster's, and only where Ray is installed.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

import pyarrow as pa
import ray
from ray import cloudpickle
from ray.data import ActorPoolStrategy, DataContext, Datasource, ReadTask
from ray.data.block import BlockMetadata

from vlmguard.errors import ConfigError, VLMGuardError
from vlmguard.synthesis.outcomes import Outcome, Stage
from vlmguard.synthesis.pipeline import process
from vlmguard.synthesis.players import Player
from vlmguard.synthesis.ray_messages import (
    Asked,
    Broken,
    Ended,
    Failed,
    Find,
    Keep,
    Message,
    Plan,
    Question,
    Raised,
    Reply,
    Task,
)
from vlmguard.synthesis.rows import Call
from vlmguard.synthesis.runner import cast_all, recipe_key
from vlmguard.types import Completion, Usage

_cloudpickle: Any = cloudpickle
_MOST_TASKS = 256  # bundles in work in one worker; each is a thread
_POLL_S = 5.0
_COALESCE_S = 0.002  # what workers ask within this time goes in one message


class Hub:
    """A post office: an asynchronous actor that holds nothing for longer than it must."""

    def __init__(self) -> None:
        _leave_the_terminal()
        self._loop = asyncio.get_running_loop()
        self._tasks: deque[Task] = deque()
        self._messages: list[Message] = []
        self._waiting: dict[int, asyncio.Future[tuple[Reply, ...]]] = {}
        self._number = 0
        self._closed = False
        self._more_tasks = asyncio.Event()
        self._more_messages = asyncio.Event()

    async def start(self, plan: Plan) -> None:
        """Begin to work on what `give` brings."""
        hub = ray.get_runtime_context().current_actor
        threading.Thread(target=self._run, args=(hub, plan), daemon=True).start()

    async def give(self, tasks: Sequence[Task]) -> None:
        """From the run's process: seeds to work on."""
        self._tasks.extend(tasks)
        self._more_tasks.set()

    async def close(self) -> None:
        """From the run's process: no more seeds will come."""
        self._closed = True
        self._more_tasks.set()

    async def exchange(self, replies: dict[int, tuple[Reply, ...]]) -> list[Message]:
        """From the run's process: replies against all messages; waits a while for some."""
        for number, reply in replies.items():
            waiting = self._waiting.pop(number)
            if not waiting.done():
                waiting.set_result(reply)
        if not self._messages:
            await _within(self._more_messages)
        self._more_messages.clear()
        messages, self._messages = self._messages, []
        return messages

    async def take(self, most: int) -> list[Task] | None:
        """From the dataset: seeds, as soon as there are some; ``None`` at the end."""
        while not self._tasks:
            if self._closed:
                return None
            self._more_tasks.clear()
            await self._more_tasks.wait()
        return [self._tasks.popleft() for _ in range(min(most, len(self._tasks)))]

    async def ask(self, questions: tuple[Question, ...]) -> tuple[Reply, ...]:
        """From a worker: questions to the run's process."""
        self._number += 1
        number = self._number
        waiting = self._waiting[number] = self._loop.create_future()
        self._tell(Asked(number=number, questions=questions))
        replies: tuple[Reply, ...] = await waiting
        return replies

    def _tell(self, message: Message) -> None:
        self._messages.append(message)
        self._more_messages.set()

    def _run(self, hub: Any, plan: Plan) -> None:
        """Pull outcomes out of the dataset; in a thread, since Ray Data blocks."""
        try:
            for ended in outcomes(hub, plan):
                self._loop.call_soon_threadsafe(self._tell, ended)
        except Exception as error:  # noqa: BLE001  # whatever it is, the run must hear of it
            told = Broken(message=str(error).strip() or type(error).__name__)
            self._loop.call_soon_threadsafe(self._tell, told)


def _leave_the_terminal() -> None:
    """Hear no Ctrl-C: it goes to every process of the terminal's foreground group.

    A Ray that was started for this run is in it. Only the run's own process may hear, which lets
    the calls in flight end.
    """
    if ray.is_initialized() and hasattr(os, "setpgrp"):  # not on Windows
        with suppress(PermissionError):  # it leads a session, so it has left already
            os.setpgrp()


async def _within(event: asyncio.Event) -> None:
    with suppress(TimeoutError):
        await asyncio.wait_for(event.wait(), _POLL_S)


def outcomes(hub: Any, plan: Plan) -> Iterator[Ended]:
    """The dataset: seeds from the hub, through the workers, in the order in which they end."""
    context = DataContext.get_current()
    context.enable_progress_bars = False
    # One bundle is one block and one task. Ray would gather 128 MB before it hands on anything.
    context.target_max_block_size = 1
    tasks = min(_MOST_TASKS, 2 * plan.at_once)
    dataset = ray.data.read_datasource(
        _Seeds(hub, plan.bundle), override_num_blocks=1, num_cpus=0
    ).map_batches(
        Worker,
        fn_constructor_args=(hub, plan),
        batch_size=None,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(size=plan.workers, max_tasks_in_flight_per_actor=tasks),
        num_cpus=1,
        num_gpus=plan.gpus,
        max_concurrency=tasks,
    )
    # No prefetching: it would hold an outcome back until the next one is there.
    for block in dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        yield from _values(block, "outcomes")


def _block(name: str, values: list[Any]) -> pa.Table:
    """Values as one row of one column: Ray would cut several rows apart."""
    pickled = _cloudpickle.dumps(values)
    return pa.table({name: pa.array([pickled], pa.large_binary())})


def _values(block: pa.Table, name: str) -> Iterator[Any]:
    for row in block.column(name).to_pylist():
        yield from _cloudpickle.loads(row)


class _Seeds(Datasource):  # type: ignore[misc, unused-ignore]
    """A source that lasts as long as the hub brings seeds."""

    def __init__(self, hub: Any, bundle: int) -> None:
        self._hub = hub
        self._bundle = bundle

    def estimate_inmemory_data_size(self) -> int | None:
        """Nobody knows."""
        return None

    def get_read_tasks(
        self,
        parallelism: int,  # noqa: ARG002  # Ray's interface
        per_task_row_limit: int | None = None,  # noqa: ARG002
        data_context: DataContext | None = None,  # noqa: ARG002
    ) -> list[ReadTask]:
        """One task that goes on and on."""
        hub, bundle = self._hub, self._bundle

        def read() -> Iterator[pa.Table]:
            _leave_the_terminal()
            while (tasks := ray.get(hub.take.remote(bundle))) is not None:
                yield _block("tasks", tasks)

        nothing = BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None)
        return [ReadTask(read, nothing)]


class Worker:
    """An actor of the pool: its own models, one event loop, a bounded number of seeds at once."""

    def __init__(self, hub: Any, plan: Plan) -> None:
        _leave_the_terminal()
        self._plan = plan
        self._answers = _Answers(hub)
        self._free = asyncio.Semaphore(plan.at_once)
        self._failure: Raised | None = None
        try:
            players = plan.models.open()
            self._check(players)
            self._casts = cast_all(players, self._answers, _Watcher(self._answers))
        except VLMGuardError as error:
            self._failure = Raised.by(error)  # told with the first seed, in full

    def _check(self, players: dict[str, Player]) -> None:
        if recipe_key(players, self._plan.recipe) != self._plan.key:
            raise ConfigError(
                "the Ray workers have other prompts than this machine: install the same version "
                "of vlmguard-r1 on every node of the cluster"
            )

    async def __call__(self, batch: pa.Table) -> pa.Table:
        """Bundles of tasks in, bundles of outcomes out."""
        ended = await asyncio.gather(*map(self._work, _values(batch, "tasks")))
        return _block("outcomes", ended)

    async def _work(self, task: Task) -> Ended:
        async with self._free:
            return Ended(number=task.number, outcome=await self._outcome(task))

    async def _outcome(self, task: Task) -> Outcome | Raised:
        if self._failure is not None:
            return self._failure
        try:
            return await process(task.seed, task.images, self._casts, self._plan.recipe)
        except Exception as error:  # noqa: BLE001  # raised again in the run's process
            return Raised.by(error)


class _Answers:
    """The way to the store (`vlmguard.synthesis.calls.Answers`)."""

    def __init__(self, hub: Any) -> None:
        self._hub = hub
        self._batch: list[tuple[Question, asyncio.Future[Reply]]] = []
        self._sending: set[asyncio.Task[None]] = set()

    async def find(self, call: Call) -> Completion | None:
        """The stored answer; `Stopped` when there is none and the run is ending."""
        return await self._ask(Find(call=call))

    async def keep_answer(self, call: Call, completion: Completion) -> None:
        """Returns once the run's process has committed it."""
        await self._ask(Keep(call=call, completion=completion))

    async def _ask(self, question: Question) -> Completion | None:
        found = await self.tell(question)
        if isinstance(found, Raised):
            raise found.error()
        return found

    def tell(self, question: Question) -> asyncio.Future[Reply]:
        """Send it soon; the future is the reply."""
        loop = asyncio.get_running_loop()
        reply: asyncio.Future[Reply] = loop.create_future()
        self._batch.append((question, reply))
        if len(self._batch) == 1:
            loop.call_later(_COALESCE_S, self._start)
        return reply

    def _start(self) -> None:
        batch, self._batch = self._batch, []
        sending = asyncio.get_running_loop().create_task(self._send(batch))
        self._sending.add(sending)
        sending.add_done_callback(self._sending.discard)

    async def _send(self, batch: list[tuple[Question, asyncio.Future[Reply]]]) -> None:
        try:
            found = await self._hub.ask.remote(tuple(question for question, _ in batch))
        except Exception as error:  # noqa: BLE001  # the hub is gone, so the run is
            found = [Raised.by(error)] * len(batch)
        for (_, reply), value in zip(batch, found, strict=True):
            if not reply.done():
                reply.set_result(value)


class _Watcher:
    """Calls are counted where they are stored, and there it is decided when to stop."""

    stopping = False

    def __init__(self, answers: _Answers) -> None:
        self._answers = answers

    def asked(self) -> None:
        """Nothing to do: the run's process knows, having said that the answer is not stored."""

    def called(self, stage: Stage, model: str, usage: Usage, *, stored: bool) -> None:
        """Nothing to do: it has found the answer, or stored it."""

    def failed(self) -> None:
        """The run's process would wait for the answer."""
        self._answers.tell(Failed())
