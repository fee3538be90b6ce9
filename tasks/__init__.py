"""The task suite: one file per family, all on the contract of `tasks.base`."""
