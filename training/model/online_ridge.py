"""A ridge for each lead of a grid that learns at each step: exponentially forgetting least squares, information form.

The sums R = Σ λ^age z zᵀ and r = Σ λ^age z y are kept, and (R + penalty) w = r is solved by a few steps of Richardson's
iteration from the weights before, preconditioned by the sums of the rows' absolute values, which bound the largest
eigenvalue. The first features of all leads are the same ones, a few steps apart, so that one block of R serves all of
them.
"""

from __future__ import annotations

from itertools import combinations_with_replacement

import torch
from torch import Tensor, nn

from tidecast.training.model.online_recipe import Recipe

LEAST_MISS = 0.01  # deviations: after a long time without any change, errors must count again


class OnlineRidge(nn.Module):
    """`count` ridges of `common` shared features and `own` ones. Columns are series; each is on its own.

    State: `sums` R without what is there twice, `products` r and `weights` w [features * leads], `misses` [leads].
    """

    WEIGHTS = 2  # where they are in `layout`

    def __init__(self, common: int, own: int, count: int, recipe: Recipe, remember: float, name: str = "") -> None:
        """`remember`: of the sums, a step; `name`: what the names of its slices begin with."""
        super().__init__()
        self.common, self.features, self.count, self.recipe = common, common + own, count, recipe
        self.remember, self.name = remember, name
        # `sums` has three blocks: common by common features, of the first lead; common by own; own by own.
        shared = list(combinations_with_replacement(range(common), 2))
        mine = list(combinations_with_replacement(range(common, common + own), 2))
        pairs = [(a * count, b * count) for a, b in shared]
        pairs += [(a * count + i, b * count + i) for a in range(common) for b in range(common, common + own)
                  for i in range(count)]  # fmt: skip
        pairs += [(a * count + i, b * count + i) for a, b in mine for i in range(count)]
        self.sizes = [len(shared), common * own * count, len(mine) * count]
        self.left, self.right = (torch.tensor(side) for side in zip(*pairs, strict=True))  # feature * leads + lead
        self.square = [shared.index((min(a, b), max(a, b))) for a in range(common) for b in range(common)]
        self.own_square = [
            mine.index((min(a, b), max(a, b))) * count + i
            for a in range(common, common + own)
            for b in range(common, common + own)
            for i in range(count)
        ]

    @property
    def layout(self) -> list[tuple[str, int]]:
        """Its slices of the state: name, rows."""
        size = self.features * self.count
        rows = {"sums": len(self.left), "products": size, "weights": size, "misses": self.count}
        return [(self.name + part, count) for part, count in rows.items()]

    def forward(
        self, z: Tensor, truth: Tensor, prior: Tensor, learn: Tensor, told: Tensor, week: int, state: dict[str, Tensor]
    ) -> list[Tensor]:
        """The slices of the state after it has learned.

        z [features, leads, columns] as they were when the truth was `lead` steps ahead; truth [leads, columns]; `prior`
        [features, leads, columns] weights that those of a young ridge are drawn to; learn [leads, columns] 1 or 0; told
        [leads, columns] how many truths each lead has learned from, this included; `week` the steps of a long season.
        """
        recipe, count, size = self.recipe, self.count, self.features * self.count
        sums, products, flat_weights, misses = (state[name] for name, _ in self.layout)
        weights = flat_weights.reshape(self.features, count, -1)
        said = self.said(z, state)
        error = truth - said
        least, most = self.limits(misses, told)
        goal = said + torch.minimum(torch.maximum(error, -least), least)
        rate = learn * torch.clamp(1 / told, min=recipe.miss_gain)
        misses = misses + rate * (torch.minimum(error.abs(), most) - misses)

        seen = z * learn
        keep = 1 - (1 - self.remember) * learn[:1]
        flat = seen.reshape(size, -1)
        sums = keep * sums + flat.index_select(0, self.left) * flat.index_select(0, self.right)
        products = keep * products + (seen * goal).reshape(size, -1)
        penalty = recipe.penalty + recipe.early_penalty / (1 + (told / (2 * week)).square())
        weights = self._solve(sums, products.reshape(self.features, count, -1), penalty, prior, weights)
        return [sums, products, weights.reshape(size, -1), misses]

    def said(self, z: Tensor, state: dict[str, Tensor]) -> Tensor:
        """Forecasts [leads, columns] of features [features, leads, columns]."""
        weights = state[f"{self.name}weights"].reshape(self.features, self.count, -1)
        return (weights * z).sum(dim=0).clamp(-self.recipe.feature_limit, self.recipe.feature_limit)

    def limits(self, misses: Tensor, told: Tensor) -> tuple[Tensor, Tensor]:
        """The largest error that is learned from, and the largest that counts: [leads, columns] each."""
        settled, any_size = told > self.recipe.settled, torch.full((), 1e6)
        misses = torch.clamp(misses, min=LEAST_MISS)
        return (torch.where(settled, self.recipe.outlier * misses, any_size),
                torch.where(settled, self.recipe.worst * misses, any_size))  # fmt: skip

    def _solve(self, sums: Tensor, products: Tensor, penalty: Tensor, prior: Tensor, weights: Tensor) -> Tensor:
        """A damped step or more from `weights` towards the solution; all [features, leads, columns].

        The steps are linear in the weights, and shrink any difference between two machines' weights. Conjugate
        gradients are faster, but their exact line search lets the last bit of a sum grow to a difference that is seen.
        """
        common, cross, own = self._blocks(sums)
        size = self._product(common.abs(), cross.abs(), own.abs(), None) + penalty
        for step in self.recipe.steps:
            rest = products - self._product(common, cross, own, weights) - penalty * (weights - prior)
            weights = weights + (step / size) * rest
        return weights.clamp(-self.recipe.weight_limit, self.recipe.weight_limit)

    def _blocks(self, sums: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[common, common, 1, columns], [common, own, leads, columns] and [own, own, leads, columns]."""
        shared, cross, mine = sums.split_with_sizes(self.sizes)
        own, columns = self.features - self.common, sums.shape[-1]
        return (
            shared.index_select(0, torch.tensor(self.square)).reshape(self.common, self.common, 1, columns),
            cross.reshape(self.common, own, self.count, columns),
            mine.index_select(0, torch.tensor(self.own_square)).reshape(own, own, self.count, columns),
        )

    def _product(self, common: Tensor, cross: Tensor, own: Tensor, weights: Tensor | None) -> Tensor:
        """R times the weights [features, leads, columns], or times ones."""
        if weights is None:
            across = [cross.sum(dim=1), cross.sum(dim=0)]
            return torch.cat([common.sum(dim=0) + across[0], across[1] + own.sum(dim=0)])
        shared, mine = weights.split_with_sizes([self.common, self.features - self.common])
        first = self._common_product(common, shared) + (cross * mine).sum(dim=1)
        return torch.cat([first, (cross * shared[:, None]).sum(dim=0) + (own * mine[:, None]).sum(dim=0)])

    def _common_product(self, common: Tensor, shared: Tensor) -> Tensor:
        """The block [common, common, 1, columns] times weights [common, leads, columns]."""
        if self.count == 1:
            return (common * shared[:, None]).sum(dim=0)
        size, columns = self.common, shared.shape[-1]  # of several leads, one small matrix product for each column
        matrices = common.reshape(size * size, columns).T.reshape(columns, size, size)
        weights = shared.reshape(size * self.count, columns).T.reshape(columns, size, self.count)
        return torch.matmul(matrices, weights).reshape(columns, -1).T.reshape(size, self.count, columns)
