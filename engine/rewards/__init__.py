"""Rewards: built-in functions, users' files, and the process that runs them. Imports no array library."""

from engine.rewards.registering import register_reward_function

__all__ = ["register_reward_function"]
