"""Every loss, as the trainer computes it, against plain NumPy on the same log-probabilities."""

from __future__ import annotations

import math
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from pydantic import ValidationError

from prefloop.training.config import (
    NOT_WEIGHED,
    OF_DIVERGENCE,
    SMOOTHED,
    WITHOUT_REFERENCE,
    Divergence,
    Loss,
    TrainConfig,
)
from prefloop.training.inputs.pairs import read_triples, token_pairs
from prefloop.training.methods.dpo import Dpo
from prefloop.training.policy.checkpoints import load_model, load_tokenizer
from prefloop.training.policy.logprobs import sequence_logprobs
from prefloop.training.session import reference as reference_module
from prefloop.training.session.fit import fit
from prefloop.training.session.job import Job
from prefloop.training.trainers.losses import PairLogps, own_loss
from tests.helpers.dpo_data import rows, write
from tests.helpers.engine_models import make_model

PAIRS = 8
EPSILON, GAMMA, BETA = 0.1, 0.7, 0.3
LAMBDA, CAP = 5.0, 0.2


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(make_model(tmp_path_factory.mktemp("policy"), layers=1, width=64))


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(make_model(tmp_path_factory.mktemp("other"), layers=1, width=64, seed=7))


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    triples = rows(PAIRS)
    for number, row in enumerate(triples):
        row["p_chosen"] = 0.55 + 0.05 * number
    return write(tmp_path_factory.mktemp("triples") / "part-0.parquet", triples)


class Logps:
    """log p of both answers [PAIRS] under policy and reference, computed without the trainer."""

    def __init__(self, policy: Path, reference: Path, shard: Path) -> None:
        tokenizer = load_tokenizer(policy)
        pairs = token_pairs(read_triples([shard]), tokenizer, max_length=512)
        self.chosen_tokens = np.array([len(ids) for ids in pairs.chosen])
        self.rejected_tokens = np.array([len(ids) for ids in pairs.rejected])
        self.p = np.array(pairs.p_chosen)
        import torch

        models = [load_model(one, dtype=torch.float32, device="cpu") for one in (policy, reference)]

        def logps(answers: list) -> list[np.ndarray]:
            return [
                sequence_logprobs(model, pairs.prompts, answers, batch_size=4) for model in models
            ]

        (self.chosen, self.ref_chosen), (self.rejected, self.ref_rejected) = (
            logps(pairs.chosen), logps(pairs.rejected),
        )  # fmt: skip
        shared = np.minimum(self.chosen_tokens, self.rejected_tokens)
        self.shared_chosen, self.ref_shared_chosen = logps(
            [ids[:n] for ids, n in zip(pairs.chosen, shared, strict=True)]
        )
        self.shared_rejected, self.ref_shared_rejected = logps(
            [ids[:n] for ids, n in zip(pairs.rejected, shared, strict=True)]
        )


@pytest.fixture(scope="module")
def logps(policy: Path, reference: Path, shard: Path) -> Logps:
    return Logps(policy, reference, shard)


def first_step(policy: Path, reference: Path, shard: Path, out: Path, **settings) -> dict:
    """What the trainer logs for one batch of all pairs, before it changed anything."""
    config = TrainConfig(**{"beta": BETA, "batch_size": PAIRS, "max_pairs": PAIRS, **settings})
    job = Job(policy, reference, (shard,), out / "policy", config, seed=1)
    return fit(job, Dpo()).history[0]


def log_sigma(x: np.ndarray) -> np.ndarray:
    return -np.logaddexp(0, -x)


def sigma(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def expected(loss: str, it: Logps) -> float:
    """The formula of the paper, averaged over the pairs."""
    return float(by_pair(loss, it).mean())


def by_pair(loss: str, it: Logps) -> np.ndarray:
    """The formula of the paper for each pair."""
    a, b = it.chosen - it.ref_chosen, it.rejected - it.ref_rejected
    d = BETA * (a - b)
    mean_c, mean_r = it.chosen / it.chosen_tokens, it.rejected / it.rejected_tokens
    per_token = a / it.chosen_tokens - b / it.rejected_tokens
    log_odds = [x - np.log1p(-np.exp(x)) for x in (mean_c, mean_r)]
    formulas = {
        "sigmoid": -log_sigma(d),
        "sigmoid_norm": -log_sigma(BETA * per_token),
        "hinge": np.maximum(0, 1 - d),
        "ipo": (per_token - 1 / (2 * BETA)) ** 2,
        "exo_pair": sigma(d) * (log_sigma(d) - math.log(1 - EPSILON))
        + sigma(-d) * (log_sigma(-d) - math.log(EPSILON)),
        "nca_pair": -log_sigma(BETA * a)
        - 0.5 * log_sigma(-BETA * a) - 0.5 * log_sigma(-BETA * b),
        "robust": (-(1 - EPSILON) * log_sigma(d) + EPSILON * log_sigma(-d)) / (1 - 2 * EPSILON),
        "bco_pair": -log_sigma(BETA * a) - log_sigma(-BETA * b),
        "sppo_hard": (a - 0.5 / BETA) ** 2 + (b + 0.5 / BETA) ** 2,
        "apo_zero": 1 - sigma(BETA * a) + sigma(BETA * b),
        "apo_down": sigma(BETA * a) + 1 - sigma(d),
        "soft": -it.p * log_sigma(d) - (1 - it.p) * log_sigma(-d),
        "cdpo": -(1 - EPSILON) * log_sigma(d) - EPSILON * log_sigma(-d),
        "simpo": -log_sigma(BETA * (mean_c - mean_r) - GAMMA),
        "dpop": -log_sigma(d - BETA * LAMBDA * np.maximum(0, it.ref_chosen - it.chosen)),
        "clipped": -log_sigma(np.minimum(d, CAP)),
        "orpo": -mean_c - BETA * log_sigma(log_odds[0] - log_odds[1]),
        # AOT compares the sorted values of a batch.
        "aot": -(1 - EPSILON) * log_sigma(_sorted(it)) - EPSILON * log_sigma(-_sorted(it)),
        "aot_unpaired": -(1 - EPSILON) * log_sigma(BETA * (np.sort(a) - np.sort(b)))
        - EPSILON * log_sigma(-BETA * (np.sort(a) - np.sort(b))),
        "discopop": -log_sigma(d) * (1 - sigma(d / 0.05)) + np.exp(-d) * sigma(d / 0.05),
        "sft": np.full(PAIRS, -it.chosen.sum() / it.chosen_tokens.sum()),
    }  # fmt: skip
    return np.asarray(formulas[loss])


def _sorted(it: Logps) -> np.ndarray:
    return BETA * (np.sort(it.chosen - it.rejected) - np.sort(it.ref_chosen - it.ref_rejected))


@pytest.mark.parametrize("loss", get_args(Loss))
def test_the_loss_is_the_papers(
    policy: Path, reference: Path, shard: Path, logps: Logps, tmp_path: Path, loss: str
) -> None:
    step = first_step(
        policy, reference, shard, tmp_path, loss=loss, simpo_gamma=GAMMA, dpop_lambda=LAMBDA,
        margin_cap=CAP, label_smoothing=EPSILON if loss in SMOOTHED else 0.0,
    )  # fmt: skip
    assert step["loss"] == pytest.approx(expected(loss, logps), rel=2e-4)


def test_losses_add_up_with_their_weights(
    policy: Path, reference: Path, shard: Path, logps: Logps, tmp_path: Path
) -> None:
    """RPO: DPO's loss and the NLL of chosen; and one of ours beside one of TRL's."""
    for index, (losses, weights) in enumerate(
        [(("sigmoid", "sft"), (1.0, 0.5)), (("soft", "sft", "hinge"), (2.0, 0.5, 0.25))]
    ):
        step = first_step(
            policy, reference, shard, tmp_path / str(index), loss=losses, loss_weights=weights
        )
        total = sum(w * expected(name, logps) for name, w in zip(losses, weights, strict=True))
        assert step["loss"] == pytest.approx(total, rel=2e-4)


def test_what_tells_new_losses_from_dpo_is_in_the_pairs(logps: Logps) -> None:
    """Some chosen answers became less likely, some more; some margins are beyond the cap."""
    gains = logps.chosen - logps.ref_chosen
    margins = BETA * (gains - (logps.rejected - logps.ref_rejected))
    assert gains.min() < 0 < gains.max()
    assert margins.min() < CAP < margins.max()


def test_a_pair_beyond_the_cap_has_no_gradient() -> None:
    import torch

    ratio = torch.tensor([1.0, 99.0, 101.0, 6000.0], requires_grad=True)
    nothing = torch.zeros(4)
    logps = PairLogps(nothing, nothing, nothing, nothing, ratio, nothing, nothing)
    config = TrainConfig(loss="clipped", beta=0.1, margin_cap=10)
    own_loss("clipped", logps, config).sum().backward()
    assert ratio.grad is not None
    assert ratio.grad[2:].tolist() == [0, 0]
    assert (ratio.grad[:2] < 0).all()


@pytest.mark.parametrize(
    "losses", [("sigmoid",), tuple(sorted({*get_args(Loss)} - {*NOT_WEIGHED}))]
)
def test_wpo_weighs_pairs_by_how_likely_the_policy_finds_them(
    policy: Path, reference: Path, shard: Path, logps: Logps, tmp_path: Path, losses: tuple
) -> None:
    """Against whole distributions, answer by answer."""
    import torch

    tokenizer = load_tokenizer(policy)
    pairs = token_pairs(read_triples([shard]), tokenizer, max_length=512)
    model = load_model(policy, dtype=torch.float32, device="cpu")

    def weight(prompt: np.ndarray, answer: np.ndarray) -> float:
        ids = torch.tensor(np.concatenate([prompt, answer])[None].astype(np.int64))
        with torch.no_grad():
            p = model(ids).logits[0, len(prompt) - 1 : -1].double().softmax(-1).numpy()
        own = p[np.arange(len(answer)), answer]
        return float(np.exp(np.mean(np.log(own / (p**2).sum(axis=1)))))

    weights = np.array(
        [
            weight(prompt, good) * weight(prompt, bad)
            for prompt, good, bad in zip(pairs.prompts, pairs.chosen, pairs.rejected, strict=True)
        ]
    )
    assert weights.std() > 0.1 * weights.mean()
    million = (1e6,) * len(losses)  # models that know nothing give weights of a millionth
    step = first_step(
        policy, reference, shard, tmp_path, loss=losses, loss_weights=million, wpo=True,
        dpop_lambda=LAMBDA, margin_cap=CAP, simpo_gamma=GAMMA,
        label_smoothing=EPSILON if set(losses) & set(SMOOTHED) else 0.0,
    )  # fmt: skip
    by_hand = 1e6 * sum(float((weights * by_pair(loss, logps)).mean()) for loss in losses)
    assert step["loss"] == pytest.approx(by_hand, rel=1e-3)


@pytest.mark.parametrize("loss", ["sigmoid", "soft", "cdpo"])
def test_ld_alpha_weighs_what_is_beyond_the_shorter_answer(
    policy: Path, reference: Path, shard: Path, logps: Logps, tmp_path: Path, loss: str
) -> None:
    alpha = 0.4
    it = logps

    def discounted(whole: np.ndarray, shared: np.ndarray) -> np.ndarray:
        return shared + alpha * (whole - shared)

    ratio = (
        discounted(it.chosen, it.shared_chosen)
        - discounted(it.ref_chosen, it.ref_shared_chosen)
        - discounted(it.rejected, it.shared_rejected)
        + discounted(it.ref_rejected, it.ref_shared_rejected)
    )
    sure = {"sigmoid": 1.0, "soft": it.p, "cdpo": 1 - EPSILON}[loss]
    d = BETA * ratio
    by_hand = float((-sure * log_sigma(d) - (1 - sure) * log_sigma(-d)).mean())
    for index, ahead in enumerate((True, False)):
        step = first_step(
            policy, reference, shard, tmp_path / str(index), ld_alpha=alpha, loss=loss,
            label_smoothing=EPSILON if loss == "cdpo" else 0.0,
            precompute_reference_logprobs=ahead,
        )  # fmt: skip
        assert step["loss"] == pytest.approx(by_hand, rel=2e-4)


@pytest.mark.parametrize("ahead", [True, False])
@pytest.mark.parametrize("loss", ["sigmoid", "soft", "cdpo"])
def test_ld_alpha_discounts_the_reference_as_it_does_the_policy(
    policy: Path, shard: Path, tmp_path: Path, loss: str, ahead: bool
) -> None:
    """A policy that is its reference has a loss of log 2, whatever is discounted."""
    step = first_step(
        policy, policy, shard, tmp_path, ld_alpha=0.3, loss=loss,
        label_smoothing=EPSILON if loss == "cdpo" else 0.0, precompute_reference_logprobs=ahead,
    )  # fmt: skip
    assert step["loss"] == pytest.approx(math.log(2), abs=1e-5)


@pytest.mark.parametrize("divergence", get_args(Divergence))
def test_divergences(
    policy: Path, reference: Path, shard: Path, logps: Logps, tmp_path: Path, divergence: str
) -> None:
    a, b = logps.chosen - logps.ref_chosen, logps.rejected - logps.ref_rejected
    derivative = {  # f'(t) of t = policy / reference (Wang et al. 2023, f-DPO, table 1)
        "reverse_kl": lambda x: x,
        "forward_kl": lambda x: 1 - np.exp(-x),
        "js_divergence": lambda x: math.log(2) + log_sigma(x),
        "alpha_divergence": lambda x: (np.exp(-0.5 * x) - 1) / -0.5,
    }[divergence]
    step = first_step(policy, reference, shard, tmp_path, divergence=divergence)
    by_hand = float(-log_sigma(BETA * (derivative(a) - derivative(b))).mean())
    assert step["loss"] == pytest.approx(by_hand, rel=1e-3)


def test_the_worked_example() -> None:
    # log(policy / reference) is +1.8 for chosen and -1.3 for rejected at beta 0.1.
    assert sigma(np.array(0.31)) == pytest.approx(0.577, abs=5e-4)
    assert -log_sigma(np.array(0.31)) == pytest.approx(0.550, abs=1e-3)


@pytest.mark.parametrize("loss", WITHOUT_REFERENCE)
def test_losses_without_a_reference_load_none(
    policy: Path, shard: Path, logps: Logps, tmp_path: Path, loss: str, monkeypatch
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("the reference was asked")

    monkeypatch.setattr(reference_module, "shared_logprobs", never)
    step = first_step(policy, policy, shard, tmp_path, loss=loss)
    if loss != "sft":  # the rewards of SimPO: beta times the log-probability per token
        mean = BETA * (logps.chosen / logps.chosen_tokens)
        assert step["rewards/chosen"] == pytest.approx(float(mean.mean()), rel=1e-4)


def test_settings_that_do_not_go_together() -> None:
    with pytest.raises(ValidationError, match="cdpo needs label_smoothing"):
        TrainConfig(loss="cdpo")
    with pytest.raises(ValidationError, match="does not go with loss soft"):
        TrainConfig(loss="soft", divergence="forward_kl")
    for loss in set(get_args(Loss)) - set(OF_DIVERGENCE):
        with pytest.raises(ValidationError, match=f"does not go with loss {loss}"):
            TrainConfig(loss=loss, divergence="js_divergence", label_smoothing=EPSILON)
    with pytest.raises(ValidationError, match="label_smoothing does not go with loss sigmoid"):
        TrainConfig(label_smoothing=EPSILON)
    assert TrainConfig(loss=("sigmoid", "robust"), label_smoothing=EPSILON).label_smoothing
    assert TrainConfig(preset="iterative-dpo", loss="sigmoid").loss == "sigmoid"
    with pytest.raises(ValidationError, match="wpo does not go with loss hinge"):
        TrainConfig(loss=("sigmoid", "hinge"), wpo=True)
    assert not TrainConfig(loss=("simpo", "sft")).uses_reference
    assert TrainConfig(loss=("sigmoid", "sft")).uses_reference
