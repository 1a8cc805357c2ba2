"""The drawing of the stages: nothing lost, nothing overlapping, everything right of what it needs."""

from collections.abc import Mapping
from itertools import combinations

import networkx as nx
import pytest

from fewstep.report.dag import collapse, draw

CHAIN = {
    "prepare_data": [],
    "train_judge": ["prepare_data"],
    "train_teacher@small": ["prepare_data"],
    "reflow": ["train_teacher@small", "prepare_data"],
    "halve@4": ["reflow"],
    "halve@2": ["halve@4"],
    "distill@a": ["halve@2", "train_teacher@small"],
    "distill@b": ["halve@4"],
    "evaluate@teacher": ["train_teacher@small", "train_judge"],
    "evaluate@a": ["distill@a", "train_judge"],
    "report": ["evaluate@a", "evaluate@teacher"],
}
DETOUR = {"a@1": [], "b": ["a@1"], "a@2": ["b"], "c@x": ["a@2"], "c@y": ["a@2"]}


@pytest.mark.parametrize("needs", [CHAIN, DETOUR, {"alone": []}, {}])
def test_boxes_neither_overlap_nor_leave_the_canvas(needs: Mapping[str, list[str]]) -> None:
    drawing = draw(needs)
    for box in drawing.boxes:
        assert box.x >= 0 and box.x + box.width <= drawing.width + 1e-9
        assert box.y >= 0 and box.y + box.height <= drawing.height + 1e-9
    for a, b in combinations(drawing.boxes, 2):
        apart = a.x + a.width <= b.x or b.x + b.width <= a.x or a.y + a.height <= b.y or b.y + b.height <= a.y
        assert apart, (a.name, b.name)


@pytest.mark.parametrize("needs", [CHAIN, DETOUR])
def test_every_stage_is_shown_right_of_what_it_needs(needs: Mapping[str, list[str]]) -> None:
    left: dict[str, float] = {}
    for box in draw(needs).boxes:
        left |= dict.fromkeys([f"{box.name}@{member}" for member in box.members] or [box.name], box.x)
    assert left.keys() == needs.keys()
    group = {name: name.partition("@")[0] for name in needs}
    for name, all_needs in needs.items():
        assert all(left[need] < left[name] or group[need] == group[name] for need in all_needs)


def test_the_longest_chain_runs_straight() -> None:
    middle = {box.name: box.y + box.height / 2 for box in draw(CHAIN).boxes}
    chain = ("prepare_data", "train_teacher", "reflow", "halve", "distill", "evaluate", "report")
    assert len({middle[name] for name in chain}) == 1 and middle["train_judge"] > middle["reflow"]


def test_groups_collapse_with_their_members_in_order() -> None:
    groups = collapse(CHAIN)
    assert groups.nodes["halve"]["members"] == ("4", "2")
    assert groups.nodes["train_teacher"]["members"] == ("small",)
    assert groups.nodes["reflow"]["members"] == ()


def test_a_group_on_both_sides_of_a_stage_stays_apart() -> None:
    groups = collapse(DETOUR)
    assert nx.is_directed_acyclic_graph(groups)
    assert set(groups) == {"a@1", "b", "a@2", "c"}


def test_the_drawing_does_not_depend_on_the_order_of_needs() -> None:
    assert draw({name: needs[::-1] for name, needs in CHAIN.items()}) == draw(CHAIN)
