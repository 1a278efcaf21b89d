"""Deciding by answers from outside. Authorization is asked in many places, all of them pure; only a webhook must wait for its answer.

A link that has none raises Unanswered. `settled(decide)` is the shell around a decision: it gets the answer and decides again, until nothing is
missing. Answers hold for this one decision, however long they are kept besides. Without webhooks nothing of this happens.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any, TypeVar

from kubern.api.authz.attributes import Decision

T = TypeVar("T")
QUESTIONS_MAX = 1_000                  # in one decision

_answers: ContextVar[dict[Any, Decision] | None] = ContextVar("answers", default=None)


class Unanswered(Exception):
    """`ask` gets the answer to `question`."""

    def __init__(self, question: Any, ask: Callable[[], Awaitable[Decision]]) -> None:
        super().__init__("an authorizer must be asked outside")
        self.question, self.ask = question, ask


def answered(question: Any) -> Decision | None:
    """The answer this decision has got already."""
    answers = _answers.get()
    return answers.get(question) if answers is not None else None


async def settled(decide: Callable[[], T]) -> T:
    """The outcome of a decision that may need answers. `decide` must do nothing but decide: it may be called several times."""
    try:
        return decide()
    except Unanswered as e:
        missing = e
    answers: dict[Any, Decision] = {}
    while len(answers) < QUESTIONS_MAX:
        answers[missing.question] = await missing.ask()
        token = _answers.set(answers)
        try:
            return decide()
        except Unanswered as e:
            missing = e
        finally:
            _answers.reset(token)
    raise missing
