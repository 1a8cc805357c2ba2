"""Measures what a chain repeats on this machine: one duration for each distinct kind of step.

A network that does not fit here, or whose step takes too long to try, is reckoned by its operations.
"""

import io
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from math import ceil
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fewstep.chain import Chain
from fewstep.checks.data import LOOKED_AT, first_entries
from fewstep.checks.machine import processes
from fewstep.checks.memory import Design, need, operations, powers_below, speed
from fewstep.checks.plan import trainings
from fewstep.checks.rehearsal import CAPTION, Rehearsal, Run, training_step
from fewstep.checks.stopwatch import ROOM, Stopwatch
from fewstep.checks.tracing import Kind, trace
from fewstep.config.training import TrainingConfig
from fewstep.core.hardware import autocast, device, images_at_once
from fewstep.data.shards import image_of
from fewstep.preparation.filters import Duplicates
from fewstep.preparation.prepare import Prepared, examine
from fewstep.sources.sample import Sample
from fewstep.students.config import MethodConfig
from fewstep.training.checkpoint import save_state
from fewstep.training.method import Method

SAVED = 2**25
"""Bytes by which the disk's speed is measured."""
START = "import fewstep.training.loop"
"""What every stage with a network imports."""
OPEN = f"{START}; import fewstep.backbones.sd_new"
"""The same of a stage that opens the teacher, a pipeline of diffusers."""
PREPARED = 256
"""Images of the source by which preparing is measured, at most."""
MANY = 10**9
"""Rows, more than a batch has."""
SLOW = 1e10
"""Operations per second that any device reaches."""
FORWARD = 1 / 3
"""Share of a training step's operations that are the forward pass's."""


@dataclass(frozen=True)
class Rates:
    """Seconds of everything that a chain repeats. None: unknown.

    start, open: of a stage's process, without and with the teacher's pipeline. prepare, read: per image.
    step: of a training, by its name in the plan. save: of its state on disk. teacher, student: per solver
    step of an image, with the model's guidance. prompt: a prompt's conditions. encode, decode, features: per
    image.
    """

    start: float
    open: float
    prepare: float
    read: float
    step: dict[str, float | None]
    save: dict[str, float]
    teacher: float | None
    student: float | None
    prompt: float
    encode: float
    decode: float
    features: float


@dataclass(frozen=True)
class Measuring:
    """Measures the rates of a chain.

    denoiser: `design(chain)`, one and the same for all, so that it is traced once. here: the networks, with
    random weights.
    """

    chain: Chain
    denoiser: Design | None
    watch: Stopwatch
    here: Rehearsal

    def rates(self) -> Rates:
        """All of them."""
        prepare, read = self.data()
        backbone, images = self.here.backbone, min(images_at_once(), self.chain.evaluation_set.pictures)
        others = [*self.chain.models()]
        # Drawing first: the rate of what ran serves networks that do not fit or take too long.
        student = self.drawing(others[0], images) if others else None
        teacher = self.drawing("teacher", images)
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
        )

    def started(self, imports: str) -> float:
        """A process that imports this."""
        return self.watch.once(lambda: subprocess.run([sys.executable, "-c", imports], check=True))

    def data(self) -> tuple[float, float]:
        """Preparing an image, the source's part included, and reading a prepared one."""
        chain = self.chain

        def prepare() -> list[Prepared]:
            entries = first_entries(chain, PREPARED) if self.here.samples else invented(chain)
            duplicates = Duplicates()
            found = [examine(entry, chain.data, duplicates) for entry in entries]
            return [entry for entry in found if isinstance(entry, Prepared)]

        kept = prepare()
        seconds = self.watch.once(prepare)
        members = [
            {"__key__": each.key, "png": each.png, "json": each.record.model_dump_json()} for each in kept
        ]
        read = self.watch.once(lambda: [image_of(each, Path("invented")) for each in members])
        return seconds / max(len(members), 1), read / max(len(members), 1)

    def steps(self) -> Iterator[tuple[str, float | None]]:
        """A step of every training, by its name in the plan; trainings of one design share a measurement."""
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
        known: dict[str, float | None] = {}
        for name, model in chain.models().items():
            like = f"{model.method} {distinct(model.config)}"
            if like not in known:
                known[like] = self.student_step(name, model.config.training)
            yield name, known[like]

    def run(self, method: Method, training: TrainingConfig) -> Run:
        """A training's step."""
        return training_step(method, training, self.here.folder)

    def student_step(self, name: str, training: TrainingConfig) -> float | None:
        """A step of a student's training; None while the teacher is unknown."""
        denoiser, rows = self.denoiser, rows_of(training)
        if denoiser is None:
            return None
        count = operations(denoiser, trainings(self.chain)[name], rows)
        fitting = self.fitting(name)
        if self.here.backbone is None or not fitting or self.takes_long(count, rows):
            return count / self.rate if count else None
        return self.watch.batch(self.run(self.here.student_training(name), training), rows, fitting)

    def fitting(self, name: str) -> int:
        """Rows of a step that the free memory holds; 0: not one."""
        denoiser, setup = self.denoiser, trainings(self.chain)[name]
        assert denoiser is not None
        for rows in (setup.rows, *powers_below(setup.rows)):
            if need(denoiser, replace(setup, rows=rows)).total <= ROOM * self.watch.memory():
                # Micro-batches that fit make a step of any size.
                return rows if rows < setup.rows else MANY
        return 0

    def drawing(self, name: str, rows: int) -> float | None:
        """A solver step of one image."""
        denoiser = self.denoiser
        if denoiser is None:
            return None
        count = self.evaluation(denoiser, name)
        if self.here.backbone is None or self.takes_long(count, 1):
            return count / self.rate if count else None
        return self.watch.batch(self.here.drawing(name), rows) / rows

    def evaluation(self, denoiser: Design, name: str) -> float | None:
        """Operations of one solver step of one image."""
        kind = next((setup.kind for setup in trainings(self.chain).values()), Kind("adamw"))
        count = trace(denoiser, replace(kind, lora=None, checkpointed=False)).operations
        guided = name == "teacher" and self.chain.sampling.guidance != 1
        return FORWARD * count * (1 + guided) if count else None

    def takes_long(self, count: float | None, rows: int) -> bool:
        """Whether one sample of so many operations in all would take much of the budget."""
        longest, each = self.watch.budget / 4, (count or 0) / rows
        return each > longest * SLOW and each > longest * self.best

    @cached_property
    def best(self) -> float:
        """The device's operations per second, at best."""
        return speed()

    @cached_property
    def rate(self) -> float:
        """Operations per second of the denoiser, where one sample of it could be drawn; else the best."""
        denoiser = self.denoiser
        count = self.evaluation(denoiser, "student") if denoiser else None
        others = [*self.chain.models()]
        if self.here.backbone is None or not others or not count or self.takes_long(count, 1):
            return self.best
        run = self.here.drawing(others[0])
        return count / self.watch.once(lambda: run(1))

    @cached_property
    def saving(self) -> float:
        """Seconds to write a byte of a training's state."""
        tensors = {"x": torch.zeros(SAVED // 4)}
        return self.watch.several(lambda: save_state(self.here.folder / "saved", 1, tensors)) / SAVED

    def state_bytes(self, name: str) -> int:
        """Of a training's state on disk; that of networks beside the denoiser is small."""
        denoiser, setups = self.denoiser, trainings(self.chain)
        return need(denoiser, setups[name]).state if denoiser and name in setups else 0

    def each(self, run: Run, rows: int) -> float:
        """Seconds of one row of a forward pass."""

        def forward(n: int) -> object:
            with torch.no_grad(), autocast():
                return run(n)

        return self.watch.batch(forward, rows) / rows

    def pixels(self, n: int) -> Tensor:
        """Gray images."""
        side = self.chain.data.resolution
        return torch.zeros(n, 3, side, side, device=device())

    def noise(self, n: int) -> Tensor:
        """Latents."""
        assert self.here.backbone is not None
        return torch.randn(n, *self.here.backbone.latent_shape, device=device())


def rows_of(training: TrainingConfig) -> int:
    """A step's samples in one process."""
    return ceil(training.batch_size / processes())


def distinct(config: MethodConfig) -> str:
    """What a step of a training depends on: nothing of rates, decays, lengths or the model it starts from."""
    training = {"steps", "learning_rate", "warmup", "decay", "betas", "weight_decay", "clip"}
    training |= {"evaluate_every", "keep", "measure"}
    return repr(config.model_dump(exclude={"from_": True, "training": training}))


def invented(chain: Chain) -> list[Sample]:
    """Photographs of noise, half as large again, for a source that would have to be fetched."""
    side = chain.data.resolution * 3 // 2
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG")
    return [Sample("invented", file.getvalue(), f"{CAPTION} {i}") for i in range(LOOKED_AT)]
