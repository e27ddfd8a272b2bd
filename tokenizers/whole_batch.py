"""Numbers of the whole batch where each process sees its share of it; on one process nothing happens.

Gradients are averaged over processes. For a loss that is a mean over rows that is right by itself; for a function of a mean
(an entropy of average probabilities, the square of an average logit) the mean must be that of the whole batch, which
``whole_mean`` gives: its value is the mean over processes, its gradient that of this process's part, so the averaged
gradient is that of one process with the whole batch.
"""

from __future__ import annotations

import torch
from torch import Tensor, distributed

__all__ = ["adaptive_weight", "mean_over_processes", "whole_mean"]

_MOST_ADAPTIVE = 1e4


def mean_over_processes(value: Tensor) -> Tensor:
    """The mean of a tensor over all processes, without gradients."""
    value = value.detach()
    if not (distributed.is_available() and distributed.is_initialized()) or distributed.get_world_size() == 1:
        return value
    value = value.clone()
    distributed.all_reduce(value)
    return value / distributed.get_world_size()


def whole_mean(mean: Tensor) -> Tensor:
    """The mean over the whole batch from the mean over this process's rows, with the gradient of the latter; any shape.

    Without gradients it is the mean itself: there the other processes may be doing something else.
    """
    if not mean.requires_grad:
        return mean
    return mean + (mean_over_processes(mean) - mean.detach())


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
