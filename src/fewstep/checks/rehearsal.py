"""The chain's own methods and samplers on random weights and invented data, to be timed.

Everything that runs is what the stages run: `training/state.py` and `training/loop.py`'s `advance`, the
methods, `sampling/draw.py`, the autoencoder and the classifier. Only the data streams are synthetic.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from fewstep.artifacts.manifest import Manifest
from fewstep.backbones.model import Model
from fewstep.backbones.protocol import Backbone
from fewstep.backbones.sd_new import NewStableDiffusion
from fewstep.chain import Chain
from fewstep.checks.data import first_entries
from fewstep.checks.memory import Design
from fewstep.checks.untrained import untrained
from fewstep.config.training import TrainingConfig
from fewstep.core.files import whole_folder
from fewstep.core.hardware import device
from fewstep.core.keyed import Key
from fewstep.core.paths import JUDGE, TEACHER
from fewstep.data.latents import Latent
from fewstep.data.prompted import Prompted
from fewstep.data.shards import ImageRecord
from fewstep.data.stream import Stream
from fewstep.data.triplets import Triplet
from fewstep.diffusion.denoiser import GUIDANCE, Conditions, Denoiser
from fewstep.diffusion.sampling import TEACHERS
from fewstep.features.attribute_classifier import AttributeClassifier
from fewstep.features.autoencoder import AutoencoderFeatures
from fewstep.features.network import FeatureNetwork, open_features
from fewstep.pretraining.autoencoder import Vae
from fewstep.pretraining.classifier import ClassifierTraining
from fewstep.pretraining.teacher import Teacher
from fewstep.sampling.draw import Sampler
from fewstep.sources.sample import Sample
from fewstep.students.context import Context
from fewstep.students.learn import method_module
from fewstep.students.start import start_and_student, with_net
from fewstep.training.loop import advance
from fewstep.training.method import Method
from fewstep.training.state import State

SAMPLES = 64
"""Invented samples, which batches repeat."""
PHASES = 3
"""Number of points of a training at which a step is timed: a method may change its loss during training."""
CAPTION = "an image without a caption"

Run = Callable[[int], object]
"""What is timed: called with a number of samples."""


@dataclass(frozen=True)
class Invented(Context):
    """A method's context with synthetic triplets and encoded images; own_teacher: the chain's teacher."""

    own_teacher: Model = field(kw_only=True)

    @cached_property
    def teacher(self) -> Model:
        return self.own_teacher

    @cached_property
    def prompted(self) -> list[Prompted]:
        """Latents of noise, with conditions of the right shapes."""
        with torch.no_grad():
            conditions = self.backbone.encode_prompts([CAPTION])
        table = {name: value[0].float().cpu() for name, value in conditions.items()}
        if self.student.takes_guidance:
            table[GUIDANCE] = torch.tensor(1.0)
        return [Prompted(torch.randn(self.backbone.latent_shape), table) for _ in range(SAMPLES)]

    @cached_property
    def triplets(self) -> Stream[Triplet]:
        return invented([Triplet(i, end) for i, end in enumerate(self.prompted)])

    @cached_property
    def real(self) -> Stream[Prompted]:
        return invented(self.prompted)


@dataclass(frozen=True)
class Rehearsal:
    """The networks and trainings of a chain whose teacher has random weights.

    folder: where artifacts that a loss opens are written. backbone: None while a foreign teacher is unknown.
    Trainings and samplers round frozen weights in place (`training/half.py`). The next training begins in
    float32 again, as in a stage of its own.
    """

    chain: Chain
    folder: Path
    backbone: Backbone | None

    @cached_property
    def samples(self) -> list[Sample]:
        """The first samples of the source; none for a URL, which would have to be downloaded."""
        return samples_of(self.chain)

    @cached_property
    def images(self) -> Stream[ImageRecord]:
        """Noise images with captions and labels of the source."""
        side = self.chain.data.resolution
        some = self.samples or [Sample("invented", b"", CAPTION)]
        pixels = np.random.default_rng(0).integers(0, 256, (SAMPLES, side, side, 3), np.uint8)
        rows = []
        for i in range(SAMPLES):
            sample = some[i % len(some)]
            caption = sample.caption or CAPTION
            rows.append(ImageRecord(str(i), pixels[i], caption, sample.labels, sample.hidden))
        return invented(rows)

    @property
    def teacher(self) -> Model:
        """The teacher, sampled along its own schedule."""
        assert self.backbone is not None
        backbone = self.backbone
        denoiser = Denoiser(
            backbone.network(backbone.net), backbone.schedule, backbone.prediction, backbone.schedule
        )
        return Model("teacher", backbone.net, denoiser, None, TEACHERS)

    def model(self, name: str) -> Model:
        """A model of the chain, with the path and the step count that it will have."""
        if name == "teacher":
            return self.teacher
        assert self.backbone is not None
        made = self.chain.models()[name]
        config, start = made.config, self.model(made.config.from_)
        inputs = start.denoiser.inputs  # without those that the method adds
        student = with_net(start, config.network(start.net), self.backbone, inputs)
        student = method_module(made.method).student_of(config, student)
        sampling = config.sampling(start.sampling, inputs)
        return replace(cast(Model, student), name=name, sampling=sampling)

    @cached_property
    def judge(self) -> AttributeClassifier:
        """The classifier of the samples' attributes."""
        config = self.chain.train_judge
        assert config is not None
        observed: dict[str, set[str]] = {}
        for sample in self.samples:
            for name, value in {**(sample.labels or {}), **(sample.hidden or {})}.items():
                observed.setdefault(name, {"", "other"}).add(value)
        labels = {
            name: tuple(sorted(values)) for name, values in (observed or {"label": {"", "other"}}).items()
        }
        return AttributeClassifier(labels, config.widths, config.feature_dim)

    @cached_property
    def features_path(self) -> Path:
        """Where a loss or an evaluation opens the feature network."""
        path = self.chain.features
        if path == JUDGE:
            self.judge.save(self.folder / "judge", self.chain.data.resolution, {})
            return self.folder / "judge"
        if path == TEACHER:
            with whole_folder(self.folder / "teacher") as staging:
                cast(Any, self.backbone).vae.save_pretrained(staging / "vae")
                Manifest.seal(staging, "teacher", {}, {})
            return self.folder / "teacher"
        return path

    def features(self) -> FeatureNetwork:
        """The network in whose features images are compared."""
        if self.chain.features == TEACHER:
            return AutoencoderFeatures(cast(Any, self.backbone).vae.encoder)
        return open_features(self.features_path).to(device())

    def classifier_training(self) -> Method:
        """The training of `train_judge`."""
        assert self.chain.train_judge is not None
        return ClassifierTraining(self.judge, self.chain.train_judge, self.images, self.chain.seed)

    def vae_training(self) -> Method:
        """The training of the autoencoder of `train_teacher`."""
        assert self.chain.train_teacher is not None
        vae = cast(Any, self.backbone).vae.float()
        return Vae(vae, self.chain.train_teacher.vae, self.images, self.chain.seed)

    def teacher_training(self) -> Method:
        """The training of the denoiser of `train_teacher`."""
        assert isinstance(self.backbone, NewStableDiffusion) and self.chain.train_teacher is not None
        rows = self.images.rows(range(SAMPLES))
        latents = [Latent(torch.randn(self.backbone.latent_shape), row.caption) for row in rows]
        self.backbone.net.float()
        return Teacher(self.backbone, self.chain.train_teacher, invented(latents), self.chain.seed)

    def student_training(self, name: str) -> Method:
        """A student's training from its start model, which is not modified."""
        assert self.backbone is not None
        self.backbone.net.float()
        chain, made = self.chain, self.chain.models()[name]
        config = made.config
        start, student = start_and_student(self.model(config.from_), name, self.backbone, config, chain.seed)
        features = self.features_path if config.needs_feature_maps else None
        context = Invented(
            name, chain.seed, start, student, self.backbone, (), features, None, own_teacher=self.teacher
        )
        module = method_module(made.method)
        method: Method = module.METHOD(config, context, module.student_of(config, student))
        return method

    def drawing(self, name: str) -> Run:
        """One solver step of a model, drawing the noise included, as a function of the number of samples.

        With guidance, if the model has it; `Measuring.share` counts the steps that the interval leaves out.
        """
        assert self.backbone is not None
        backbone = self.backbone
        sampling = self.chain.sampling.model_copy(update={"guidance_interval": None})
        sampler = Sampler(self.model(name), backbone, sampling)
        with torch.no_grad():
            one = backbone.encode_prompts([CAPTION])

        def run(rows: int) -> Tensor:
            noise = torch.from_numpy(Key(0, "forecast").normal(range(rows), backbone.latent_shape))
            conditions: Conditions = {k: v.expand(rows, *v.shape[1:]).contiguous() for k, v in one.items()}
            return sampler.latents(conditions, noise.to(device()), 1)

        return run


def training_step(method: Method, training: TrainingConfig, folder: Path) -> Run:
    """A function that takes one real training step; calls cycle through PHASES points of the training.

    Calls at one point take consecutive steps: a group may be updated at every third step only.
    """
    state = State(method, folder)
    places = [training.steps * (2 * k + 1) // (2 * PHASES) for k in range(PHASES)]
    calls = 0

    def run(rows: int) -> object:
        nonlocal calls
        state.step = min(places[calls % PHASES] + calls // PHASES, training.steps - 1)
        calls += 1
        return advance(state, "forecast", 0, rows)

    return run


def rehearsal(chain: Chain, denoiser: Design | None, folder: Path, memory: int) -> Rehearsal:
    """The chain's teacher on the device.

    denoiser: `design(chain)`. folder: see `Rehearsal`. memory: bytes that its networks may fill.
    """
    captions = [sample.caption or CAPTION for sample in samples_of(chain)] or [CAPTION]
    return Rehearsal(chain, folder, untrained(chain, denoiser, captions, memory))


def samples_of(chain: Chain) -> list[Sample]:
    """The first samples of the source; none for a URL, which would have to be downloaded."""
    source = import_module(f"fewstep.sources.{chain.data.source}")
    if chain.data.source != "shapes" and not source.inputs(chain.data):
        return []
    return [entry for entry in first_entries(chain) if isinstance(entry, Sample)]


def invented(rows: Sequence[Any]) -> Stream[Any]:
    """A stream that repeats these rows."""
    return Stream([len(rows)], lambda _: rows, Key(0, "forecast"))


@contextmanager
def uncompiled() -> Iterator[None]:
    """Disables compilation of networks inside the context: compilation alone would take minutes."""
    backend = os.environ.pop("FEWSTEP_COMPILE", None)
    try:
        yield
    finally:
        if backend is not None:
            os.environ["FEWSTEP_COMPILE"] = backend
