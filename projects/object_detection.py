"""A small detector: handwritten digits placed on a canvas, with the COCO metric per epoch by pycocotools.

Keras has no mean average precision: `epoch_metrics` measures it, and the best checkpoint is chosen by it.
"""

import contextlib
import io
import math

import keras
import mlflow
import numpy as np
import tensorflow as tf
from matplotlib.patches import Rectangle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

import mlflow_tfmon
from projects.shared.data import IMAGES, images
from projects.shared.parameters import Parameters, count
from projects.shared.pictures import log, panels
from projects.shared.variants import parent_run

SIZE, CELLS = 48, 6  # pixels of a canvas's side, and cells: each tells of one digit whose centre lies in it
CELL = SIZE // CELLS
BATCH = 16
FOUND = 5  # detections of a canvas that are judged


def canvases(
    digits: np.ndarray, labels: np.ndarray, number: int, seed: int
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Places up to three digits, of 8 or 16 pixels, on each canvas; none covers another.

    Returns:
        The canvases, and for each the rows (x, y, width, height, label) of its digits, in pixels.
    """
    random = np.random.default_rng(seed)
    pictures, boxes = np.zeros((number, SIZE, SIZE, 1), "float32"), []
    for picture in pictures:
        rows: list[tuple[int, ...]] = []
        for chosen in random.integers(0, len(digits), random.integers(1, 4)):
            side = 8 * random.integers(1, 3)
            x, y = random.integers(0, SIZE - side + 1, 2)
            place = picture[y : y + side, x : x + side, 0]
            if not place.any():
                place += np.kron(digits[chosen, :, :, 0], np.ones((side // 8, side // 8)))
                rows.append((int(x), int(y), int(side), int(side), int(labels[chosen])))
        boxes.append(np.array(rows, "float32"))
    return pictures, boxes


def targets(boxes: list[np.ndarray]) -> np.ndarray:
    """What each cell should tell: whether a digit's centre is in it, where, its size (logarithm), and its label."""
    cells = np.zeros((len(boxes), CELLS, CELLS, 6), "float32")
    for cell, rows in zip(cells, boxes, strict=True):
        centres = (rows[:, :2] + rows[:, 2:4] / 2) / CELL
        for (x, y), row in zip(centres, rows, strict=True):
            cell[int(y), int(x)] = [1, x % 1, y % 1, *np.log(row[2:4] / CELL), row[4]]
    return cells


@keras.saving.register_keras_serializable("projects")
def detection_loss(true: tf.Tensor, told: tf.Tensor) -> tf.Tensor:
    """Sums over the cells: is there a digit; where there is, its box (squared error) and its label (cross-entropy)."""
    there = true[..., 0]
    seen = tf.nn.sigmoid_cross_entropy_with_logits(there, told[..., 0])
    box = tf.reduce_sum(tf.square(true[..., 1:5] - told[..., 1:5]), axis=-1)
    label = tf.nn.sparse_softmax_cross_entropy_with_logits(tf.cast(true[..., 5], tf.int32), told[..., 5:])
    return tf.reduce_sum(seen + there * (5 * box + label), axis=[1, 2])


def build() -> keras.Model:
    """Returns a convolutional detector: for each cell 1 logit, 4 numbers of the box and 10 logits of the label."""
    layers = keras.layers
    stack = [keras.Input((SIZE, SIZE, 1))]
    for width, pool in ((16, 2), (48, 2), (96, 2), (128, 1)):
        stack += [
            layers.Conv2D(width, 3, padding="same", use_bias=False),
            layers.BatchNormalization(momentum=0.9),
            layers.ReLU(),
            layers.MaxPooling2D(pool),
        ]
    return keras.Sequential([*stack, layers.Conv2D(15, 1, name="cells")], name="detector")


def detect(model: keras.Model, pictures: np.ndarray) -> np.ndarray:
    """Returns the likeliest boxes: rows (canvas, x, y, width, height, score, label)."""
    told = model.predict(pictures, batch_size=256, verbose=0).reshape(len(pictures), CELLS * CELLS, 15)
    labels = tf.nn.softmax(told[..., 5:]).numpy()
    scores = tf.sigmoid(told[..., 0]).numpy() * labels.max(axis=-1)
    rows = []
    for canvas, best in enumerate(np.argsort(-scores)[:, :FOUND]):
        for cell in best:
            x, y, width, height = told[canvas, cell, 1:5]
            size = CELL * np.exp(np.clip([width, height], -3, 3))
            corner = CELL * np.array([cell % CELLS + x, cell // CELLS + y]) - size / 2
            rows.append([canvas, *corner, *size, scores[canvas, cell], labels[canvas, cell].argmax()])
    return np.array(rows)


def ground_truth(boxes: list[np.ndarray]) -> COCO:
    """The true boxes as pycocotools takes them."""
    truth = COCO()
    rows = [(canvas, *map(float, row)) for canvas, found in enumerate(boxes) for row in found]
    truth.dataset = {
        "images": [{"id": canvas} for canvas in range(len(boxes))],
        "categories": [{"id": label} for label in range(10)],
        "annotations": [
            {"id": number, "image_id": canvas, "category_id": int(label), "bbox": box, "area": box[2] * box[3],
             "iscrowd": 0}
            for number, (canvas, *box, label) in enumerate(rows, 1)
        ],
        "info": {},
    }  # fmt: skip
    truth.createIndex()
    return truth


def average_precision(truth: COCO, found: np.ndarray) -> dict[str, float]:
    """COCO's mean average precision, over overlaps from 0.5 to 0.95 and at 0.5."""
    evaluation = COCOeval(truth, truth.loadRes(found), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return {"val_map": float(evaluation.stats[0]), "val_map50": float(evaluation.stats[1])}


def main() -> None:
    parameters = Parameters("projects.object_detection", __doc__)
    parameters.add("epochs", count, 20, quick=2)
    parameters.add("canvases", count, 2000, quick=400)
    parameters.add("seed", count, 1)
    parameters.add("dataset", str, "digits", choices=IMAGES)
    args = parameters.read()

    keras.utils.set_random_seed(args.seed)
    digits = images(args.dataset)
    small, val_small = (tf.image.resize(x, (8, 8), "area").numpy() for x in (digits.x, digits.x_val))
    pictures, boxes = canvases(small, digits.y, args.canvases, seed=1)
    val_pictures, val_boxes = canvases(val_small, digits.y_val, 200, seed=2)

    def measure(model: keras.Model) -> dict[str, float]:
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints all that it does
            return average_precision(ground_truth(val_boxes), detect(model, val_pictures))

    model = build()
    steps = args.epochs * math.ceil(len(pictures) / BATCH)
    rate = keras.optimizers.schedules.CosineDecay(3e-3, steps)
    model.compile(keras.optimizers.Adam(rate), detection_loss)
    mlflow_tfmon.autolog(epoch_metrics=measure, monitor="val_map", mode="max")
    with parent_run("object_detection") as run:
        validation = val_pictures, targets(val_boxes)
        history = model.fit(
            pictures, targets(boxes), BATCH, args.epochs, validation_data=validation, verbose=2
        ).history
        recorded = mlflow_tfmon.load_run(run.info.run_id)
        figure, (loss, precision, *examples) = panels(4)
        recorded.epochs[["loss", "val_loss"]].plot(ax=loss, title="loss", logy=True)
        recorded.epochs[["val_map50", "val_map"]].plot(
            ax=precision, title="mean average precision", ylim=(0, 1)
        )
        found = detect(model, val_pictures[: len(examples)])
        for canvas, axes in enumerate(examples):
            axes.imshow(val_pictures[canvas, ..., 0], cmap="gray_r")
            axes.set(xticks=[], yticks=[])
            for _, x, y, width, height, score, label in found[(found[:, 0] == canvas) & (found[:, 5] > 0.3)]:
                axes.add_patch(Rectangle((x - 0.5, y - 0.5), width, height, fill=False, color="C1"))
                axes.text(x, y - 1, f"{label:.0f}: {score:.0%}", color="C0", fontsize=8)
        log(figure, "object_detection")
        best = int(np.argmax(history["val_map"]))
        mlflow.log_metric("best_map50", history["val_map50"][best])
        average, at_half = history["val_map"][best], history["val_map50"][best]
        print(f"best epoch {best + 1}: mAP {average:.3f}, at an overlap of 0.5 {at_half:.3f}")


if __name__ == "__main__":
    main()
