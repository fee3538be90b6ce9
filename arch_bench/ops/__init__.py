"""Mathematical functions with more than one kernel: a readable reference beside the fast ones, one signature."""
