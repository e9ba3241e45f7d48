"""The methods of TRL and transformers that ours are called in the place of, and are not public.

They may change with any version. Each stands here with a digest of its code as it was when ours was
written for it (``tests/training/trainers/test_overridden.py`` computes it); where an installed
version has another, the test names method and version, and ours is to be read against it.
"""

from __future__ import annotations

WRITTEN_FOR = {"transformers": "5.19.0", "trl": "1.16.0"}
"""The libraries, and the versions that the digests are of."""
OVERRIDDEN = {
    "transformers: DynamicLayer.update": "65c9bfb3fdd0",
    "transformers: Trainer._get_train_sampler": "196907c8287a",
    "trl: DPOTrainer._compute_loss": "4759b78832a8",
    "trl: DPOTrainer._precompute_ref_logps": "909c3fbbf428",
    "trl: DPOTrainer._prepare_dataset": "9d0d3e79721c",
    "trl: DPOTrainer._set_signature_columns_if_needed": "4048a19b0368",
    "trl: GRPOTrainer._calculate_rewards": "6ba9dfe574b0",
    "trl: GRPOTrainer._generate_and_score_completions": "12865689171c",
    "trl: GRPOTrainer._generate_single_turn": "406cf03c46e3",
    "trl: GRPOTrainer._tokenize_prompts": "1561b04711d1",
    "trl: KTOTrainer._get_train_sampler": "5c4a49cdb80b",
    "trl: KTOTrainer._precompute_ref_logps": "c50f7a59e3cf",
    "trl: KTOTrainer._prepare_dataset": "2879b4e640cc",
    "trl: RLOOTrainer._calculate_rewards": "9214e50e970a",
    "trl: RLOOTrainer._generate_and_score_completions": "a0a297e31e83",
    "trl: RLOOTrainer._generate_single_turn": "002cbe1103ab",
    "trl: RLOOTrainer._tokenize_prompts": "24fc4f74828c",
    "trl: _BaseTrainer._send_telemetry": "4258f6dce1ac",
}
