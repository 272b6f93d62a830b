"""Borrow a model and run it: tasks, targets, fast forward passes, limits of memory."""
