"""Precision by measured rate."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch

from fewstep.core import precision


def clock(float32: float, bfloat16: float) -> Iterator[float]:
    """Beginnings and ends of steps that take so long."""
    now = 0.0
    while True:
        for duration in (float32, bfloat16):
            yield now
            now += duration
            yield now


def test_the_ratio_is_that_of_the_best_times() -> None:
    ticks = clock(3.0, 2.0)
    assert precision.ratio(lambda: next(ticks)) == pytest.approx(1.5)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_it_is_measured_wherever_it_is_first_asked_for(
    mode: Callable[[], AbstractContextManager[None]],
) -> None:
    """The first process of a machine may be an evaluation."""
    before = torch.get_rng_state()
    with mode():
        assert precision.ratio() > 0
    assert torch.equal(torch.get_rng_state(), before)


def test_a_machine_is_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    asked: list[float] = []

    def measured() -> float:
        asked.append(1.4)
        return asked[-1]

    monkeypatch.setattr(precision, "ratio", measured)
    file = tmp_path / "cache" / "precision.json"
    assert precision.bfloat16_pays(file) and precision.bfloat16_pays(file)
    assert len(asked) == 1
    file.write_text("{")  # damaged
    assert precision.bfloat16_pays(file) and len(asked) == 2


def test_without_the_instructions_nothing_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: False)
    assert not precision.bfloat16_pays(tmp_path / "precision.json")
    assert not list(tmp_path.iterdir())


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    (tmp_path / "file").write_text("")
    precision.bfloat16_pays(tmp_path / "file" / "precision.json")
