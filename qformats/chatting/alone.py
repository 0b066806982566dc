"""One answer after the other, by Transformers' own ``generate``: for models whose texts cannot be put side by side."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)

from qformats.chatting.answer import Answer
from qformats.chatting.sampling import choose

__all__ = ["Alone"]


class Alone:
    """Answers of any model.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        The model.
    wanted : callable, optional
        Whether the model is wanted elsewhere: then an answer is left as it is.
    """

    def __init__(self, model: Any, wanted: Callable[[], bool] = lambda: False) -> None:
        self._model, self._wanted = model, wanted
        self._answer: Answer | None = None

    @property
    def count(self) -> int:
        """Answers in work."""
        return int(self._answer is not None)

    @property
    def nbytes(self) -> int:
        """Nothing is kept between two answers."""
        return 0

    def has_room(self, answer: Answer) -> bool:
        """Whether another answer can be begun now."""
        return self._answer is None

    def add(self, answer: Answer) -> None:
        """Begin an answer."""
        self._answer = answer

    def step(self) -> None:
        """Write the whole answer, or until the model is wanted elsewhere."""
        answer = self._answer
        assert answer is not None
        if answer.cancelled:
            answer.finish("cancelled")
        else:
            self._write(answer)
        if answer.finished:
            self._answer = None

    def left(self) -> Answer | None:
        """The answer that was not finished, which is not in work here any more."""
        answer, self._answer = self._answer, None
        return answer

    def fail(self, error: Exception) -> None:
        """End the answer with an error."""
        if self._answer is not None:
            self._answer.fail(error)
        self._answer = None

    def cancel(self) -> None:
        """Have the answer end before its next token."""
        if self._answer is not None:
            self._answer.cancel()

    def _write(self, answer: Answer) -> None:
        model, request = self._model, answer.request
        answer.draw_on(model.device)
        # Tokens are chosen here, and end the text here: nothing else has a say.
        config: Any = GenerationConfig
        model.generation_config = config(max_new_tokens=request.most, do_sample=False)
        inputs = torch.tensor([list(request.ids)], device=model.device)
        answer.begin()
        model.generate(
            inputs,
            attention_mask=torch.ones_like(inputs),
            logits_processor=LogitsProcessorList([_Chooser(answer)]),
            stopping_criteria=StoppingCriteriaList([_Finished(answer, self._wanted)]),
        )


class _Chooser(LogitsProcessor):
    """Chooses the next token, and leaves it as the only one."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        answer, request = self._answer, self._answer.request
        if answer.finished:
            # Captured steps are one ahead of what is known of the text.
            return scores
        text = (request.ids, answer.new)
        (choice,) = choose(scores, [request.sampling], [answer.generator], [text], [request.logprobs])
        answer.take(choice)
        only = torch.full_like(scores, -torch.inf)
        only[0, 0 if choice is None else choice.id] = 0
        return only


class _Finished(StoppingCriteria):
    """Whether the answer has ended, or the model is wanted elsewhere."""

    def __init__(self, answer: Answer, wanted: Callable[[], bool]) -> None:
        self._answer, self._wanted = answer, wanted

    def __call__(self, input_ids: Tensor, scores: Any, **more: Any) -> Any:
        if self._answer.cancelled:
            self._answer.finish("cancelled")
        done = self._answer.finished or self._wanted()
        return torch.full((len(input_ids),), done, device=input_ids.device)
