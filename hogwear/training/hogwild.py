"""Hogwild (arXiv 1106.5730): processes update parameters in shared memory, without locks.

The training process hands out the batches (workers.py), so an epoch is one pass by all workers
together, and the learning rate follows the images that all of them have seen. Gradients and
momentum are private to each worker; the momentum is in shared memory only so that the training
process can save it. All workers update a common average of the weights, which is what is validated
and kept.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hogwear.networks import kernels
from hogwear.networks.network import Network
from hogwear.networks.parameters import OptimizerState, trained_parameters, unflatten_like
from hogwear.system.arrays import Int64Array
from hogwear.training.batches import Batches
from hogwear.training.hyperparameters import UNBALANCED

WEIGHT_DECAY = 1e-4
CLIP_FACTOR = 0.01  # of a tensor's norm; docs/decisions/adaptive-clipping.md
MAX_GRAD_NORM = 1.0  # of all gradients together, from scratch; docs/decisions/from-scratch.md


@dataclass(frozen=True)
class StepResult:
    """The figures of a step, from its forward pass."""

    images: int
    loss: float  # mean over the batch; classes count equally where they do in training
    correct: int


def create_train_step(
    net: Network, own: OptimizerState, batches: Batches, momentum: float, log_prior: Tensor
) -> Callable[[int], StepResult]:
    """A worker's job: train the shared parameters of `net` on the batch of a step.

    Its `own` state has one row of momentum; the average is that of all workers. The loss adds
    `log_prior`, (classes,) or (1,), to the logits.
    """
    assert all(p.is_shared() for p in net.parameters())
    parameters = trained_parameters(net)
    buffers = unflatten_like(own.momentum[0], parameters)
    averages = unflatten_like(own.average, parameters)
    if net.pretrained:
        clip_grad: Callable[[list[nn.Parameter]], object] = adaptive_clip_grad
    else:  # random weights have far to go, and clipping by their own norm would hold them back
        clip_grad = partial(nn.utils.clip_grad_norm_, max_norm=MAX_GRAD_NORM)

    def train_step(step: int) -> StepResult:
        pixels, labels = batches.batch(step)
        logits = net.training_logits(pixels)
        loss = F.cross_entropy(logits + log_prior, labels)
        net.zero_grad()
        loss.backward()
        clip_grad(parameters)
        lr = batches.schedule.lr_at(step)
        kernels.sgd_step(parameters, buffers, lr, momentum, WEIGHT_DECAY)
        if weight := batches.schedule.average_weight(step):
            for average, p in zip(averages, parameters, strict=True):
                average.lerp_(p.detach(), weight)
        return StepResult(len(labels), loss.item(), int((logits.argmax(1) == labels).sum()))

    return train_step


def adaptive_clip_grad(parameters: list[nn.Parameter]) -> None:
    """Limit each tensor's gradient, in place, to CLIP_FACTOR times the norm of its weights.

    Adaptive gradient clipping (arXiv 2102.06171), per tensor where the paper clips per unit. It is
    for networks without batch normalisation, as ours is once folded: there a single bad batch, or a
    stale gradient of another worker, can throw a layer far off.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    for p, gradient in zip(parameters, gradients, strict=True):
        limit = torch.linalg.vector_norm(p.detach()).clamp(min=1e-3) * CLIP_FACTOR
        norm = torch.linalg.vector_norm(gradient).clamp(min=1e-12)
        gradient.mul_((limit / norm).clamp(max=1.0))


def log_prior(labels: Int64Array, num_classes: int) -> Tensor:
    """The logarithm of the classes' shares, (classes,), if they differ UNBALANCED-fold; else [0].

    Logit adjustment (arXiv 2007.07314): if the loss adds it to the logits, the logits themselves
    learn to treat all classes as equally frequent. docs/decisions/imbalance.md
    """
    counts = torch.from_numpy(labels).bincount(minlength=num_classes)
    counts = counts.clamp(min=1)  # other machines may have all photos of a class
    if counts.max() < UNBALANCED * counts.min():
        return torch.zeros(1)
    return (counts / counts.sum()).log()
