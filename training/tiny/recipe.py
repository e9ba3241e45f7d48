"""How the embedded prompts, policy and judge are made: ``prefloop make-models`` calls this.

1. The grammar draws the prompts that ship, and the held-out ones.
2. A byte-level BPE tokenizer is trained on what the grammar writes.
3. The *policy* learns to answer from the grammar's sloppy answers: each constraint is missed with
   some probability, so the policy knows right and wrong answers, meets all constraints of about
   half its samples, and leaves preference training something to do.
4. The *judge* starts from the policy and learns to answer the judge prompt ``pairwise_short`` with
   its verdict token. The comparison alone teaches little (one bit a pair); two linear heads that
   are thrown away afterwards read off which constraints each answer meets, and teach the rest.
5. Both are measured on held-out prompts and the figures written to ``recipe.json``.

Everything is seeded; on one machine with one number of threads a rerun gives the same files.
"""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import torch
from torch import nn
from torch.nn import functional
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from prefloop.labelers.scorers.constraints import satisfied, score
from prefloop.training.tiny import grammar
from prefloop.training.tiny.chat import MAX_LENGTH, ChatEncoder, train_tokenizer

Tell = Callable[[str], None]
VERDICTS = ("A", "B")


@dataclass(frozen=True)
class Recipe:
    """The knobs that the policy and the judge share, and their budgets."""

    vocabulary: int = 1536
    hidden: int = 128
    layers: int = 5
    heads: int = 4
    feed_forward: int = 384

    tokenizer_texts: int = 30_000
    batch_tokens: int = 4096
    weight_decay: float = 0.05
    warmup: float = 0.03

    policy_steps: int = 3000
    policy_rate: float = 3e-3
    policy_miss: float = 0.18
    """Probability with which a training answer misses a constraint."""
    policy_exercises: float = 0.15
    """Share of the training examples that are exercises in copying a word."""

    judge_steps: int = 2600
    judge_rate: float = 1.5e-3
    judge_prompts: int = 4000
    """Fresh prompts whose answers by the policy itself join the judge's training pairs."""
    judge_samples: int = 4

    eval_samples: int = 8
    eval_prompts: int = 150

    def quick(self) -> Recipe:
        """The same recipe with a few steps of everything: proves that it runs, makes no model."""
        return replace(
            self,
            tokenizer_texts=2000,
            policy_steps=6,
            judge_steps=6,
            judge_prompts=16,
            eval_prompts=16,
            eval_samples=2,
        )


def make_models(
    out_dir: Path, *, seed: int = 0, quick: bool = False, progress: Tell = print
) -> dict[str, Any]:
    """Make everything in ``data/embedded`` from scratch and write it to ``out_dir``.

    Writes ``prompts.jsonl``, ``heldout.jsonl`` and ``models/{policy,judge,recipe.json}``. Returns
    the measured figures, which ``recipe.json`` holds too. ``quick`` takes a few steps of
    everything, to see that the recipe runs; its models are no good.
    """
    recipe = Recipe().quick() if quick else Recipe()
    started = time.perf_counter()
    models = out_dir / "models"
    models.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)

    shipped, heldout = draw_prompts(seed)
    write_prompts(out_dir, shipped, heldout, seed)
    tokenizer = make_tokenizer(recipe, seed)
    progress(f"tokenizer: {len(tokenizer)} tokens")
    figures: dict[str, Any] = {"seed": seed, "recipe": asdict(recipe)}

    policy = train_policy(recipe, tokenizer, seed, progress)
    figures["policy_seconds"] = round(time.perf_counter() - started)
    tasks = heldout[: recipe.eval_prompts]
    answers = sample(policy, tokenizer, [t.prompt for t in tasks], recipe.eval_samples, seed=seed)
    figures["policy"] = measure_policy(tokenizer, tasks, answers)
    progress(f"policy: {figures['policy']}")
    _save(policy, tokenizer, models / "policy", _policy_card(figures))

    judge = train_judge(recipe, policy, tokenizer, seed, progress)
    figures["seconds"] = round(time.perf_counter() - started)
    figures["judge"] = measure_judge(judge, tokenizer, tasks, answers)
    progress(f"judge: {figures['judge']}")
    _save(judge, tokenizer, models / "judge", _judge_card(figures))
    (models / "recipe.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return figures


# Prompts ----------------------------------------------------------------------------------------


def draw_prompts(
    seed: int, count: int = 640, heldout: int = 150
) -> tuple[list[grammar.Task], list[grammar.Task]]:
    """Two disjoint lists of tasks: the prompts that ship, and the held-out ones.

    Prompts that look alike (word 3-grams with a Jaccard similarity of 0.6 or more) are drawn again.
    """
    rng = random.Random(f"prompts-{seed}")
    tasks: list[grammar.Task] = []
    shingles: list[frozenset[tuple[str, ...]]] = []
    while len(tasks) < count + heldout:
        task = grammar.write_task(rng)
        words = task.prompt.lower().split()
        shape = frozenset(zip(words, words[1:], words[2:], strict=False))
        if all(len(shape & other) < 0.6 * len(shape | other) for other in shingles):
            tasks.append(task)
            shingles.append(shape)
    return tasks[heldout:], tasks[:heldout]


def write_prompts(
    folder: Path, shipped: Sequence[grammar.Task], heldout: Sequence[grammar.Task], seed: int
) -> None:
    """Write ``prompts.jsonl`` and ``heldout.jsonl``.

    A dozen rows of the former are flawed on purpose, for the pipeline to find: six exact
    duplicates, four near-duplicates and two prompts that are held out.
    """
    rng = random.Random(f"references-{seed}")
    rows = [_row(rng, task) for task in shipped]
    held = [_row(rng, task) for task in heldout]
    longest = sorted(rows, key=lambda row: -len(row["prompt"].split()))
    near = [
        {**longest[0], "prompt": longest[0]["prompt"].upper()},
        {**longest[1], "prompt": "Please: " + longest[1]["prompt"]},
        {**longest[2], "prompt": longest[2]["prompt"].rstrip(".") + "!"},
        {**longest[3], "prompt": longest[3]["prompt"] + " Thanks."},
    ]
    for flawed in [*rng.sample(rows, 6), *near, *rng.sample(held, 2)]:
        rows.insert(rng.randrange(len(rows)), flawed)
    for name, table in (("prompts", rows), ("heldout", held)):
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in table)
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")


def _row(rng: random.Random, task: grammar.Task) -> dict[str, Any]:
    return {
        "prompt": task.prompt,
        "constraints": list(task.constraints),
        "reference": grammar.write_answer(rng, task),
    }


# Training ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Example:
    """A token sequence and what to learn from it.

    ``labels`` maps positions to the token that follows them; ``bits`` maps positions to the
    constraints met there (index into ``ASPECTS`` -> 0 or 1).
    """

    ids: list[int]
    labels: dict[int, int]
    bits: dict[int, dict[int, float]]


ASPECTS = tuple(grammar.CONSTRAINT_TYPES)
"""Constraint types in the order of the judge's auxiliary heads."""


def make_tokenizer(recipe: Recipe, seed: int) -> PreTrainedTokenizerFast:
    """Train the tokenizer that both models share."""
    rng = random.Random(f"tokenizer-{seed}")

    def texts() -> Iterator[str]:
        yield from [
            "Which answer follows the request better, A or B?\nRequest:\nAnswer A:\nAnswer B:"
        ] * 50
        for _ in range(recipe.tokenizer_texts // 2):
            task = grammar.write_task(rng)
            yield task.prompt
            yield grammar.write_sloppy_answer(rng, task, 0.3)

    return train_tokenizer(texts(), recipe.vocabulary)


def train_policy(
    recipe: Recipe, tokenizer: PreTrainedTokenizerFast, seed: int, progress: Tell
) -> LlamaForCausalLM:
    """Train the policy from scratch on sloppy answers of the grammar."""
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=recipe.hidden,
            intermediate_size=recipe.feed_forward,
            num_hidden_layers=recipe.layers,
            num_attention_heads=recipe.heads,
            num_key_value_heads=recipe.heads,
            head_dim=recipe.hidden // recipe.heads,
            max_position_embeddings=MAX_LENGTH,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    chats = ChatEncoder(tokenizer)
    rng = random.Random(f"policy-{seed}")

    def draw(count: int) -> list[Example]:
        chosen: list[tuple[str, str]] = []
        for _ in range(count):
            if rng.random() < recipe.policy_exercises:
                chosen.append(grammar.write_exercise(rng))
            else:
                task = grammar.write_task(rng)
                answer = grammar.write_sloppy_answer(rng, task, recipe.policy_miss)
                chosen.append((task.prompt, answer))
        system = rng.choice(("", "", "", "", "You are a helpful assistant."))
        prompts = chats.prompts([prompt for prompt, _ in chosen], system)
        answers = chats.answers([answer for _, answer in chosen])
        return [
            Example(
                prompt + answer,
                {len(prompt) - 1 + i: token for i, token in enumerate(answer)},
                {},
            )
            for prompt, answer in zip(prompts, answers, strict=True)
        ]

    _train(model, draw, recipe, recipe.policy_steps, recipe.policy_rate, rng, progress, "policy")
    return model


def train_judge(
    recipe: Recipe,
    policy: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    seed: int,
    progress: Tell,
) -> LlamaForCausalLM:
    """Train the judge, from the policy's weights, on pairs whose verifier scores differ."""
    rng = random.Random(f"judge-{seed}")
    own = _policy_pool(recipe, policy, tokenizer, rng, seed)
    progress(f"judge: {sum(len(answers) for _, answers in own)} answers by the policy")
    model = LlamaForCausalLM(policy.config)
    model.load_state_dict(policy.state_dict())
    encode = _JudgeEncoder(tokenizer)

    def draw(count: int) -> list[Example]:
        pairs: list[tuple[grammar.Task, str, str]] = []
        while len(pairs) < count:
            if rng.random() < 0.5:
                task, answers = rng.choice(own)
                a, b = rng.sample(answers, 2)
            else:
                task = grammar.write_task(rng)
                a, b = (
                    grammar.write_sloppy_answer(rng, task, rng.choice((0.15, 0.3, 0.5)))
                    for _ in "ab"
                )
            if score(task.constraints, a) != score(task.constraints, b):
                pairs.append((task, a, b))
        return encode.examples(pairs)

    _train(model, draw, recipe, recipe.judge_steps, recipe.judge_rate, rng, progress, "judge")
    return model


def _policy_pool(
    recipe: Recipe,
    policy: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    rng: random.Random,
    seed: int,
) -> list[tuple[grammar.Task, list[str]]]:
    """Fresh tasks, each with different answers sampled from the policy."""
    tasks = [grammar.write_task(rng) for _ in range(recipe.judge_prompts)]
    prompts = [task.prompt for task in tasks]
    answers = sample(policy, tokenizer, prompts, recipe.judge_samples, seed=seed + 1)
    pool = [(task, sorted(set(texts))) for task, texts in zip(tasks, answers, strict=True)]
    return [
        (task, texts)
        for task, texts in pool
        if len({score(task.constraints, text) for text in texts}) > 1
    ]


class _JudgeEncoder:
    """Turns pairs of answers into the judge's prompt and its training targets."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.tokenizer = tokenizer
        self.chats = ChatEncoder(tokenizer)
        self.verdicts = [int(tokenizer.convert_tokens_to_ids(verdict)) for verdict in VERDICTS]
        source = (
            resources.files("prefloop.labelers")
            / "judges"
            / "shipped"
            / "pairwise_short"
            / "prompt.jinja"
        )
        # Plain text for a tokenizer, not HTML: nothing to escape.
        self.template = jinja2.Environment(keep_trailing_newline=False).from_string(  # noqa: S701
            source.read_text(encoding="utf-8")
        )

    def text(self, request: str, a: str, b: str) -> str:
        """The user message the judge sees."""
        return self.template.render(request=request, answer_a=a, answer_b=b).strip()

    def prompts(self, pairs: Sequence[tuple[grammar.Task, str, str]]) -> list[list[int]]:
        """Token ids up to where the verdict begins."""
        return self.chats.prompts([self.text(task.prompt, a, b) for task, a, b in pairs])

    def examples(self, pairs: Sequence[tuple[grammar.Task, str, str]]) -> list[Example]:
        """Prompts with their verdicts, and the constraints met by A (at its end) and by B."""
        texts = [self.text(task.prompt, a, b) for task, a, b in pairs]
        # Answer B is the end of the message; where answer A ends is where B's label begins.
        heads = [
            text[: len(text) - len(f"\nAnswer B: {pair[2].strip()}")]
            for text, pair in zip(texts, pairs, strict=True)
        ]
        examples = []
        for (task, a, b), ids, head in zip(
            pairs, self.chats.prompts(texts), self.chats.prompts(heads), strict=True
        ):
            better = score(task.constraints, a) > score(task.constraints, b)
            bits = {
                len(head) - 2: self._bits(task, a),  # where the line after answer A begins
                len(ids) - 1: self._bits(task, b),
            }
            examples.append(Example(ids, {len(ids) - 1: self.verdicts[0 if better else 1]}, bits))
        return examples

    @staticmethod
    def _bits(task: grammar.Task, answer: str) -> dict[int, float]:
        met = satisfied(task.constraints, answer)
        return {
            ASPECTS.index(item["type"]): float(bit)
            for item, bit in zip(task.constraints, met, strict=True)
        }


def _batches(
    draw: Callable[[int], list[Example]], max_tokens: int, rng: random.Random
) -> Iterator[list[Example]]:
    """Endless batches of examples of like length, ``max_tokens`` at most with their padding."""
    while True:
        examples = sorted(draw(2048), key=lambda example: len(example.ids))
        batches: list[list[Example]] = [[]]
        for example in examples:
            if (len(batches[-1]) + 1) * len(example.ids) > max_tokens:
                batches.append([])
            batches[-1].append(example)
        rng.shuffle(batches)
        yield from batches


def _train(
    model: LlamaForCausalLM,
    draw: Callable[[int], list[Example]],
    recipe: Recipe,
    steps: int,
    rate: float,
    rng: random.Random,
    progress: Tell,
    name: str,
) -> None:
    """AdamW with warm-up and a cosine; examples are drawn as they are needed, none twice."""
    heads = nn.Linear(model.config.hidden_size, len(ASPECTS))
    parameters = [*model.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(
        parameters, lr=rate, betas=(0.9, 0.98), weight_decay=recipe.weight_decay, fused=True
    )
    warmup = max(1, int(recipe.warmup * steps))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min(
            (step + 1) / warmup, 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps))
        ),
    )
    pad = model.config.pad_token_id
    batches = _batches(draw, recipe.batch_tokens, rng)
    started = time.perf_counter()
    sums: dict[str, float] = {}
    model.train()
    for step in range(1, steps + 1):
        batch = next(batches)
        width = max(len(example.ids) for example in batch)
        ids = torch.tensor([example.ids + [pad] * (width - len(example.ids)) for example in batch])
        # Padding on the right and causal attention: no mask is needed, which is much faster.
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state.flatten(0, 1)
        places, tokens = _flat(batch, width)
        logits = model.lm_head(hidden[places])
        loss = functional.cross_entropy(logits, tokens)
        seen = {"loss": loss.item(), "right": (logits.argmax(-1) == tokens).float().mean().item()}
        where, aspects, bits = _flat_bits(batch, width)
        if len(bits):
            read = heads(hidden[where])[torch.arange(len(where)), aspects]
            extra = functional.binary_cross_entropy_with_logits(read, bits)
            seen["bits_right"] = ((read > 0) == (bits > 0.5)).float().mean().item()
            loss = loss + extra
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        for key, value in seen.items():
            sums[key] = sums.get(key, 0.0) + value
        if step % 100 == 0 or step == steps:
            count = (step - 1) % 100 + 1
            shown = " ".join(f"{key} {value / count:.3f}" for key, value in sums.items())
            progress(f"{name} {step}/{steps} {shown} {time.perf_counter() - started:.0f}s")
            sums = {}
    model.eval()


def _flat(batch: Sequence[Example], width: int) -> tuple[torch.Tensor, torch.Tensor]:
    pairs = [
        (row * width + position, token)
        for row, example in enumerate(batch)
        for position, token in example.labels.items()
    ]
    places, tokens = zip(*pairs, strict=True)
    return torch.tensor(places), torch.tensor(tokens)


def _flat_bits(
    batch: Sequence[Example], width: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    triples = [
        (row * width + position, aspect, bit)
        for row, example in enumerate(batch)
        for position, bits in example.bits.items()
        for aspect, bit in bits.items()
    ]
    return (
        torch.tensor([t[0] for t in triples], dtype=torch.long),
        torch.tensor([t[1] for t in triples], dtype=torch.long),
        torch.tensor([t[2] for t in triples], dtype=torch.float32),
    )


# Measuring --------------------------------------------------------------------------------------


@torch.inference_mode()
def sample(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[str],
    count: int,
    *,
    seed: int,
    max_tokens: int = 96,
    batch: int = 64,
) -> list[list[str]]:
    """``count`` answers to each prompt at temperature 1, in the order of the prompts."""
    torch.manual_seed(seed)
    encoded = ChatEncoder(tokenizer).prompts(prompts)
    order = sorted(range(len(prompts)), key=lambda index: len(encoded[index]))
    answers: list[list[str]] = [[] for _ in prompts]
    for start in range(0, len(order), batch):
        part = order[start : start + batch]
        inputs = tokenizer.pad({"input_ids": [encoded[i] for i in part]}, return_tensors="pt")
        outputs = model.generate(
            **inputs,
            do_sample=True,
            temperature=1.0,
            top_p=1.0,
            top_k=0,
            num_return_sequences=count,
            max_new_tokens=max_tokens,
        )
        texts = tokenizer.batch_decode(
            outputs[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True
        )
        for row, index in enumerate(part):
            answers[index] = texts[row * count : (row + 1) * count]
    return answers


def measure_policy(
    tokenizer: PreTrainedTokenizerFast,
    tasks: Sequence[grammar.Task],
    answers: Sequence[Sequence[str]],
) -> dict[str, Any]:
    """Shares of samples that meet all constraints, and of constraints that are met by type."""
    whole: list[bool] = []
    by_type: dict[str, list[bool]] = {}
    for task, texts in zip(tasks, answers, strict=True):
        for text in texts:
            met = satisfied(task.constraints, text)
            whole.append(all(met))
            for item, bit in zip(task.constraints, met, strict=True):
                by_type.setdefault(item["type"], []).append(bit)
    texts = [text for group in answers for text in group]
    lengths = [len(ids) + 1 for ids in ChatEncoder(tokenizer).encode(texts)]
    return {
        "samples": len(whole),
        "all_met": round(sum(whole) / len(whole), 4),
        "met_by_type": {key: round(sum(v) / len(v), 3) for key, v in sorted(by_type.items())},
        "mean_tokens": round(sum(lengths) / len(lengths), 2),
        "max_tokens": max(lengths),
        "distinct": round(len(set(texts)) / len(texts), 4),
    }


def measure_judge(
    judge: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    tasks: Sequence[grammar.Task],
    answers: Sequence[Sequence[str]],
    pairs_per_task: int = 8,
) -> dict[str, Any]:
    """Agreement with the verifier on pairs of different score, each shown in both orders.

    ``agreement_by_type`` looks at the pairs that differ in one constraint only. The overall figure
    hides what the judge cannot see; this one shows it.
    """
    rng = random.Random(0)
    pairs: list[tuple[grammar.Task, str, str]] = []
    for task, texts in zip(tasks, answers, strict=True):
        scored = [(score(task.constraints, text), text) for text in sorted(set(texts))]
        found = [
            (task, better[1], worse[1])
            for better in scored
            for worse in scored
            if better[0] > worse[0]
        ]
        pairs += rng.sample(found, min(pairs_per_task, len(found)))
    shown_first = judge_pairs(judge, tokenizer, pairs)
    shown_second = judge_pairs(judge, tokenizer, [(task, b, a) for task, a, b in pairs])
    count = max(1, len(pairs))
    right_first = [p > 0.5 for p in shown_first]
    right_second = [p < 0.5 for p in shown_second]
    both = [p + 1 - q > 1 for p, q in zip(shown_first, shown_second, strict=True)]
    by_type: dict[str, list[bool]] = {}
    for (task, a, b), *right in zip(pairs, right_first, right_second, strict=True):
        flags = zip(
            task.constraints,
            satisfied(task.constraints, a),
            satisfied(task.constraints, b),
            strict=True,
        )
        differing = [item["type"] for item, in_a, in_b in flags if in_a != in_b]
        if len(differing) == 1:
            by_type.setdefault(differing[0], []).extend(right)
    return {
        "pairs": len(pairs),
        "agreement": round((sum(right_first) + sum(right_second)) / (2 * count), 4),
        "agreement_orders_averaged": round(sum(both) / count, 4),
        "prefers_first": round((sum(right_first) + count - sum(right_second)) / (2 * count), 4),
        "swap_consistency": round(
            sum(a == b for a, b in zip(right_first, right_second, strict=True)) / count, 4
        ),
        "agreement_by_type": {
            name: {"pairs": len(right) // 2, "agreement": round(sum(right) / len(right), 3)}
            for name, right in sorted(by_type.items())
        },
    }


@torch.inference_mode()
def judge_pairs(
    judge: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    pairs: Sequence[tuple[grammar.Task, str, str]],
    batch: int = 64,
) -> list[float]:
    """The judge's probability that the first answer of each pair is the better one."""
    encoder = _JudgeEncoder(tokenizer)
    prompts = encoder.prompts(pairs)
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    result = [0.5] * len(prompts)
    pad = judge.config.pad_token_id
    for start in range(0, len(order), batch):
        part = order[start : start + batch]
        width = max(len(prompts[i]) for i in part)
        ids = torch.tensor([prompts[i] + [pad] * (width - len(prompts[i])) for i in part])
        hidden = judge.model(input_ids=ids, use_cache=False).last_hidden_state
        last = hidden[torch.arange(len(part)), torch.tensor([len(prompts[i]) - 1 for i in part])]
        verdict = judge.lm_head(last)[:, encoder.verdicts].softmax(-1)[:, 0]
        for index, p in zip(part, verdict.tolist(), strict=True):
            result[index] = p
    return result


# Writing ----------------------------------------------------------------------------------------


def _save(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path, card: str
) -> None:
    """Write a standard model folder; safetensors only."""
    model.generation_config = GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        max_new_tokens=96,
        bos_token_id=model.config.bos_token_id,
        eos_token_id=model.config.eos_token_id,
        pad_token_id=model.config.pad_token_id,
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    # The name that every release of transformers knows.
    config = folder / "tokenizer_config.json"
    settings = json.loads(config.read_text(encoding="utf-8"))
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    config.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(card, encoding="utf-8")


def _policy_card(figures: Mapping[str, Any]) -> str:
    measured = figures["policy"]
    by_type = "\n".join(
        f"| `{name}` | {share:.0%} |" for name, share in measured["met_by_type"].items()
    )
    return f"""\
---
library_name: transformers
pipeline_tag: text-generation
---
# prefloop's embedded policy

A tiny Llama made from scratch by `prefloop make-models` (seed {figures["seed"]}) out of a slot
grammar, for demonstrations and tests that need no hub, no GPU and no server. It answers simple
instructions with checkable constraints, and knows nothing else:

> Write one sentence about a fox. Use the word lantern. End with an exclamation mark.

It was trained on answers that miss constraints on purpose, so that preference training has
something to improve. Measured on held-out prompts, {measured["samples"]} samples at temperature 1:

| | |
| --- | --- |
| samples that meet all constraints of their prompt | {measured["all_met"]:.1%} |
| tokens an answer, end token included | {measured["mean_tokens"]} |
| different answers | {measured["distinct"]:.1%} |

| constraint | met |
| --- | --- |
{by_type}
"""


def _judge_card(figures: Mapping[str, Any]) -> str:
    measured = figures["judge"]
    by_type = "\n".join(
        f"| `{name}` | {row['pairs']} | {row['agreement']:.0%} |"
        for name, row in measured["agreement_by_type"].items()
    )
    return f"""\
---
library_name: transformers
pipeline_tag: text-generation
---
# prefloop's embedded judge

A tiny Llama made from scratch by `prefloop make-models` (seed {figures["seed"]}) that answers the
judge prompt `labelers/judges/shipped/pairwise_short` with its verdict token, `A` or `B`. It started
from the embedded policy and judges answers like that policy's; on other texts it is worth nothing.

Measured against the verifier on {measured["pairs"]} pairs of the policy's answers to held-out
prompts that meet different numbers of constraints, each pair shown in both orders:

| | |
| --- | --- |
| agreement with the verifier, one order shown | {measured["agreement"]:.1%} |
| agreement, probabilities of both orders averaged | {measured["agreement_orders_averaged"]:.1%} |
| prefers the answer shown first | {measured["prefers_first"]:.1%} |
| same answer preferred in both orders | {measured["swap_consistency"]:.1%} |

The same by kind, on the pairs that differ in one constraint only; 50% is guessing:

| constraint | pairs | agreement |
| --- | --- | --- |
{by_type}
"""
