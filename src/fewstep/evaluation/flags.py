"""Warnings next to the headline: defects of a set of images that the kernel distance alone may hide.

Each rule compares a figure with that of the teacher at its full step count, of the floor, or of real images.
The diversity is compared with the floor's where the floor has the same captions, else with the teacher's. A
rule warns of a difference that is both significant (an interval or a p-value) and large enough to matter.
"""

from collections.abc import Iterator

from fewstep.evaluation.copies import EXPECTED
from fewstep.evaluation.record import Interval
from fewstep.evaluation.schema import Figures, Reference

ACCURACY_LOSS = 0.05
"""Tolerated loss of prompt accuracy against the teacher."""
DIVERSITY_LOSS = 0.15
"""Tolerated relative loss of diversity."""
P_VALUE = 1e-3
"""Below it, a hidden attribute's frequencies differ from those of real images."""
DRIFT, LARGE_DRIFT = 0.1, 0.25
"""Tolerated relative change of a tone: beyond the teacher's, and in total against real images."""
LAYOUT_RATIO = 2.0
"""Tolerated ratio of the layout distance (lower end) to the reference's (upper end)."""
COPIES = 4 * EXPECTED


def drifted(change: Interval, usual: float) -> bool:
    """Whether a tone has significantly drifted: further than the teacher's (`usual`), or far in any case.

    A change between 0 (real images) and the teacher's is tolerated up to LARGE_DRIFT.
    """
    low, high = min(usual, 0.0) - DRIFT, max(usual, 0.0) + DRIFT
    return change.low > min(high, LARGE_DRIFT) or change.high < max(low, -LARGE_DRIFT)


def flags(measured: Figures, reference: Reference) -> Iterator[str]:
    """One warning for each defect."""
    teacher, floor = reference.teacher, reference.floor
    matched = floor if floor is not None and floor.pairing == "caption" else teacher
    if measured.prompt_accuracy and teacher.prompt_accuracy:
        expected = teacher.prompt_accuracy.value
        if measured.prompt_accuracy.high < expected - ACCURACY_LOSS:
            yield f"prompt accuracy {measured.prompt_accuracy.value:.2f}, the teacher's is {expected:.2f}"
    if measured.diversity and matched.diversity:
        for name in ("distance", "layout"):
            mine, theirs = getattr(measured.diversity, name), getattr(matched.diversity, name)
            if mine.high < (1 - DIVERSITY_LOSS) * theirs.low:
                where = "" if name == "distance" else " in where things are"
                yield f"diversity per prompt{where} {mine.value:.2g}, expected {theirs.value:.2g}"
    for name, attribute in (measured.hidden or {}).items():
        if attribute.p_value < P_VALUE:
            shares = ", ".join(f"{value} {share:.0%}" for value, share in attribute.shares.items())
            yield f"{name} is not distributed as in real images (p = {attribute.p_value:.1g}): {shares}"
    for name, change in measured.drift.items():
        usual = teacher.drift[name].value
        if drifted(change, usual):
            yield f"{name} {change.value:+.0%} against real images, the teacher's {usual:+.0%}"
    if measured.copied.low > COPIES:
        yield (
            f"{measured.copied.value:.0%} lie as near to a training image as {EXPECTED:.0%} of new images do"
        )
    bound = max(teacher.layout_distance.high, floor.layout_distance.high if floor else 0.0)
    if measured.layout_distance.low > LAYOUT_RATIO * bound:
        yield "colours are not where they are in real images (layout distance)"
