"""Measures how long a chain's repeated operations take on this machine, one duration per distinct kind.

Where a network does not fit into memory, or a step takes too long to measure, the duration is estimated from
the number of floating-point operations.
"""

import io
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from math import ceil
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fewstep.chain import Chain
from fewstep.checks.data import LOOKED_AT, first_entries
from fewstep.checks.designs import TEACHER, Networks, designs, is_guided, networks
from fewstep.checks.machine import processes
from fewstep.checks.memory import Design, need, operations, powers_below, speed
from fewstep.checks.plan import trainings
from fewstep.checks.rates import Rates
from fewstep.checks.rehearsal import CAPTION, Rehearsal, Run, training_step
from fewstep.checks.states import saved
from fewstep.checks.stopwatch import ROOM, Stopwatch
from fewstep.checks.tracing import Kind, trace
from fewstep.config.sampling import SamplingConfig
from fewstep.config.training import TrainingConfig
from fewstep.core.hardware import autocast, device, images_at_once
from fewstep.core.quiet import BEGAN_IN
from fewstep.core.switches import switch
from fewstep.data.shards import image_of
from fewstep.preparation.examine import Prepared, examine
from fewstep.sampling.draw import Sampler
from fewstep.sources.sample import Sample
from fewstep.students.config import MethodConfig
from fewstep.training.checkpoint import save_state
from fewstep.training.method import Method

SAVED = 2**25
"""Bytes that are written to measure the disk's speed."""
START = "import fewstep.training.loop"
"""What every stage with a network imports."""
OPEN = f"{START}; import fewstep.backbones.sd_new"
"""What a stage imports that opens the teacher, a diffusers pipeline."""
PREPARED = 256
"""Maximum number of source images on which preparing is measured."""
MANY = 10**9
"""A number of samples larger than any batch."""
SLOW = 1e10
"""Operations per second that any device reaches."""
FORWARD = 1 / 3
"""Share of the forward pass in a training step's operations."""


@dataclass(frozen=True)
class Measuring:
    """Measures the rates of a chain.

    denoiser: `design(chain)`, the same object everywhere, so that it is traced once. here: the networks,
    with random weights.
    """

    chain: Chain
    denoiser: Design | None
    watch: Stopwatch
    here: Rehearsal

    def rates(self) -> Rates:
        """Measure all rates."""
        prepare, read = self.data()
        backbone, images = self.here.backbone, min(images_at_once(), self.chain.evaluation_set.pictures)
        # Drawing is measured first: networks that do not fit or take too long are estimated from its rate.
        student = self.students(images)
        teacher = self.drawing(TEACHER, images)
        prompt = encode = decode = features = 0.0
        if backbone is not None:
            prompt = self.each(lambda n: backbone.encode_prompts([CAPTION] * n), images)
            encode = self.each(lambda n: backbone.encode(self.pixels(n)), images)
            decode = self.each(lambda n: backbone.decode(self.noise(n)), images)
            network = self.here.features()
            features = self.each(lambda n: network.features(self.pixels(n)), images)
        steps = dict(self.steps())
        saves = {name: self.saving * self.state_bytes(name) for name in steps}
        return Rates(
            start=self.started(START),
            open=self.started(OPEN),
            prepare=prepare,
            read=read,
            step=steps,
            save=saves,
            teacher=teacher,
            student=student,
            prompt=prompt,
            encode=encode,
            decode=decode,
            features=features,
            share=self.share,
        )

    def share(self, model: str, sampling: SamplingConfig) -> float:
        """`Rates.share`; 1 where the teacher is unknown."""
        backbone = self.here.backbone
        if backbone is None or sampling.guidance_interval is None:
            return 1.0
        sampler = Sampler(self.here.model(model), backbone, sampling)
        most = 2 * sampling.steps if sampler.doubled else sampling.steps
        return sampler.evaluations(sampling.steps) / most

    def started(self, imports: str) -> float:
        """Seconds of a script that imports this."""
        python = switch("PYTHON", sys.executable)
        with TemporaryDirectory() as folder:
            script = Path(folder, "start.py")
            script.write_text(imports)
            return self.watch.once(lambda: subprocess.run([python, script], env=BEGAN_IN or None, check=True))

    def data(self) -> tuple[float, float]:
        """Seconds per image of preparing it, reading the source included, and of reading a prepared one."""
        chain = self.chain

        def prepare() -> list[Prepared]:
            entries = first_entries(chain, PREPARED) if self.here.samples else invented(chain)
            examined = [examine(entry, chain.data) for entry in entries]
            return [entry for entry in examined if isinstance(entry, Prepared)]

        kept = prepare()
        seconds = self.watch.once(prepare)
        members = [
            {"__key__": each.digest.hex(), "png": each.png, "json": each.record.json_bytes()} for each in kept
        ]
        read = self.watch.once(lambda: [image_of(each, Path("invented")) for each in members])
        return seconds / max(len(members), 1), read / max(len(members), 1)

    def steps(self) -> Iterator[tuple[str, float | None]]:
        """(name in the plan, seconds per step) of every training; equal kinds of steps are measured once."""
        chain, here = self.chain, self.here
        if chain.judge.train and chain.train_judge:
            training = chain.train_judge.training
            yield (
                "train_judge",
                self.watch.batch(self.run(here.classifier_training(), training), rows_of(training)),
            )
        if chain.teacher.train and chain.train_teacher:
            training = chain.train_teacher.vae.training
            run = self.run(here.vae_training(), training)
            yield "train_teacher, autoencoder", self.watch.batch(run, rows_of(training))
            name, training = "train_teacher, denoiser", chain.train_teacher.training
            run = self.run(here.teacher_training(), training)
            yield name, self.watch.batch(run, rows_of(training), max(self.fitting(name), 1))
        known: dict[object, float | None] = {}
        for name, model in chain.models().items():
            if model.training is None:
                continue
            like = (model.method, distinct(model.config), self.networks(name))
            if like not in known:
                known[like] = self.student_step(name, model.training)
            yield name, known[like]

    def run(self, method: Method, training: TrainingConfig) -> Run:
        """A training step, as a function of the number of samples."""
        return training_step(method, training, self.here.folder)

    def student_step(self, name: str, training: TrainingConfig) -> float | None:
        """Seconds of a step of a student's training; None while the teacher is unknown."""
        rows, nets = rows_of(training), self.networks(name)
        if nets is None:
            return None
        setup = trainings(self.chain).get(name)
        count = operations(nets.net, setup, rows) if setup else None
        fitting = self.fitting(name) if setup else MANY
        if self.here.backbone is None or not fitting or self.takes_long(count, rows):
            return count / self.rate if count else None
        return self.watch.batch(self.run(self.here.student_training(name), training), rows, fitting)

    def fitting(self, name: str) -> int:
        """Samples of a step that fit into the free memory; 0: not even one."""
        nets, setup = self.networks(name), trainings(self.chain)[name]
        assert nets is not None
        for rows in (setup.rows, *powers_below(setup.rows)):
            needed = need(nets.net, replace(setup, rows=rows), nets.start, nets.teacher)
            if needed.total <= ROOM * self.watch.memory():
                # If a full micro-batch fits, so does a step of any size.
                return rows if rows < setup.rows else MANY
        return 0

    @cached_property
    def designs(self) -> dict[str, Design]:
        """Model -> its network; empty while the teacher is unknown."""
        return designs(self.chain, self.denoiser) if self.denoiser else {}

    def networks(self, name: str) -> Networks | None:
        """Networks of a training; None while the teacher is unknown."""
        return networks(self.chain, self.designs, name) if self.designs else None

    def students(self, rows: int) -> dict[str, float | None]:
        """`drawing` of every student; those of one network with the same guidance are measured once."""
        known: dict[object, float | None] = {}
        seconds = {}
        for name in self.chain.models():
            like = (self.designs.get(name), is_guided(self.chain, name))
            if like not in known:
                known[like] = self.drawing(name, rows)
            seconds[name] = known[like]
        return seconds

    def drawing(self, name: str, rows: int) -> float | None:
        """Seconds of one solver step of one image; None where they are unknown."""
        if not self.designs:
            return None
        count = self.evaluation(name)
        if self.here.backbone is None or self.takes_long(count, 1):
            return count / self.rate if count else None
        return self.watch.batch(self.here.drawing(name), rows) / rows

    def evaluation(self, name: str) -> float | None:
        """Operations of one solver step of one image."""
        kind = next((setup.kind for setup in trainings(self.chain).values()), Kind("adamw"))
        count = trace(self.designs[name], replace(kind, lora=None, checkpointed=False)).operations
        return FORWARD * count * (1 + is_guided(self.chain, name)) if count else None

    def takes_long(self, count: float | None, rows: int) -> bool:
        """Whether one of `rows` samples, with `count` operations in all, would take much of the budget."""
        longest, each = self.watch.budget / 4, (count or 0) / rows
        return each > longest * SLOW and each > longest * self.best

    @cached_property
    def best(self) -> float:
        """The device's operations per second, at best."""
        return speed()

    @cached_property
    def rate(self) -> float:
        """Operations per second of the denoiser, measured on one sample where possible; else `best`."""
        name = next(iter(self.chain.models()), None)
        count = self.evaluation(name) if name and self.designs else None
        if self.here.backbone is None or not name or not count or self.takes_long(count, 1):
            return self.best
        run = self.here.drawing(name)
        return count / self.watch.once(lambda: run(1))

    @cached_property
    def saving(self) -> float:
        """Seconds to write a byte of a training's state."""
        tensors = {"x": torch.zeros(SAVED // 4)}
        return self.watch.several(lambda: save_state(self.here.folder / "saved", 1, tensors)) / SAVED

    def state_bytes(self, name: str) -> int:
        """Bytes of a training's state on disk; networks beside the denoiser are small and not counted."""
        nets, setup = self.networks(name), trainings(self.chain).get(name)
        return saved(nets.net, setup, nets.teacher) if nets and setup else 0

    def each(self, run: Run, rows: int) -> float:
        """Seconds per sample of a forward pass."""

        def forward(n: int) -> object:
            with torch.no_grad(), autocast():
                return run(n)

        return self.watch.batch(forward, rows) / rows

    def pixels(self, n: int) -> Tensor:
        """Gray images."""
        return torch.zeros(n, 3, *[self.chain.data.resolution] * 2, device=device())

    def noise(self, n: int) -> Tensor:
        """Latents."""
        assert self.here.backbone is not None
        return torch.randn(n, *self.here.backbone.latent_shape, device=device())


def rows_of(training: TrainingConfig) -> int:
    """Samples per step in one process."""
    return ceil(training.batch_size / processes())


def distinct(config: MethodConfig) -> str:
    """Settings that a step's duration depends on: all except rates, decays, lengths and the start model."""
    training = {"steps", "learning_rate", "warmup", "decay", "betas", "weight_decay", "clip"}
    training |= {"evaluate_every", "keep", "measure"}
    return repr(config.model_dump(exclude={"from_": True, "training": training}))


def invented(chain: Chain) -> list[Sample]:
    """JPEG images of noise at 1.5 times the resolution, for a source that would have to be downloaded."""
    side = chain.data.resolution * 3 // 2
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG")
    return [Sample("invented", file.getvalue(), f"{CAPTION} {i}") for i in range(LOOKED_AT)]
