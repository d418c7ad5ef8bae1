"""How many threads a run computes with: a fresh one measures, and that changes nothing else."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import killed_at, outcome, tiny_trainer

import labkit.device
import labkit.training.threads
from labkit.config import TrainConfig
from labkit.device import choose_threads, remembered_threads, set_threads, thread_limit
from labkit.text import SequenceDataset
from labkit.text.batches import IGNORE
from labkit.training import Run, Step, Trainer, fit, restore
from labkit.training.threads import computed_on, settle_threads
from labstudio.cli import main


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The file of what was measured, in a folder of the test's own; threads are as before afterwards."""
    monkeypatch.setenv("LABKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(labkit.device, "_set", None)
    before = torch.get_num_threads()
    yield tmp_path / "cache" / "threads.json"
    torch.set_num_threads(before)


class Machine:
    """A computation that takes as long as is said for each number of threads, on a clock of its own."""

    def __init__(self, seconds: dict[int, float], disturbed: Callable[[int], float] = lambda call: 0) -> None:
        self.seconds, self.disturbed, self.now = seconds, disturbed, 0.0
        self.tried: list[int] = []

    def compute(self) -> None:
        threads = torch.get_num_threads()
        self.now += self.seconds[threads] + self.disturbed(len(self.tried))
        self.tried.append(threads)

    def chosen(self) -> int:
        return choose_threads(self.compute, max(self.seconds), lambda: self.now)


@pytest.mark.parametrize(
    ("seconds", "best"),
    [
        ({1: 0.04, 2: 0.025}, 2),
        ({1: 0.04, 2: 0.06}, 1),
        ({1: 0.04, 2: 0.0385}, 1),  # not clearly faster
        ({1: 0.04, 2: 0.0375}, 2),
        ({1: 0.04, 2: 0.03, 4: 0.02, 6: 0.015}, 6),
        ({1: 0.04, 2: 0.03, 4: 0.02, 6: 0.05}, 4),
        ({1: 0.04, 2: 0.03, 4: 0.02, 8: 0.018, 16: 0.0175}, 8),
    ],
)
def test_the_number_that_is_clearly_fastest_is_chosen(seconds: dict[int, float], best: int) -> None:
    before = torch.get_num_threads()
    assert Machine(seconds).chosen() == best
    assert torch.get_num_threads() == before


def test_where_more_threads_do_not_help_no_larger_number_is_tried() -> None:
    machine = Machine({1: 0.04, 2: 0.05, 4: 0.01})
    assert machine.chosen() == 1
    assert set(machine.tried) == {1, 2}


@pytest.mark.parametrize("quiet", [1, 3, 5, 7])
def test_one_quiet_try_of_each_number_is_enough(quiet: int) -> None:
    machine = Machine({1: 0.03, 2: 0.02}, lambda call: 0 if call in (quiet, quiet + 1) else 0.02 + call / 999)
    assert machine.chosen() == 2


def test_both_numbers_have_their_turn_in_each_round() -> None:
    machine = Machine({1: 0.03, 2: 0.02})
    machine.chosen()
    assert machine.tried == [1, *[1, 2] * 4]


def test_a_long_computation_is_tried_once_with_each_number() -> None:
    machine = Machine({1: 4.0, 2: 2.0, 4: 1.0})
    assert machine.chosen() == 4
    assert machine.tried == [1, 1, 2, 2, 4]


def test_threads_are_as_before_after_an_error() -> None:
    def fail() -> None:
        raise MemoryError

    before = torch.get_num_threads()
    torch.set_num_threads(3)
    with pytest.raises(MemoryError):
        choose_threads(fail, 4)
    assert torch.get_num_threads() == 3
    torch.set_num_threads(before)


# What is remembered


class Choice:
    """Counts how often it is asked."""

    def __init__(self, answer: int) -> None:
        self.answer, self.asked = answer, 0

    def __call__(self) -> int:
        self.asked += 1
        return self.answer


def test_a_choice_is_made_once_for_each_task(cache: Path) -> None:
    torch.set_num_threads(4)
    first, other = Choice(2), Choice(3)
    assert [remembered_threads({"batch": [5, 7]}, first) for _ in range(3)] == [2, 2, 2]
    assert [remembered_threads({"batch": [7, 5]}, other) for _ in range(3)] == [3, 3, 3]
    assert remembered_threads({"batch": [5, 7]}, first) == 2
    assert (first.asked, other.asked) == (1, 1)
    cache.unlink()
    assert remembered_threads({"batch": [5, 7]}, first) == 2
    assert first.asked == 2


@pytest.mark.parametrize("name", ["cpu", "capability", "cores", "usable", "quota", "torch"])
def test_another_machine_chooses_anew(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    choice, here = Choice(1), labkit.device._machine()
    remembered_threads({}, choice)
    monkeypatch.setattr(labkit.device, "_machine", lambda: here | {name: "another"})
    remembered_threads({}, choice)
    assert choice.asked == 2


def test_another_limit_chooses_anew() -> None:
    choice = Choice(1)
    for limit in (2, 3):
        torch.set_num_threads(limit)
        remembered_threads({}, choice)
    assert choice.asked == 2


@pytest.mark.parametrize(
    "damage", ["", "[1, 2]", '{"a": ', "\udcff", "null", "0", "3", '"2"', "2.0", "true", "[2]"]
)
def test_a_damaged_file_is_as_none(cache: Path, damage: str) -> None:
    torch.set_num_threads(2)
    remembered_threads({"a": 1}, Choice(2))
    key = next(iter(json.loads(cache.read_text())))
    whole = damage in ("", "[1, 2]", '{"a": ', "\udcff")
    text = damage if whole else f"{{{json.dumps(key)}: {damage}}}"
    cache.write_text(text, encoding="utf-8", errors="surrogateescape")
    choice = Choice(2)
    assert [remembered_threads({"a": 1}, choice) for _ in range(2)] == [2, 2]
    assert choice.asked == 1


def test_where_nothing_can_be_kept_it_is_chosen_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way of a folder")
    monkeypatch.setenv("LABKIT_CACHE", str(tmp_path / "file"))
    choice = Choice(1)
    assert [remembered_threads({}, choice) for _ in range(2)] == [1, 1]
    assert choice.asked == 2


def test_a_number_chosen_for_one_model_is_no_limit_for_the_next() -> None:
    torch.set_num_threads(4)
    set_threads(2)
    set_threads(1)
    assert thread_limit() == 4
    torch.set_num_threads(3)  # by the user
    assert thread_limit() == 3


# Runs


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers of threads are only written down: two of them on a busy machine are slow beyond patience."""
    now = [torch.get_num_threads()]
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: now.__setitem__(0, threads))
    monkeypatch.setattr(torch, "get_num_threads", lambda: now[0])


@pytest.fixture
def measured(pretended: None, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Two threads are there and always the faster ones; passes are really taken.  Collects the limits."""
    limits: list[int] = []

    def choose(compute: Callable[[], object], limit: int) -> int:
        limits.append(limit)
        for threads in (1, limit):
            torch.set_num_threads(threads)
            compute()
        return limit

    torch.set_num_threads(2)
    monkeypatch.setattr(labkit.training.threads, "choose_threads", choose)
    return limits


def test_a_fresh_run_gives_the_bits_of_one_that_is_told_its_threads(
    tmp_path: Path, measured: list[int]
) -> None:
    told, found = Run.create("told", tmp_path), Run.create("found", tmp_path)
    fit(tiny_trainer(threads=2), run=told, progress=False)
    torch.set_num_threads(2)
    trainer = tiny_trainer(threads=None)
    assert trainer.model.config.dropout
    fit(trainer, run=found, progress=False)
    assert measured == [2]
    assert outcome(found) == outcome(told)
    assert found.rows("environment")[0]["threads"] == trainer.threads == 2
    assert computed_on(trainer) == "cpu, 2 threads (measured), fp32"


@pytest.mark.parametrize(
    "settings", [{}, {"activation_checkpointing": True}, {"freeze": ("token_embedding",)}]
)
def test_measuring_leaves_everything_as_it_was(settings: dict[str, Any], measured: list[int]) -> None:
    trainer = tiny_trainer(threads=None, **settings)
    trainer.model.blocks[1].eval()
    modes = [module.training for module in trainer.model.modules()]
    weights = {name: each.clone() for name, each in trainer.model.state_dict().items()}
    generator = torch.get_rng_state()
    settle_threads(trainer)
    assert measured == [2]
    assert torch.equal(torch.get_rng_state(), generator)
    assert [module.training for module in trainer.model.modules()] == modes
    assert all(torch.equal(each, weights[name]) for name, each in trainer.model.state_dict().items())
    assert all(each.grad is None for each in trainer.model.parameters())
    assert trainer.optimizer.state_dict()["state"] == {}


def test_it_is_measured_in_training_mode(measured: list[int]) -> None:
    trainer, modes = tiny_trainer(threads=None), []
    trainer.model.eval()
    trainer.model.blocks[0].register_forward_hook(lambda block, _, output: modes.append(block.training))
    settle_threads(trainer)
    assert modes == [True, True]
    assert not trainer.model.training


def test_events_alone_measure_too(measured: list[int]) -> None:
    trainer = tiny_trainer(threads=None, max_steps=2)
    next(trainer.events())
    assert measured == [2]


def test_the_losses_after_real_measuring_are_those_of_the_same_threads() -> None:
    def losses(threads: int | None) -> list[float]:
        torch.set_num_threads(2)
        events = tiny_trainer(threads=threads, max_steps=2, sample_every=0).events()
        return [event.loss for event in events if isinstance(event, Step)]

    found = losses(None)
    assert found == losses(torch.get_num_threads())


def test_a_second_trainer_of_the_same_shape_finds_what_the_first_measured(measured: list[int]) -> None:
    for settings in ({}, {"learning_rate": 1e-2}, {"micro_batch_size": 2}):
        settle_threads(tiny_trainer(threads=None, **settings))
    assert measured == [2, 2]


def test_a_huge_batch_is_measured_by_a_part_of_it(
    monkeypatch: pytest.MonkeyPatch, measured: list[int]
) -> None:
    shapes = []
    for flops in (1.0, 5.0, 20.0, 1e9):  # in tokens
        trainer = tiny_trainer(threads=None, micro_batch_size=None)
        monkeypatch.setattr(labkit.training.threads, "PASS_FLOPS", flops * trainer.model.flops_per_token())
        hook = trainer.model.blocks[0].register_forward_hook
        hook(lambda block, args, output: shapes.append(tuple(args[0].shape[:2])))
        settle_threads(trainer)
    assert shapes[::2] == [(1, 1), (1, 5), (2, 7), (6, 7)]


def test_a_batch_that_begins_with_padding_alone_can_be_measured(measured: list[int]) -> None:
    inputs = torch.arange(35).view(5, 7) % 11
    targets = torch.where(torch.arange(5)[:, None] < 4, IGNORE, inputs)
    windows = SequenceDataset(inputs, targets)
    model = tiny_trainer().model
    config = TrainConfig(max_steps=1, batch_size=5, micro_batch_size=1, eval_windows=5)
    trainer = Trainer(model, windows, windows, config)
    settle_threads(trainer)
    assert measured == [2]


@pytest.mark.parametrize("case", ["one thread", "told", "two processes", "GPU"])
def test_nothing_is_measured_where_there_is_nothing_to_choose(
    case: str, measured: list[int], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.set_num_threads(1 if case == "one thread" else 2)
    trainer = tiny_trainer(threads=2 if case == "told" else None)
    if case == "two processes":
        trainer.ranks.world = 2
    if case == "GPU":
        trainer.device = torch.device("cuda")
    settle_threads(trainer)
    assert measured == []
    assert not cache.exists()
    assert trainer.threads == torch.get_num_threads() == (1 if case == "one thread" else 2)
    assert trainer.threads_from == ""


def test_a_resumed_run_computes_with_the_threads_it_began_with(tmp_path: Path, measured: list[int]) -> None:
    whole = Run.create("whole", tmp_path)
    fit(tiny_trainer(threads=None), run=whole, progress=False)
    run = killed_at(8, Run.create("killed", tmp_path), threads=None)
    torch.set_num_threads(1)  # as on a machine where one would be chosen
    trainer = tiny_trainer(threads=None)
    restore(trainer, run)
    assert fit(trainer, run=run, progress=False)
    assert outcome(run) == outcome(whole)
    assert [row["threads"] for row in run.rows("environment")] == [2, 2]
    assert measured == [2], "measured again, or by the resumed run"


# The command line

TINY = {"corpus": "tiny", "eval-windows": 3, "context-length": 7, "d-model": 10, "n-layers": 1, "n-heads": 2}
SHORT = {"max-steps": 2, "batch-size": 3, "name": "first", "precision": "fp32", "device": "cpu"}
TRAIN = ["train", *(f"--{name}={value}" for name, value in (TINY | SHORT).items())]


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    monkeypatch.setenv("LABKIT_OUT", str(tmp_path))

    def call(*arguments: str) -> str:
        with pytest.raises(SystemExit):
            main(list(arguments))
        return capsys.readouterr().out.splitlines()[0]

    return call


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "cpu, 2 threads (measured), fp32"),
        (["--threads", "1"], "cpu, 1 thread, fp32"),
        (["--threads", "3"], "cpu, 3 threads, fp32"),
    ],
)
def test_the_first_line_says_device_threads_and_precision(
    arguments: list[str], says: str, shell: Any, measured: list[int]
) -> None:
    first = shell(*TRAIN, *arguments)
    assert first.startswith("run first: ")
    assert first.endswith(f" parameters, 2 steps; {says}")


def test_the_first_line_of_a_resumed_run_says_it_too(shell: Any, tmp_path: Path, measured: list[int]) -> None:
    shell(*TRAIN, "--checkpoint-every", "1")
    run = Run(tmp_path / "runs" / "first")
    (run.checkpoints_path / "latest").write_text("step-00000001")
    shutil.rmtree(run.checkpoints_path / "step-00000002")
    torch.set_num_threads(1)
    first = shell("resume", "first", "--device", "cpu")
    assert first == "run first: going on from step 1 of 2; cpu, 2 threads (as before), fp32"
    assert measured == [2]
