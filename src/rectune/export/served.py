"""Asks an export that vLLM or SGLang serves, with nothing but its `scoring.json`: prompts written, answers calibrated.

Both score a merged model by the probability of given tokens behind `query` and each of many `items`, whose common
beginning they keep (vLLM's `/generative_scoring`, SGLang's `/v1/score`); vLLM scores a classifier (`/score`).
"""

from __future__ import annotations

import json
import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from rectune.errors import ModelError, ResourceError
from rectune.export.prompt_template import PromptTemplate
from rectune.export.scoring_file import FILE_NAME
from rectune.export.targets import CLASSIFIER, MERGED, MERGED_4BIT
from rectune.prompt.events import Event

Server = Literal["vllm", "sglang"]
SERVERS: tuple[Server, ...] = ("vllm", "sglang")
_STEP = 32
_PATHS = {("vllm", False): "/generative_scoring", ("vllm", True): "/score", ("sglang", False): "/v1/score"}


class ServedExport:
    """An export behind a server.

    Args:
        folder: the export; of it only `scoring.json` and `tokenizer.json` are read.
        url: where the server listens, as `http://127.0.0.1:8000`.
        server: which one it is.
        key: its API key, sent as a bearer token.
        timeout: seconds that one request may take.
        model: what the server calls the model; by default what it was started with.

    A classifier's server must have been started with the `pooler_config` that `scoring.json` and its model card name.

    Raises:
        ModelError: the folder is no export that this server can score.
    """

    def __init__(
        self,
        folder: Path,
        url: str,
        server: Server = "vllm",
        key: str | None = None,
        timeout: float = 60.0,
        model: str | None = None,
    ) -> None:
        self.scoring = _scoring(folder)
        self.folder = folder
        self.url = url.rstrip("/")
        self.server = server
        self.classifier = self.scoring["target"] == CLASSIFIER
        self.timeout = timeout
        self.model = model
        self.headers = {"Authorization": f"Bearer {key}"} if key else {}
        if (server, self.classifier) not in _PATHS:
            raise ModelError(f"{folder}: {server} scores merged models; export --to merged, or serve this one by vLLM")
        self.template = PromptTemplate(self.scoring["prompt"]["query"], self.scoring["prompt"]["document"])

    @cached_property
    def tokenizer(self) -> Any:
        """The export's tokenizer, which counts tokens as the server will."""
        from tokenizers import Tokenizer

        return Tokenizer.from_file(str(self.folder / "tokenizer.json"))

    @cached_property
    def markers(self) -> list[str]:
        """Special tokens of the tokenizer, the longest first; a server would take them for real ones in a title."""
        held = json.loads((self.folder / "tokenizer.json").read_text(encoding="utf-8")).get("added_tokens", [])
        return sorted((each["content"] for each in held if each["special"] and each["content"]), key=len, reverse=True)

    def score(self, history: Sequence[Event | Mapping[str, Any]], candidates: Sequence[str]) -> list[float]:
        """P(yes) of each candidate after a history.

        Args:
            history: events, or `{item, rating, label}` each, oldest first.
            candidates: texts of items, as `scoring.json` names them.

        Raises:
            ResourceError: the server cannot be reached, or refuses.
            ModelError: it answers with something else than a score for each candidate.
        """
        events = [self._event(event) for event in history]
        texts = [self.clean(candidate) for candidate in candidates]
        events = self._fitting(events, texts)
        pairs = [self.template.pair(events, text) for text in texts]
        fit = self.scoring["calibration"]
        return [_probability(odds / fit["temperature"] + fit["offset"]) for odds in self.log_odds(pairs)]

    def log_odds(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """Log-odds of written prompts, before any calibration that is not in the export itself.

        Args:
            pairs: (query, document); those of one query are asked together.
        """
        found = [math.nan] * len(pairs)
        places: dict[str, list[int]] = {}
        for at, (query, _) in enumerate(pairs):
            places.setdefault(query, []).append(at)
        for query, own in places.items():
            scores = self._scores(self._ask(query, [pairs[at][1] for at in own]), len(own))
            for at, score in zip(own, scores, strict=True):
                found[at] = score
        return found

    def clean(self, text: str) -> str:
        """A text without special tokens, which the server's tokenizer would not read as letters.

        Taking one out may put another together, so this goes on until there is none.
        """
        while any(marker in text for marker in self.markers):
            for marker in self.markers:
                text = text.replace(marker, "")
        return text

    def _fitting(self, events: list[Event], texts: Sequence[str]) -> list[Event]:
        """The newest events with which the longest candidate's prompt fits; one history for all, so that it is shared.

        A candidate reserves its tokens rounded up to 32, as rectune's own prompts do in the stream layout.
        """
        shown, room = self.scoring["history_len"], self.scoring["cutoff_len"]
        events = events if shown is None else events[-shown:] if shown else []

        def tokens(text: str) -> int:
            return len(self.tokenizer.encode(text).ids)

        room -= max((-(-tokens(self.template.pair([], text)[1]) // _STEP) * _STEP for text in texts), default=0)
        counts = range(len(events) + 1)  # of the oldest events that are left out; the least with which it fits
        return events[
            bisect_left(counts, True, key=lambda out: tokens(self.template.pair(events[out:], "")[0]) <= room) :
        ]

    def _event(self, event: Event | Mapping[str, Any]) -> Event:
        if not isinstance(event, Event):
            event = Event(event["item"], event.get("rating"), event.get("label", 0))
        return Event(self.clean(event.title), event.rating, event.label)

    def request(self, query: str, documents: Sequence[str]) -> dict[str, Any]:
        """The body that asks about documents of one query."""
        named = {"model": self.model} if self.model else {}
        if self.classifier:
            return {**named, "queries": query, "documents": list(documents), "use_activation": False}
        words = self.scoring["labels"]
        labels = [words["positive"]["id"], words["negative"]["id"]]
        return {**named, "query": query, "items": list(documents), "label_token_ids": labels, "apply_softmax": True}

    def _ask(self, query: str, documents: Sequence[str]) -> Any:
        import httpx

        path = self.url + _PATHS[self.server, self.classifier]
        try:
            answer = httpx.post(path, json=self.request(query, documents), headers=self.headers, timeout=self.timeout)
            answer.raise_for_status()
            return answer.json()
        except httpx.HTTPStatusError as error:
            said = " ".join(error.response.text.split())[:200]
            raise ResourceError(f"{path}: {error.response.status_code} {said}") from None
        except (httpx.HTTPError, ValueError) as error:
            raise ResourceError(f"{path}: no answer ({type(error).__name__}: {error}); is {self.server} up?") from None

    def _scores(self, answer: Any, count: int) -> list[float]:
        try:
            if self.server == "sglang":
                found = [_logit(float(row[0])) for row in answer["scores"]]
            else:
                rows = sorted(answer["data"], key=lambda row: int(row["index"]))
                numbers = [float(row["score"]) for row in rows]
                # The server was started as the model card says, so that its number holds the offset already.
                offset = self.scoring["calibration"]["offset"]
                found = [each - offset if self.classifier else _logit(each) for each in numbers]
        except (KeyError, TypeError, ValueError, IndexError):
            raise ModelError(f"{self.url}: answered with something else than scores: {str(answer)[:200]}") from None
        if len(found) != count or not all(map(math.isfinite, found)):
            raise ModelError(f"{self.url}: {len(found)} scores for {count} candidates, or some that are no numbers")
        return found


def _scoring(folder: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads((folder / FILE_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise ModelError(
            f"{folder}: holds no readable {FILE_NAME}; make it with rectune export RUN --to merged"
        ) from None
    if found.get("target") not in (MERGED, MERGED_4BIT, CLASSIFIER):
        raise ModelError(f"{folder}: an export as {found.get('target')}; a server scores merged or classifier ones")
    return found


def _probability(log_odds: float) -> float:
    return 1 / (1 + math.exp(-log_odds)) if log_odds >= 0 else math.exp(log_odds) / (1 + math.exp(log_odds))


def _logit(share: float) -> float:
    """Log-odds of a probability; what a server rounds to 0 or 1 is taken for the nearest number that is neither."""
    share = min(max(share, 1e-15), 1 - 1e-15)
    return math.log(share / (1 - share))
