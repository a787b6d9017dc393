"""What requests and answers look like, for checking and for the OpenAPI document.

`/v1/rerank` is the shape that Cohere, Jina and vLLM share: a query holds the history as text, documents are the
candidates. The native form gives events and item ids. Keys by which those services tune themselves are taken and do
nothing here; others are refused, since a misspelt key would otherwise be ignored.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr, WithJsonSchema, model_validator

from rectune.serve.limits import TITLE

_TITLE = {"type": "string", "minLength": 1, "maxLength": TITLE}
_ID = {"anyOf": [_TITLE, {"type": "integer"}]}
_VALUE = {"anyOf": [{"type": "number"}, {"type": "boolean"}, {"type": "string", "maxLength": 60}, {"type": "null"}]}
_EVENT = {
    "anyOf": [
        {
            "type": "object",
            "properties": {
                "item_id": _ID,
                "title": _TITLE,
                "rating": {"type": "number"},
                "label": _VALUE,
                "timestamp": {"type": "number", "description": "Puts the events in order; on all of them, or on none."},
            },
            "additionalProperties": False,
        },
        _TITLE,
        {"type": "array", "prefixItems": [_ID, _VALUE], "minItems": 1, "maxItems": 2},
    ],
    "description": "An item with its rating or label: an object, a pair, or a bare title.",
}
_ITEM = {
    "anyOf": [
        _TITLE,
        {"type": "integer"},
        {
            "type": "object",
            "properties": {"item_id": _ID, "title": _TITLE, "text": _TITLE},
            "additionalProperties": False,
        },
    ],
    "description": "A title, an item id, or an object with one of them.",
}

# Looked into by the recommender itself, whose errors say what is wrong with which event.
Events = Annotated[list[Any], WithJsonSchema({"type": "array", "items": _EVENT})]
Item = Annotated[Any, WithJsonSchema(_ITEM)]
Items = Annotated[list[Any], Field(min_length=1), WithJsonSchema({"type": "array", "items": _ITEM, "minItems": 1})]

_QUERY = (
    "The history as text, one event a line, oldest first: `Toy Story (1995): 4.5` or `Heat (1995)=no`; empty for "
    "somebody of whom nothing is known."
)
HISTORIES, CANDIDATES = ("query", "history", "user_id"), ("documents", "candidates")


class _Closed(BaseModel):
    """An object that refuses keys which it does not know."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, given: Any) -> Any:
        """Stop at the first unknown key: pydantic would make an error of each, and a body has room for 500,000."""
        unknown = next((key for key in given if key not in cls.model_fields), None) if isinstance(given, dict) else None
        if unknown is not None:
            raise ValueError(f"{unknown[:60]}: no such key; allowed: {', '.join(cls.model_fields)}")
        return given


class _Asker(_Closed):
    """Whose question it is."""

    query: StrictStr | None = Field(None, description=_QUERY)
    history: Events | None = Field(None, description="Events, oldest first unless they have timestamps.")
    user_id: StrictStr | StrictInt | None = Field(
        None, description="A user of the run's dataset, all of whose events are taken."
    )

    @model_validator(mode="after")
    def _one_history(self) -> _Asker:
        _exactly_one(self, HISTORIES)
        return self


def _exactly_one(given: BaseModel, names: tuple[str, ...]) -> None:
    found = [name for name in names if getattr(given, name) is not None]
    if len(found) != 1:
        raise ValueError(f"give one of {', '.join(names)}; got {' and '.join(found) or 'none'}")


class _Asking(_Asker):
    model: StrictStr | None = Field(None, max_length=200, description="Any name: this service has one model.")
    unknown: Literal["error", "text"] | None = Field(
        None, description="Titles that the catalog does not hold: refuse, or ask about them as text."
    )


class RerankRequest(_Asking):
    """A history and candidates, to be ranked."""

    documents: Items | None = Field(None, description="The candidates: titles, or objects with `text`.")
    candidates: Items | None = Field(None, description="The candidates: titles, or objects with `item_id` or `title`.")
    top_n: StrictInt | None = Field(None, ge=0, description="How many of the best to return; left out or 0, all.")
    return_documents: StrictBool = Field(False, description="Whether results repeat their item's text.")
    max_chunks_per_doc: Any = Field(None, description="Of Cohere; does nothing here.")
    max_tokens_per_doc: Any = Field(None, description="Of Cohere; does nothing here.")
    priority: Any = Field(None, description="Of Cohere and vLLM; does nothing here.")
    truncation: Any = Field(None, description="Of Jina; does nothing here.")
    truncate_prompt_tokens: Any = Field(None, description="Of vLLM; does nothing here.")

    @model_validator(mode="after")
    def _one_list(self) -> RerankRequest:
        _exactly_one(self, CANDIDATES)
        return self


class Pair(_Asker):
    """A history and one candidate."""

    candidate: Item


# Made `Pair`s by the reader, once they are known not to be too many: pydantic would keep the loop busy for seconds with
# 150,000 of them, and for minutes with as many wrong ones.
Pairs = Annotated[
    list[Any],
    Field(min_length=1),
    WithJsonSchema({"type": "array", "minItems": 1, "items": Pair.model_json_schema()}),
]


class ScoreRequest(_Closed):
    """One history and candidates, or pairs of a history and a candidate each."""

    query: StrictStr | None = Field(None, description=_QUERY)
    history: Events | None = Field(None, description="Events, oldest first unless they have timestamps.")
    user_id: StrictStr | StrictInt | None = Field(None, description="A user of the run's dataset.")
    candidates: Items | None = Field(None, description="Titles, or objects with `item_id` or `title`.")
    pairs: Pairs | None = Field(None, description="At most as many as candidates.")
    model: StrictStr | None = Field(None, max_length=200, description="Any name: this service has one model.")
    unknown: Literal["error", "text"] | None = Field(
        None, description="Titles that the catalog does not hold: refuse, or ask about them as text."
    )

    @model_validator(mode="after")
    def _one_form(self) -> ScoreRequest:
        if self.pairs is None:
            _exactly_one(self, ("candidates", "pairs"))
            _exactly_one(self, HISTORIES)
        elif any(getattr(self, name) is not None for name in (*HISTORIES, "candidates")):
            raise ValueError("give pairs alone, since each has its own history and candidate")
        return self


class RecommendRequest(_Closed):
    """A user of the dataset."""

    user_id: StrictStr | StrictInt
    k: StrictInt = Field(10, ge=1, description="How many items to return.")
    pool: StrictInt | None = Field(
        None, ge=1, description="Unseen items that the retriever hands to the model; as a rule 100, or k if more."
    )
    model: StrictStr | None = Field(None, max_length=200, description="Any name: this service has one model.")


class ReloadRequest(_Closed):
    """Nothing is asked: the run folder is the one that the service was started with."""


# --- answers ---


class Usage(BaseModel):
    """Tokens of the prompts, a history that candidates share counted once."""

    prompt_tokens: int
    total_tokens: int


class Document(BaseModel):
    """An item as it was asked about."""

    text: str
    item_id: str | None = None


class Result(BaseModel):
    """One candidate: its place in the request, and P(like)."""

    index: int
    relevance_score: float
    document: Document | None = None


class RerankResponse(BaseModel):
    """Candidates, best first."""

    id: str
    model: str
    results: list[Result]
    usage: Usage
    meta: dict[str, Any]


class Score(BaseModel):
    """One candidate or pair: its place in the request, P(like), and the log-odds, which do not saturate."""

    index: int
    object: Literal["score"]
    score: float
    log_odds: float


class ScoreResponse(BaseModel):
    """Scores in the order of the request."""

    id: str
    object: Literal["list"]
    model: str
    data: list[Score]
    usage: Usage


class Recommended(BaseModel):
    """An item, best first."""

    rank: int
    item_id: str
    title: str
    score: float
    log_odds: float
    retriever_rank: int


class RecommendResponse(BaseModel):
    """Items for a user; `retriever` is `popularity` where the service's own knows nothing of them."""

    id: str
    model: str
    retriever: str
    results: list[Recommended]
    usage: Usage


class Reloaded(BaseModel):
    """What is served now."""

    model: str
    adapter: str
    seconds: float


class Problem(BaseModel):
    """What is wrong, in one line."""

    id: str
    message: str


RERANK_EXAMPLES = {
    "rerank": {
        "summary": "As Cohere, Jina and vLLM take it",
        "value": {
            "model": "rectune",
            "query": "Toy Story (1995): 5\nHeat (1995): 2",
            "documents": ["Alien (1979)", {"text": "Fargo (1996)"}],
            "top_n": 2,
            "return_documents": True,
        },
    },
    "native": {
        "summary": "Events and item ids",
        "value": {
            "history": [
                {"item_id": "1", "rating": 5, "timestamp": 881250949},
                {"title": "Heat (1995)", "rating": 2, "timestamp": 881251010},
            ],
            "candidates": [{"item_id": "183"}, {"title": "Fargo (1996)"}],
        },
    },
    "user": {"summary": "A user of the dataset", "value": {"user_id": "7", "candidates": ["183", "100"]}},
}
SCORE_EXAMPLES = {
    "candidates": {
        "summary": "One history",
        "value": {"history": [["Toy Story (1995)", 5]], "candidates": ["Alien (1979)", "Fargo (1996)"]},
    },
    "pairs": {
        "summary": "A history for each candidate",
        "value": {"pairs": [{"query": "Heat (1995): 5", "candidate": "183"}, {"user_id": 7, "candidate": "100"}]},
    },
}
RECOMMEND_EXAMPLES = {"user": {"summary": "Ten items for a user", "value": {"user_id": "7", "k": 10}}}
