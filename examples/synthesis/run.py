"""Make a small training set out of six seeds of our own, the whole pipeline at work.

    python examples/synthesis/run.py                       # a scripted reasoner: answers by us
    python examples/synthesis/run.py --reasoner smollm2    # the embedded model, under a schema

The target is the embedded model in both. The scripted reasoner's analyses *and grades* are written
by us in ``reasoner.json``, so the first shows what records look like; the second is a small model
doing what the paper has a 38-billion one do: its records are poor, and few pass. The machinery is
the same: everything that does not keep to the form is repaired once, then rejected, and the folder
``synthesis/`` beside the dataset says why.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

HERE = Path(__file__).parent
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


def main() -> int:
    """Draw the pictures, run the pipeline, show the records."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--reasoner", default=f"scripted:{HERE / 'reasoner.json'}")
    parser.add_argument("--target", default="smollm2")
    parser.add_argument("--out", type=Path, default=Path("synthesis-example"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    draw_signs(options.out)
    seeds = Path(shutil.copy(HERE / "seeds.jsonl", options.out))
    vlmguard = [sys.executable, "-m", "vlmguard.cli.main"]
    dataset = options.out / "dataset"
    made = subprocess.run(  # noqa: S603  # our own command
        [
            *vlmguard, "synth", "run",
            "--source", seeds, "--out", dataset, "--licence", "apache-2.0",
            "--reasoner", options.reasoner, "--target", options.target,
            "--samples", "2", "--attempts", "2", "--answer-tokens", "96", "--concurrency", "2",
        ],
        check=False,
    )  # fmt: skip
    if made.returncode == 0:
        subprocess.run([*vlmguard, "synth", "status", dataset], check=True)  # noqa: S603
    return made.returncode


if __name__ == "__main__":
    sys.exit(main())
