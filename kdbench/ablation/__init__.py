"""Ablations: a ladder of configurations of one method, what each step changes, and what that gains and costs."""
