"""Two processes train what one would; what one loses the others say; any number goes on from a checkpoint."""

from __future__ import annotations

import json
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import torch.distributed as dist
from together import CASES, build, dropped, keep_first_half, story

from labkit.training import Run, load_checkpoint, restore
from labkit.training.checkpoint import CheckpointError
from labkit.training.parallel import fresh_store, launch_id
from labstudio.cli import main

HERE = Path(__file__).parent
Told = dict[str, Any]


def torchrun(*arguments: str | Path, out: Path, restarts: int = 0) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    return subprocess.Popen(
        [*command, f"--max-restarts={restarts}", *map(str, arguments)],
        env=os.environ | {"LABKIT_OUT": str(out), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[str, str]:
    """What it wrote to standard output and standard error."""
    try:
        return process.communicate(timeout=250)
    finally:
        process.terminate()  # torchrun then ends its processes


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of two processes, and what each of the two saw in told-0.json and told-1.json."""
    folder = tmp_path_factory.mktemp("runs")
    story(build(), Run.create("alone", folder))
    for name in ("ddp", "fsdp"):
        keep_first_half(Run(folder / "alone"), Run(folder / f"alone, then {name}"))
    process = torchrun(HERE / "together.py", folder, out=folder)
    _, errors = finish(process)
    assert process.returncode == 0, errors
    return folder


@pytest.fixture(scope="module")
def told(folder: Path) -> tuple[Told, Told]:
    one, two = (json.loads((folder / f"told-{rank}.json").read_text()) for rank in (0, 1))
    return one, two


def assert_same_story(one: list[Told], two: list[Told]) -> None:
    """The same events; floats within 1e-5."""
    assert [each.keys() for each in one] == [each.keys() for each in two]
    for first, second in zip(one, two, strict=True):
        for key, value in first.items():
            expected = pytest.approx(value, abs=1e-5, rel=1e-5) if isinstance(value, float) else value
            assert second[key] == expected, (first, second)


def test_no_other_thread_frees_a_tensor_when_the_processes_part(tmp_path: Path) -> None:
    """One that does so while the interpreter ends aborts the process."""
    process = torchrun(HERE / "ending.py", tmp_path, out=tmp_path)
    _, errors = finish(process)
    assert process.returncode == 0, errors
    assert [json.loads((tmp_path / f"others-{rank}.json").read_text()) for rank in (0, 1)] == [0, 0]


# World 1 is world 2


@pytest.mark.parametrize("case", CASES)
def test_two_processes_train_as_one_does(told: tuple[Told, Told], case: str) -> None:
    alone = story(build(**CASES[case]))
    assert len(alone) == 20 + 4 + 2  # steps, evaluations, samples
    assert_same_story(alone, told[0][case])


def test_every_process_sees_the_same_events(told: tuple[Told, Told]) -> None:
    for case in CASES:
        assert told[0][case] == told[1][case]


def test_the_first_process_alone_writes(folder: Path, told: tuple[Told, Told]) -> None:
    for case in CASES:
        run = Run(folder / case)
        assert [row["processes"] for row in run.rows("environment")] == [2]
        losses = [row["loss"] for row in run.rows("metrics") if row["event"] == "step"]
        assert losses == [event["loss"] for event in told[0][case] if event["event"] == "Step"]


def test_dropout_differs_between_processes_and_the_first_drops_what_one_alone_would(
    told: tuple[Told, Told],
) -> None:
    first, second = told[0]["dropped"], told[1]["dropped"]
    assert first != second
    assert first == dropped()[: len(first)]


def test_split_gradients_are_exchanged_once_per_step(told: tuple[Told, Told]) -> None:
    assert told[0]["exchanges"] == [False, False, True]


def test_all_processes_stop_where_one_diverges(told: tuple[Told, Told]) -> None:
    assert told[0]["diverged"] == told[1]["diverged"]
    for message in told[0]["diverged"]:
        assert message.startswith("Training diverged at step 4: loss nan")


def test_what_cannot_be_shared_is_refused(told: tuple[Told, Told]) -> None:
    batch, muon, fp16 = told[1]["refused"]
    assert batch.startswith("Trainer: 2 processes cannot share 5 sequences per step equally. Choose a batch")
    assert muon.startswith("TrainConfig: optimizer='muon' needs whole matrices")
    assert fp16.startswith("TrainConfig: precision='fp16' skips steps whose gradient overflows")


# Checkpoints know no number of processes


@pytest.mark.filterwarnings("ignore:run .* goes on with differences")
@pytest.mark.parametrize("case", ["ddp", "fsdp", "fsdp thrifty"])
def test_one_process_goes_on_from_what_two_have_saved(
    folder: Path, told: tuple[Told, Told], tmp_path: Path, case: str
) -> None:
    run, alone = keep_first_half(Run(folder / case), Run(tmp_path / "run")), build(**CASES[case])
    assert restore(alone, run) == 10
    assert_same_story(told[0][case][-len(rest := story(alone, run)) :], rest)
    assert len(rest) == 10 + 2 + 1


@pytest.mark.parametrize("name", ["alone, then ddp", "alone, then fsdp", "fsdp, then ddp"])
def test_two_processes_go_on_from_what_others_have_saved(
    folder: Path, told: tuple[Told, Told], name: str
) -> None:
    rest = told[0][name]
    assert len(rest) == 10 + 2 + 1
    assert_same_story(story(build())[-len(rest) :], rest)
    assert [row["processes"] for row in Run(folder / name).rows("environment")][1] == 2


def test_a_sharded_checkpoint_is_a_checkpoint(folder: Path) -> None:
    run = Run(folder / "fsdp")
    newest = run.checkpoints()[-1].path
    names = sorted(path.name for path in newest.iterdir())
    assert names[:3] == ["SHA256SUMS", "checkpoint.json", "shard-00001-model-00001-of-00001.safetensors"]
    assert json.loads((newest / "checkpoint.json").read_text())["layout"] == "sharded"
    model, _ = run.load()
    assert type(model.token_embedding.weight) is torch.nn.Parameter
    other, _ = Run(folder / "ddp").load()
    for name, weights in other.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], weights, atol=1e-4, rtol=0)


def test_reading_a_sharded_checkpoint_runs_no_code(folder: Path, tmp_path: Path) -> None:
    """torch.distributed.checkpoint's own format would unpickle a file of this name."""

    class Malice:
        def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
            return Path.touch, (tmp_path / "ran",)  # type: ignore[return-value]

    run = keep_first_half(Run(folder / "fsdp"), Run(tmp_path / "run"))
    newest = run.checkpoints()[-1].path
    (newest / ".metadata").write_bytes(pickle.dumps(Malice()))
    load_checkpoint(newest)
    assert not (tmp_path / "ran").exists()


def test_a_damaged_shard_is_noticed(folder: Path, tmp_path: Path) -> None:
    run = keep_first_half(Run(folder / "fsdp"), Run(tmp_path / "run"))
    shard = sorted(run.checkpoints()[-1].path.glob("shard-*"))[1]
    content = bytearray(shard.read_bytes())
    content[-5] ^= 1
    shard.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"is damaged: shard-00002.* is not what was written"):
        run.load()
    shard.unlink()
    with pytest.raises(CheckpointError, match=r"shard-00002.* is missing"):
        run.load()


# The command line, and lost processes

TRAIN = ["--corpus", "tiny", "--context-length", "7", "--d-model", "12", "--n-layers", "3", "--n-heads", "2"]
TRAIN += ["--eval-windows", "3", "--eval-every", "0", "--sample-every", "0", "--checkpoint-every", "5"]
TRAIN += ["--name", "first", "--dropout", "0", "--device", "cpu"]


def wait_for(condition: Callable[[], object], process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 250
    while not condition():
        if process.poll() is not None or time.monotonic() > end:
            process.terminate()
            pytest.fail(str(process.communicate()))
        time.sleep(0.02)


def kill_rank(process: subprocess.Popen[str], rank: int) -> None:
    for child in psutil.Process(process.pid).children():
        if child.environ().get("RANK") == str(rank):
            child.kill()


def steps(run: Run) -> list[int]:
    return [row["step"] for row in run.rows("metrics") if row["event"] == "step"]


def test_a_lost_process_ends_all_and_the_run_can_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path / "runs" / "first")
    process = torchrun(
        "-m", "labstudio", "train", *TRAIN, "--parallel", "fsdp", "--max-steps", "40", out=tmp_path
    )
    wait_for(lambda: run.pointer("latest"), process)
    kill_rank(process, 1)
    shown, errors = finish(process)
    assert process.returncode == 1
    assert shown.count("run first: ") == 1
    assert re.search(r"labkit: Another process was lost at step \d+", errors)
    assert "To go on with run first: torchrun --nproc-per-node 2 -m labstudio resume first" in errors

    reached = max(steps(run))
    process = torchrun("-m", "labstudio", "resume", "first", "--device", "cpu", out=tmp_path)
    wait_for(lambda: max(steps(run)) > reached + 2, process)
    process.send_signal(signal.SIGINT)
    shown, errors = finish(process)
    assert "run first: going on from step" in shown
    stopped = re.search(r"run first stopped at step (\d+); the checkpoint is saved", shown)
    assert stopped, errors

    monkeypatch.setenv("LABKIT_OUT", str(tmp_path))
    torch.set_num_threads(1)
    with pytest.raises(SystemExit) as end, pytest.warns(UserWarning, match="processes: 2 -> 1"):
        main(["resume", "first", "--device", "cpu"])
    assert not end.value.code
    assert f"going on from step {stopped[1]} of 40" in capsys.readouterr().out
    assert steps(run) == list(range(1, 41))
    with pytest.raises(SystemExit):
        main(["sample", "first", "--max-new-tokens", "5", "--prompt", "t"])
    assert capsys.readouterr().out.startswith("t")


def test_what_a_lost_process_wrote_in_torchruns_store_is_not_read() -> None:
    """torchrun keeps its store when it starts processes again."""
    shared = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)

    def join(attempt: str, rank: int) -> str:
        client = dist.TCPStore("127.0.0.1", shared.port, is_master=False)
        store = fresh_store(client, rank, 2)
        if rank == 0:
            store.set("address", f"from {attempt}")
        return store.get("address").decode()

    for attempt in ("before", "after"):
        with ThreadPoolExecutor(2) as pool:
            assert list(pool.map(join, [attempt] * 2, (0, 1))) == [f"from {attempt}"] * 2


def test_a_call_of_torchrun_without_a_name_is_known_by_its_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    assert launch_id() is None
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job-7")
    assert launch_id() == "job-7"
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert f" {os.getppid()} " in str(launch_id())
    assert launch_id() == launch_id()


def test_torchrun_starts_a_lost_process_again_and_the_same_run_goes_on(tmp_path: Path) -> None:
    run = Run(tmp_path / "runs" / "first")
    process = torchrun("-m", "labstudio", "train", *TRAIN, "--max-steps", "40", out=tmp_path, restarts=1)
    wait_for(lambda: run.pointer("latest"), process)
    kill_rank(process, 0)
    shown, errors = finish(process)
    assert process.returncode == 0, errors
    assert [path.name for path in run.path.parent.iterdir()] == ["first"]
    assert steps(run) == list(range(1, 41))
    starts = [row["step"] for row in run.rows("environment")]
    assert starts[0] == 0
    assert starts[1] >= 5
    assert "run first finished" in shown
