"""Estimates the memory of the training of a small decoder, whose start model is frozen."""

from fewstep.chain import Chain
from fewstep.checks.decoding import trace_decoding
from fewstep.checks.designs import is_guided, networks
from fewstep.checks.image_networks import decoding
from fewstep.checks.memory import FLOAT, Need, copied, frozen_bytes, student_setup
from fewstep.checks.tracing import Design, forward_peak, parameters

MOMENTS = {"adamw_8bit": 2}
"""Bytes of the optimizer's averages of a weight's gradient, where they are not two float32 numbers."""


def decoder_needs(chain: Chain, by_name: dict[str, Design]) -> dict[str, Need]:
    """Name -> memory of every training that leaves the denoiser as it is; by_name: `designs.designs`.

    Two networks of the start's size are in memory: the start, which draws samples, and the new model's frozen
    copy. Models of which the teacher's autoencoder is unknown are left out.
    """
    needs = {}
    for name, model in chain.models().items():
        if model.config.trains_denoiser or model.training is None:
            continue
        images = decoding(chain, model.config)
        if images is None:
            continue
        setup, start = student_setup(model.config), networks(chain, by_name, name).start
        traced = trace_decoding(images, start)
        each = MOMENTS.get(setup.optimizer, 2 * FLOAT) + FLOAT * (1 + setup.ema)
        saved, weights = each * traced.trained, FLOAT * traced.trained
        state = FLOAT * parameters(start) + frozen_bytes(start) + traced.weights + saved
        step = max(traced.peak(setup.rows) - weights, 0)
        if (sampling := forward_peak(start)) is not None:
            fixed, per_row = sampling
            step = max(step, fixed + setup.rows * (1 + is_guided(chain, model.config.from_)) * per_row)
        needs[name] = copied(Need(traced.trained, state, step, saved))
    return needs
