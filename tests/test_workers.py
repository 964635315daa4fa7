"""Two processes train one network: they stay equal, and equal to one that sees both batches."""

import math
import multiprocessing
import os
import socket
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from recon3d import batches, config, train, training
from recon3d.config import ModelConfig, Precision
from recon3d.errors import UsageError
from recon3d.model import TwoViewModel
from recon3d.train_config import TrainConfig
from recon3d.train_state import State
from recon3d.workers import Workers, join_workers

NANO = ModelConfig(
    name="nano", enc_dim=16, enc_depth=1, enc_heads=2, dec_dim=16, dec_depth=1, dec_heads=2
)
QUICK = TrainConfig(
    preset="nano",
    minutes=math.inf,  # what of it is spent must not show in the share of the budget
    pairs=20,  # three steps, the first of the matching stage
    n_procedural_textures=9,
    device="cpu",
    precision=Precision.FP32,
    compile=False,
    smooth_edges=False,
    scenes_per_step=2,
    views_per_scene=2,
    stages=((1.0, 32),),
    warmup_steps=1,
    attention_layers=(0,),
    matching_share=0.1,
    log_every_steps=1,
    probe_batches=1,
    probe_size=32,
)


def worker(rank: int, port: int, out_dir: Path) -> None:
    """Be one of two processes that torchrun would have started."""
    torch.set_num_threads(1)
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE="2",
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        GLOO_SOCKET_IFNAME="lo",
    )
    config.PRESETS["nano"] = NANO
    run = training.run

    def run_and_show(task, *others, **named) -> None:
        if rank == 1:  # a worker of another start: rank 0's must win
            torch.nn.init.ones_(task.model.decoder_embed.weight)
        run(task, *others, **named)
        save_file(task.model.state_dict(), out_dir / f"rank{rank}.safetensors")

    train.run = run_and_show
    train.train(out_dir, QUICK)


def joint_training() -> TwoViewModel:
    """Train in this process on the mean of the losses of both ranks' batches."""
    torch.manual_seed(QUICK.seed)
    model = TwoViewModel(replace(NANO, image_size=32))
    state = State(model, QUICK)
    task = train.PairTask(model, QUICK, torch.float32)
    alone = Workers(device=torch.device("cpu"))
    sources = [batches.Source(QUICK, alone.device, QUICK.seed + 1, rank) for rank in (0, 1)]
    while (progress := state.progress(QUICK)) < 1:
        shape = batches.image_shape(32, *batches.shape_of_step(QUICK.seed, state.step), 16)
        steps = [
            task.step(
                s.batch(*shape, ease=training.ease_at(QUICK, progress)),
                progress,
                s.chances(state.step),
            )
            for s in sources
        ]
        loss = torch.stack([step.loss for step in steps]).mean()
        training._update(state, loss, progress, QUICK, alone)
        state.pairs += sum(step.n_pairs for step in steps)
    return model


def test_two_processes_are_one_on_the_joint_batch(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # fork would copy this process' threads; the server imports torch once for both
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["recon3d.train"])
    processes = [context.Process(target=worker, args=(rank, port, tmp_path)) for rank in (0, 1)]
    for process in processes:
        process.start()
    expected = joint_training().state_dict()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    ranks = [load_file(tmp_path / f"rank{rank}.safetensors") for rank in (0, 1)]
    for name, tensor in expected.items():
        assert torch.equal(ranks[0][name], ranks[1][name]), name
        torch.testing.assert_close(ranks[0][name], tensor, atol=1e-6, rtol=1e-5)
    # one log, and one state that counts the pairs of both
    log = (tmp_path / "log.jsonl").read_text().splitlines()
    assert '"processes": 2' in log[0]
    assert sum("pairs_per_s" in line for line in log) == 3
    assert (tmp_path / "model.safetensors").is_file()


def test_one_process_needs_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with join_workers("cpu") as workers:
        assert (workers.rank, workers.size, workers.leads) == (0, 1, True)
        assert workers.agree(0.25) == 0.25
        parameter = torch.nn.Parameter(torch.ones(2))
        parameter.grad = torch.tensor([1.0, 2.0])
        workers.average_gradients([parameter])
        assert parameter.grad.tolist() == [1.0, 2.0]


def test_processes_do_not_share_a_named_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    fault = "2 processes cannot share the device 'cuda:1'"
    with pytest.raises(UsageError, match=fault), join_workers("cuda:1"):
        pass
