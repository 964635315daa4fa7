"""Repeat the figures of one GPU and train there: `python benchmarks/one_gpu.py -o out --minutes 9`.

Every command of a step is a process of its own with a time limit: one that fails or hangs ends no
other. The steps, in this order, of which `--steps` chooses:

check       what the machine has
rows        the rows of the README that are about a GPU
throughput  speed and memory of training with plain and with compiled blocks
train       `recon3d train` for the time that is left, in the fastest way that `throughput` found;
            without that, with plain blocks, for compiling them takes a minute
resume      go on with the training that is in `--work`, after a `train` that ended before
judge       the new weights and the packaged ones on the same held-out pairs

The folder of `--output` gets few files, as they come about: summary.jsonl (a line a command),
steps.log (all that they wrote), train.jsonl (the log of the training), and the weights, renewed
whenever the training writes them: model.json, and model.safetensors in pieces of at most 15 MiB,
which `cat model.safetensors.? > model.safetensors` joins. All else, the state to resume from too,
is in `--work`. `--rehearse` runs all of it in a minute on a processor, for its faults, not figures.
"""

import argparse
import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PIECE_BYTES = 15 * 2**20
JUDGED_S = 45.0
"""What is kept from the training for judging the weights."""
WORTH_S = 60.0
"""A training is not tried again for less."""
GRACE_S = 20.0
"""For writing weights after SIGTERM, before the process is killed."""


class Session:
    """Runs commands within a time that they share, and writes down what came of each."""

    def __init__(self, output: Path, minutes: float) -> None:
        self.output, self.ends = output, time.monotonic() + 60 * minutes
        output.mkdir(parents=True, exist_ok=True)
        paths = (str(HERE.parent / "src"), os.environ.get("PYTHONPATH", ""))
        self.environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            "PYTHONUNBUFFERED": "1",
        }

    def left_s(self) -> float:
        """Return the seconds that are left."""
        return self.ends - time.monotonic()

    def run(
        self,
        name: str,
        arguments: list[str],
        limit_s: float,
        meanwhile: Callable[[], None] = lambda: None,
    ) -> list[dict[str, Any]] | None:
        """Run Python with the arguments; return its lines of JSON, or None where it failed.

        `meanwhile` is called every second, and once at the end.
        """
        limit_s = min(limit_s, self.left_s() - GRACE_S)
        if limit_s <= 0:
            self._say({"step": name, "skipped": "no time is left"})
            return None
        began, timed_out = time.monotonic(), False
        with (self.output / "steps.log").open("a+") as log:
            log.write(f"\n== {name}: {shlex.join(arguments)}\n")
            log.flush()
            start = log.tell()
            process = subprocess.Popen(
                [sys.executable, *arguments],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self.environment,
                start_new_session=True,
            )
            try:
                while process.poll() is None and time.monotonic() - began < limit_s + GRACE_S:
                    if not timed_out and time.monotonic() - began > limit_s:
                        timed_out = True
                        process.terminate()
                    meanwhile()
                    time.sleep(min(1.0, limit_s / 10))
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)  # what it started, too
                process.wait()
            log.seek(start)
            figures = [json.loads(line) for line in log if line.startswith('{"')]
        meanwhile()
        exit_code, took_s = process.returncode, round(time.monotonic() - began, 1)
        record = {"step": name, "exit": exit_code, "timed_out": timed_out, "seconds": took_s}
        self._say(record | {"figures": figures})
        return None if exit_code else figures

    def _say(self, record: dict[str, Any]) -> None:
        line = json.dumps(record)
        print(line, flush=True)
        with (self.output / "summary.jsonl").open("a") as file:
            file.write(line + "\n")


class Courier:
    """Copies log and weights of a training to where they are kept, whenever they are new."""

    def __init__(self, training: Path, output: Path) -> None:
        self.training, self.output, self.seen_ns = training, output, 0

    def __call__(self) -> None:
        """Look and copy."""
        log, weights = (self.training / name for name in ("log.jsonl", "model.safetensors"))
        config = weights.with_suffix(".json")
        if log.is_file():
            (self.output / "train.jsonl").write_bytes(log.read_bytes())
        if not (weights.is_file() and config.is_file()):
            return
        when_ns = weights.stat().st_mtime_ns
        if when_ns != self.seen_ns:
            self.seen_ns = when_ns
            (self.output / config.name).write_bytes(config.read_bytes())
            data = weights.read_bytes()
            for number, place in enumerate(range(0, len(data), PIECE_BYTES)):
                piece = data[place : place + PIECE_BYTES]
                (self.output / f"{weights.name}.{number}").write_bytes(piece)


def check(session: Session, options: argparse.Namespace) -> None:
    """Say what the machine has."""
    session.run("check", ["-m", "recon3d", "doctor"], 60)


def rows(session: Session, options: argparse.Namespace) -> None:
    """Repeat the rows of the README."""
    large, tiny, whole = "--preset large --pairs 496", "--preset tiny --pairs 2016", "--photos 32"
    tiny += " --size 224x224"
    if options.rehearse:
        small = "--preset tiny --size 64x48"
        large, tiny, whole = f"{small} --pairs 3", f"{small} --pairs 1", f"{small} --photos 4"
    for name, given in (("prediction", large), ("prediction", tiny), ("whole", whole)):
        arguments = [str(HERE / f"{name}.py"), *given.split(), "--device", options.device]
        session.run(f"{name} {given}", arguments, 120)


def throughput(session: Session, options: argparse.Namespace) -> None:
    """Measure training in its ways, and note the best; with half the scenes where none works."""
    half = max(1, options.scenes // 2)
    chosen: tuple[int, list[str]] = (half, ["--no-compile"])
    for scenes in (options.scenes, half):
        found: list[tuple[float, list[str]]] = []
        for way in (["--no-compile"],) if options.rehearse else ([], ["--compile-network"]):
            arguments = [str(HERE / "training.py"), "--preset", options.preset, *way]
            arguments += ["--device", options.device, "--scenes", str(scenes)]
            arguments += ["--views", str(options.views), "--sizes", options.stages.split(":")[-1]]
            arguments += ["--steps", "2" if options.rehearse else "20", "--profile"]
            figures = session.run(" ".join(("throughput", str(scenes), *way)), arguments, 200)
            if figures:
                found.append((figures[-1]["pairs_per_s"], way))
        if found:
            chosen = (scenes, max(found)[1])
            break
    (options.work / "way.json").write_text(json.dumps(chosen))


def train(session: Session, options: argparse.Namespace, *, resume: bool = False) -> None:
    """Train for the time that is left; again, with half the scenes and plain, where it failed."""
    most, way = options.scenes, ["--no-compile"] if options.rehearse else []
    if (options.work / "way.json").is_file():
        most, way = json.loads((options.work / "way.json").read_text())
    folder = options.work / "train"
    reserved_s = 2 * GRACE_S + (JUDGED_S if "judge" in options.steps else 0.0)
    plain = [option for option in way if option != "--compile-network"]
    for scenes, given in ((most, way), (max(1, most // 2), plain)):
        limit_s = 2.0 if options.rehearse else max(1.0, session.left_s() - reserved_s)
        minutes = options.train_minutes or limit_s / 60
        arguments = ["-m", "recon3d", "train", "-o", str(folder), "--preset", options.preset]
        arguments += ["--device", options.device, "--stages", options.stages, *given]
        arguments += ["--batch-scenes", str(scenes), "--views", str(options.views)]
        arguments += ["--minutes", f"{minutes:.3f}", "--stop-after", f"{limit_s / 60:.3f}"]
        arguments += ["--textures", options.textures] if options.textures else []
        arguments += [*shlex.split(options.train_options), "--resume" if resume else "--overwrite"]
        courier = Courier(folder, options.output)
        limit_s = 60.0 if options.rehearse else limit_s + GRACE_S
        done = session.run("resume" if resume else "train", arguments, limit_s, courier)
        if done is not None or session.left_s() < reserved_s + WORTH_S:
            return
        resume = resume or (folder / "state.safetensors").is_file()


def judge(session: Session, options: argparse.Namespace) -> None:
    """Compare the new weights with the packaged ones."""
    weights = ["embedded", str(options.work / "train" / "model.safetensors")]
    arguments = [str(HERE / "held_out.py"), *weights, "--device", options.device, "--size"]
    arguments += ["48", "--batches", "1", "--no-compile"] if options.rehearse else ["224"]
    arguments += ["--textures", options.textures] if options.textures else []
    session.run("judge", arguments, 90)


STEPS: dict[str, Callable[[Session, argparse.Namespace], None]] = {
    "check": check,
    "rows": rows,
    "throughput": throughput,
    "train": train,
    "resume": lambda session, options: train(session, options, resume=True),
    "judge": judge,
}


def main() -> None:
    """Run the steps."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("-o", "--output", type=Path, required=True, help="what is to be kept")
    parser.add_argument("--work", type=Path, default=Path("runs/one_gpu"), help="all else")
    parser.add_argument("--minutes", type=float, default=9.0, help="of all steps together")
    parser.add_argument("--steps", default="check,rows,throughput,train,judge")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--preset", default="small")
    parser.add_argument("--scenes", type=int, default=48, help="scenes of a batch")
    parser.add_argument("--views", type=int, default=4, help="views of a scene")
    parser.add_argument("--stages", default="1:224", help="as of recon3d train")
    parser.add_argument("--textures", help="folder of photos used as textures")
    parser.add_argument("--train-minutes", type=float, help="budget of all pieces of the training")
    parser.add_argument("--train-options", default="", help="more options of recon3d train")
    parser.add_argument("--rehearse", action="store_true", help="tiny, on a processor")
    options = parser.parse_args()
    if options.rehearse:
        rehearsed = dict(steps=",".join(STEPS), device="cpu", preset="tiny", stages="1:48")
        vars(options).update(rehearsed, scenes=1, views=2, train_minutes=10.0)
    options.steps = options.steps.split(",")
    if unknown := set(options.steps) - set(STEPS):
        parser.error(f"unknown steps: {', '.join(sorted(unknown))}")
    options.work.mkdir(parents=True, exist_ok=True)
    session = Session(options.output, options.minutes)
    for name, step in STEPS.items():
        if name in options.steps:
            step(session, options)


if __name__ == "__main__":
    main()
