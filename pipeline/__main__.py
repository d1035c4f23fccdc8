"""``python -m pipeline VERB``: the stages of dvc.yaml and the commands for people.

Before a stage or command starts, all of params.yaml is checked. What the user can mend is printed as one message;
anything else keeps its traceback. Nothing but the standard library is imported before a verb is known: `doctor` must
answer where packages are missing.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from types import ModuleType
from typing import Any

from pipeline.console.errors import BakeoffError, system_reason
from pipeline.console.progress import Log, NoLog

# Set before anything imports TensorFlow: its greetings would bury what a stage has to say.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ["KERAS_BACKEND"] = "tensorflow"
# Keras would stop training after so many epochs or steps, and the record would not know of it.
for _limit in ("KERAS_MAX_EPOCHS", "KERAS_MAX_STEPS_PER_EPOCH"):
    os.environ.pop(_limit, None)

# Stage -> what its matrix item is called on the command line.
STAGES: dict[str, tuple[str, ...]] = {
    "dataset": (),
    "split": (),
    "backbone": ("backbone",),
    "features": ("backbone",),
    "as_is": ("backbone",),
    "sweep": ("backbone", "classifier"),
    "head": ("backbone",),
    "fine_tune": ("backbone",),
    "scratch": ("network",),
    "explain": ("run",),
    "compare": (),
    "track": (),
}

COMMANDS: dict[str, str] = {
    "backbone": "list the networks, or describe one, layer by layer; with --backbone, the stage that builds one",
    "as-is": "what a pretrained network, as it is, sees in images: the most probable classes of ImageNet",
    "predict": "classify image files with the champion or any run",
    "augmentation": "draw what augmentation makes of images, without training",
    "leaderboard": "print the comparison",
    "split-seeds": "repeat sweeps over several split seeds on cached features",
    "fairness": "what leaks, what is chance, what choosing adds, how often test was looked at",
    "sync": "add what is missing to the MLflow store",
    "ui": "fill MLflow and open its page",
    "demo": "the same pipeline on 200 images and three methods",
    "recipe": "put a recipe of docs/recipes.md into params.yaml",
    "clean-features": "remove the kept computations of frozen networks",
    "prune": "remove results that params.yaml no longer declares",
    "lock": "compare dvc.lock with the committed one",
    "review": "replay a revision and judge it by its claims",
    "explain-delta": "say why a metric differs between two revisions",
    "doctor": "look at the environment, and say what is wrong and what mends it",
}


# Those that act on what params.yaml declares: a mistyped name must not remove or log anything.
CHECKED_COMMANDS = ("split-seeds", "fairness", "sync", "ui", "demo", "prune")


def main(arguments: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    parser, command = _parser(arguments[0] if arguments else None)
    options = parser.parse_args(arguments)
    try:
        item = {name: getattr(options, name) for name in STAGES.get(options.verb, ())}
        if options.verb in STAGES and None not in item.values():
            if getattr(options, "name", None):
                parser.error("a NAME to describe and --backbone, the stage, exclude each other")
            run_stage(options.verb, item)
            return 0
        if options.verb in CHECKED_COMMANDS:
            check_params(runs=options.verb == "fairness")
        return command.main(options)
    except BakeoffError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        # The reader, `head` for example, has seen enough; the interpreter must not complain while it closes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        reason = system_reason(error)
        if reason is None:
            raise
        what = error.filename or "a file, or the console,"
        print(f"error: {what} cannot be read or written: {reason}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; run the same command again to continue", file=sys.stderr)
        return 130


def run_stage(stage: str, item: dict[str, str]) -> None:
    """Check params.yaml, give the stage the keys it declares, and log its steps live where it ends in a run.

    Raises ChangedError if what the stage reads changed while it ran: DVC would record the result beside the new state.
    """
    from pipeline.core import artifacts, changes, params, provenance

    # Before the stage is imported.
    code = changes.Files(changes.sources(stage, item))
    module = importlib.import_module(f"pipeline.stages.{stage}")
    values = check_params(split=str(artifacts.MANIFEST) in module.INPUTS, runs=str(artifacts.RUNS) in module.INPUTS)
    declared = params.Params(values, provenance.resolve(module.READS, item=item, values=values))
    inputs = changes.Files(provenance.resolve(module.INPUTS, item=item, values=values))
    with _log(stage, item, values) as log:
        module.main(declared, log=log, **item)
        changes.refuse(stage, declared.declared(), inputs, code)


def check_params(*, split: bool = True, runs: bool = False) -> dict[str, Any]:
    """Return params.yaml, checked as a whole and against what earlier stages left. Raises ParamsError.

    ``split``: also against the split. A stage that does not read it may run before there is one of these images.
    ``runs``: also against the records of all declared runs, for whoever shows them as results of these params.
    """
    from pipeline.config import schema
    from pipeline.core import params

    values = params.load()
    schema.check_text(params.PARAMS_FILE.read_text(encoding="utf-8"))
    schema.check(values)
    schema.check_against_results(values, split=split)
    if runs:
        schema.check_runs(values)
    return values


def _log(stage: str, item: dict[str, str], values: dict[str, Any]) -> AbstractContextManager[Log]:
    """Return the live log of a stage that ends in a run; the others have no steps to log."""
    from pipeline import tracking
    from pipeline.tracking import run_inputs

    run = run_inputs.run_of(stage, item, values)
    if run is None:
        return nullcontext(NoLog())
    dataset = tracking.dataset_name(values["dataset"])
    return tracking.live(dataset=dataset, run=run, inputs=run_inputs.inputs_of(run, values))


def _parser(verb: str | None) -> tuple[argparse.ArgumentParser, ModuleType | None]:
    """Return the parser, and the module of ``verb`` if it is a command: only that one is imported."""
    parser = argparse.ArgumentParser(prog="python -m pipeline", description="Bakeoff: stages and commands")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    module = None
    for name, text in COMMANDS.items():
        command = verbs.add_parser(name, help=text, description=text.capitalize())
        if name == verb:
            module = importlib.import_module(f"pipeline.commands.{name.replace('-', '_')}")
            module.add_arguments(command)
    for name, items in STAGES.items():
        both = name in COMMANDS  # a command for people without --item, the stage with it
        text = "stage of dvc.yaml; `dvc repro` runs it when needed"
        stage = verbs.choices[name] if both else verbs.add_parser(name, help=text)
        for item in items:
            stage.add_argument(f"--{item}", required=not both)
    return parser, module


if __name__ == "__main__":
    sys.exit(main())
