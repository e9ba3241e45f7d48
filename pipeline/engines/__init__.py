"""Engines that generate: transformers here, vLLM here, any OpenAI-compatible server."""
