"""Make a small training set out of six seeds of our own, the whole pipeline at work.

    python examples/synthesis/run.py                                 # answers written by us
    python examples/synthesis/run.py --reasoner 'smollm2?threads=1'  # the embedded model, 3 seeds

The target is the embedded model in both. The scripted reasoner's analyses *and grades* are written
by us in ``reasoner.json``, so the first shows what records look like. In the second a model of 135
million parameters does, under a JSON schema, what the paper has one of 38 billion do: expect none
or one of three seeds to pass, and a record that did pass to be poor. The machinery is the same:
what does not keep to the form is repaired once, then rejected, and the folder ``synthesis/`` beside
the dataset says why. Ctrl-C stops it; the same command goes on.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

HERE = Path(__file__).parent
VLMGUARD = [sys.executable, "-m", "vlmguard.cli.main"]
SIGNS = {
    "cliff.png": "CAUTION\nCLIFF EDGE\nNO RAILING",
    "cleaners.png": "BLEACH      ACID\n            CLEANER",
    "bath-bomb.png": "BATH BOMB\nlavender\n2.99",
    "step.png": "MIND\nTHE STEP",
    "ladder.png": "LADDER\nDO NOT STAND\nON TOP RUNGS",
}


def draw_signs(folder: Path) -> None:
    """The seeds' pictures: words on a sign."""
    for name, words in SIGNS.items():
        picture = Image.new("RGB", (640, 400), "gold")
        brush = ImageDraw.Draw(picture)
        brush.rectangle((15, 15, 625, 385), outline="black", width=8)
        font = ImageFont.load_default(64)
        brush.multiline_text((320, 200), words, "black", font, anchor="mm", align="center")
        picture.save(folder / name)


def synthesize(seeds: Path, dataset: Path, reasoner: str, target: str) -> int:
    """Run the pipeline; the exit code. A model is given fewer seeds and shorter answers."""
    scripted = reasoner.startswith("scripted:")
    brief = ["--samples", "2", "--attempts", "2", "--answer-tokens", "96"]
    briefer = ["--samples", "1", "--attempts", "1", "--answer-tokens", "48", "--limit", "3"]
    process = subprocess.Popen(  # noqa: S603  # our own command
        [
            *VLMGUARD, "synth", "run",
            "--source", seeds, "--out", dataset, "--licence", "apache-2.0",
            "--reasoner", reasoner, "--target", target, "--concurrency", "2",
            *(brief if scripted else briefer),
        ]
    )  # fmt: skip
    # Ctrl-C reaches the command as well, which stores the answers on their way and ends.
    interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        return process.wait()
    finally:
        signal.signal(signal.SIGINT, interrupt)


def report(dataset: Path, reasoner: str) -> None:
    """Print what came of the seeds, and who is to be believed."""
    told = subprocess.run(  # noqa: S603
        [*VLMGUARD, "synth", "status", dataset, "--json"], check=True, capture_output=True
    )
    counts = json.loads(told.stdout)["outcomes"]
    seeds, passed = sum(counts.values()), counts["accepted"] + counts["benign"]
    print(f"\n{passed} of {seeds} seeds became records ({passed / seeds:.0%}):")
    print(f"  {counts['accepted']} risky with a rewrite that passed, {counts['benign']} harmless")
    for kind in ("rejected", "aside"):
        for line in (dataset / "synthesis" / f"{kind}.jsonl").read_text("utf-8").splitlines():
            seed = json.loads(line)
            print(f"  {kind}: {seed['id']}: {seed['reason']}")
    if reasoner.startswith("scripted:"):
        print("The analyses and grades are ours (reasoner.json), not a model's.")
    else:
        print(
            f"{reasoner} wrote and graded this. A small model does both badly: do not train on it."
        )
    print(f"Look at the records: vlmguard data show {dataset}")


def main() -> int:
    """Draw the pictures, run the pipeline, tell what came of it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--reasoner", default=f"scripted:{HERE / 'reasoner.json'}")
    parser.add_argument("--target", default="smollm2?threads=1")
    parser.add_argument("--out", type=Path, default=Path("synthesis-example"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    draw_signs(options.out)
    seeds = Path(shutil.copy(HERE / "seeds.jsonl", options.out))
    dataset = options.out / "dataset"
    code = synthesize(seeds, dataset, options.reasoner, options.target)
    if code == 0:
        report(dataset, options.reasoner)
    return code


if __name__ == "__main__":
    sys.exit(main())
