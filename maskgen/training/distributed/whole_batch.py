"""Numbers of the whole batch where each process sees its share of it; on one process nothing happens.

Gradients are averaged over processes. For a loss that is a mean over rows that is right by itself; for a function of a mean
(an entropy of average probabilities, the square of an average logit) the mean must be that of the whole batch, which
``whole_mean`` gives: its value is the mean over processes, its gradient that of this process's part, so the averaged
gradient is that of one process with the whole batch.
"""

from torch import Tensor, distributed


def mean_over_processes(value: Tensor) -> Tensor:
    """The mean of a tensor over all processes, without gradients; the tensor itself on one."""
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
