"""Groups of triplet shards: the same bytes under any grouping, and nothing drawn twice."""

import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml
from tools.imports import ROOT
from torch import Tensor

from fewstep.artifacts.manifest import Manifest
from fewstep.artifacts.workspace import Workspace, unfinished
from fewstep.backbones.model import open_model
from fewstep.backbones.protocol import Backbone
from fewstep.config.base import validate
from fewstep.config.sampling import SamplingConfig
from fewstep.config.triplets import TripletsConfig, shard_folders
from fewstep.core.errors import UserError
from fewstep.core.files import read_json
from fewstep.core.paths import CHECKPOINTS, DATA, TEACHER, TRIPLETS
from fewstep.diffusion.denoiser import Conditions
from fewstep.diffusion.solvers import Fresh
from fewstep.sampling.draw import Sampler
from fewstep.sampling.groups import write_group
from tests.began import BEGAN_IN, PYTHON
from tests.miniature import import_miniature, prepare_images

SIZE = 4
STAGE = "generate_triplets"


@pytest.fixture(autouse=True)
def backbone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Backbone:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    prepare_images()
    return import_miniature("sd")


class Counting(Sampler):
    """A sampler that counts the latents that it draws."""

    drawn = 0

    def latents(
        self, conditions: Conditions, noise: Tensor, steps: int, fresh: Fresh | None = None
    ) -> Tensor:
        self.drawn += len(noise)
        return super().latents(conditions, noise, steps, fresh)


def settings(shards: int, groups: int) -> dict[str, object]:
    whole = {"prompts": str(DATA), "count": shards * SIZE, "shard_size": SIZE, "steps": 2}
    return whole | {"groups": [*range(groups)]}


def draw(backbone: Backbone, shards: int, groups: int, code: str = "now") -> int:
    """Draw every group. Returns the number of triplets that were drawn."""
    config = TripletsConfig.model_validate(settings(shards, groups))
    sampler = Counting(open_model(TEACHER, backbone), backbone, SamplingConfig(steps=2, guidance=1.0))
    for group in config.groups:
        work = Workspace(STAGE, {"code": code}, {"teacher": TEACHER})
        write_group(TRIPLETS / str(group), sampler, config, group, 0, work, {"teacher": TEACHER})
        work.finish(keep=True)
    return sampler.drawn


def contents(shards: int, groups: int) -> list[dict[str, bytes]]:
    """Name -> bytes of the files of each shard."""
    folders = shard_folders(shards * SIZE, SIZE, range(groups))
    return [{file.name: file.read_bytes() for file in folder.iterdir()} for folder in folders]


def test_groups_have_the_bytes_of_one_group_drawn_alone(backbone: Backbone) -> None:
    assert draw(backbone, 3, 1) == 3 * SIZE
    one = contents(3, 1)
    assert draw(backbone, 3, 2, code="other work: nothing to use again") == 3 * SIZE
    assert contents(3, 2) == one
    assert len({shard["triplets.safetensors"] for shard in one}) == 3


def test_regrouping_and_more_triplets_draw_no_shard_again(backbone: Backbone) -> None:
    draw(backbone, 3, 1)
    before = contents(3, 1)
    assert draw(backbone, 3, 2) == 0
    assert contents(3, 2) == before
    assert draw(backbone, 5, 3) == 2 * SIZE
    assert contents(5, 3)[:3] == before


def test_a_damaged_shard_is_drawn_again(backbone: Backbone, capsys: pytest.CaptureFixture[str]) -> None:
    draw(backbone, 2, 1)
    before = contents(2, 1)
    (kept,) = CHECKPOINTS.glob(f"{STAGE}/*/shards/1")
    damaged = bytearray((kept / "triplets.safetensors").read_bytes())
    damaged[-1] ^= 1
    (kept / "triplets.safetensors").unlink()
    (kept / "triplets.safetensors").write_bytes(damaged)
    assert draw(backbone, 2, 1) == SIZE
    assert "draws shard 1 again" in capsys.readouterr().out
    assert contents(2, 1) == before


def test_shards_of_other_params_are_used_if_asked_for(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw(backbone, 2, 1, code="before")
    (work,) = unfinished(STAGE)
    assert work.progress == "2 finished shards"
    monkeypatch.setenv("FEWSTEP_RESUME", work.folder.name)
    assert draw(backbone, 2, 1) == 0
    for folder in shard_folders(2 * SIZE, SIZE, [0]):
        assert Manifest.open(folder, "triplets").facts["resumed"] == ["code = 'now', then 'before'"]


def test_a_killed_group_keeps_its_finished_shards() -> None:
    triplets = settings(4, 1) | {"count": 64, "shard_size": 16, "steps": 20}
    sampling = SamplingConfig(steps=20, guidance=1.0).model_dump(mode="json")
    params = {"seed": 0, "triplets": triplets, "sampling": sampling}
    Path("params.yaml").write_text(yaml.safe_dump(params))
    killed = stage(kill_after=2)
    assert killed.returncode == -signal.SIGKILL and not TRIPLETS.exists()
    kept = {shard: inode(shard) for shard in finished()}
    assert 2 <= len(kept) < 4
    assert stage().returncode == 0
    assert kept == {shard: inode(shard) for shard in kept}, "a finished shard was written again"
    resumed = [read_json(TRIPLETS / f"0/{shard}/manifest.json") for shard in range(4)]
    (work,) = unfinished(STAGE)
    work.delete()
    assert stage().returncode == 0
    assert resumed == [read_json(TRIPLETS / f"0/{shard}/manifest.json") for shard in range(4)]


def stage(kill_after: int = 0) -> "subprocess.Popen[str]":
    """Run the stage; it is killed when it has finished this number of shards."""
    environment = BEGAN_IN | {"PYTHONPATH": str(ROOT / "src")}
    process = subprocess.Popen([PYTHON, str(ROOT / f"stages/{STAGE}.py"), "0"], env=environment, text=True)
    while kill_after and len(finished()) < kill_after and process.poll() is None:
        time.sleep(0.005)
    if kill_after:
        process.kill()
    process.wait()
    return process


def finished() -> list[Path]:
    return sorted(CHECKPOINTS.glob(f"{STAGE}/*/shards/[0-9]*"))


def inode(shard: Path) -> int:
    return (shard / "triplets.safetensors").stat().st_ino


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shards": [0, 1]}, "the key `shards` is gone; write `count`"),
        ({"count": 7}, "count = 7: needs a multiple of shard_size = 4"),
        ({"groups": [1, 2]}, r"groups = \[1, 2\]: needs the numbers 0, 1, 2"),
        ({"groups": []}, r"groups = \[\]: needs the numbers"),
        ({"groups": [0, 1, 2]}, "more than the 2 shards"),
    ],
)
def test_wrong_groups_are_named(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=f"params.yaml: triplets.*{message}"):
        validate(TripletsConfig, settings(2, 1) | changes, "triplets")


def test_every_shard_is_in_one_group() -> None:
    config = TripletsConfig.model_validate(settings(5, 3))
    folders = {TRIPLETS / str(g) / str(s) for g in config.groups for s in config.shards(g)}
    assert folders == set(shard_folders(5 * SIZE, SIZE, config.groups)) and len(folders) == 5
