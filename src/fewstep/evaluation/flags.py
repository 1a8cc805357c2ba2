"""Warnings next to the headline: what is wrong with a set of images that its distance alone may hide.

Each rule compares one figure with the same one of the floor, where there is a floor that shares the captions,
else of the teacher at its full step count, and asks for a difference that is both clear (an interval or a
p-value) and large enough to matter.
"""

from collections.abc import Iterator

from fewstep.evaluation.copies import EXPECTED
from fewstep.evaluation.record import Interval
from fewstep.evaluation.schema import Figures, Reference

ACCURACY_LOSS = 0.05
"""Prompt accuracy may be so much below."""
DIVERSITY_LOSS = 0.15
"""Share of the diversity that may be missing."""
P_VALUE = 1e-3
"""Of a hidden attribute's frequencies."""
DRIFT, LARGE_DRIFT = 0.1, 0.25
"""Relative change of a tone beyond the teacher's, and against real images."""
LAYOUT_RATIO = 2.0
"""Layout distance over the reference's, where both are clear."""
COPIES = 4 * EXPECTED


def drifted(change: Interval, usual: float) -> bool:
    """Whether a tone has clearly drifted: further than the teacher's, which is `usual`, or far in any case.

    What lies between real images and the teacher's is no fault.
    """
    low, high = min(usual, 0.0) - DRIFT, max(usual, 0.0) + DRIFT
    return change.low > min(high, LARGE_DRIFT) or change.high < max(low, -LARGE_DRIFT)


def flags(found: Figures, reference: Reference) -> Iterator[str]:
    """One sentence for each thing that is wrong."""
    teacher, floor = reference.teacher, reference.floor
    matched = floor if floor is not None and floor.pairing == "caption" else teacher
    if found.prompt_accuracy and teacher.prompt_accuracy:
        expected = teacher.prompt_accuracy.value
        if found.prompt_accuracy.high < expected - ACCURACY_LOSS:
            yield f"prompt accuracy {found.prompt_accuracy.value:.2f}, the teacher's is {expected:.2f}"
    if found.diversity and matched.diversity:
        for name in ("distance", "layout"):
            mine, theirs = getattr(found.diversity, name), getattr(matched.diversity, name)
            if mine.high < (1 - DIVERSITY_LOSS) * theirs.low:
                where = "" if name == "distance" else " in where things are"
                yield f"diversity per prompt{where} {mine.value:.2g}, expected {theirs.value:.2g}"
    for name, attribute in (found.hidden or {}).items():
        if attribute.p_value < P_VALUE:
            shares = ", ".join(f"{value} {share:.0%}" for value, share in attribute.shares.items())
            yield f"{name} is not distributed as in real images (p = {attribute.p_value:.1g}): {shares}"
    for name, change in found.drift.items():
        usual = teacher.drift[name].value
        if drifted(change, usual):
            yield f"{name} {change.value:+.0%} against real images, the teacher's {usual:+.0%}"
    if found.copied.low > COPIES:
        yield f"{found.copied.value:.0%} lie as near to a training image as {EXPECTED:.0%} of new images do"
    bound = max(teacher.layout_distance.high, floor.layout_distance.high if floor else 0.0)
    if found.layout_distance.low > LAYOUT_RATIO * bound:
        yield "colours are not where they are in real images (layout distance)"
