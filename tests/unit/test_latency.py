"""The benchmark of a pipeline's parts, on a tiny pipeline that the chain exports."""

import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from benchmarks import latency, sd15
from torch import nn

from fewstep.backbones.model import open_model
from fewstep.backbones.protocol import Backbone
from fewstep.core.errors import UserError
from fewstep.core.paths import MODELS, TEACHER, TRIPLETS
from fewstep.export.pipeline import export
from fewstep.students.learn import Task, learn
from tests.miniature import draw_triplets, import_miniature, prepare_images
from tests.unit.test_every_method import config
from tests.unit.test_every_method import project as project

OUT = Path("out")
PAUSE = 0.02
"""Seconds that a slow part waits in each call."""


@pytest.fixture
def backbone() -> Backbone:
    """A one-step student in the chain, and its exported pipeline."""
    prepare_images()
    opened = import_miniature("sd")
    draw_triplets(opened)
    learn(Task("distill", "student", "direct", config("direct"), [TRIPLETS / "0"], 0))
    export(OUT, open_model(MODELS / "student", opened), MODELS / "student", TEACHER, opened)
    Path("params.yaml").write_text(yaml.safe_dump({"sampling": {"steps": 5, "guidance": 2.0}}))
    return opened


def measured(folder: Path, **changes: Any) -> dict[str, latency.Latency]:
    """Two runs of a folder's pipeline."""
    pipeline, call = latency.opened(folder)
    call = latency.changed(call, changes) | latency.images(pipeline, 1)
    return latency.measured({"": (pipeline, call)}, 2)[""]


def calls(parts: dict[str, latency.Latency]) -> dict[str, int]:
    return {name: part.calls for name, part in parts.items()}


def weights(net: nn.Module) -> int:
    return sum(weight.numel() for weight in net.parameters())


def test_an_export_is_called_as_it_says(backbone: Any) -> None:
    parts = measured(OUT)
    assert calls(parts) == {"text_encoder": 1, "unet": 1, "vae": 1}
    assert parts["unet"].parameters == open_model(MODELS / "student", backbone).parameters
    assert parts["vae"].parameters == weights(backbone.vae.decoder) < weights(backbone.vae)
    assert all(part.seconds.shape == (2,) and (part.seconds > 0).all() for part in parts.values())
    asked = {"num_inference_steps": 3, "guidance_scale": 7.5}
    assert calls(measured(OUT, **asked)) == {"text_encoder": 2, "unet": 3, "vae": 1}


def test_a_model_of_the_chain_is_called_as_it_was_made_for(backbone: Any) -> None:
    assert calls(measured(MODELS / "student")) == calls(measured(OUT))
    assert calls(measured(TEACHER)) == {"text_encoder": 2, "unet": 5, "vae": 1}
    pipeline, call = latency.opened(MODELS / "student")
    assert (call["num_inference_steps"], call["guidance_scale"]) == (1, 0.0)
    student = open_model(MODELS / "student", backbone).net.state_dict()
    assert all(torch.equal(value, student[name]) for name, value in pipeline.unet.state_dict().items())


def test_time_is_counted_for_the_part_that_takes_it(backbone: Any) -> None:
    pipeline, call = latency.opened(OUT)
    call = latency.changed(call, {"num_inference_steps": 3}) | latency.images(pipeline, 1)
    before = pipeline(**call, generator=torch.manual_seed(0)).images
    hook = pipeline.unet.conv_in.register_forward_hook(lambda *_: time.sleep(PAUSE))
    parts = latency.measured({"": (pipeline, call)}, 4)[""]
    hook.remove()
    assert parts["unet"].seconds.min() >= 3 * PAUSE > parts["text_encoder"].seconds.min()
    assert "forward" not in vars(pipeline.unet) and "decode" not in vars(pipeline.vae)
    assert (pipeline(**call, generator=torch.manual_seed(0)).images == before).all()


def test_a_grid_of_times_gives_way_to_a_number_of_steps() -> None:
    call = {"timesteps": [999, 499], "guidance_scale": 0.0}
    assert latency.changed(call, {"num_inference_steps": None}) == call
    assert latency.changed(call, {"num_inference_steps": 4}) == {
        "guidance_scale": 0.0,
        "num_inference_steps": 4,
    }
    assert latency.in_words(call) == "2 steps, guidance 0.0"


def test_the_table_names_the_machine_and_sums_up(
    backbone: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sys, "argv", ["latency", str(OUT), "--runs", "3", "--warmup", "0"])
    latency.main()
    printed = capsys.readouterr().out
    assert "times as fast" not in printed
    assert (
        f"torch {torch.__version__}" in printed
        and "float32, eager, wall-clock time, 1 at once, 3 runs" in printed
    )
    medians = {row.split("│")[1].strip(): row.split("│")[4] for row in printed.splitlines() if "│" in row}
    assert list(medians) == ["text_encoder", "unet", "vae", "sum"]
    assert float(medians["sum"]) > max(float(medians[name]) for name in ("text_encoder", "unet", "vae"))

    monkeypatch.setattr(sys, "argv", ["latency", str(OUT), f"{OUT}:12", "--runs", "3"])
    latency.main()
    printed = capsys.readouterr().out
    assert "out: 12 steps" in printed and "against out: 1 step" in printed
    assert printed.count("out: 12 steps") == 2, "its own table, and its ratio to the first"


def test_pipelines_take_turns_and_are_compared_with_the_first(backbone: Any) -> None:
    """One that becomes slower with every turn, and one that takes exactly three times as long in each."""
    turns: list[str] = []

    def turn(name: str) -> Any:
        pipeline, call = latency.opened(OUT)

        def wait(*_: Any) -> None:
            turns.append(name)
            time.sleep(PAUSE * (1 + turns.count("one")) * (3 if name == "two" else 1))

        pipeline.unet.conv_in.register_forward_hook(wait)
        return pipeline, latency.changed(call, {"num_inference_steps": 1}) | latency.images(pipeline, 1)

    timings = latency.measured({name: turn(name) for name in ("one", "two")}, 4)
    assert turns == ["one", "two"] * 5
    column = latency.ratios(timings).columns[1]
    (ratio,) = column.cells
    assert 0.2 < float(str(ratio)) < 0.5


def test_a_folder_that_holds_nothing_says_so() -> None:
    with pytest.raises(UserError, match=r"nothing: no pipeline \(model_index.json\)"):
        latency.opened(Path("nothing"))


def test_the_geometry_is_stable_diffusions() -> None:
    with torch.device("meta"):
        counts = {size: weights(sd15.unet(size)) for size in ("full", "sdxs")}
        text, autoencoder = weights(sd15.text_encoder()), weights(sd15.autoencoder())
        decoder = weights(latency.run_by(sd15.autoencoder("tiny")))
    assert counts == {"full": 859_520_964, "sdxs": 315_746_244}
    assert (text, autoencoder, decoder) == (123_060_480, 83_653_863, 1_222_531)
