"""Cortex with a real vLLM, as it is built for processors: what only the real engine can prove."""
