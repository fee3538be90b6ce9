#!/usr/bin/env bash
# torch 2.13.0: torch.save writes a CRC-32 of every tensor, torch.load does not look at it. One flipped bit in a weight
# loads without an error or a warning, with mmap and without, and with weights_only=True; Python's zipfile names the
# same file as damaged at once.
#
# Guess before running: torch.load raises for the damaged record (the archive is a zip file, and has the sum).
# Seen: it returns the damaged weight.
#
# What arch-bench does for it: a SHA-256 beside each checkpoint, which is checked before a training goes on.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
cd "$work"
"$work/venv/bin/python" - <<'PY'
import zipfile

import torch

torch.save({"weight": torch.arange(4.0)}, "a.pt")
with zipfile.ZipFile("a.pt") as archive:
    record = next(info for info in archive.infolist() if info.filename.endswith("data/0"))
data = bytearray(open("a.pt", "rb").read())
where = data.index(torch.arange(4.0).numpy().tobytes(), record.header_offset)
data[where + 7] ^= 0x40  # of 1.0: an exponent bit
open("b.pt", "wb").write(data)
with zipfile.ZipFile("b.pt") as archive:
    assert archive.testzip() == record.filename, "zipfile sees the damage"
for options in ({}, {"mmap": True}, {"weights_only": False}):
    found = torch.load("b.pt", **options)["weight"].tolist()
    assert found[1] != 1.0 and found[2:] == [2.0, 3.0], (options, found)
    print(torch.__version__, options, found)
PY
echo "as recorded: a flipped bit loads in silence"
