"""Ways of training, compared on sixteen prompts with one reward model."""
