"""One worker of the digits example: it holds a share of the handwritten digits and a copy of the model.

An agent learns of it with ``--import examples/digits_actors.py``; a client launches it by its name.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.datasets import load_digits

import spoke

Array = npt.NDArray[np.float64]

HIDDEN = 64
HELD_OUT = 360
"""Digits that no worker trains on."""


def digits(seed: int) -> tuple[Array, npt.NDArray[np.int64]]:
    """The 1,797 digits of 8 x 8 pixels and what they show, in an order that the seed fixes. Held-out ones come last."""
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(images))
    return images[order] / 16.0, labels[order]


@spoke.register_actor("DigitsWorker")
class DigitsWorker(spoke.Actor):
    """A classifier with one hidden layer, trained on every world_size-th digit."""

    def __init__(self, seed: int, batch: int, rate: float) -> None:
        images, labels = digits(seed)
        self._held_out = images[-HELD_OUT:], labels[-HELD_OUT:]
        mine = slice(self.ctx.rank, -HELD_OUT, self.ctx.world_size)
        self._images, self._labels = images[mine], labels[mine]
        self._batch, self._rate = batch, rate
        rng = np.random.default_rng(seed)  # the same seed everywhere: all copies of the model begin alike
        self._weights: list[Array] = [
            rng.normal(0.0, 0.2, (images.shape[1], HIDDEN)),
            np.zeros(HIDDEN),
            rng.normal(0.0, 0.2, (HIDDEN, 10)),
            np.zeros(10),
        ]
        self._speed: list[Array] = [np.zeros_like(weight) for weight in self._weights]

    def place(self) -> dict[str, Any]:
        """Where this worker runs, as its own process sees it."""
        return {
            "pid": os.getpid(),
            "node": self.ctx.node_id,
            "gpus": os.environ["CUDA_VISIBLE_DEVICES"],
            "digits": len(self._images),
        }

    def gradients(self, step: int) -> tuple[float, list[Array]]:
        """The loss on this step's share of digits, and its gradients. The step picks the digits."""
        at = np.arange(step * self._batch, (step + 1) * self._batch) % len(self._images)
        images, labels = self._images[at], self._labels[at]
        hidden, chances = self._forward(images)
        rows = np.arange(len(labels))
        loss = float(-np.log(chances[rows, labels] + 1e-12).mean())
        slope = chances.copy()
        slope[rows, labels] -= 1.0
        slope /= len(labels)
        back = (slope @ self._weights[2].T) * (hidden > 0)
        return loss, [images.T @ back, back.sum(axis=0), hidden.T @ slope, slope.sum(axis=0)]

    def apply(self, gradients: list[Array]) -> None:
        """Take one step along the mean of all workers' gradients."""
        for weight, speed, gradient in zip(self._weights, self._speed, gradients, strict=True):
            speed *= 0.9
            speed -= self._rate * gradient
            weight += speed

    def accuracy(self) -> float:
        """The share of the held-out digits that the model reads right."""
        images, labels = self._held_out
        _, chances = self._forward(images)
        return float((chances.argmax(axis=1) == labels).mean())

    def weights(self) -> list[Array]:
        """The model."""
        return self._weights

    def _forward(self, images: Array) -> tuple[Array, Array]:
        hidden = np.maximum(images @ self._weights[0] + self._weights[1], 0.0)
        scores = hidden @ self._weights[2] + self._weights[3]
        chances = np.exp(scores - scores.max(axis=1, keepdims=True))
        return hidden, chances / chances.sum(axis=1, keepdims=True)
