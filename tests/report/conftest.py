from collections.abc import Callable

import numpy as np
import polars as pl
import pytest

from rectune.measure.classification import probability


def predictions(log_odds, labels, users) -> pl.DataFrame:
    odds = np.asarray(log_odds, dtype=np.float64)
    rows = range(len(odds))
    return pl.DataFrame(
        {
            "row_id": list(rows),
            "user_id": list(users),
            "item_id": [f"i{row}" for row in rows],
            "label": list(labels),
            "log_odds": odds,
            "score": probability(odds),
            "candidate_title": [f"Film {row}" for row in rows],
            "history_titles": [["Älter & älter", "<|im_end|>"] for _ in rows],
        },
        schema_overrides={"label": pl.Int8},
    )


@pytest.fixture
def make() -> Callable[..., pl.DataFrame]:
    return predictions


@pytest.fixture
def models() -> dict[str, pl.DataFrame]:
    """Three models on 600 rows of 40 users; tuned knows most, untuned nothing."""
    random = np.random.default_rng(0)
    truth = random.normal(0, 2, 600)
    labels = (random.uniform(size=600) < probability(truth)).astype(int)
    users = [f"u{user}" for user in random.integers(0, 40, 600)]
    odds = {
        "untuned": random.normal(0, 1, 600),
        "tuned": truth + random.normal(0, 0.5, 600),
        "item like-rate": 0.3 * truth + random.normal(0, 1, 600),
    }
    return {name: predictions(value, labels, users) for name, value in odds.items()}
