"""Agreement with the teacher: does the student make of the same noise the same image?"""

from torch import Tensor
from torch.nn.functional import cosine_similarity


def teacher_rmse(x: Tensor, x_teacher: Tensor) -> float:
    """Root mean square difference per image, averaged over the images; in [0, 1], 0: the same images.

    x, x_teacher: `[N, 3, H, W]` in [-1, 1], row i of both from noise i and prompt i. The unit is the
    range of a pixel, black to white; the peak signal-to-noise ratio is `-20 log10(rmse)` dB.
    """
    difference = (x.double() - x_teacher.double()) / 2
    return difference.square().mean((1, 2, 3)).sqrt().mean().item()


def teacher_similarity(features: Tensor, features_teacher: Tensor) -> float:
    """Cosine of the images' features around the teacher's mean, averaged; in [-1, 1], 1: the same.

    features, features_teacher: `[N, D]`, rows as in `teacher_rmse`. What all images share is taken out
    first, so that unrelated images have similarity 0 and not nearly 1.
    """
    mean = features_teacher.double().mean(dim=0)
    cosines = cosine_similarity(features.double() - mean, features_teacher.double() - mean)
    return cosines.clamp(-1, 1).mean().item()
