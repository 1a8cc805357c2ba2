"""The networks of a loss of decoded images: their architectures, from where the chain has them.

The decoder is that of the teacher's autoencoder. The feature network is the one that `features` names.
"""

import json
from collections.abc import Callable
from typing import Any

import diffusers
from torch import nn

from fewstep.backbones.registry import family
from fewstep.backbones.sd_new import new_vae
from fewstep.chain import Chain
from fewstep.checks.decoding import Decoding
from fewstep.checks.teacher import known_teacher
from fewstep.core.errors import UserError
from fewstep.core.paths import JUDGE, TEACHER
from fewstep.features.attribute_classifier import AttributeClassifier
from fewstep.features.autoencoder import AutoencoderFeatures
from fewstep.features.network import opener
from fewstep.students.config import MethodConfig

LABELS = {"label": ("", "other")}
"""Attributes of the stand-in for the classifier: its last layer depends on them, its feature maps do not."""


def decoding(chain: Chain, config: MethodConfig) -> Decoding | None:
    """The decoded images of a student's loss; None: it decodes none, or their networks are unknown."""
    loss, features = config.image_loss, None
    if loss is None or (autoencoder := autoencoder_of(chain)) is None:
        return None
    if config.needs_feature_maps and (features := features_of(chain, autoencoder)) is None:
        return None
    settings = [type(config).__module__, config.model_dump(mode="json", exclude={"from_", "training"})]
    judge = chain.train_judge.model_dump(mode="json") if chain.train_judge else None
    text = json.dumps([*settings, description(chain), str(chain.features), judge])
    return Decoding(text, loss, autoencoder, features)


def description(chain: Chain) -> Any:
    """What the teacher's autoencoder is built from."""
    if chain.teacher.train and chain.train_teacher is not None:
        return chain.train_teacher.vae.model_dump(mode="json")
    return {**known_teacher(chain).vae}


def autoencoder_of(chain: Chain) -> Callable[[], nn.Module] | None:
    """Builds the teacher's autoencoder, untrained; None where its configuration is unknown."""
    config = chain.train_teacher
    if chain.teacher.train and config is not None:
        return lambda: new_vae(config.vae)
    wanted = getattr(family(chain.teacher.backbone), "vae_class", None)
    if wanted == "":
        return nn.Identity
    described = known_teacher(chain).vae
    if wanted is None or described.get("_class_name") != wanted:
        return None
    return lambda: getattr(diffusers, wanted).from_config(described)


def features_of(chain: Chain, autoencoder: Callable[[], Any]) -> Callable[[], Any] | None:
    """Builds the feature network, untrained; None where its architecture is unknown."""
    path, classifier = chain.features, chain.train_judge
    if path == JUDGE and classifier is not None:
        return lambda: AttributeClassifier(LABELS, classifier.widths, classifier.feature_dim)
    if path == TEACHER:
        return lambda: AutoencoderFeatures(autoencoder().encoder)
    try:
        known = opener(path)
    except UserError:  # which the checks of params.yaml report
        return None
    return lambda: known.untrained(path)
