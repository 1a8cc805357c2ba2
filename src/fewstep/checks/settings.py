"""Checks that params.yaml fits the teacher: resolution, features, timesteps, layers and exports."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch

from fewstep.backbones.configurations import CONFIG, read_object
from fewstep.backbones.model import Model
from fewstep.backbones.pipeline import schedule_of
from fewstep.backbones.registry import family
from fewstep.chain import Chain, ChainModel, ancestors
from fewstep.checks.data import images_of
from fewstep.checks.designs import TEACHER as TEACHER_NAME
from fewstep.checks.teacher import Known, design, known_teacher
from fewstep.checks.tracing import on_meta
from fewstep.core.errors import UserError
from fewstep.core.paths import JUDGE, TEACHER
from fewstep.diffusion.denoiser import Denoiser
from fewstep.diffusion.sampling import TEACHERS
from fewstep.export.sampling import demand_stock_pipeline, stock_sampling
from fewstep.features import inception, lpips
from fewstep.features.network import opener
from fewstep.students.learn import method_module
from fewstep.students.start import inputs_of
from fewstep.training.lora import is_in

PUBLISHED_WIDTH = 512
"""Feature width of every published AutoencoderKL, assumed while the teacher's own is unknown."""
SPLIT_ERROR = 0.2
"""Relative tolerance of the held-out share: the split is by hash, so the share is only approximate."""
PIXELS = ("pixel", "custom")
"""Families that may have no autoencoder."""


def faults(chain: Chain) -> Iterator[str]:
    """Settings that some stage would refuse, perhaps after days."""
    known = known_teacher(chain)
    for fault in (
        *resolution(chain, known),
        *held_out(chain),
        *features(chain, known),
        *steps(chain, known),
        *layers(chain),
        *starts(chain, known),
        *exports(chain, known),
    ):
        yield f"params.yaml: {fault}"


def resolution(chain: Chain, known: Known) -> Iterator[str]:
    """Images must have the teacher's resolution, since they are compared with its images pixel for pixel."""
    if known.resolution is not None and known.resolution != chain.data.resolution:
        yield f"data.resolution = {chain.data.resolution}: this teacher draws at {known.resolution}"


def held_out(chain: Chain) -> Iterator[str]:
    """There must be enough held-out images: each evaluation prompt is the caption of a different one."""
    images, wanted = images_of(chain.data), chain.evaluation_set.pictures
    if images is None or images * chain.data.heldout * (1 + SPLIT_ERROR) >= wanted:
        return
    expected = round(images * chain.data.heldout)
    yield (
        f"evaluation_set.pictures = {wanted}: about {expected} of {images} images are held out; lower it, "
        "raise data.heldout or give more images"
    )


def features(chain: Chain, known: Known) -> Iterator[str]:
    """A Frechet distance needs more images, drawn and real, than its features have dimensions."""
    if chain.features == TEACHER and chain.teacher.backbone in PIXELS:
        kind = chain.teacher.backbone
        yield f"features = {TEACHER}: a {kind} teacher has no autoencoder; take {JUDGE} or an Inception file"
        return
    if chain.features not in (JUDGE, TEACHER):
        try:
            opener(chain.features)
        except UserError as error:
            yield f"features = {error}"
    if chain.features.name == inception.FILE:
        for model in chain.models().values():
            if model.config.needs_feature_maps:
                yield (
                    f"{model.place}: its loss needs feature maps and {chain.features.name} gives none; take "
                    f"features of {JUDGE} or {TEACHER}, or give the terms that need maps weight 0"
                )
    width = feature_width(chain, known)
    if width is None:
        return
    few = (
        f"cannot fill the {width} features of {chain.features}; the Frechet distance needs more than {width}"
    )
    judged = chain.evaluation_set
    if judged.pictures <= width:
        yield f"evaluation_set.pictures = {judged.pictures}: {few}"
    if judged.reference <= width:
        yield f"evaluation_set.reference = {judged.reference}: {few}"
    images = images_of(chain.data)
    if images is not None and images * chain.data.heldout <= width:
        held_out = round(images * chain.data.heldout)
        yield (
            f"data.heldout = {chain.data.heldout}: about {held_out} of {images} images are held out, which "
            f"{few}; give more images, raise data.heldout, or choose smaller features"
        )


def feature_width(chain: Chain, known: Known) -> int | None:
    """Dimensions of the features, as far as they are known."""
    if chain.features == JUDGE:
        return chain.train_judge.feature_dim if chain.train_judge else None
    if chain.features == TEACHER:
        return known.feature_width or PUBLISHED_WIDTH
    if chain.features.name == inception.FILE:
        return inception.WIDTH
    for linear, classifier in lpips.CLASSIFIERS.items():
        if (chain.features / linear).is_file():
            return classifier.width
    if not (chain.features / CONFIG).is_file():
        return None
    described = read_object(chain.features / CONFIG)
    width = described.get("projection_dim", described.get("hidden_size"))
    return width if isinstance(width, int) else None


def steps(chain: Chain, known: Known) -> Iterator[str]:
    """A teacher takes at most as many steps as its network has discrete timesteps."""
    asked = {
        "sampling.steps": chain.sampling.steps,
        "triplets.steps": chain.triplets.steps,
        "evaluate.models.teacher": max(chain.evaluate.models.get("teacher", (0,))),
    }
    for key, count in asked.items():
        if known.table is not None and count > known.table:
            yield f"{key} = {count}: this teacher was trained at {known.table} times; take at most as many"


def starts(chain: Chain, known: Known) -> Iterator[str]:
    """A method may demand a start model of some kind."""
    models, faulty = chain.models(), set[str]()
    for model in in_order(models):
        if not faulty & ancestors(model.name, models):
            try:
                made(chain, model.name, known.scheduler)
            except UserError as error:
                faulty.add(model.name)
                yield f"{model.place}: {error}"


def in_order(models: Mapping[str, ChainModel]) -> list[ChainModel]:
    """The models, each after its start model."""
    return sorted(models.values(), key=lambda model: len(ancestors(model.name, models)))


def layers(chain: Chain) -> Iterator[str]:
    """Adapters and added inputs, such as guidance, need layers that the denoiser must have."""
    denoiser, models = design(chain), chain.models()
    if denoiser is None:
        return
    nets = {TEACHER_NAME: on_meta(denoiser)}
    for model in in_order(models):
        config, place = model.config, model.place
        net = nets.get(config.from_)
        if net is None:  # its start model's fault is reported
            continue
        try:
            nets[model.name] = net = config.network(net)
        except UserError as error:
            yield f"{place}: {error}"
            continue
        names = [name for name, _ in net.named_modules()]
        targets = config.lora.targets if config.lora else None
        if absent := [target for target in targets or () if not is_in(target, names)]:
            yield f"{place}.lora.targets: {', '.join(absent)}: no layer of the network has such a name"


def exports(chain: Chain, known: Known) -> Iterator[str]:
    """A model is exported as a diffusers pipeline, at steps that one of diffusers' schedulers can take."""
    for name, config in chain.export.items():
        if chain.teacher.backbone == "custom":
            yield f"export.{name}: a custom model has no diffusers pipeline, so it cannot be exported"
            continue
        try:
            model = made(chain, name, known.scheduler)
        except UserError:  # reported by `starts`
            continue
        if model is None:
            continue
        count = config.steps or model.steps
        if count is None:
            yield f"export.{name}: runs at any number of steps; say how many in export.{name}.steps"
            continue
        try:
            call = stock_sampling(name, model.denoiser, model.sampling, count, known.scheduler).call
            demand_stock_pipeline(name, family(chain.teacher.backbone).pipeline_class, call, known.net)
        except UserError as error:
            yield str(error)


def made(chain: Chain, name: str, scheduler: Mapping[str, Any]) -> Model | None:
    """The model as the chain will make it, without a network; None while the teacher is unknown."""
    if not scheduler:
        return None
    if name == "teacher":
        schedule, prediction = schedule_of(scheduler)
        return Model(
            name, torch.nn.Identity(), Denoiser(unasked, schedule, prediction, schedule), None, TEACHERS
        )
    model = chain.models()[name]
    start = made(chain, model.config.from_, scheduler)
    if start is None:
        return None
    inputs = inputs_of(start, model.config)
    sampling = model.config.sampling(start.sampling, inputs)
    start = replace(start, denoiser=replace(start.denoiser, inputs=inputs), sampling=sampling)
    student: Model = method_module(model.method).student_of(model.config, start)
    return student


def unasked(*_: Any) -> torch.Tensor:
    """Placeholder for a network where only its schedule is needed."""
    raise AssertionError("there is no network yet")
