"""What head, fine_tune and scratch share: from a network to train to a run's directory.

Final predictions come from the forward-only engine, whose bytes do not depend on the batch size: whoever predicts one
image later gets the number that was evaluated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from pipeline import artifacts, images, inference, networks, training, training_curves
from pipeline.params import Params
from pipeline.progress import Log, progress, say

if TYPE_CHECKING:
    import keras

READS = ("seed", "images", "compute", "augmentation")
INPUTS = (str(artifacts.MANIFEST), *(str(artifacts.SPLIT / part) for part in artifacts.PARTS))
HISTORY_COLUMNS = ("epoch", "loss", "accuracy", "val_loss", "val_accuracy", "learning_rate")


def train(
    model: keras.Model,
    *,
    stage: Literal["head", "fine_tune", "scratch"],
    network: str,
    params: Params,
    inputs: Sequence[str],
    log: Log,
) -> None:
    """Train ``model`` on the split and write ``results/runs/<network>-<stage>``.

    ``params`` must hold `READS` and the stage's own block; ``inputs`` are the paths whose digests the record keeps.
    """
    block = params.value(stage)
    fit_params = training.FitParams.model_validate({key: block[key] for key in training.FitParams.model_fields})
    parts = {name: artifacts.read_part(name) for name in artifacts.PARTS}
    size = model.input_shape[1]
    say(f"training {networks.count_trainable_parameters(model):,} of {networks.count_parameters(model):,} parameters "
        f"on {len(parts['train'])} images of {size} x {size}, watched on {len(parts['validation'])}")  # fmt: skip
    fit = training.fit(
        model,
        _views(parts["train"], parts["validation"], size=size, params=params),
        params=fit_params,
        seed=params.value("seed"),
        log=log,
    )
    compute = params.block("compute", inference.ComputeParams)
    image_params = params.block("images", images.ImageParams)
    predictions = artifacts.Predictions(
        validation=predict(model, parts["validation"], image_params=image_params, compute=compute)[np.newaxis],
        test=predict(model, parts["test"], image_params=image_params, compute=compute),
    )
    with artifacts.whole_directory(artifacts.RUNS / f"{network}-{stage}") as directory:
        networks.save(model, directory)
        model_bytes = sum(file.stat().st_size for file in directory.iterdir())
        record = artifacts.Record(
            stage=stage,
            network=network,
            method=stage,
            classes=list(parts["train"].classes),
            parameters=params.declared(),
            inputs={path: artifacts.sha256_path(Path(path)) for path in inputs},
            candidates=[_candidate(stage, block, fit)],
            selected=0,
            cost=artifacts.Cost(
                trainable_parameters=networks.count_trainable_parameters(model),
                total_parameters=networks.count_parameters(model),
                model_bytes=model_bytes,
                multiply_adds=networks.multiply_adds(model),
            ),
        )
        artifacts.write_record(directory / "record.json", record)
        artifacts.write_predictions(directory / "predictions.npz", predictions)
        _write_history(directory, fit, title=f"{network} · {stage}")


def predict(
    model: keras.Model, part: artifacts.Part, *, image_params: images.ImageParams, compute: inference.ComputeParams
) -> np.ndarray:
    """Return class probabilities of one part, float32 (n_images, classes), in manifest order."""
    engine = inference.FrozenNetwork(model, threads=compute.threads)
    batches = images.batches(
        part.files, size=model.input_shape[1], params=image_params, batch_size=compute.batch_size
    )
    total = -(-len(part) // compute.batch_size)
    return np.concatenate(
        [engine.run(batch) for batch in progress(batches, total=total, label=f"predicting {part.name}", unit="batches")]
    )


def _views(train: artifacts.Part, validation: artifacts.Part, *, size: int, params: Params) -> training.Images:
    image_params = params.block("images", images.ImageParams)
    augmentation = params.block("augmentation", images.AugmentationParams)
    seed = params.value("seed")

    def train_view(row: int, view: int) -> np.ndarray:
        image = images.load(train.files[row], size=size, params=image_params)
        return images.augment(image, seed=seed, sha256=train.sha256[row], view=view, params=augmentation)

    def validation_image(row: int) -> np.ndarray:
        return images.load(validation.files[row], size=size, params=image_params)

    return training.Images(train.labels, train_view, validation.labels, validation_image)


def _candidate(stage: str, block: Mapping[str, Any], fit: training.Fit) -> artifacts.Candidate:
    chosen_elsewhere = ("backbones", "networks")
    return artifacts.Candidate(
        name=stage,
        parameters={key: value for key, value in block.items() if key not in chosen_elsewhere},
        converged=not fit.still_improving,
        notes={"best_epoch": fit.best_epoch + 1, "epochs": len(fit.history["loss"])},
        history=fit.history,
    )


def _write_history(directory: Path, fit: training.Fit, *, title: str) -> None:
    rows = [
        {"epoch": epoch + 1, **{name: fit.history[name][epoch] for name in HISTORY_COLUMNS[1:]}}
        for epoch in range(len(fit.history["loss"]))
    ]
    artifacts.write_csv(directory / "history.csv", HISTORY_COLUMNS, rows)
    training_curves.draw(fit.history, best_epoch=fit.best_epoch, title=title, path=directory / "curves.png")
