"""What a request leaves open, filled in by the engine's settings and by the model's own advice."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from prefloop.data.protocol import Request, Sampling
from prefloop.pipeline.engines.settings import OpenAIEngine, TransformersEngine, VllmEngine

if TYPE_CHECKING:
    from transformers import GenerationConfig


@dataclass(frozen=True)
class Advice:
    """How a model's generation config draws; the plain distribution where it says nothing."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0

    @classmethod
    def of(cls, config: GenerationConfig) -> Advice:
        """What ``config`` itself says; the defaults that transformers puts in are not the model's
        advice."""
        said: dict[str, Any] = config.to_diff_dict()
        known = {
            name: said[name]
            for name in ("temperature", "top_p", "top_k")
            if said.get(name) is not None
        }
        return cls(**known)

    def fill(self, sampling: Sampling) -> Sampling:
        """``sampling`` with nothing left open."""
        given = (sampling.temperature, sampling.top_p, sampling.top_k)
        if None not in given:
            return sampling
        return replace(
            sampling,
            temperature=self.temperature if sampling.temperature is None else sampling.temperature,
            top_p=self.top_p if sampling.top_p is None else sampling.top_p,
            top_k=self.top_k if sampling.top_k is None else sampling.top_k,
        )


def advice_of(model: str, revision: str | None) -> Advice:
    """The advice of the checkpoint folder or hub name ``model``."""
    from transformers import GenerationConfig

    try:
        return Advice.of(GenerationConfig.from_pretrained(model, revision=revision))
    except (OSError, ValueError):  # it has none
        return Advice()


def completed(
    request: Request,
    config: TransformersEngine | VllmEngine | OpenAIEngine,
    advice: Advice | None = None,
) -> Request:
    """``request`` with the engine's template variables and effort, where it has none of its own,
    and with the sampling parameters that it leaves open by ``advice``, if there is any."""
    variables = {**config.chat_template_kwargs, **request.chat_template_kwargs}
    effort = request.reasoning_effort or config.reasoning_effort
    sampling = advice.fill(request.sampling) if advice else request.sampling
    if (
        variables == request.chat_template_kwargs
        and effort == request.reasoning_effort
        and sampling is request.sampling
    ):
        return request
    return replace(
        request, sampling=sampling, chat_template_kwargs=variables, reasoning_effort=effort
    )
