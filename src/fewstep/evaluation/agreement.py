"""Agreement with the teacher: does the student map the same noise to the same image?"""

from torch import Tensor
from torch.nn.functional import cosine_similarity


def teacher_rmse(x: Tensor, x_teacher: Tensor) -> float:
    """Root mean square difference per image, averaged over the images; in [0, 1], 0: identical images.

    x, x_teacher: `[N, 3, H, W]` in [-1, 1], row i of both is drawn from noise i and prompt i. The unit
    is the range of a pixel, from black to white; the peak signal-to-noise ratio is `-20 log10(rmse)` dB.
    """
    difference = (x.double() - x_teacher.double()) / 2
    return difference.square().mean((1, 2, 3)).sqrt().mean().item()


def teacher_similarity(features: Tensor, features_teacher: Tensor) -> float:
    """Mean cosine of the images' features, centred on the teacher's mean; in [-1, 1], 1: identical.

    features, features_teacher: `[N, D]`, rows as in `teacher_rmse`. Centring removes what all images
    share, so that unrelated images have similarity 0 instead of nearly 1.
    """
    mean = features_teacher.double().mean(dim=0)
    cosines = cosine_similarity(features.double() - mean, features_teacher.double() - mean)
    return cosines.clamp(-1, 1).mean().item()
