"""Whether an export answers as the model it was made from: the same questions, asked as a foreign client asks them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import spearmanr

from rectune.errors import ModelError
from rectune.measure.classification import auc, probability

Floats = npt.NDArray[np.float64]
FLOOR = 0.1
"""Differences below this root mean square, in log-odds, are nobody's concern: 2.5 points of a probability at most."""
LEAST_RANK = 0.95
"""Rank correlation with the trained model's answers that a quantised form must keep. Errors that know nothing of the
truth leave about that share of what AUC has above chance: 0.80 becomes 0.785."""
STRANGER = 0.5
"""Rank correlation below which it is another model, and nobody can accept that."""


@dataclass(frozen=True)
class Tolerance:
    """How far an export may be from its model.

    Attributes:
        share: root mean square of the differences, as a share of that of what the adapter does to the log-odds. A wrong
            merge is off by a good part of it whatever the model, an adapter left out by all of it.
        floor: differences below this root mean square in log-odds always pass; an adapter may do very little.
        rank: smallest rank correlation.
    """

    share: float
    floor: float
    rank: float


@dataclass(frozen=True)
class Parity:
    """An export's answers against those of its model, in log-odds.

    Attributes:
        pairs: how many were compared.
        largest, mean: of the absolute differences.
        largest_probability: of those between P(yes).
        rank: Spearman's correlation; NaN where all answers of one side are the same.
        root, effect: root mean square of the differences, and of what the adapter does.
        auc, auc_exported: of the model and of the export on these pairs; None where all have the same label.
    """

    pairs: int
    largest: float
    mean: float
    largest_probability: float
    rank: float
    root: float
    effect: float
    auc: float | None = None
    auc_exported: float | None = None

    @classmethod
    def of(
        cls, exported: Floats, trained: Floats, untuned: Floats, labels: npt.NDArray[np.int32] | None = None
    ) -> Parity:
        """Compare.

        Args:
            exported, trained, untuned: float64 [n]; log-odds by the export, by the model, and by it without adapter.
            labels: int32 [n]; 0 or 1, of the pairs; None where they have none.

        >>> found = Parity.of(np.array([0.0, 1.5]), np.array([0.0, 1.0]), np.array([0.0, 0.0]))
        >>> found.largest, found.mean, round(found.rank, 6), round(found.root / found.effect, 3)
        (0.5, 0.25, 1.0, 0.5)
        """
        apart = np.abs(exported - trained)
        constant = np.ptp(exported) == 0 or np.ptp(trained) == 0
        return cls(
            pairs=len(apart),
            largest=float(apart.max()),
            mean=float(apart.mean()),
            largest_probability=float(np.abs(probability(exported) - probability(trained)).max()),
            rank=float("nan") if constant else float(spearmanr(exported, trained).statistic),
            root=_root(apart),
            effect=_root(trained - untuned),
            auc=None if labels is None else auc(labels, trained),
            auc_exported=None if labels is None else auc(labels, exported),
        )

    def line(self) -> str:
        """In one line for a person."""
        share = f" ({self.root / self.effect:.1%} of what the adapter does)" if self.effect > 0 else ""
        both = "" if self.auc is None else f"; AUC on these pairs {self.auc:.3f}, of the export {self.auc_exported:.3f}"
        return (
            f"largest difference {self.largest:.2g} in log-odds, {self.largest_probability:.2g} in probability; "
            f"mean {self.mean:.2g}, root mean square {self.root:.2g}{share}; rank correlation {self.rank:.4f}{both}"
        )

    @property
    def costly(self) -> bool:
        """Whether quantisation has cost more than it may: of the order, by `LEAST_RANK`, or more than training gave."""
        small = self.root <= FLOOR  # what is not a number is not small
        return not (small or (self.rank >= LEAST_RANK and self.root <= self.effect))

    def check_loss(self, what: str, accept: bool) -> None:
        """Refuse a quantised form, whose weights have been proved, for what quantisation costs.

        Args:
            what: the form.
            accept: go on where that is much, as long as it is the same model yet.

        Raises:
            ModelError: it costs too much (see `costly`) and that is not accepted, or little is left of the order.
        """
        if self.costly and not self.rank >= STRANGER:
            raise ModelError(
                f"{what}: its answers have little to do with the trained model's ({self.line()}); take more bits; "
                "nothing was exported"
            )
        if self.costly and not accept:
            raise ModelError(
                f"{what}: the weights are right, but quantisation costs this model much (allowed are a rank "
                f"correlation of {LEAST_RANK:g} or more, and differences smaller than what the adapter does; "
                f"{self.line()}); take more bits, or go on with --accept-loss, which the model card then says; nothing "
                "was exported"
            )

    def problem(self, tolerance: Tolerance) -> str | None:
        """What is beyond the tolerance, or None."""
        limit = max(tolerance.floor, tolerance.share * self.effect)
        if not self.root <= limit:  # not a number is beyond, too
            return f"root mean square of the differences {self.root:.3g}, allowed {limit:.3g}"
        if self.rank < tolerance.rank and self.root > tolerance.floor:
            return f"rank correlation {self.rank:.4f}, allowed {tolerance.rank:g}"
        return None

    def check(self, tolerance: Tolerance, what: str) -> None:
        """Refuse an export that answers otherwise.

        Raises:
            ModelError: it is beyond the tolerance.
        """
        problem = self.problem(tolerance)
        if problem is not None:
            raise ModelError(
                f"{what}: does not answer as the trained model on {self.pairs} pairs ({problem}; {self.line()}); "
                "nothing was exported"
            )


def _root(values: Floats) -> float:
    return float(np.sqrt(np.mean(np.square(values))))
