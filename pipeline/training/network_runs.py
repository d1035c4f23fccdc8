"""What head, fine_tune and scratch share: from a network to train to a run's directory.

What is frozen of a network is computed by the forward-only engine, once for each image and view; only the rest is
trained by Keras (docs/decisions/0009). Final predictions come from the engine altogether, whose bytes do not depend on
the batch size: whoever predicts one image later gets the number that was evaluated.

A network is trained ``repeats`` times, each with its own seed for initial weights, dropout, the order of images and
augmentation. What the first training leaves is the run; of the others, the predictions count.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from pipeline.console.progress import Log, say
from pipeline.core import artifacts, provenance
from pipeline.core.params import Params
from pipeline.core.seeds import child_seed, repeat_seed
from pipeline.features import activations, inference
from pipeline.networks import graphs
from pipeline.show import augmentation_sheet, training_curves
from pipeline.training import fitting, frozen_split
from pipeline.training.network_inputs import Pixels, Rows

if TYPE_CHECKING:
    import keras

    from pipeline.training.optimizers import Pace

Stage = Literal["head", "fine_tune", "scratch"]

READS = ("seed", "repeats", "images", "compute", "augmentation")
INPUTS = (str(artifacts.MANIFEST), *(str(artifacts.SPLIT / part) for part in artifacts.PARTS))
HISTORY_COLUMNS = ("epoch", "loss", "accuracy", "val_loss", "val_accuracy", "learning_rate")
# Finished repeats of a stage that was killed; a run is always put together from here.
CACHE = Path(".cache/repeats")
_ABOUT = "repeat.json"


def _one_rate(model: keras.Model) -> Sequence[Pace]:
    return ()


def run(
    build: Callable[[int], keras.Model],
    *,
    stage: Stage,
    network: str,
    block: fitting.FitParams,
    params: Params,
    inputs: Sequence[str],
    log: Log,
    keep_weights: bool = False,
    paces: Callable[[keras.Model], Sequence[Pace]] = _one_rate,
) -> None:
    """Train networks on the split and write ``results/runs/<network>-<stage>``.

    ``build`` returns the network to train in one repeat, counted from 1; if it has a frozen part, then that of the
    stored backbone ``network``. ``params`` must hold `READS`; ``inputs`` are the paths whose digests the record keeps.
    ``keep_weights``: of every repeat, under `weights_of`. ``paces``: of the variables of what ``build`` returned.

    Finished repeats of a stage that was killed are kept, so that it goes on with the next one.
    """
    digests = {path: artifacts.sha256_path(Path(path)) for path in inputs}
    ablation = _ablation(network, stage)
    if ablation:
        say(f"ablation: {network} is {ablation}")
    decisive = {name: value for name, value in params.declared().items() if name != "repeats"}
    code = provenance.code_digest([f"pipeline.stages.{stage}"])
    key = provenance.digest([decisive, digests, code, provenance.environment()])
    cache = CACHE / f"{network}-{stage}" / key
    count = params.value("repeats")
    for number in range(1, count + 1):
        seed = repeat_seed(params.value("seed"), number)
        if count > 1:
            known = ", finished before" if (cache / str(number)).is_dir() else ""
            say(f"repeat {number}/{count} of {stage} on {network}, seed {seed}{known}")
        if not (cache / str(number)).is_dir():
            with artifacts.whole_directory(cache / str(number)) as directory:
                # Before the first network is built.
                fitting.prepare(threads=params.value("compute.threads"), seed=child_seed(seed, "training", stage))
                watched = log if number == 1 else _OfRepeat(log, number)
                _train(
                    build(number),
                    directory,
                    seed=seed,
                    stage=stage,
                    network=network,
                    block=block,
                    params=params,
                    log=watched,
                    paces=paces,
                )
    _write_run(
        [cache / str(number) for number in range(1, count + 1)],
        keep_weights=keep_weights,
        stage=stage,
        network=network,
        params=params,
        inputs=digests,
        ablation=ablation,
    )
    artifacts.discard_directory(cache.parent)


def weights_of(run: Path, repeat: int) -> Path:
    """Return where a run keeps the network of one repeat, counted from 1."""
    return run if repeat == 1 else run / "repeats" / str(repeat)


def _ablation(network: str, stage: Stage) -> str | None:
    """Return what the run does wrongly on purpose; a network from scratch has no preprocessing of its own."""
    if stage == "scratch":
        return None
    return artifacts.ablation(graphs.read_spec(artifacts.BACKBONES / network).preprocess)


def _train(
    model: keras.Model,
    directory: Path,
    *,
    seed: int,
    stage: Stage,
    network: str,
    block: fitting.FitParams,
    params: Params,
    log: Log,
    paces: Callable[[keras.Model], Sequence[Pace]],
) -> None:
    """Train ``model`` from the root seed ``seed``; fill ``directory`` with the run's files and with `_ABOUT`."""
    parts = {name: artifacts.read_part(name) for name in artifacts.PARTS}
    split = frozen_split.split(model)
    compute = params.block("compute", inference.ComputeParams)
    say(
        f"training {graphs.count_trainable_parameters(model):,} of {graphs.count_parameters(model):,} parameters "
        f"on {len(parts['train'])} images of {model.input_shape[1]} x {model.input_shape[1]}, "
        f"watched on {len(parts['validation'])}"
    )
    seed = child_seed(seed, stage)
    paced = paces(model)
    with contextlib.ExitStack() as stack:
        if split.frozen is None:
            source: Pixels | Rows = Pixels(model.input_shape[1], params, seed=seed)
        else:
            part = activations.FrozenPart(
                build=lambda: split.frozen,
                sha256=artifacts.sha256_path(artifacts.BACKBONES / network),
                tensors=split.tensors,
                input_size=model.input_shape[1],
            )
            source = stack.enter_context(Rows(part, params, seed=seed))
        fit = fitting.fit(
            split.tail,
            source.examples(parts["train"], parts["validation"], epochs=block.epochs),
            whole=model,
            params=block,
            seed=seed,
            log=log,
            paces=paced,
        )
        if fit.untrained:
            names = ", ".join(fit.untrained)
            say(f"the kept epoch, {fit.best_epoch + 1}, came before these blocks began to train: {names}")
        say("predicting the validation and test images")
        tail = inference.FrozenNetwork(lambda: split.tail, compute=compute.in_float32())
        predictions = artifacts.Predictions(
            validation=source.predict(tail, parts["validation"])[np.newaxis],
            test=source.predict(tail, parts["test"]),
        )
    graphs.save(model, directory)
    about = {
        "candidate": _candidate(stage, block, fit).model_dump(),
        "cost": {
            "trainable_parameters": graphs.count_trainable_parameters(model),
            "total_parameters": graphs.count_parameters(model),
            "model_bytes": sum(file.stat().st_size for file in directory.iterdir()),
            "multiply_adds": graphs.multiply_adds(model) * len(source.asked.numbers),
        },
    }
    artifacts.write_predictions(directory / "predictions.npz", predictions)
    # What is frozen, which engine computed it and which views were asked about, for whoever predicts with it later.
    artifacts.write_json(directory / "frozen.json", source.about)
    title = artifacts.marked(f"{network} · {stage}", _ablation(network, stage))
    _write_history(directory, fit, title=title)
    augmentation_sheet.draw(
        augmentation_sheet.of_part(parts["train"]),
        params,
        size=model.input_shape[1],
        seed=seed,
        title=f"Augmentation of {title}",
        path=directory / "augmentation.png",
    )
    artifacts.write_json(directory / _ABOUT, about)


def _write_run(
    repeats: Sequence[Path],
    *,
    keep_weights: bool,
    stage: Stage,
    network: str,
    params: Params,
    inputs: dict[str, str],
    ablation: str | None,
) -> None:
    """Write the run: the files of its first training, and the predictions of all."""
    about = [artifacts.read_json(repeat / _ABOUT) for repeat in repeats]
    first, *others = [artifacts.read_predictions(repeat / "predictions.npz") for repeat in repeats]
    trained = [artifacts.Candidate.model_validate(each["candidate"]) for each in about]
    again = (
        {
            "repeats_validation": np.concatenate([other.validation for other in others]),
            "repeats_test": np.stack([other.test for other in others]),
        }
        if others
        else {}
    )
    with artifacts.whole_directory(artifacts.RUNS / f"{network}-{stage}") as directory:
        shutil.copytree(repeats[0], directory, dirs_exist_ok=True, ignore=shutil.ignore_patterns(_ABOUT))
        for number, repeat in enumerate(repeats[1:], start=2):
            if keep_weights:
                weights_of(directory, number).mkdir(parents=True)
                for name in (graphs.ARCHITECTURE, graphs.WEIGHTS):
                    shutil.copyfile(repeat / name, weights_of(directory, number) / name)
        record = artifacts.Record(
            stage=stage,
            network=network,
            method=stage,
            classes=list(artifacts.read_part("train").classes),
            parameters=params.declared(),
            inputs=inputs,
            candidates=[trained[0]],
            selected=0,
            cost=artifacts.Cost.model_validate(about[0]["cost"]),
            repeats=[
                artifacts.Repeat(
                    seed=repeat_seed(params.value("seed"), number),
                    converged=other.converged,
                    notes=other.notes,
                    history=other.history,
                )
                for number, other in enumerate(trained[1:], start=2)
            ],
            ablation=ablation,
        )
        artifacts.write_record(directory / "record.json", record)
        artifacts.write_predictions(
            directory / "predictions.npz", artifacts.Predictions(first.validation, first.test, **again)
        )


class _OfRepeat:
    """Passes on the steps of a training after the first, under names of their own."""

    def __init__(self, log: Log, number: int):
        self._log, self._number = log, number

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        self._log.step(step, {artifacts.of_repeat(self._number, name): value for name, value in metrics.items()})


def _candidate(stage: str, block: fitting.FitParams, fit: fitting.Fit) -> artifacts.Candidate:
    return artifacts.Candidate(
        name=stage,
        parameters=block.model_dump(),
        converged=not fit.still_improving,
        notes={
            "best_epoch": fit.best_epoch + 1,
            "epochs": len(fit.history["loss"]),
            **({"untrained_blocks": ", ".join(fit.untrained)} if fit.untrained else {}),
        },
        history=fit.history,
    )


def _write_history(directory: Path, fit: fitting.Fit, *, title: str) -> None:
    rows = [
        {"epoch": epoch + 1, **{name: fit.history[name][epoch] for name in HISTORY_COLUMNS[1:]}}
        for epoch in range(len(fit.history["loss"]))
    ]
    artifacts.write_csv(directory / "history.csv", HISTORY_COLUMNS, rows)
    training_curves.draw(fit.history, best_epoch=fit.best_epoch, title=title, path=directory / "curves.png")
