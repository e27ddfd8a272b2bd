"""The adversary's weight that follows the strength of the reconstruction (Esser et al. 2021)."""

import torch
from torch import Tensor

from maskgen.training.distributed.whole_batch import mean_over_processes

_MOST_ADAPTIVE = 1e4


def adaptive_weight(fidelity: Tensor, gan: Tensor, last_layer: Tensor) -> Tensor:
    """How much stronger the reconstruction pulls at the last layer than the adversary (Esser et al. 2021, equation 7).

    |d fidelity / d last_layer| / (|d gan / d last_layer| + 1e-4), of the whole batch.

    Args:
        fidelity: reconstruction loss, with a graph.
        gan: adversarial loss, with a graph.
        last_layer: kernel of the decoder's last convolution.

    Returns:
        Scalar in [0, 1e4], without a graph.
    """
    pulls = [
        mean_over_processes(torch.autograd.grad(loss, last_layer, retain_graph=True)[0]).norm()
        for loss in (fidelity, gan)
    ]
    return (pulls[0] / (pulls[1] + 1e-4)).clamp(0.0, _MOST_ADAPTIVE)
