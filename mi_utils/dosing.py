"""How strongly to steer: dose curves, the strength chosen within a budget of fluency, and whether effects add up.

Doses are in units of the typical length of the residual vector where they are added, so that directions, layers and
models compare. Besides effect and cost (see `steering`), every dose shows its *off-target* divergence: how much the
next-token distributions change on text that has nothing to do with the concept.

Papers: strength chosen on one half and scored on the other, Wu et al. 2025, arXiv:2501.17148; anti-steerable inputs,
Tan et al. 2024, arXiv:2407.12404; several vectors at once, van der Weij et al. 2024, arXiv:2403.05767. Taught in
`05_steering`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mi_utils.directions import orthogonalised
from mi_utils.metrics import Interval, bootstrap_interval, kl_divergence
from mi_utils.steering import Addition, Gauge, cost, generate, repeats, steered, typical_norm

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

DOSES = (0.0, 0.05, 0.1, 0.2, 0.35, 0.6, 1.0)
"""In units of the typical length of the residual vector."""
CURVES = Path(__file__).resolve().parent.parent / "data" / "concepts" / "steering_curves.csv.gz"
LATENTS, PAIRS = CURVES.with_name("steering_latents.csv"), CURVES.with_name("steering_pairs.csv")
N_ROWS = 96  # rows that are continued together: enough to keep two cores busy
ROUNDING = 1e-4  # nats: a smaller effect is the rounding of another batch


@dataclass(frozen=True)
class Budget:
    """How much fluency may be lost."""

    cost: float = 1.0
    """Nats per token more than the unsteered model's own continuations cost it."""
    repeats: float = 0.1
    """Share of repeated bigrams more than in the unsteered model's own continuations."""


class AtBudget(NamedTuple):
    """A direction at the dose that half of the prompts chose, measured on the other half."""

    dose: float
    effect: float
    """Mean gain in log-odds, nats."""
    interval: Interval
    """Of the mean, over prompts."""
    wrong_way: float
    """Share of the prompts on which the effect is negative."""
    cost: float
    """Nats per token, over the unsteered continuations' own cost."""
    repeats: float
    off_target: float
    """Mean KL divergence on neutral text, nats per token."""


@dataclass(frozen=True)
class Bench:
    """Where and how directions are tried out: one place, one set of doses, one neutral text."""

    model: "TransformerBridge"
    hook_name: str
    neutral: Int[Tensor, "context pos"]
    """Contexts of ordinary text, on which nothing ought to change."""
    doses: tuple[float, ...] = DOSES
    n_tokens: int = 12
    """Length of the continuations that fluency is read from."""
    seed: int = 0

    @cached_property
    def unit(self) -> float:
        """The length of a dose of 1, in the activation's units."""
        return typical_norm(self.model, self.hook_name, self.neutral)

    @cached_property
    def _at_rest(self) -> Float[Tensor, "context pos d_vocab"]:
        with torch.no_grad():
            return self.model(self.neutral)[:, 1:]

    def dose_curve(self, gauge: Gauge, direction: Float[Tensor, " d_model"]) -> pd.DataFrame:
        """Effect, cost and repeats of each prompt at each dose, and the dose's divergence on neutral text.

        Returns:
            One row per dose and prompt: `dose`, `prompt` (its number), `effect`, `cost`, `repeats`, `off_target`.
        """
        amounts = self.unit * torch.tensor(self.doses)
        divergences = self.off_target([Addition(self.hook_name, amount * direction) for amount in amounts])
        n = len(gauge.prompts)
        additions = [Addition(self.hook_name, amounts.repeat_interleave(n)[:, None] * direction)]
        curve = self._measured(gauge, gauge.prompts * len(self.doses), additions)
        curve.insert(0, "dose", np.repeat(self.doses, n))
        return curve.assign(prompt=np.tile(np.arange(n), len(self.doses)), off_target=np.repeat(divergences, n))

    def prompted(self, gauge: Gauge) -> pd.DataFrame:
        """The same of the prompts alone (dose 0) and with the concept's instruction before them (dose 1).

        The instruction is not part of the text whose cost is taken, just as an added vector is not.
        """
        n = len(gauge.prompts)
        curves = [
            self._measured(gauge, gauge.prompts, [], prefix).assign(dose=dose, prompt=np.arange(n), off_target=0.0)
            for dose, prefix in ((0.0, ""), (1.0, gauge.concept.instruction))
        ]
        return pd.concat(curves, ignore_index=True)

    @torch.no_grad()
    def off_target(self, additions: Sequence[Addition]) -> list[float]:
        """Mean KL divergence from the unsteered to the steered model on the neutral text, for each addition alone."""
        found = []
        for addition in additions:
            with steered(self.model, [addition]):
                found.append(float(kl_divergence(self._at_rest, self.model(self.neutral)[:, 1:]).mean()))
        return found

    def _measured(
        self, gauge: Gauge, prompts: Sequence[str], additions: Sequence[Addition], prefix: str = ""
    ) -> pd.DataFrame:
        given = [prefix + prompt for prompt in prompts]
        written = [
            generate(self.model, given[rows], _rows_of(additions, rows), n_tokens=self.n_tokens, seed=self.seed).tokens
            for rows in _blocks(len(given))
        ]
        written = torch.cat(written)
        log_odds = [gauge.log_odds(given[rows], _rows_of(additions, rows)) for rows in _blocks(len(given))]
        effect = torch.cat(log_odds).view(-1, len(gauge.prompts)) - gauge.at_rest
        return pd.DataFrame(
            {
                "effect": effect.flatten().numpy(),
                "cost": cost(self.model, prompts, written).numpy(),
                "repeats": repeats(written).numpy(),
            }
        )


def at_budget(curve: pd.DataFrame, budget: Budget = Budget()) -> AtBudget:
    """The dose with the largest effect within the budget on the first half of the prompts, measured on the second.

    A dose of zero is always within the budget, so a direction that only destroys is reported with an effect of zero.

    Raises:
        ValueError: fewer than four prompts, or no dose of zero to compare with.
    """
    n = curve["prompt"].nunique()
    if n < 4 or 0.0 not in set(curve["dose"]):
        raise ValueError(f"expected at least four prompts and a dose of 0, got {n} and {sorted(set(curve['dose']))}")
    rest = curve[curve["dose"] == 0].set_index("prompt")
    paid = curve.assign(
        cost=curve["cost"] - curve["prompt"].map(rest["cost"]),
        repeats=curve["repeats"] - curve["prompt"].map(rest["repeats"]),
    )
    chosen_on, reported_on = paid[paid["prompt"] < n // 2], paid[paid["prompt"] >= n // 2]
    means = chosen_on.groupby("dose")[["effect", "cost", "repeats"]].mean()
    allowed = means[(means["cost"] <= budget.cost) & (means["repeats"] <= budget.repeats)]
    dose = float(allowed["effect"].idxmax())
    reported = reported_on[reported_on["dose"] == dose]
    effects = reported["effect"].to_numpy()
    return AtBudget(
        dose,
        float(effects.mean()),
        bootstrap_interval(effects),
        float((effects < -ROUNDING).mean()),
        float(reported["cost"].mean()),
        float(reported["repeats"].mean()),
        float(reported["off_target"].mean()),
    )


def measured() -> pd.DataFrame:
    """The recorded curves of every shipped concept and direction, from `data/concepts/steering_table.py`.

    Returns:
        As `Bench.dose_curve`, with `concept` and `direction`; the `prompt` direction is the instruction.
    """
    return pd.read_csv(CURVES)


def measured_pairs() -> pd.DataFrame:
    """The recorded `additivity` of every pair of shipped concepts, and of each with random directions.

    Returns:
        As `additivity`, with `how` the two were combined: `sum`, `orthogonalised` or `second at a later layer`.
    """
    return pd.read_csv(PAIRS)


def table(curves: pd.DataFrame, budget: Budget = Budget()) -> pd.DataFrame:
    """`at_budget` of every concept and direction, its columns under the names of its fields, and `low`, `high`."""
    results = {key: at_budget(curve, budget) for key, curve in curves.groupby(["concept", "direction"], sort=False)}
    rows = [result._asdict() | result.interval._asdict() for result in results.values()]
    index = pd.MultiIndex.from_tuples(results, names=["concept", "direction"])
    return pd.DataFrame(rows, index=index).drop(columns="interval")


def together(first: Addition, second: Addition) -> list[Addition]:
    """Both as they are."""
    return [first, second]


def orthogonal(first: Addition, second: Addition) -> list[Addition]:
    """The second without what it has along the first, at the length it had."""
    return [first, second._replace(vector=second.vector.norm() * orthogonalised(second.vector, first.vector))]


def additivity(
    gauges: Mapping[str, Gauge],
    additions: Mapping[str, Addition],
    seconds: Mapping[str, Addition] | None = None,
    combine: Callable[[Addition, Addition], list[Addition]] = together,
) -> pd.DataFrame:
    """What every two concepts do together, against the sum of what each does alone, on the first one's prompts.

    Args:
        additions: by concept, the vector that steers towards it.
        seconds: the same for the second of a pair, when it is added elsewhere.
        combine: how two additions become one intervention.
    Returns:
        One row per ordered pair, with means over prompts in nats: `concept` whose log-odds are read, `other`, the
        effects `own`, `cross`, `predicted` (their sum) and `observed`, and `low`, `high` around observed - predicted.
    """
    seconds = additions if seconds is None else seconds
    rows = []
    for name, gauge in gauges.items():
        own = gauge([additions[name]])
        for other in additions:
            if other == name:
                continue
            cross, observed = gauge([seconds[other]]), gauge(combine(additions[name], seconds[other]))
            gap = bootstrap_interval((observed - own - cross).numpy())
            means = {"own": own, "cross": cross, "predicted": own + cross, "observed": observed}
            rows.append({"concept": name, "other": other} | {key: float(value.mean()) for key, value in means.items()})
            rows[-1] |= {"low": gap.low, "high": gap.high}
    return pd.DataFrame(rows)


def _blocks(n_rows: int) -> list[slice]:
    return [slice(n, n + N_ROWS) for n in range(0, n_rows, N_ROWS)]


def _rows_of(additions: Sequence[Addition], rows: slice) -> list[Addition]:
    return [a if a.vector.ndim == 1 else a._replace(vector=a.vector[rows]) for a in additions]
