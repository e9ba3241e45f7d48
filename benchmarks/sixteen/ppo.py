"""PPO by TRL 1.12, on the same prompts and the same reward: a process of its own.

    python -m benchmarks.sixteen.ppo SETTING.json OUT

TRL 1.12 comes before the installed one on the path. The reward is that of prefloop's reward-model
labeler on the text of the answer, so that PPO climbs what the others climb; the value model begins
as the reward model.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.sixteen.setting import PROMPTS
from prefloop.data.conversations.chat import render_tokens
from prefloop.labelers.scorers.sequence_scores import SequenceScorer


def main() -> None:
    """Train; leave the policy and what it took in OUT."""
    setting, out = json.loads(Path(sys.argv[1]).read_text("utf-8")), Path(sys.argv[2])
    import torch
    from datasets import Dataset
    from transformers import (
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
        AutoTokenizer,
        set_seed,
    )
    from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

    if setting["threads"]:
        torch.set_num_threads(setting["threads"])
    set_seed(setting["seed"])
    tokenizer = AutoTokenizer.from_pretrained(setting["model"], padding_side="left")
    # TRL tells padding from text by the id: the end of a turn must not be it.
    tokenizer.pad_token = _padding(tokenizer)
    prompts = PROMPTS[: setting["prompts"]]
    asked = [[{"role": "user", "content": prompt}] for prompt in prompts]
    rendered = [render_tokens(tokenizer, one, add_generation_prompt=True) for one in asked]
    reward = _Reward(SequenceScorer(setting["reward"], device="cpu"), tokenizer, rendered, asked)
    original = ppo_trainer.get_reward

    def get_reward(model: Any, ids: Any, padding: int, context: int) -> Any:
        if model is not reward.model:
            return original(model, ids, padding, context)
        scores = torch.tensor(reward.of(ids, context), dtype=torch.float32)
        return None, scores, None

    ppo_trainer.get_reward = get_reward
    policy, start = (
        AutoModelForCausalLM.from_pretrained(setting["model"], dtype=torch.float32)
        for _ in range(2)
    )
    value = AutoModelForSequenceClassification.from_pretrained(
        setting["reward"], dtype=torch.float32, num_labels=1
    )
    config = PPOConfig(
        output_dir=str(out / "trainer"), seed=setting["seed"], report_to=[], bf16=False,
        use_cpu=True, gradient_checkpointing=False, disable_tqdm=True, save_strategy="no",
        learning_rate=setting["rate"], lr_scheduler_type="constant",
        per_device_train_batch_size=len(prompts), gradient_accumulation_steps=1,
        total_episodes=len(prompts) * setting["passes"] * setting["n"], num_ppo_epochs=2,
        response_length=setting["tokens"], stop_token="eos", temperature=1.0, kl_coef=0.04,
        num_sample_generations=0,
    )  # fmt: skip
    trainer = PPOTrainer(
        args=config, processing_class=tokenizer, model=policy, ref_model=start,
        reward_model=reward.model, value_model=value,
        train_dataset=Dataset.from_dict({"input_ids": rendered}),
        eval_dataset=Dataset.from_dict({"input_ids": rendered}),
    )  # fmt: skip
    trainer.train()
    policy.generation_config.eos_token_id = start.generation_config.eos_token_id
    policy.save_pretrained(out / "policy")
    AutoTokenizer.from_pretrained(setting["model"]).save_pretrained(out / "policy")
    steps = trainer.state.global_step * config.num_ppo_epochs
    (out / "ppo.json").write_text(
        json.dumps({"generated": reward.generated, "steps": steps}), encoding="utf-8"
    )


class _Reward:
    """The labeler's score of each answer in a batch of token ids."""

    def __init__(
        self,
        scorer: SequenceScorer,
        tokenizer: Any,
        rendered: list[list[int]],
        asked: list[list[Any]],
    ) -> None:
        self._scorer, self._tokenizer = scorer, tokenizer
        self.model = scorer._model
        self.generated = 0
        """Tokens of the answers so far, ends of turns included."""
        self._asked = {tuple(ids): messages for ids, messages in zip(rendered, asked, strict=True)}

    def of(self, ids: Any, context: int) -> list[float]:
        padding = self._tokenizer.pad_token_id
        scored = []
        for row in ids.tolist():
            prompt = tuple(token for token in row[:context] if token != padding)
            answer = [token for token in row[context:] if token != padding]
            self.generated += len(answer)
            text = self._tokenizer.decode(answer, skip_special_tokens=True).strip()
            scored.append(self._scorer.encode(self._asked[prompt], text))
        return [float(score) for score in self._scorer.score(scored)]


def _padding(tokenizer: Any) -> str:
    """A special token that the chat template does not write."""
    written = set(
        render_tokens(tokenizer, [{"role": "user", "content": "?"}], add_generation_prompt=True)
    )
    ids = {tokenizer.convert_tokens_to_ids(token): token for token in tokenizer.all_special_tokens}
    free = [token for one, token in ids.items() if one not in written | {tokenizer.eos_token_id}]
    if not free:
        raise SystemExit("the tokenizer has no special token to pad with")
    return str(free[0])


if __name__ == "__main__":
    main()
