"""Estimating a run round by round: what is asked of whom, and what is trained."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from prefloop.labelers.config import (
    AcrossPolicies,
    BestVsLow,
    BestVsRandom,
    BestVsWorst,
    CorrectVsIncorrect,
    JudgeLabeler,
    LabelerConfig,
    OwnModelLabeler,
    RankedNeighbours,
    WrittenCriteria,
)
from prefloop.labelers.judges.folder import load_judge
from prefloop.labelers.judges.settings import ListwiseSettings, RatingSettings, RubricSettings
from prefloop.pipeline.config import POLICY, RunConfig
from prefloop.pipeline.engines.settings import OpenAIEngine
from prefloop.pipeline.plan.assumptions import (
    endpoint_assumptions,
    question_assumptions,
    time_assumptions,
    token_assumptions,
)
from prefloop.pipeline.plan.clock import Clock
from prefloop.pipeline.plan.planned_answers import PlannedAnswers
from prefloop.pipeline.plan.planned_votes import votes_of
from prefloop.pipeline.plan.speeds import (
    ANSWER_SHARE,
    RATIONALE_SHARE,
    Measured,
    server_seconds,
)
from prefloop.pipeline.plan.steps import Step, Training
from prefloop.pipeline.plan.token_counts import Rubric, TokenCounter, rubrics_of
from prefloop.pipeline.run.final_split import final_ids
from prefloop.pipeline.run.manifest import FINAL
from prefloop.pipeline.run.run_dir import OPPONENT
from prefloop.pipeline.stages.evaluate import MOST_UNTEMPERED, heldout_sampling, is_untempered
from prefloop.pipeline.stages.given_rows import GivenAnswers
from prefloop.pipeline.stages.prompts import round_rows, round_size
from prefloop.training.policy.heldout import MOST_PAIRS
from prefloop.training.session.setup import optimiser_steps


@dataclass(frozen=True)
class _Asked:
    """Requests of one kind; tokens are means of a request."""

    stage: str
    what: str
    engine: str | None
    requests: int
    prompt_tokens: float = 0
    expected: float = 0
    """Generated tokens."""
    most: float = 0
    """Upper bound of the generated tokens."""
    thought: int = 0
    """Upper bound of the tokens that are thought before these."""
    expected_thought: float | None = None
    """Expected ones; null: a share of the upper bound."""
    longest_prompt: float | None = None
    """Upper bound of the prompt's tokens; null where these are known."""
    timed_like: str = "sample"
    """The stage whose measured speed holds for these requests."""
    outcomes: int | None = None
    """Samples or votes that come of them, which is what was measured; null: one of each."""
    model: str = POLICY
    """The model that answers, as the config names it."""
    copies: int = 1
    """Requests that share a prompt; of a judge, where its engine is a server."""
    seconds: float | None = None
    """Where no engine answers."""


@dataclass(frozen=True)
class PairsToLabel:
    """The pairs of one stage of one round that labelers look at."""

    stage: str
    prompts: pa.Table
    pairs: Sequence[int]
    """Of each prompt."""
    candidates: Sequence[int]
    """Of each prompt: those that are in its pairs, at most."""
    answer_tokens: float
    longest: float
    """Tokens of an answer at most."""
    times: int = 1
    """How often labelers look at so many, each time by themselves: once an opponent."""


class Planner:
    """Adds up the steps of a run, round by round."""

    def __init__(
        self,
        config: RunConfig,
        prompts: pa.Table,
        heldout: pa.Table,
        measured: Measured,
        clock: Clock,
        given: GivenAnswers | None = None,
    ) -> None:
        self._config = config
        self._clock = clock
        self._prompts = prompts
        ids = heldout["prompt_id"].to_pylist()
        apart = final_ids(ids, config.evaluate.final, config.seed)
        is_final = pa.array([one in apart for one in ids], pa.bool_())
        self._final = heldout.filter(is_final)
        self._heldout = heldout.filter(pc.invert(is_final))
        if config.evaluate.limit is not None:
            self._heldout = self._heldout.slice(0, config.evaluate.limit)
        self._measured = measured
        self._tokens = TokenCounter(config.sample.system_prompt)
        self._given = PlannedAnswers(given)
        self._pairs_so_far = 0
        self._held_out_triples: list[int] = []
        """Of each round: pairs that go to the test split."""
        self._written: dict[tuple[str, str, str], set[str]] = defaultdict(set)
        """Prompts whose criteria a stage wrote: they are kept for those after it."""
        self._timed: set[tuple[str, str]] = set()
        self.steps: list[Step] = []
        self.training: list[Training] = []
        self.prompts_per_round: list[int] = []

    def add_round(self, index: int) -> None:
        """Sampling, labelling, training and evaluation of round ``index``."""
        config = self._config
        prompts = self._prompts
        wanted = round_size(
            len(prompts),
            per_round=config.sample.prompts_per_round,
            per_leg=config.prompts_per_leg,
        )
        if wanted is not None:
            rows = round_rows(len(prompts), wanted, index, config.seed)
            prompts = prompts.take(pa.array(rows))
        self.prompts_per_round.append(len(prompts))
        asked = list(self._sample(prompts))
        pairs = self._pairs(prompts)
        labelled = PairsToLabel(
            stage="label",
            prompts=prompts,
            pairs=pairs,
            # In a round robin of m candidates there are m (m - 1) / 2 pairs; fewer pairs than that
            # may still touch them all.
            candidates=[
                min(2 * number, candidates)
                for number, candidates in zip(pairs, self._candidates(prompts), strict=True)
            ],
            answer_tokens=self._answer_tokens() + self._shown_thoughts(),
            longest=max(
                (config.sample.max_tokens + self._shown_thoughts(at_most=True))
                * bool(config.sample.total),
                self._given.longest,
            ),
        )
        asked += self._label(labelled, config.label.labelers)
        if config.train:
            self.training.append(self._train(index, prompts, pairs))
            if config.evaluate.enabled and len(self._heldout):
                asked += self._evaluate(index)
        self.steps += [self._step(index, each) for each in asked]

    def add_final(self) -> None:
        """The policy to keep against the starting policy on the final prompts."""
        config = self._config
        if config.train and config.evaluate.enabled and len(self._final):
            self.steps += [self._step(config.rounds - 1, one) for one in self._evaluate_final()]

    def add_votes(self, index: int, labelled: PairsToLabel, labeler: LabelerConfig) -> list[Step]:
        """The votes of ``labeler`` on answers of round ``index`` that are there already: last, and
        before them what else it takes."""
        steps = [self._step(index, asked) for asked in self._label(labelled, [labeler])]
        self.steps += steps
        return steps

    def longest_prompt(self) -> int:
        """Tokens of the longest prompt."""
        every = pa.concat_tables([self._prompts, self._heldout])
        return math.ceil(max(self._tokens.of_prompts(every, self._model(POLICY)), default=0))

    def _sample(self, prompts: pa.Table) -> Iterable[_Asked]:
        settings = self._config.sample
        for member in settings.members() if settings.total else ():
            most = settings.of_member(member).max_tokens
            per_prompt = self._tokens.of_prompts(prompts, self._model(member.model))
            yield _Asked(
                stage="sample",
                what=member.name,
                engine=member.engine,
                requests=round(len(prompts) * settings.expected_of(member)),
                prompt_tokens=sum(per_prompt) / max(len(per_prompt), 1),
                expected=min(self._answer_tokens(), most),
                most=most,
                model=member.model,
                copies=max(round(settings.expected_of(member)), 1),
                thought=settings.thought_tokens or 0,
                expected_thought=self._measured.thought_tokens,
            )

    def _pairs(self, prompts: pa.Table) -> list[int]:
        """Pairs of each prompt, if no two of its candidates are the same."""
        most = self._config.label.pairs_per_prompt
        across = self._config.label.pairs == "across_policies"
        every = [
            self._with_fresh(reference, messages, across)
            + self._given.pairs(messages, across_policies=across)
            for reference, messages in zip(
                prompts["reference"].to_pylist(), prompts["messages"].to_pylist(), strict=True
            )
        ]
        return [min(number, most or number) for number in every]

    def _with_fresh(
        self, reference: str | None, messages: list[dict[str, Any]], across: bool
    ) -> int:
        """Pairs of a prompt in which an answer is not a given one."""
        sample = self._config.sample
        n = sample.total + int(bool(self._config.uses_references and reference))
        every = math.comb(n, 2) + n * self._given.of(messages)
        if not across:
            return every
        given = self._given.by_policy(messages)
        alike = 0.0
        for member in sample.members():
            drawn = sample.expected_of(member)
            if member.n is None:  # drawn by weight, one sample after the other
                by_weight = sum(sample.expected_of(one) for one in sample.members() if not one.n)
                alike += drawn * drawn * (by_weight - 1) / by_weight / 2 if by_weight else 0.0
            else:
                alike += math.comb(member.n, 2)
            alike += drawn * given[member.name]
        return math.ceil(every - alike)

    def _candidates(self, prompts: pa.Table) -> list[int]:
        """Candidates of each prompt, its reference answer among them where it takes part."""
        n, referenced = self._config.sample.total, self._config.uses_references
        return [
            n + int(bool(referenced and reference)) + self._given.of(messages)
            for reference, messages in zip(
                prompts["reference"].to_pylist(), prompts["messages"].to_pylist(), strict=True
            )
        ]

    def _label(self, labelled: PairsToLabel, labelers: Sequence[LabelerConfig]) -> Iterable[_Asked]:
        for labeler in labelers:
            if isinstance(labeler, OwnModelLabeler):
                yield self._score(labeler, labelled)
            elif isinstance(labeler, JudgeLabeler):
                if labeler.writer is not None:
                    yield from self._write(labeler, labeler.writer, labelled)
                yield self._judge(labeler, labelled)
            else:
                number = labelled.times * sum(labelled.pairs)
                yield _Asked(labelled.stage, labeler.name, None, number)

    def _write(
        self, labeler: JudgeLabeler, writer: WrittenCriteria, labelled: PairsToLabel
    ) -> Iterable[_Asked]:
        """The criteria of each prompt for which no stage before wrote them, as if none had been
        written when the run begins."""
        written = self._written[labeler.name, labeler.judge, writer.model_dump_json()]
        ids = labelled.prompts["prompt_id"].to_pylist()
        new = [
            row
            for row, number in enumerate(labelled.candidates)
            if number > 0 and ids[row] not in written
        ]
        if not new:
            return
        written.update(ids[row] for row in new)
        prompts = labelled.prompts.take(pa.array(new, pa.int64()))
        asked = self._tokens.of_writing(load_judge(labeler.judge), prompts, writer)
        yield _Asked(
            stage=labelled.stage,
            what=f"criteria of {labeler.name}",
            engine=writer.engine,
            requests=len(new),
            prompt_tokens=asked,
            expected=writer.max_tokens * RATIONALE_SHARE,
            most=writer.max_tokens,
            thought=writer.thought_tokens or 0,
            longest_prompt=asked,
            timed_like="label",
            model=writer.model,
            outcomes=0,  # their time was measured with that of the votes
        )

    def _judge(self, labeler: JudgeLabeler, labelled: PairsToLabel) -> _Asked:
        """Requests by the kind of judge: about a pair, about all answers, or about one answer."""
        judge = load_judge(labeler.judge)
        settings = judge.settings
        orders = 2 if labeler.orders == "both" else 1
        questions: list[int]  # of each prompt
        rubrics: list[Rubric] | None = None
        shown: Sequence[int]  # answers in a question
        if isinstance(settings, ListwiseSettings):
            questions = [orders * labeler.votes * min(number, 1) for number in labelled.candidates]
            shown = labelled.candidates
        elif isinstance(settings, RatingSettings):
            aspects = len(settings.aspects) if settings.parser == "token" else labeler.votes
            questions = [aspects * number for number in labelled.candidates]
            shown = [1] * len(questions)
        elif isinstance(settings, RubricSettings):
            rubrics = rubrics_of(labeler, judge, labelled.prompts)
            criteria = [len(one or ()) for one in rubrics]
            each = criteria
            if settings.parser == "json":
                each = [labeler.votes * min(one, 1) for one in criteria]
            questions = [a * b for a, b in zip(each, labelled.candidates, strict=True)]
            shown = [1] * len(questions)
        else:
            questions = [orders * labeler.votes * number for number in labelled.pairs]
            shown = [2] * len(questions)
        asked_once = sum(questions)
        answers = sum(a * b for a, b in zip(questions, shown, strict=True)) / max(asked_once, 1)
        requests = labelled.times * asked_once
        asked = self._tokens.of_questions(
            judge, labelled.prompts, questions, self._model(labeler.model), rubrics
        )
        most = labeler.max_tokens or settings.max_tokens
        by_token = not isinstance(settings, ListwiseSettings) and settings.parser == "token"
        is_served = isinstance(self._config.engines[labeler.engine], OpenAIEngine)
        return _Asked(
            stage=labelled.stage,
            what=labeler.name,
            engine=labeler.engine,
            requests=requests,
            prompt_tokens=asked + answers * labelled.answer_tokens,
            expected=1 if by_token else most * RATIONALE_SHARE,
            most=most,
            thought=labeler.thought_tokens or 0,
            longest_prompt=asked + answers * labelled.longest,
            timed_like="label",
            model=labeler.model,
            copies=labeler.votes if is_served and not by_token else 1,
            outcomes=votes_of(labeler, requests, labelled.times * sum(labelled.pairs)),
        )

    def _score(self, labeler: OwnModelLabeler, labelled: PairsToLabel) -> _Asked:
        """Each model of the labeler reads each candidate once, however many pairs it is in."""
        most = labelled.candidates
        models = len(labeler.models)
        lengths = self._tokens.of_prompts(labelled.prompts, labeler.models[0])
        prompt = sum(a * b for a, b in zip(most, lengths, strict=True)) / max(sum(most), 1)
        answers = labelled.times * sum(most)
        return _Asked(
            stage=labelled.stage,
            what=labeler.name,
            engine=None,
            requests=answers,
            prompt_tokens=models * (prompt + labelled.answer_tokens),
            longest_prompt=models * (prompt + labelled.longest),
            seconds=self._clock.scoring(labeler, answers * (prompt + labelled.answer_tokens)),
        )

    def _train(self, index: int, prompts: pa.Table, pairs: Sequence[int]) -> Training:
        settings, config = self._config.train, self._config
        assert settings is not None
        kept = self._kept(prompts, pairs)
        of_strategy = sum(kept)
        self._held_out_triples.append(round(of_strategy * config.write.test_share))
        # Chosen answers count once each, and one of a prompt's answers is never chosen.
        answers = sum(
            min(number, max(candidates - 1, 0))
            for number, candidates in zip(kept, self._candidates(prompts), strict=True)
        )
        trained = {"kto": sum(self._candidates(prompts)), "sft": answers}
        examples_of_all = trained.get(settings.method, of_strategy)
        sequences = 1 if settings.method in trained else 2
        fresh = round(examples_of_all * (1 - config.write.test_share))
        self._pairs_so_far += fresh
        earlier = self._pairs_so_far - fresh
        match settings.data:
            case "fresh":
                examples = fresh
            case "accumulated":
                examples = fresh + earlier
            case "replay":
                share = settings.replay_share
                examples = fresh + min(round(fresh * share / (1 - share)), earlier)
        examples = min(examples, settings.max_pairs or examples)
        processes = settings.processes
        settings = settings.model_copy(update={"batch_size": settings.batch_size * processes})
        steps = optimiser_steps(examples, settings)
        if config.prompts_per_leg:
            legs = len(prompts) // config.prompts_per_leg
            steps = legs * (settings.online_steps if settings.online else 1)
            examples = examples_of_all
            if not settings.online:
                sequences, examples = 1, len(prompts) * config.sample.n
        if settings.sft_warmup and index == 0:
            warm = settings.model_copy(update={"epochs": settings.sft_warmup.epochs})
            steps += optimiser_steps(round(answers * (1 - config.write.test_share)), warm)
        if self._measured.seconds_per_step:
            seconds = steps * self._measured.seconds_per_step
        else:
            lengths = self._tokens.of_prompts(prompts, self._model(POLICY))
            mean = sum(lengths) / max(len(lengths), 1) + self._answer_tokens()
            tokens = examples * settings.epochs * sequences * min(mean, settings.max_length)
            seconds = self._clock.training(settings, tokens / processes, steps)
        return Training(index, examples, steps, seconds)

    def _kept(self, prompts: pa.Table, pairs: Sequence[int]) -> list[int]:
        """Of each prompt, the pairs that the strategy keeps at most."""
        strategy = self._config.filter.strategy
        match strategy.chooser if isinstance(strategy, AcrossPolicies) else strategy:
            case BestVsWorst() | BestVsLow() | BestVsRandom():
                return [min(number, 1) for number in pairs]
            case CorrectVsIncorrect(pairs=most):
                return [min(number, most) for number in pairs]
            case RankedNeighbours():
                neighbours = [max(number - 1, 0) for number in self._candidates(prompts)]
                return list(map(min, pairs, neighbours))
            case _:
                return list(pairs)

    def _evaluate(self, index: int) -> Iterable[_Asked]:
        config = self._config
        settings = config.evaluate
        # Round 0 answers with the starting policy too.
        policies = [f"policy {policy}" for policy in ([0, 1] if index == 0 else [index + 1])]
        answering = dict.fromkeys(policies, config.sample.engine)
        opponents = 1 if index == 0 else 2  # start and previous are the same in round 0
        if settings.opponent:
            opponents += 1
            if index == 0:
                answering[OPPONENT] = settings.opponent.engine or config.sample.engine
        yield from self._answer("evaluate", self._heldout, answering)
        if not is_untempered(heldout_sampling(config.sample, settings)):
            yield self._answer_for_kl("evaluate", self._heldout)
        yield self._likelihoods(index, self._held_out_tokens(self._heldout))
        evaluators = config.evaluators or config.label.labelers
        yield from self._match("evaluate", self._heldout, opponents, evaluators)

    def _evaluate_final(self) -> Iterable[_Asked]:
        config = self._config
        policies = ["policy 0", f"policy {config.rounds}"]
        answering = dict.fromkeys(policies, config.sample.engine)
        yield from self._answer(FINAL, self._final, answering)
        tokens = self._held_out_tokens(self._final)
        answers = len(self._final) * config.evaluate.samples_per_prompt
        if not is_untempered(heldout_sampling(config.sample, config.evaluate)):
            yield self._answer_for_kl(FINAL, self._final)
            answers = min(len(self._final), MOST_UNTEMPERED)
        yield self._scored(FINAL, 2 * answers, tokens)
        evaluators = config.final_evaluators or config.label.labelers
        yield from self._match(FINAL, self._final, 1, evaluators)

    def _answer(
        self, stage: str, prompts: pa.Table, answering: Mapping[str, str]
    ) -> Iterable[_Asked]:
        """The answers of policies to held-out prompts; ``answering``: each one's engine."""
        config = self._config
        settings = config.evaluate
        lengths = self._tokens.of_prompts(prompts, self._model(POLICY))
        for policy, engine in answering.items():
            yield _Asked(
                stage=stage,
                what=policy,
                engine=engine,
                requests=len(prompts) * settings.samples_per_prompt,
                prompt_tokens=sum(lengths) / len(lengths),
                expected=self._held_out_answer(),
                most=settings.max_tokens or config.sample.max_tokens,
                model=settings.opponent.model
                if policy == OPPONENT and settings.opponent
                else POLICY,
                copies=settings.samples_per_prompt,
                thought=config.sample.thought_tokens or 0,
                expected_thought=None if policy == OPPONENT else self._measured.thought_tokens,
            )

    def _answer_for_kl(self, stage: str, prompts: pa.Table) -> _Asked:
        """Answers from the policy's own distribution, where the others are not."""
        config = self._config
        lengths = self._tokens.of_prompts(prompts, self._model(POLICY))
        return _Asked(
            stage=stage,
            what="answers for KL",
            engine=config.sample.engine,
            requests=min(len(prompts), MOST_UNTEMPERED),
            prompt_tokens=sum(lengths) / len(lengths),
            expected=self._held_out_answer(),
            most=config.evaluate.max_tokens or config.sample.max_tokens,
            model=POLICY,
            thought=config.sample.thought_tokens or 0,
            expected_thought=self._measured.thought_tokens,
        )

    def _match(
        self, stage: str, prompts: pa.Table, opponents: int, by: Sequence[LabelerConfig]
    ) -> Iterable[_Asked]:
        """Votes on the held-out answers of a policy and of each of its opponents."""
        config = self._config
        pairs = config.evaluate.samples_per_prompt
        matches = PairsToLabel(
            stage=stage,
            prompts=prompts,
            pairs=[pairs] * len(prompts),
            candidates=[2 * pairs] * len(prompts),
            answer_tokens=self._held_out_answer(),
            longest=config.evaluate.max_tokens or config.sample.max_tokens,
            times=opponents,
        )
        yield from self._label(matches, by)

    def _held_out_answer(self) -> float:
        """Tokens of an answer to a held-out prompt."""
        most = self._config.evaluate.max_tokens or self._config.sample.max_tokens
        return min(self._sampled_tokens(), most)

    def _held_out_tokens(self, prompts: pa.Table) -> float:
        """Tokens of a held-out prompt with its answer."""
        lengths = self._tokens.of_prompts(prompts, self._model(POLICY))
        return sum(lengths) / len(lengths) + self._held_out_answer()

    def _likelihoods(self, index: int, tokens: float) -> _Asked:
        """Log-probabilities of the new policy's answers under it and the starting policy, and of
        both answers of held-out triples under it and its reference."""
        config = self._config
        answers = len(self._heldout) * config.evaluate.samples_per_prompt
        if not is_untempered(heldout_sampling(config.sample, config.evaluate)):
            answers = min(len(self._heldout), MOST_UNTEMPERED)
        triples = min(self._held_out_triples[index], MOST_PAIRS)
        return self._scored("evaluate", 2 * answers + 4 * triples, tokens)

    def _scored(self, stage: str, requests: int, tokens: float) -> _Asked:
        """Log-probabilities of so many texts of ``tokens`` each."""
        return _Asked(
            stage=stage,
            what="log-probabilities",
            engine=None,
            requests=requests,
            prompt_tokens=tokens,
            seconds=self._clock.likelihoods(requests * tokens),
        )

    def _step(self, index: int, asked: _Asked) -> Step:
        requests, prompt_tokens = asked.requests, asked.prompt_tokens
        thought = asked.expected_thought
        expected = asked.expected + (asked.thought * ANSWER_SHARE if thought is None else thought)
        most = asked.most + asked.thought
        longest_prompt = prompt_tokens if asked.longest_prompt is None else asked.longest_prompt
        settings = self._config.engines[asked.engine] if asked.engine else None
        price_in = price_out = 0.0
        if isinstance(settings, OpenAIEngine):
            share = settings.price_share / 1e6
            price_in = settings.price_per_million_prompt_tokens * share
            price_out = settings.price_per_million_completion_tokens * share
            # What is paid at most is paid where the server does not honour ``n``.
            prompt_tokens *= -(-asked.copies // settings.n_per_request) / asked.copies
        rates = self._measured.seconds_each
        if asked.engine:
            self._timed.add((asked.timed_like, asked.engine))
        if settings is None or asked.engine is None:
            seconds = asked.seconds or 0.0
        elif asked.timed_like in rates:
            outcomes = requests if asked.outcomes is None else asked.outcomes
            seconds = outcomes * rates[asked.timed_like]
        elif isinstance(settings, OpenAIEngine):
            seconds = server_seconds(settings, requests, prompt_tokens, expected)
        else:
            seconds = self._clock.answering(
                asked.engine,
                asked.model,
                requests,
                tokens=(prompt_tokens, expected, asked.most),
                copies=asked.copies,
            )
        return Step(
            round=index,
            stage=asked.stage,
            what=asked.what,
            engine=asked.engine,
            requests=requests,
            prompt_tokens=round(requests * prompt_tokens),
            completion_tokens=round(requests * expected),
            max_tokens=round(requests * (longest_prompt + most)),
            cost=requests * (prompt_tokens * price_in + expected * price_out),
            max_cost=requests * (longest_prompt * price_in + most * price_out),
            seconds=seconds,
        )

    def _answer_tokens(self) -> float:
        return self._sampled_tokens() if self._config.sample.total else self._given.tokens

    def _shown_thoughts(self, *, at_most: bool = False) -> float:
        """Tokens of an answer's thought that labelers are shown."""
        config = self._config
        if config.label.show_reasoning == "never" or not config.sample.total:
            return 0.0
        most = config.sample.thought_tokens or 0
        if at_most:
            return most
        known = self._measured.thought_tokens
        return most * ANSWER_SHARE if known is None else known

    def _sampled_tokens(self) -> float:
        return self._measured.answer_tokens or self._config.sample.max_tokens * ANSWER_SHARE

    def _model(self, model: str) -> str:
        return self._config.policy if model == POLICY else model

    def assumptions(self) -> Iterable[str]:
        """Every assumption that went into the steps, in words."""
        yield from token_assumptions(self._measured, self._tokens.ratios)
        yield from self._of_time()

    def assumptions_of_votes(self) -> Iterable[str]:
        """The same where only votes were added, on answers that are there."""
        yield from question_assumptions(self._tokens.ratios)
        yield from self._of_time()

    def _of_time(self) -> Iterable[str]:
        rates = self._measured.seconds_each
        engines = self._config.engines
        yield from time_assumptions(
            self._measured,
            engines={engines[engine].type for like, engine in self._timed if like not in rates},
            trains=bool(self.training),
        )
        used = sorted({engine for _, engine in self._timed})
        yield from endpoint_assumptions({name: engines[name] for name in used})
        yield from self._clock.assumptions()
