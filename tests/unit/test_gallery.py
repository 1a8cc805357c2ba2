"""examples/gallery: every method on the default chain's teacher."""

import yaml
from tools.imports import ROOT

from fewstep.chain import load_chain
from tests.unit.test_every_method import METHODS

OWN = {"reflow", "halve", "students", "evaluation_set", "evaluate", "export"}
"""Sections in which it differs from the default chain."""
FILE = ROOT / "examples/gallery/params.yaml"


def test_it_needs_no_other_teacher_data_or_triplets_than_the_default_chain() -> None:
    gallery, default = (yaml.safe_load(file.read_text()) for file in (FILE, ROOT / "params.yaml"))
    assert {key for key in default | gallery if gallery.get(key) != default.get(key)} <= OWN
    changed = {
        key for key, value in default["evaluation_set"].items() if gallery["evaluation_set"].get(key) != value
    }
    assert changed == {"pictures"}


def test_it_has_every_method_from_the_teacher_and_evaluates_each_model() -> None:
    chain = load_chain(FILE)
    assert {student.method for student in chain.students.values()} == set(METHODS)
    assert {student.from_ for student in chain.students.values()} == {"teacher", "warm_up"}
    assert chain.students["warm_up"].from_ == "teacher"
    assert set(chain.evaluate.models) == {"teacher", *chain.models()}
