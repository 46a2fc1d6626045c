"""The engines of back-propagation in two processes: what they train, and what they keep, against one process; and the bench's peers."""

import functools
import gc
import multiprocessing
import weakref
from pathlib import Path

import pytest
import torch
from torch import distributed, nn

import alrpc
from alrpc.config import Train
from alrpc.experiments.baselines import pipelined
from alrpc.experiments.baselines.asynchronous import Asynchronous
from alrpc.experiments.baselines.data_parallel import DataParallel
from alrpc.experiments.baselines.engine import Role
from alrpc.experiments.baselines.model import ModelPart, SequentialModel
from alrpc.experiments.baselines.objective import loss
from alrpc.experiments.baselines.pipelined import Pipelined
from alrpc.experiments.bench import peers
from alrpc.pipeline.failures import hard_exit
from alrpc.training.optimizer import Recipe, make_optimizer
from alrpc.training.step import accumulation_step, optimizer_step

CPU, TARGET, WORLD, EPOCH = torch.device("cpu"), alrpc.Classes(3), 2, 6
LENGTHS = 2 * [5, 9, 5, 5, 9, 9]  # of the sequences of each micro-batch, in two epochs: two shapes, in one group of two as well


class Mean(nn.Module):
    def forward(self, x):
        return x.mean(dim=1)


def make_model(activation: type[nn.Module] = nn.Tanh) -> SequentialModel:
    """Layers on sequences of any length."""
    torch.manual_seed(3)
    layers = [
        nn.Sequential(nn.Linear(4, 8), activation()),
        nn.Sequential(nn.Linear(8, 8), activation()),
        nn.Sequential(Mean(), nn.Linear(8, TARGET.width)),
    ]
    return SequentialModel(layers, [("x",)] * 3, [{"x": torch.float32}] * 3)


def make_batches() -> list:
    generator = torch.Generator().manual_seed(1)
    return [
        ({"x": torch.randn(8, length, 4, generator=generator)}, torch.randint(0, TARGET.width, (8,), generator=generator))
        for length in LENGTHS
    ]


def make_recipe(**fields) -> Recipe:
    return Recipe(Train(**{"lr": 0.1, "optimizer": "sgd", "schedule": "constant", **fields}), EPOCH)


def train_whole(recipe: Recipe) -> list[torch.Tensor]:
    """The parameters after one process has trained on all micro-batches by back-propagation."""
    engine = DataParallel(Role("bp", 0, 1, CPU, TARGET, recipe), make_model())
    for step, (tensors, labels) in enumerate(make_batches()):
        engine.learn((tensors, labels, len(labels)), step)
    return list(engine.module.parameters())


def run_rank(function, cases, rank: int, directory: Path, result) -> None:
    torch.set_num_threads(1)
    gc.disable()  # what is no longer needed is freed at once
    told = {}
    for number, case in enumerate(cases):  # in a group of its own, as a run is
        store = distributed.FileStore(str(directory / f"store-{number}"))
        distributed.init_process_group("gloo", store=store, rank=rank, world_size=WORLD)
        told[case] = function(rank, *case)
        distributed.barrier()
        distributed.destroy_process_group()
    result.put(told)
    result.close()
    result.join_thread()
    hard_exit(0)


@pytest.fixture
def together(tmp_path):
    """Calls a function with the rank and each of some cases in two processes; gives by case what it returned in each."""
    context = multiprocessing.get_context("spawn")
    processes = []

    def run(function, cases):
        queues = [context.Queue() for _ in range(WORLD)]
        for rank, queue in enumerate(queues):
            arguments = (function, cases, rank, tmp_path, queue)
            processes.append(context.Process(target=run_rank, args=arguments, daemon=True))
            processes[-1].start()
        told = [queue.get(timeout=120) for queue in queues]
        return {case: [of_rank[case] for of_rank in told] for case in cases}

    yield run
    for process in processes:
        process.join(20)
        process.kill()
        process.join()
    assert all(process.exitcode == 0 for process in processes)


class NeedsTwo(nn.Tanh):
    """A block that cannot run on a single sample."""

    def forward(self, x):
        if len(x) < 2:
            raise ValueError("one sample only")
        return super().forward(x)


def train_pipelined(rank: int, method: str, kept: int, activation: type[nn.Module]) -> dict:
    """Train by a schedule of torch, of which some are kept, on micro-batches of two shapes."""
    pipelined.SCHEDULES_KEPT = kept
    engine = Pipelined(Role(method, rank, WORLD, CPU, TARGET, make_recipe(accumulate=2)), make_model(activation))
    engine.micro_batches = 2
    calls, stages = [], []
    engine.module.register_forward_pre_hook(lambda *_: calls.append(1))
    for step, batch in enumerate(make_batches()):
        engine.learn(batch if rank == 0 else None, step)
        stages.append(weakref.ref(engine._schedule(training=True)._stage))
    return {
        "parameters": [parameter.detach().numpy() for parameter in engine.module.parameters()],
        "calls": len(calls),
        "alive": len({id(stage()) for stage in stages} - {id(None)}),
    }


def test_torchs_schedules_train_micro_batches_of_two_shapes_as_one_process_does(together):
    expected = train_whole(make_recipe(accumulate=2))
    cases = [("gpipe", 1, nn.Tanh), ("1f1b", 2, nn.Tanh), ("1f1b", 2, NeedsTwo)]
    for (_, kept, activation), of_ranks in together(train_pipelined, cases).items():
        trained = [parameter for told in of_ranks for parameter in told["parameters"]]
        for own, wanted in zip(trained, expected, strict=True):
            torch.testing.assert_close(torch.from_numpy(own), wanted.detach(), atol=1e-6, rtol=1e-5)
        for told in of_ranks:
            # Each step calls the module for the schedule's two micro-batches; only torch's own search for shapes does besides.
            assert (told["calls"] == 2 * len(LENGTHS)) == (activation is nn.Tanh)
            assert told["alive"] == kept


class Watched(Asynchronous):
    """Counts the copies of its parameters that are alive when the most micro-batches are in flight."""

    def __init__(self, *arguments):
        self.copies, self.alive = [], 0
        super().__init__(*arguments)

    def copy_parameters(self):
        version = super().copy_parameters()
        if version is not self.own:
            self.copies.append(weakref.ref(next(iter(version.values()))))
        return version

    def run_forward(self, batch, step):
        super().run_forward(batch, step)
        self.alive = max(self.alive, sum(copy() is not None for copy in self.copies))


def train_asynchronously(rank: int, method: str, accumulate: int) -> dict:
    """Train by a method, and score all micro-batches after each epoch."""
    engine, scores = Watched(Role(method, rank, WORLD, CPU, TARGET, make_recipe(accumulate=accumulate)), make_model()), []
    engine.choose(make_batches()[0] if rank == 0 else None, WORLD)
    for step, batch in enumerate(make_batches()):
        engine.learn(batch if rank == 0 else None, step)
        if (step + 1) % EPOCH == 0:
            engine.end_epoch()
            with torch.no_grad():
                scores.append(sum(engine.score(each if rank == 0 else None) for each in make_batches()))
    engine.close()
    parameters = [parameter.detach().numpy() for parameter in engine.module.parameters()]
    return {"parameters": parameters, "alive": engine.alive, "scores": scores}


def simulate(recipe: Recipe, version_of) -> tuple[list[torch.Tensor], list[float]]:
    """PipeDream's two processes in one: the parameters at the end, and the scores after each epoch.

    Args:
        version_of: (process, step) -> the number of updates before the parameters whose gradient is taken.
    """
    whole = ModelPart(make_model(), range(3))
    parameters = list(whole.parameters())
    process_of = [0 if name.startswith("layers.0.") else 1 for name, _ in whole.named_parameters()]
    optimizer = make_optimizer({"lr": parameters}, recipe)
    versions, scores = [[parameter.detach().clone() for parameter in parameters]], []

    def put(values):
        with torch.no_grad():
            for parameter, value in zip(parameters, values, strict=True):
                parameter.copy_(value)

    for step, (tensors, labels) in enumerate(make_batches()):
        put(versions[version_of(process, step)][place] for place, process in enumerate(process_of))
        turn = accumulation_step(step, recipe)
        (loss(TARGET, whole(tensors["x"]), labels, len(labels)) / turn.size).backward()
        put(versions[-1])
        if turn.last:
            optimizer_step(optimizer, recipe, turn.update, None)
            versions.append([parameter.detach().clone() for parameter in parameters])
        if (step + 1) % EPOCH == 0:
            with torch.no_grad():
                scores.append(sum(TARGET.score(whole(tensors["x"]), labels) for tensors, labels in make_batches()))
    return parameters, scores


def test_pipedream_in_two_processes_is_the_delay_that_it_says_it_is(together):
    """With groups of one, two and four micro-batches, the second of which is short in each epoch."""

    def updates(accumulate, step):
        return accumulation_step(step, make_recipe(accumulate=accumulate)).update

    def drained(step):
        return step // EPOCH * EPOCH

    # The first process is one micro-batch ahead of its updates; the last one's are its own parameters, of which it has no copy.
    def at_once(accumulate, process, step):
        return updates(accumulate, step if process else max(step - 1, drained(step)))

    def a_group_late(accumulate, process, step):
        return max(updates(accumulate, step) - 1, updates(accumulate, drained(step)))

    cases = {
        ("pipedream", 1): (at_once, [2, 0]),
        ("pipedream", 2): (at_once, [2, 0]),
        ("pipedream", 4): (at_once, [2, 0]),
        ("pipedream-2bw", 2): (a_group_late, [2, 2]),
        ("pipedream-2bw", 4): (a_group_late, [2, 2]),
    }
    for case, of_ranks in together(train_asynchronously, [*cases]).items():
        version_of, alive = cases[case]
        parameters, scores = simulate(make_recipe(accumulate=case[1]), functools.partial(version_of, case[1]))
        trained = [parameter for told in of_ranks for parameter in told["parameters"]]
        for own, wanted in zip(trained, parameters, strict=True):
            torch.testing.assert_close(torch.from_numpy(own), wanted.detach(), atol=0, rtol=0)
        assert [told["scores"] for told in of_ranks] == [[0, 0], scores]  # of drained pipelines
        assert [told["alive"] for told in of_ranks] == alive


@pytest.mark.parametrize("accumulate", [1, 2])
def test_pipedream_in_one_process_is_back_propagation_bit_for_bit(accumulate):
    recipe = make_recipe(accumulate=accumulate, optimizer="adam", schedule="cosine", epochs=2)
    engine = Asynchronous(Role("pipedream", 0, 1, CPU, TARGET, recipe), make_model())
    for step, batch in enumerate(make_batches()):
        engine.learn(batch, step)
    assert all(torch.equal(own, wanted) for own, wanted in zip(engine.module.parameters(), train_whole(recipe), strict=True))


def test_pipedream_2bw_in_one_process_learns_of_the_parameters_before_the_last_update():
    recipe = make_recipe(accumulate=2)
    engine = Watched(Role("pipedream-2bw", 0, 1, CPU, TARGET, recipe), make_model())
    for step, batch in enumerate(make_batches()):
        engine.learn(batch, step)
        if (step + 1) % EPOCH == 0:
            engine.end_epoch()
    wanted, _ = simulate(recipe, lambda process, step: max(step // 2 - 1, step // EPOCH * EPOCH // 2))
    assert all(torch.equal(one, other) for one, other in zip(engine.module.parameters(), wanted, strict=True))
    assert engine.alive == 2


def time_peer(rank: int, name: str) -> float:
    """Seconds that a batch takes at a peer of `alrpc bench hops` whose stages sleep 20 ms."""
    measure = peers.time_pipedream if name == "pipedream" else functools.partial(peers.time_schedule, peers.SCHEDULES[name])
    return measure(rank, WORLD, 0.02, torch.zeros(peers.SAMPLES, 16), 10)


def test_a_peer_of_the_bench_takes_at_least_what_its_schedule_allows(together):
    for (name,), (seconds, _) in together(time_peer, [("gpipe",), ("1f1b",), ("pipedream",)]).items():
        allowed = peers.theoretical_efficiency(name, WORLD)
        assert allowed == (1 if name == "pipedream" else 8 / 9) and 0.02 / seconds <= allowed * 1.001
