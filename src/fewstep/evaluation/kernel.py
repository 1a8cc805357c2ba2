"""Kernel distance between paired image sets: unbiased at any N, with intervals that are valid near zero too.

Image i of every set belongs to prompt i, so the sets are dependent. The squared maximum mean discrepancy
(Gretton et al. 2012, "A kernel two-sample test") is estimated from pairs of *different* prompts only,

    h_ij = k(g_i, g_j) + k(x_i, x_j) - k(g_i, x_j) - k(g_j, x_i),   i != j,

whose mean is unbiased however image i of one set depends on image i of the other. It only requires that
prompts are independent of each other. Because the sets share their prompts, random differences between the
prompts of two sets do not contribute to the distance. KID (Binkowski et al. 2018) also counts k(g_i, x_i),
which is unbiased for independent sets only.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from fewstep.core.errors import UserError
from fewstep.evaluation.frechet import ROWS, checked
from fewstep.evaluation.record import Interval, Ratio

Z = 1.959964
"""Normal quantile of a 95 % interval."""
FEWEST = 8
"""Smallest number of images from which variances can be estimated."""

Kernel = Callable[[Tensor, Tensor], Tensor]
"""(x `[n, D]`, y `[m, D]`) -> `[n, m]`."""


def polynomial(x: Tensor, y: Tensor) -> Tensor:
    """`(x . y / D + 1)^3` (Binkowski et al. 2018, "KID")."""
    return (x @ y.T / x.shape[1] + 1) ** 3


def gaussian(x: Tensor, y: Tensor) -> Tensor:
    """`1000 exp(-|x - y|^2 / (2 10^2))` of rows of unit length (Jayasumana et al. 2024, "CMMD")."""
    cosine = normalize(x) @ normalize(y).T
    return 1000 * torch.exp((cosine - 1) / 100)


KERNELS: Mapping[str, Kernel] = {"polynomial": polynomial, "gaussian": gaussian}


@dataclass(frozen=True)
class Comparison:
    """K sets of images against one reference set, as moments of h; each set has n images.

    mean: `[K]`, the unbiased distances. rows: `[K, n]`, mean of h_ij over j. squares: `[K, K]`, mean of the
    product of two sets' h_ij. own: `[K]`, mean of h_ii. plug_in: `[K]`, variance over i of the row means that
    include j = i.
    """

    n: int
    mean: Tensor
    rows: Tensor
    squares: Tensor
    own: Tensor
    plug_in: Tensor

    @property
    def components(self) -> tuple[Tensor, Tensor]:
        """Covariances `[K, K]` of the two parts of h (Hoeffding 1948), both estimated without bias.

        h_ij = mean + a_i + a_j + b_ij. Returns those of a and of b; the distances' covariance is
        `4 cov(a) / n + 2 cov(b) / (n (n - 1))`.
        """
        n, k = self.n, len(self.mean)
        rows = torch.cov(self.rows).reshape(k, k)
        total = self.squares - torch.outer(self.mean, self.mean)
        first = (rows - total / (n - 1)) / (1 - 2 / (n - 1))
        return first, total - 2 * first

    def distance(self, k: int = 0) -> Interval:
        """Squared distance of set k with its 95 % interval, over the draw of prompts, noise and real images.

        A score interval, like Wilson's for shares: it contains the distances d >= 0 from which the estimate
        is less than Z standard deviations away, where the variance is that *at d*, `4 c d / n + v`. v is the
        variance between equal distributions; c is the variance along the difference of the two. An interval
        of the usual form (estimate +- Z sd) has too low coverage near zero, where estimate and variance are
        correlated. The value may be negative; the interval is widened to contain it.
        """
        n, value = self.n, self.mean[k].item()
        first, second = (part[k, k].clamp(min=0).item() for part in self.components)
        at_zero = 2 * second / (n * (n - 1))
        biased = value * (n - 1) / n + self.own[k].item() / n
        slope = max(
            self.plug_in[k].item() / biased if biased > 0 else 0.0,
            # Noise inflates the estimate above. The next one is itself noisy near zero; it is bounded by the
            # largest variance that any direction can have.
            min(first / max(value, math.sqrt(at_zero), 1e-300), math.sqrt(second / 2)),
        )
        middle = value + 2 * Z**2 * slope / n
        half = math.sqrt(max(middle**2 - value**2 + Z**2 * at_zero, 0.0))
        low, high = max(middle - half, 0.0), max(middle + half, 0.0)
        return Interval(value=value, low=min(low, value), high=max(high, value))

    def ratio(self, k: int, other: int) -> Ratio:
        """Distance of set k divided by that of set `other`, with its 95 % interval (Fieller 1954).

        It contains the ratios r >= 0 at which `distance(k) - r distance(other)` is less than Z standard
        deviations from 0. Unbounded (`high` is None) where the other distance is not significantly different
        from 0; then the value is None or means little.
        """
        chosen = [k, other]
        first, second = (semidefinite(part[chosen][:, chosen]) for part in self.components)
        covariance = 4 * first / self.n + 2 * second / (self.n * (self.n - 1))
        above, below = self.mean[chosen].tolist()
        (c_aa, c_ab), (_, c_bb) = (Z**2 * covariance).tolist()
        a, b, c = below**2 - c_bb, above * below - c_ab, above**2 - c_aa
        root = math.sqrt(max(b * b - a * c, 0.0))
        value = above / below if below > 0 else None
        if a <= 0:
            # All ratios, or all outside an interval; in the latter case only the upper branch is kept.
            low = (b - root) / a if a < 0 < b * b - a * c and b < 0 else 0.0
            return Ratio(value=value, low=max(min(low, value if value is not None else low), 0.0), high=None)
        low, high = (b - root) / a, (b + root) / a
        held = value if value is not None else low
        return Ratio(value=value, low=max(min(low, held), 0.0), high=max(high, held, 0.0))


def compare(sets: Sequence[Tensor], reference: Tensor, kernel: Kernel = polynomial) -> Comparison:
    """K sets of features `[n, D]` against the reference's `[n, D]`; row i of all belongs to prompt i.

    Raises UserError on features that are not finite, or on fewer than FEWEST rows.
    """
    x = checked(reference, "reference")
    generated = [checked(features, "generated") for features in sets]
    n = len(x)
    if n < FEWEST:
        raise UserError(f"kernel distance: {n} images are too few; evaluate at least {FEWEST}")
    assert all(len(g) == n for g in generated), "sets of paired images are of one size"
    rows = torch.zeros(len(sets), n, dtype=torch.float64)
    own, squares = torch.zeros_like(rows), torch.zeros(len(sets), len(sets), dtype=torch.float64)
    for start in range(0, n, ROWS):
        part = slice(start, min(start + ROWS, n))
        diagonal = torch.arange(part.stop - start), torch.arange(start, part.stop)
        real = kernel(x[part], x)
        blocks = []
        for k, g in enumerate(generated):
            h = kernel(g[part], g) + real - kernel(g[part], x) - kernel(x[part], g)
            own[k, part] = h[diagonal].cpu()
            h[diagonal] = 0.0
            rows[k, part] = h.sum(1).cpu() / (n - 1)
            blocks.append(h)
        squares += torch.stack([torch.stack([(h * other).sum() for other in blocks]) for h in blocks]).cpu()
    return Comparison(
        n=n,
        mean=rows.mean(1),
        rows=rows,
        squares=squares / (n * (n - 1)),
        own=own.mean(1),
        plug_in=((rows * (n - 1) + own) / n).var(1),
    )


def semidefinite(matrix: Tensor) -> Tensor:
    """The nearest covariance matrix: negative eigenvalues, which an unbiased estimate may have, become 0."""
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp(min=0)) @ vectors.T
