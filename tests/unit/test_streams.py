"""Each random stream has one use: what two draw from one stream is the same numbers, not independent ones."""

import ast
import sys
from collections import defaultdict
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from tools.imports import ROOT, SRC

from fewstep.backbones.sd_new import new_stable_diffusion
from fewstep.config.teacher import TrainTeacherConfig
from fewstep.core import keyed
from fewstep.core.keyed import Key
from fewstep.data.latents import Latent
from fewstep.data.stream import Stream
from fewstep.pretraining.teacher import Teacher
from fewstep.training.loop import train

MODEL = "a model's name"
FILLED = {
    "name": ("teacher", "vae", "judge", MODEL),
    "self.name": (MODEL,),
    "suffix": ("",),
    "i": ("0", "1"),
    "j": ("0", "1"),
}
"""What stands in a stream's name -> its values; the training loop trains by each of these names."""
METHODS = {file for file in (SRC / "fewstep/methods").glob("*.py") if file.stem != "__init__"}
NO_RESULT = {*(SRC / "fewstep/checks").glob("*.py")}
"""Draws only to measure time and memory."""
REBUILT = {"triplets/noise"}
"""Drawn again wherever it is needed, as the same noise."""


def names(node: ast.expr) -> Iterator[str]:
    """The names of streams that a literal or an f-string makes."""
    parts = node.values if isinstance(node, ast.JoinedStr) else [node]
    choices = [
        FILLED[ast.unparse(part.value)] if isinstance(part, ast.FormattedValue) else (ast.literal_eval(part),)
        for part in parts
    ]
    yield from map("".join, product(*choices))


def named_in(file: Path) -> Iterator[tuple[str, str]]:
    """(stream, place) of every `Key(seed, stream)` and `key(use)` of a file."""
    for node in ast.walk(ast.parse(file.read_text())):
        if not isinstance(node, ast.Call):
            continue
        place = f"{file.relative_to(ROOT)}:{node.lineno}"
        called = ast.unparse(node.func)
        if called == "Key" and len(node.args) == 2 and not is_derived(node.args[1]):
            yield from ((stream, place) for stream in names(node.args[1]))
        if called.endswith(".key") and node.args:
            yield from ((f"{MODEL}/{use}", place) for use in names(node.args[0]))


def is_derived(node: ast.expr) -> bool:
    """Whether a stream is named after another one, or by whoever asks `Context.key`."""
    return "stream" in ast.unparse(node) or "{use}" in ast.unparse(node)


def test_a_stream_is_named_at_one_place() -> None:
    files = {*SRC.rglob("*.py"), *(ROOT / "stages").glob("*.py")} - NO_RESULT
    assert len(METHODS) >= 3, "reflow, halve, direct"
    for method in METHODS:  # a model is made by one
        places = defaultdict(set)
        for file in files:
            if file not in METHODS - {method}:
                for stream, place in named_in(file):
                    places[stream].add(place)
        assert {"teacher/noise", "teacher/dropout", f"{MODEL}/order", "vae/noise"} <= set(places)
        assert {stream: at for stream, at in places.items() if len(at) > 1 and stream not in REBUILT} == {}


CONFIG = {
    "vae": {
        "channels": [8, 16],
        "layers": 1,
        "latent_channels": 4,
        "kl_weight": 1e-6,
        "training": {"steps": 1, "batch_size": 2, "learning_rate": 1e-3},
    },
    "text": {"width": 16, "layers": 1, "heads": 2, "length": 8, "vocabulary": 540},
    "net": {"channels": [16, 16], "attention": [False, True], "head_channels": 8, "groups": 8},
    "caption_dropout": 0.5,
    "word_dropout": 0.5,
    "training": {"steps": 2, "batch_size": 4, "learning_rate": 1e-3},
}


def test_the_teachers_training_draws_from_each_stream_in_one_function(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setenv("FEWSTEP_TRACKERS", "tensorboard")  # so that its preview is drawn
    config = TrainTeacherConfig.model_validate(CONFIG)
    latents = [Latent(torch.zeros(4, 8, 8), "a small red star")] * 8
    stream = Stream([8], lambda _: latents, Key(0, "teacher/order"))
    backbone = new_stable_diffusion(config, 16, ["a small red star"], 0)
    drawn: defaultdict[str, set[str]] = defaultdict(set)
    generator = Key.generator

    def noted(key: Key, index: int) -> np.random.Generator:
        frame = sys._getframe(1)
        while frame.f_code.co_filename == keyed.__file__ and frame.f_back is not None:
            frame = frame.f_back
        drawn[key.stream].add(frame.f_code.co_qualname)
        return generator(key, index)

    monkeypatch.setattr(Key, "generator", noted)
    train(Teacher(backbone, config, stream, 0), "teacher", 0, tmp_path / "work")
    assert drawn["teacher/dropout"] == {"update"}
    assert drawn["teacher/words"] == drawn["teacher/noise"] == {"Teacher.batch"}
    assert drawn["teacher/preview"] == {"Teacher.preview"}
    assert all(len(functions) == 1 for functions in drawn.values()), drawn
