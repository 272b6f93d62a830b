"""Borrow a model and run it: tasks, targets, fast passes, memory."""
