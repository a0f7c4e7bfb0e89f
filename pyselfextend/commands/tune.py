"""``pyselfextend tune``: which group size a model reads best with, at each length."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..config import SETTING_MAX
from ..tune.plan import KEYS, KEYS_MAX, SAMPLES, SAMPLES_MAX, WINDOW
from ._command import Command, option
from ._options import GGUF_FILE, LENGTH_MAX, CommaSeparated, Integer, NamedPath, output, prose, seed, threads, window

if TYPE_CHECKING:
    from ..eval.text import Text

EPILOG = """Every group reads the same texts once, from the beginning to the longest length that it reaches. At each
length it is asked for keys at depths spread over the text, which are cut off again, and the perplexity of the tokens
before it is taken. A group counts at a length if its perplexity is within 1% of the lowest. What the built-in rule
takes, inside the trained window the plain model, is kept unless another group that counts is clearly better: its mean
log probability of the right keys is above, and the 95% interval of the difference, key by key, excludes 0.

The result is found by ga_n="auto" in Llama, plan, demo, eval and bench, for this file, wherever it lies, with this
window. It lies in the user's data folder (PYSELFEXTEND_DATA_DIR, or XDG_DATA_HOME/pyselfextend);
PYSELFEXTEND_GROUPS=rule leaves it aside. Ctrl-C keeps the readings that are finished, and the same command goes on;
with more samples or groups it measures only what is new.

With --json, one object, as in the file. model, model_bytes, digest, n_ctx_train, ga_w, settings, runs (version,
build_id, machine, command). readings: ga_n, sample, seconds; stops: n_tokens, nll and n_scored of the prose before it,
answers (depth, log_p summed over the tokens of the key, is_right). groups: each length and its group. Lengths are in
tokens, log probabilities in nats.
"""


@click.command(
    cls=Command,
    epilog=EPILOG,
    examples=[
        "pyselfextend tune model.gguf",
        "pyselfextend tune model.gguf --lengths 8192,16384,32768 --samples 3 --plot tune.png",
        "pyselfextend tune model.gguf --text book.txt --output tune.json",
    ],
)
@click.argument("model", type=GGUF_FILE)
@option(
    "--lengths",
    type=CommaSeparated(Integer(1, LENGTH_MAX)),
    metavar="N,...",
    section="What is measured",
    show_default="1/2, 1, 1.5, 2, 3 and 4 times the trained window",
    help="Lengths in tokens, of text, question and answer.",
)
@option(
    "--groups",
    type=CommaSeparated(Integer(1)),
    metavar="G,...",
    section="What is measured",
    show_default="1,2,3,4,6,8,12,... as the lengths need",
    help="Group sizes.",
)
@window("Neighbour window in tokens.", "What is measured")
@option("--samples", type=Integer(1, SAMPLES_MAX), default=SAMPLES, metavar="N", section="What is measured",
        help="Texts that each group reads.")  # fmt: skip
@option("--keys", type=Integer(1, KEYS_MAX), default=KEYS, metavar="N", section="What is measured",
        help="Keys that are asked for at each length of a text.")  # fmt: skip
@option("--score", type=Integer(1, SETTING_MAX), default=WINDOW, metavar="N", section="What is measured",
        help="Tokens before each length that its perplexity is of.")  # fmt: skip
@prose("What is measured")
@seed("the keys", "What is measured")
@option(
    "--output",
    type=NamedPath(),
    metavar="FILE",
    section="Results",
    callback=output,
    show_default='where ga_n="auto" finds it',
    help="File of the result.",
)
@option("--plot", type=NamedPath(), metavar="FILE", section="Results", callback=output,
        help="Draw it, for example to a .png.")  # fmt: skip
@option("--json", "as_json", is_flag=True, section="Results", help="Print JSON instead of tables.")
@threads("Running")
@option("--gpu-layers", type=Integer(-1), default=0, metavar="N", section="Running",
        help="Layers on the GPU; -1 is all.")  # fmt: skip
def command(
    model: Path,
    lengths: tuple[int, ...] | None,
    groups: tuple[int, ...] | None,
    ga_w: int | None,
    samples: int,
    keys: int,
    score: int,
    text: Text,
    seed: int,
    output: Path | None,
    plot: Path | None,
    as_json: bool,
    threads: int,
    gpu_layers: int,
) -> None:
    """Measure which group size MODEL reads best with, at each length.

    Retrieval and perplexity with each group size, inside the trained window as well; the best one for each length is
    kept, and ga_n="auto" uses it. The defaults take about ten minutes on two cores for a model of 135 million
    parameters.
    """
    for path in (output, plot):
        if path is not None and path.exists() and model.exists() and path.samefile(model):
            raise click.UsageError(f"{path} is the model, and it would be replaced; give another file")
    from ..tune import make_plan
    from .tune_run import Request, run

    plan = make_plan(
        model, lengths=lengths, groups=groups, ga_w=ga_w, samples=samples, keys=keys, window=score, seed=seed, text=text
    )
    run(Request(plan, output, plot, as_json, threads, gpu_layers))
