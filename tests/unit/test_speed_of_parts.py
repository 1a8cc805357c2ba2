"""The speed log times the parts of an image's drawing."""

from pathlib import Path

import pytest

from fewstep.backbones.model import open_model
from fewstep.config.sampling import SamplingConfig
from fewstep.core.paths import TEACHER
from fewstep.evaluation.evaluate import speed_log
from fewstep.sampling.draw import Sampler
from tests.miniature import import_miniature


def test_each_part_is_timed_and_only_the_denoiser_grows_with_the_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    backbone = import_miniature("sd")
    sampler = Sampler(open_model(TEACHER, backbone), backbone, SamplingConfig(guidance=1.0))
    log = speed_log(sampler, [1, 16], "a red star", 2, 0.3)
    few, many = log.steps["1"], log.steps["16"]
    for speed in (few, many):
        assert speed.text_s and speed.denoiser_s and speed.decoder_s
        parts = speed.text_s + speed.denoiser_s + speed.decoder_s
        assert 0.3 * speed.latency_s < parts < 3 * speed.latency_s
    assert many.denoiser_s and few.denoiser_s and many.denoiser_s > 4 * few.denoiser_s
    assert many.text_s and few.text_s and many.text_s < 4 * few.text_s
