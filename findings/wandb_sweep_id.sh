#!/usr/bin/env bash
# wandb 0.31.0: with WANDB_SWEEP_ID in the environment, as any shell below `wandb agent` has it, wandb.init drops an
# explicit project and id: the run of wandb.init(project="mine", id="cell-1") has neither. Without the variable it has both.
#
# Guess before running: an explicit argument of wandb.init wins over the environment, as it does for WANDB_PROJECT.
# Seen: offline, the run is filed under "uncategorized" with an id of its own.
#
# What arch-bench does for it: an agent's variables are hidden from its processes, and named in one line.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check wandb==0.31.0
cd "$work"
cat > run.py <<'PY'
import wandb

with wandb.init(project="mine", id="cell-1", mode="offline", settings=wandb.Settings(silent=True)) as run:
    print(run.project, run.id)
PY
export WANDB_DIR=$work HOME=$work
plain=$(env -u WANDB_SWEEP_ID "$work/venv/bin/python" run.py | tail -n 1)
swept=$(WANDB_SWEEP_ID=abcd1234 "$work/venv/bin/python" run.py | tail -n 1)
echo "without: $plain"
echo "with WANDB_SWEEP_ID: $swept"
[ "$plain" = "mine cell-1" ]
case "$swept" in *mine*|*cell-1*) echo "changed: an explicit argument counts"; exit 1 ;; esac
echo "as recorded: explicit project and id are dropped"
