"""Published experiments, each one short file, through the trainer's own export gate and the worker's own pipeline.

A recipe is a module with `run(kit) -> Outcome`. What they share is in `parts`: the steps that can be served, the one
training loop, the way to the worker, and what a person is shown.
"""

from __future__ import annotations

RECIPES: dict[str, str] = {  # name -> module, imported only when needed: torch takes seconds
    "noisy-sine": "tidecast.training.recipes.noisy_sine",
    "mnist-rows": "tidecast.training.recipes.mnist_rows",
    "running-sum": "tidecast.training.recipes.running_sum",
    "sine-windows": "tidecast.training.recipes.sine_windows",
    "sin-to-cos": "tidecast.training.recipes.sin_to_cos",
    "modes": "tidecast.training.recipes.modes",
    "gradients": "tidecast.training.recipes.gradients",
    "nab": "tidecast.training.recipes.nab",
}
SUMMARIES: dict[str, str] = {
    "noisy-sine": "a sine under noise, next value and many steps ahead: an MLP, an RNN and the noise floor",
    "mnist-rows": "a handwritten digit as 28 messages of one row each, its class after the last",
    "running-sum": "an LSTM that adds each number to the one before it",
    "sine-windows": "what carrying the state from window to window buys",
    "sin-to-cos": "the sine comes in, the cosine goes out: a fit that follows a stream",
    "modes": "one-to-one, one-to-many, many-to-one, many-to-many, and encoder-decoder, each on a task that needs it",
    "gradients": "how gradients vanish and explode, and which cell remembers across a long gap",
    "nab": "the Numenta Anomaly Benchmark by a starter's anomaly score, without any training",
}
