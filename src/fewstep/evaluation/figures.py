"""All figures of a set of images, computed from their observations."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from fewstep.evaluation.accuracy import PromptAccuracy, prompt_accuracy
from fewstep.evaluation.copies import copied
from fewstep.evaluation.diversity import Groups, mean_interval, pairwise_distance, vendi_score
from fewstep.evaluation.frechet import frechet_distance
from fewstep.evaluation.hidden import hidden_attribute
from fewstep.evaluation.kernel import Kernel, compare
from fewstep.evaluation.neighbours import neighbours
from fewstep.evaluation.observations import Observations
from fewstep.evaluation.schema import Diversity, Figures, HiddenAttribute
from fewstep.evaluation.tone import drift


@dataclass(frozen=True)
class Yardstick:
    """Real images, labels and settings that sets of images are compared with.

    labels: of the first N prompts, None for an unlabelled one. groups: rows of one prompt each; rows beyond
    N are extra images for the diversity. real: observations of a real image per prompt. reference: features
    `[R, D]` of real images, including these. training: layout `[T, 192]` of training images. near: largest
    distance between a copy and a training image. hidden: names of attributes that captions do not mention.
    """

    labels: Sequence[Mapping[str, str] | None]
    groups: Groups
    real: Observations
    reference: Tensor
    training: Tensor
    near: float
    hidden: Sequence[str]
    kernel: Kernel


def figures(seen: Observations, on: Yardstick, groups: Groups | None = None) -> Figures:
    """All figures. seen: N images, one per prompt, followed by the extra ones.

    groups: replaces the yardstick's groups; () for none.
    """
    main = seen.rows(range(len(on.labels)))
    groups = on.groups if groups is None else groups
    accuracy = accuracy_of(main, on)
    near = neighbours(main.features, on.reference)
    return Figures(
        images=len(main),
        prompt_accuracy=accuracy.prompt if accuracy else None,
        attributes=accuracy.attributes if accuracy else None,
        prompt_similarity=(
            None if main.prompt_similarity is None else mean_interval(main.prompt_similarity.tolist())
        ),
        kernel_distance=compare([main.features], on.real.features, on.kernel).distance(),
        layout_distance=compare([main.layout], on.real.layout).distance(),
        frechet_distance=frechet_distance(main.features, on.reference),
        **near._asdict(),
        diversity=diversity_of(seen, groups) if len(groups) > 1 else None,
        hidden=hidden_of(seen, on, groups) if on.hidden else None,
        drift=dict(drift(main.tones, on.real.tones)),
        copied=copied(main.layout, on.training, on.near),
    )


def accuracy_of(main: Observations, on: Yardstick) -> PromptAccuracy | None:
    """Prompt accuracy; None without a classifier or without labelled prompts."""
    return None if main.attributes is None else prompt_accuracy(main.attributes, on.labels)


def diversity_of(seen: Observations, groups: Groups) -> Diversity:
    """Diversity per prompt in both feature spaces."""
    return Diversity(
        distance=pairwise_distance(seen.features, groups),
        layout=pairwise_distance(seen.layout, groups),
        vendi=vendi_score(seen.features, groups),
    )


def hidden_of(seen: Observations, on: Yardstick, groups: Groups) -> dict[str, HiddenAttribute] | None:
    """Figures of every hidden attribute; None without a classifier."""
    if seen.attributes is None or on.real.attributes is None:
        return None
    attributes = {}
    for name in on.hidden:
        real = [row[name] for row in on.real.attributes]
        # Extra images come from few prompts, so they count for the entropy only.
        every = [row[name] for row in seen.attributes]
        overall = hidden_attribute(every[: len(real)], real, None)
        inside = hidden_attribute(every, real, groups) if groups else overall
        attributes[name] = HiddenAttribute(**overall._replace(entropy=inside.entropy)._asdict())
    return attributes
