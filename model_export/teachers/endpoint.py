"""A teacher behind an OpenAI-compatible endpoint: any model that a team already serves.

It is asked for one digit in a chat, and the probabilities are those of the digits among the twenty most probable tokens:
https://platform.openai.com/docs/api-reference/chat/create. vLLM, SGLang, llama.cpp and most hosted models answer so.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from math import exp

import numpy as np
from openai import OpenAI, OpenAIError
from openai.types.chat import ChatCompletionMessageParam
from openai.types.chat.chat_completion_token_logprob import TopLogprob

from model_export.data.pairs import GRADES, Pair
from model_export.progress import OnProgress
from model_export.recipe_stack import EndpointConfig
from model_export.teachers.base import Features, finite_logs
from service.contract.manifest import Criteria
from service.errors import NotegradeError

_TOP_LOGPROBS = 20  # the most that OpenAI's API gives
_RETRIES = 5  # with the client's growing pauses; it retries 408, 409, 429, 5xx and lost connections
_GRADE_OF = {str(grade): grade for grade in GRADES}


class EndpointError(NotegradeError):
    """Raised where the endpoint does not answer, or answers no grade. The message quotes no text of a pair."""


class EndpointTeacher:
    """Computes the logarithms of the grades' probabilities, renormalised over the grades."""

    name = "endpoint"
    chunk: int | None = 512
    parallel = False  # `in_flight` limits the requests of one process

    def __init__(self, config: EndpointConfig, criteria: Sequence[Criteria], client: OpenAI) -> None:
        """`criteria` are those that the teacher reads: with the meaning of each grade."""
        self._config = config
        self._instructions = {each.name: each.text.strip() for each in criteria}
        self._client = client
        self.settings: Mapping[str, object] = {
            "endpoint": config.model_dump(include={"url", "model"}),
            "instructions": self._instructions,
        }

    def load(self, on_progress: OnProgress) -> Features:
        """Return the function that asks about every pair, some at a time, for (pairs, grades) features; it raises EndpointError."""
        return partial(self._features, on_progress)

    def _features(self, on_progress: OnProgress, pairs: Sequence[Pair]) -> np.ndarray:
        found: list[list[float]] = []
        with ThreadPoolExecutor(self._config.in_flight) as threads:
            for start in range(0, len(pairs), self._config.in_flight):
                found += threads.map(self._ask, pairs[start : start + self._config.in_flight])
                on_progress(f"Features of {self.name}", len(found), len(pairs))
        return finite_logs(np.array(found))

    def _ask(self, pair: Pair) -> list[float]:
        try:
            answer = self._client.chat.completions.create(
                model=self._config.model,
                messages=self._messages(pair),
                max_completion_tokens=1,
                temperature=0,
                logprobs=True,
                top_logprobs=_TOP_LOGPROBS,
            )
        except OpenAIError as error:
            raise EndpointError(
                f"{self._config.url} failed on pair {pair.id} ({type(error).__name__}): check stack.endpoint"
            ) from error
        tokens = answer.choices[0].logprobs
        if tokens is None or not tokens.content:
            raise EndpointError(f"{self._config.url} gives no logprobs: choose a model that does")
        return _read(tokens.content[0].top_logprobs, pair)

    def _messages(self, pair: Pair) -> list[ChatCompletionMessageParam]:
        asked = f"Query: {pair.query}\nTitle: {pair.note.title}\nText: {pair.note.body}\nGrade:"
        return [
            {
                "role": "system",
                "content": f"{self._instructions[pair.criteria]}\nAnswer with the digit alone.",
            },
            {"role": "user", "content": asked},
        ]


def _read(tokens: Iterable[TopLogprob], pair: Pair) -> list[float]:
    found = [0.0] * len(GRADES)
    for token in tokens:
        if (grade := _GRADE_OF.get(token.token.strip())) is not None:
            found[grade] += exp(token.logprob)
    total = sum(found)
    if not total:
        raise EndpointError(
            f"the answer for pair {pair.id} has no grade among its {_TOP_LOGPROBS} most probable tokens: "
            "choose a model that follows instructions"
        )
    return [probability / total for probability in found]


def read_key(config: EndpointConfig) -> str:
    """Return the key in the environment. Raises EndpointError where its variable is not set."""
    key = os.environ.get(config.key_variable)
    if key is None:
        raise EndpointError(
            f"set the environment variable {config.key_variable}; any value will do for a server without keys"
        )
    return key


def connect(config: EndpointConfig) -> OpenAI:
    """Return a client of the endpoint. Raises EndpointError as `read_key` does."""
    return OpenAI(
        base_url=config.url, api_key=read_key(config), timeout=config.timeout_s, max_retries=_RETRIES
    )
