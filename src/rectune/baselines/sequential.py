"""A sequential neural model that looks at the user's history through the item asked about.

The item attends to the user's strictly earlier events; each event is its item and what the user made of it (label and
rating), and counts more or less by how like the two items are and how many events ago it was. What is gathered, the
item itself and counts over the history go through one hidden layer; the item's bias is added. The model learns the
label and, beside it, the rating, which says more than the label does. How long ago an event was is not looked at, so
that a request, which brings no times, is scored as an event of the dataset is.

Source: Zhou et al., "Deep interest network for click-through rate prediction", KDD 2018 (the target attends to the
history), with the scaled dot-product attention of Kang and McAuley, "Self-attentive sequential recommendation", ICDM
2018. The empty event that attention may turn to is the zero attention of Ai et al., "A zero attention model for
personalized product search", CIKM 2019.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from rectune.baselines.counts import log_odds
from rectune.baselines.questions import Floats, Log, Questions
from rectune.baselines.saved import from_file, to_file
from rectune.baselines.sequential_input import Batch, Blocks, RatingScale, Singles
from rectune.baselines.served import Served
from rectune.measure.classification import log_loss

if TYPE_CHECKING:
    from torch import Generator, Tensor

    Weights = dict[str, Tensor]

FORMAT = "1"
"""Of the weights and of what they are fed; raise it with every change of either, or of how they are trained."""
_HEADS, _HIDDEN = 2, 64
_DROPOUT, _EVENT_DROPOUT, _ITEM_DROPOUT, _RATING_DROPOUT = 0.2, 0.1, 0.05, 0.1
_LEARNING_RATE, _WARM_UP, _DECAY = 2e-3, 100, 0.01
_RATING_LOSS = 0.5
_AVERAGING = 0.99
"""The weights that are used are a moving average of those that are trained."""
_MOST_ROUNDS, _PATIENCE, _ROUND_STEPS = 15, 2, 100
"""A round is a pass over the training events, or as many as it takes to make that many steps of a small log."""
_TRAINED_AT_ONCE, _SCORED_AT_ONCE = 16, 64


@dataclass(frozen=True)
class NetworkSettings:
    """What is tuned on validation.

    Attributes:
        width: of an item's vector, even.
        window: most recent events of a history that are read.
        decay: AdamW's, of the items' vectors.

    The rest was tried on validation too and is the same for every data set: stars as one-hot marks, positions in
    buckets, two hops of attention and rolling rates as inputs bring nothing more.
    """

    width: int = 64
    window: int = 200
    decay: float = 0.5


def _start(log: Log, features: int, width: int, draw: Generator) -> Weights:
    """The weights before training; the row of an item that is in no catalog is the last."""
    import torch

    def normal(*shape: int) -> Tensor:
        return torch.empty(shape).normal_(0.0, 0.05, generator=draw)

    def linear(name: str, inputs: int, outputs: int) -> Weights:
        edge = inputs**-0.5
        shapes = {name: (outputs, inputs), f"{name}_bias": (outputs,)}
        return {part: torch.empty(shape).uniform_(-edge, edge, generator=draw) for part, shape in shapes.items()}

    places, rate = len(log.items) + 1, float(log.label[log.known].mean())
    weights = {
        "item": normal(places, width), "attributes": normal(log.genres.shape[1] + 1, width),
        **linear("query", width, width), **linear("key", width, width), **linear("value", width, width),
        **linear("scale", width, width), **linear("mark", 2, width), **linear("hidden", 3 * width + features, _HIDDEN),
        **linear("out", _HIDDEN, 2), **linear("count", features, 2),
        "ago": torch.zeros(_HEADS), "nothing": torch.zeros(_HEADS), "bias": torch.zeros(places, 2),
    }  # fmt: skip
    weights["out_bias"][0] = float(log_odds(np.array([rate]))[0])
    return weights


def _attributes(genres: Floats, years: Floats) -> Tensor:
    """Genres and year of each item, float32 [items + 1, genres + 1]; a year that is not known is the mean one."""
    import torch

    year, known = np.zeros(len(years)), ~np.isnan(years)
    if known.any():
        year[known] = (years[known] - years[known].mean()) / (years[known].std() or 1.0)
    return torch.tensor(np.column_stack([genres, year]), dtype=torch.float32)


def _answers(weights: Weights, attributes: Tensor, batch: Batch, draw: Generator | None = None) -> Tensor:
    """Log-odds of the label and the scaled rating, [b, q, 2]; with a generator, as in training, with dropout."""
    import torch
    from torch.nn import functional

    def kept(shape: Sequence[int], dropout: float) -> Tensor:
        return torch.empty(*shape).bernoulli_(1 - dropout, generator=draw)

    def dropped(x: Tensor) -> Tensor:
        return x if draw is None else x * kept(x.shape, _DROPOUT) / (1 - _DROPOUT)

    def linear(name: str, x: Tensor) -> Tensor:
        return functional.linear(x, weights[name], weights[f"{name}_bias"])

    def vectors(items: Tensor) -> Tensor:
        known = functional.embedding(items, attributes @ weights["attributes"])
        if draw is not None:
            # An item now and then is one that no catalog holds, so that its row is trained too.
            items = items.where(kept(items.shape, _ITEM_DROPOUT).bool(), len(attributes) - 1)
        return dropped(functional.embedding(items, weights["item"]) + known)

    def heads(x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], _HEADS, -1).transpose(1, 2)

    # Copied and not shared, since the last bit of a product may depend on how its factors lie in memory.
    item, counts, events, marks, seen, ago = (torch.tensor(part) for part in batch[:6])
    asked, history = vectors(item), vectors(events)
    if draw is not None:
        seen = seen & kept((len(seen), 1, seen.shape[2]), _EVENT_DROPOUT).bool()
        # A request may bring labels without ratings.
        rated = kept((*marks.shape[:2], 1), _RATING_DROPOUT)
        marks = torch.cat([marks[..., :1], marks[..., 1:] * rated], dim=-1)
    query, key = heads(linear("query", asked)), heads(linear("key", history))
    likeness = query @ key.transpose(2, 3) / math.sqrt(query.shape[-1]) + weights["ago"][:, None, None] * ago[:, None]
    likeness = likeness.masked_fill(~seen[:, None], -torch.inf)
    # An event that says nothing is always there, so that attention has a place to go when nothing is alike.
    nothing = weights["nothing"][:, None, None].expand(*likeness.shape[:3], 1)
    weight = torch.cat([likeness, nothing], dim=-1).softmax(dim=-1)[..., :-1]
    mark = linear("mark", marks)
    value = linear("value", history) + mark + linear("scale", history) * mark
    gathered = (weight @ heads(value)).transpose(1, 2).flatten(2)
    inner = dropped(functional.silu(linear("hidden", torch.cat([asked, gathered, gathered * asked, counts], dim=-1))))
    return linear("out", inner) + linear("count", counts) + functional.embedding(item, weights["bias"])


def _loss(answers: Tensor, batch: Batch) -> Tensor:
    """Log loss of the label plus the weighted squared error of the rating, where there is one."""
    import torch
    from torch.nn import functional

    asked = torch.from_numpy(batch.place >= 0)
    label, rating = torch.from_numpy(batch.label)[asked], torch.from_numpy(batch.rating)[asked]
    loss = functional.binary_cross_entropy_with_logits(answers[asked][:, 0], label)
    rated = ~rating.isnan()
    error = (answers[asked][rated, 1] - rating[rated]).square().sum() / max(1, int(rated.sum()))
    return loss + _RATING_LOSS * error


def _score(weights: Weights, attributes: Tensor, blocks: Blocks) -> Floats:
    """Log-odds of every question, float64 [n]."""
    import torch

    found = np.empty(len(blocks.asked))
    by_length = np.argsort(blocks.end - blocks.begin, kind="stable")
    with torch.no_grad():
        for begin in range(0, len(by_length), _SCORED_AT_ONCE):
            batch = blocks.batch(by_length[begin : begin + _SCORED_AT_ONCE])
            answers = _answers(weights, attributes, batch)[..., 0].double().numpy()
            asked = batch.place >= 0
            found[batch.place[asked]] = answers[asked]
    return found


def _train(train: Blocks, held_out: Blocks, attributes: Tensor, settings: NetworkSettings, seed: int) -> Weights:
    """The averaged weights of the round with the lowest log loss on the questions held out."""
    import torch

    draw, shuffle = torch.Generator().manual_seed(seed), np.random.default_rng(seed)
    weights = _start(train.log, train.counts.shape[1], settings.width, draw)
    average = {name: weight.clone() for name, weight in weights.items()}
    for weight in weights.values():
        weight.requires_grad_()
    others = [weight for name, weight in weights.items() if name != "item"]
    groups = [{"params": [weights["item"]], "weight_decay": settings.decay}, {"params": others, "weight_decay": _DECAY}]
    optimizer = torch.optim.AdamW(groups, lr=_LEARNING_RATE)
    labels = np.empty(len(held_out.asked))
    labels[held_out.place] = held_out.log.label[held_out.asked.rows]
    best, least, since, step = average, math.inf, 0, 0
    passes = math.ceil(_ROUND_STEPS / math.ceil(len(train.slots) / _TRAINED_AT_ONCE))
    for _ in range(_MOST_ROUNDS):
        order = np.concatenate([shuffle.permutation(len(train.slots)) for _ in range(passes)])
        for begin in range(0, len(order), _TRAINED_AT_ONCE):
            step += 1
            for group in optimizer.param_groups:
                group["lr"] = _LEARNING_RATE * min(1.0, step / _WARM_UP)
            batch = train.batch(order[begin : begin + _TRAINED_AT_ONCE])
            optimizer.zero_grad()
            _loss(_answers(weights, attributes, batch, draw), batch).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            for name, weight in weights.items():
                average[name].lerp_(weight.detach(), 1 - min(_AVERAGING, step / (step + 10)))
        loss = log_loss(labels, _score(average, attributes, held_out))
        since += 1
        if loss < least:
            best, least, since = {name: weight.clone() for name, weight in average.items()}, loss, 0
        if since == _PATIENCE:
            break
    return best


@dataclass(frozen=True)
class SequentialNetwork(Served):
    """A fitted network, able to score any history.

    Attributes:
        items, genres, year: of the catalog, as a Log has them.
        scale: of the ratings it was trained on.
        settings: as it was trained.
        weights: by name, float32.
    """

    items: list[str]
    genres: Floats
    year: Floats
    scale: RatingScale
    settings: NetworkSettings
    weights: Mapping[str, Singles]

    @cached_property
    def _tensors(self) -> tuple[Weights, Tensor]:
        import torch

        return {name: torch.tensor(weight) for name, weight in self.weights.items()}, _attributes(
            self.genres, self.year
        )

    def score(self, log: Log, asked: Questions) -> Floats:
        """Log-odds of questions about a log of the same catalog, float64 [n]."""
        return _score(*self._tensors, Blocks.of(log, asked, self.settings.window, self.scale))

    def to_bytes(self) -> bytes:
        """The network as a safetensors file; the same network gives the same bytes."""
        tensors: dict[str, npt.NDArray[Any]] = {
            "genres": self.genres,
            "year": self.year,
            **{f"weight.{k}": w for k, w in self.weights.items()},
        }
        told = {"items": self.items, "scale": asdict(self.scale), "settings": asdict(self.settings), "format": FORMAT}
        return to_file(tensors, {name: json.dumps(value) for name, value in told.items()})

    @classmethod
    def from_bytes(cls, content: bytes) -> SequentialNetwork:
        """Read what `to_bytes` wrote.

        Raises:
            ValueError: it is damaged, or was made by a version with other parts.
        """
        tensors, texts = from_file(content)
        try:
            if json.loads(texts["format"]) != FORMAT:
                raise ValueError("its parts are not those of this version")
            items, scale, settings = (json.loads(texts[name]) for name in ("items", "scale", "settings"))
            weights = {
                name.removeprefix("weight."): each for name, each in tensors.items() if name.startswith("weight.")
            }
            network = cls(
                items, tensors["genres"], tensors["year"], RatingScale(**scale), NetworkSettings(**settings), weights
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"it holds no sequential network ({error})") from error
        return network


def fit_network(log: Log, held_out: Questions, settings: NetworkSettings, seed: int = 0) -> SequentialNetwork:
    """Train on the training events, each with its strictly earlier history.

    The global state of torch is left as it is. The same input gives the same network on one machine with the same
    number of threads.

    Args:
        log: all events; those `asked` are trained on, online, and the others are only ever read as history.
        held_out: validation questions, online; their log loss decides how many rounds are trained.
        settings: sizes and penalties.
        seed: of the first weights, the order of training and dropout.

    Raises:
        ValueError: there is no training event or no question held out.
    """
    rows = np.flatnonzero(log.asked)
    if not len(rows):
        raise ValueError("log: no training event")
    if not len(held_out):
        raise ValueError("held_out: no question")
    scale = RatingScale.of(log)
    train, watched = (
        Blocks.of(log, each, settings.window, scale) for each in (Questions(rows, log.stop[rows]), held_out)
    )
    weights = _train(train, watched, _attributes(log.genres, log.year), settings, seed)
    plain = {name: weight.numpy() for name, weight in weights.items()}
    return SequentialNetwork(log.items, log.genres, log.year, scale, settings, plain)
