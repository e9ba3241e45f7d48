"""Guidelines for people: what the judges are asked, in their own words."""

from __future__ import annotations

from prefloop.data.prompts.criteria import Criterion
from prefloop.labelers.config import JudgeLabeler, LabelConfig
from prefloop.labelers.judges.folder import load_judge
from prefloop.labelers.judges.settings import RubricSettings
from prefloop.pipeline.review.by_criterion.criterion_questions import AskedCriteria
from prefloop.pipeline.review.definition import Mode

_HEAD = """\
Two answers to the same conversation stand side by side. Say which one serves the person who asked \
better. Which answer is A and which is B was drawn at random.

- **A is better**, **B is better**: also by a little.
- **Tie**: neither is better.
- **Both bad**: neither is better, and neither should be learnt from.

Length for its own sake counts for nothing, nor does a confident tone. The reason is optional, and \
worth a sentence where it is not plain.
"""
_BLIND = "Nobody's opinion is shown on purpose: yours is what the others are measured by."
_ASSISTED = (
    "**The answer that is already selected is the labelers' decision, not yours.** Submitting "
    "sends it as your own: change it where you disagree. The most uncertain pairs come first."
)
_BY_CRITERION = """\
## By criterion

Below the verdict stand questions about each answer by itself, one criterion at a time. What the \
better answer is says nothing about a single criterion: it may meet one worse than the other \
answer does. Leave out what you cannot tell.\
"""
_MARK = "the request stands here"
_CRITERIA = (Criterion(text="the criteria stand here"),)
_FOR_MODELS = ("Reply", "Everything between the tags", "<", "{", "Request:", "criterion_")
"""Beginnings of lines that tell a model how to answer and what to beware of."""


def guidelines(label: LabelConfig | None, mode: Mode, asked: AskedCriteria | None = None) -> str:
    """Markdown for annotators; ``label`` null where no judge of ours labelled the pairs, and
    ``asked`` what there are questions about besides the verdict."""
    parts = [_HEAD, _ASSISTED if mode == "assisted" else _BLIND]
    if asked and asked.criteria:
        parts.append(_BY_CRITERION)
    if asked and asked.left_out:
        left_out = "\n".join(f"- {one.text}" for one in asked.left_out)
        parts.append(f"There are no questions about these criteria, which count too:\n\n{left_out}")
    for labeler in label.labelers if label else ():
        if isinstance(labeler, JudgeLabeler):
            rubric = "\n".join([judge_rubric(labeler.judge), *_criteria(labeler)]).strip()
            if rubric:
                who = "a labeler" if mode == "blind" else f"the labeler “{labeler.name}”"
                parts.append(f"## What {who} is asked\n\n{rubric}")
    return "\n\n".join(parts)


def judge_rubric(judge: str) -> str:
    """What a judge's question says before the request, without what only models need."""
    loaded = load_judge(judge)
    question = loaded.blank([{"role": "user", "content": _MARK}], None, _CRITERIA)
    text = "\n".join(message["content"] for message in question)
    before = text.partition(_MARK)[0].partition(_CRITERIA[0].text)[0]
    lines = [line for line in before.splitlines() if not line.lstrip().startswith(_FOR_MODELS)]
    return "\n".join(lines).strip()


def _criteria(labeler: JudgeLabeler) -> list[str]:
    """The criteria of a judge that has the same for all prompts, a line each."""
    settings = load_judge(labeler.judge).settings
    if not isinstance(settings, RubricSettings) or labeler.criteria != "judge":
        return []
    lines = [
        f"- {one.text} ({', '.join(one.choices)})"
        + (" A fault." if one.weight < 0 else "")
        + (" Without it an answer cannot win." if one.veto and one.weight > 0 else "")
        for one in settings.criteria
    ]
    return ["", *lines]
