"""Linear and logistic regression in the trainer: many replicas of one problem, whose risk is known exactly.

    numbers of rows -> rows of every replica -> sum over replicas of each one's loss -> one gradient for all

Replicas share nothing but the plan: the gradient of the sum is each one's own, as if it were trained alone.

Shape suffixes: B rows of a micro-batch, R replicas, D coordinates.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data.batches import IGNORED
from data.generated import Generated, PowerLaw
from train.shape import Regression


class Replicas(nn.Module):
    """Weights [R, D] of linear regression (half-square loss) or logistic regression, as the source has it; 0 at first.

    Called as `train.model.Transformer` is, with the numbers of rows in place of tokens.
    """

    def __init__(self, source: Generated, shape: Regression) -> None:
        super().__init__()
        self.source = source
        self.weight = nn.Parameter(torch.zeros(shape.replicas, shape.dimension))

    def forward(
        self,
        rows_B1: Tensor,
        documents: None = None,
        targets_B1: Tensor | None = None,
        z_loss: float = 0.0,
        positions: None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(objective, loss, 0): sums over the rows whose target is not `IGNORED`. The objective is the sum of the
        replicas' losses, the loss their mean."""
        assert targets_B1 is not None
        x, y = self.source.draw(rows_B1[:, 0].cpu().numpy(), len(self.weight))
        x_BRD, y_BR = (torch.from_numpy(values).to(self.weight) for values in (x, y))
        predicted_BR = torch.einsum("brd,rd->br", x_BRD, self.weight)
        square = self.source.loss == "square"
        loss_BR = (predicted_BR - y_BR).square() / 2 if square else F.softplus(-y_BR * predicted_BR)
        objective = torch.where(targets_B1 != IGNORED, loss_BR, 0).sum()
        loss = objective.detach() / len(self.weight)
        return objective, loss, torch.zeros_like(loss)

    @torch.no_grad()
    def measured(self) -> dict[str, float]:
        """`eval_loss`, the mean over replicas of the expected loss (linear) or of that on all rows (logistic), and of a
        linear problem `excess_risk` and, of several, its standard error over replicas, `excess_risk_error`."""
        weight_RD = self.weight.double().cpu().numpy()
        if not isinstance(self.source, PowerLaw):
            x, y = self.source.draw(np.arange(self.source.samples), 1)
            return {"eval_loss": float(np.logaddexp(0.0, -y * (x[:, 0] @ weight_RD.T)).mean())}
        problem = self.source.problem
        risk_R = (weight_RD - problem.target) ** 2 @ problem.eigenvalues
        loss = (risk_R.mean() + problem.noise_variance) / 2
        error = {"excess_risk_error": float(risk_R.std(ddof=1) / len(risk_R) ** 0.5)} if len(risk_R) > 1 else {}
        return {"eval_loss": float(loss), "excess_risk": float(risk_R.mean()), **error}
