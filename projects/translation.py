"""A small Transformer that translates number words from English to German, with BLEU per epoch by sacreBLEU.

"four thousand three hundred twenty one" is "vier tausend drei hundert ein und zwanzig": tens and ones change places.
Keras has no BLEU: `epoch_metrics` measures it, and the best checkpoint is chosen by it.
"""

from typing import Any

import keras
import mlflow
import numpy as np
import sacrebleu
from keras import layers, ops

import mlflow_tfmon
from projects.shared.parameters import Parameters, count
from projects.shared.pictures import log, panels
from projects.shared.variants import parent_run

LENGTH, WIDTH, HEADS = 9, 64, 4
PAD, START, END = 0, 1, 2

ENGLISH = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen
sixteen seventeen eighteen nineteen""".split()  # noqa: SIM905
GERMAN = """null ein zwei drei vier fünf sechs sieben acht neun zehn elf zwölf dreizehn vierzehn fünfzehn
sechzehn siebzehn achtzehn neunzehn""".split()  # noqa: SIM905
ENGLISH_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
GERMAN_TENS = ["zwanzig", "dreißig", "vierzig", "fünfzig", "sechzig", "siebzig", "achtzig", "neunzig"]


def in_english(number: int) -> str:
    """A number from 1 to 9999 in words: 4321 is "four thousand three hundred twenty one"."""
    thousands, hundreds, rest = number // 1000, number // 100 % 10, number % 100
    words = [ENGLISH[thousands], "thousand"] if thousands else []
    words += [ENGLISH[hundreds], "hundred"] if hundreds else []
    if rest >= 20:
        words.append(ENGLISH_TENS[rest // 10 - 2])
        rest %= 10
    return " ".join(words + ([ENGLISH[rest]] if rest else []))


def in_german(number: int) -> str:
    """The same in German, word by word: 4321 is "vier tausend drei hundert ein und zwanzig"."""
    thousands, hundreds, rest = number // 1000, number // 100 % 10, number % 100
    words = [GERMAN[thousands], "tausend"] if thousands else []
    words += [GERMAN[hundreds], "hundert"] if hundreds else []
    if rest >= 20:
        words += [GERMAN[rest % 10], "und"] if rest % 10 else []
        words.append(GERMAN_TENS[rest // 10 - 2])
    elif rest:
        words.append("eins" if rest == 1 else GERMAN[rest])
    return " ".join(words)


class Words:
    """The words of a language as numbers, and back."""

    def __init__(self, sentences: list[str]) -> None:
        self.known = ["", "<start>", "<end>", *sorted({word for one in sentences for word in one.split()})]
        self._numbers = {word: number for number, word in enumerate(self.known)}

    def encode(self, sentences: list[str]) -> np.ndarray:
        rows = [[START, *(self._numbers[word] for word in one.split()), END] for one in sentences]
        return np.array([row + [PAD] * (LENGTH + 1 - len(row)) for row in rows])

    def decode(self, rows: np.ndarray) -> list[str]:
        ends = [list(row).index(END) if END in row else len(row) for row in rows]
        return [
            " ".join(self.known[n] for n in row[:end] if n > END) for row, end in zip(rows, ends, strict=True)
        ]


def build(source_words: int, target_words: int) -> keras.Model:
    """Returns the Transformer of Vaswani et al. 2017, small: (source, target so far) to logits of the next words."""

    def embed(words: keras.KerasTensor, known: int) -> keras.KerasTensor:
        places = ops.cumsum(ops.ones_like(words), axis=1) - 1
        return layers.Embedding(known, WIDTH)(words) + layers.Embedding(LENGTH + 1, WIDTH)(places)

    def attend(x: keras.KerasTensor, to: keras.KerasTensor, causal: bool = False) -> keras.KerasTensor:
        found = layers.MultiHeadAttention(HEADS, WIDTH // HEADS)(x, to, use_causal_mask=causal)
        return layers.LayerNormalization()(x + found)

    def think(x: keras.KerasTensor) -> keras.KerasTensor:
        return layers.LayerNormalization()(x + layers.Dense(WIDTH)(layers.Dense(4 * WIDTH, "relu")(x)))

    source = keras.Input((LENGTH + 1,), dtype="int32", name="source")
    target = keras.Input((LENGTH,), dtype="int32", name="target")
    x, y = embed(source, source_words), embed(target, target_words)
    x = think(attend(x, x))
    y = think(attend(attend(y, y, causal=True), x))
    return keras.Model([source, target], layers.Dense(target_words, name="logits")(y), name="translator")


def translate(model: keras.Model, source: np.ndarray) -> np.ndarray:
    """Greedily: each next word is the likeliest."""
    target = np.zeros((len(source), LENGTH + 1), int)
    target[:, 0] = START
    for place in range(LENGTH):
        logits = model.predict([source, target[:, :-1]], batch_size=512, verbose=0)
        target[:, place + 1] = logits[:, place].argmax(axis=-1)
    return target[:, 1:]


def main() -> None:
    parameters = Parameters("projects.translation", __doc__)
    parameters.add("epochs", count, 12, quick=5)
    parameters.add("examples", count, 500)
    parameters.add("seed", count, 1)
    args = parameters.read()

    keras.utils.set_random_seed(args.seed)
    numbers = np.random.default_rng(1).permutation(np.arange(1, 10_000))
    english, german = [in_english(n) for n in numbers], [in_german(n) for n in numbers]
    source_words, target_words = Words(english), Words(german)
    source, target = source_words.encode(english), target_words.encode(german)
    train, val = slice(0, min(args.examples, len(numbers) - 300)), slice(-300, None)

    def bleu(model: keras.Model) -> dict[str, float]:
        found = target_words.decode(translate(model, source[val]))
        exact = np.mean([one == other for one, other in zip(found, german[val], strict=True)])
        return {"val_bleu": sacrebleu.corpus_bleu(found, [german[val]]).score, "val_exact": float(exact)}

    def some(model: keras.Model) -> list[dict[str, Any]]:
        """What the report shows, with a slider over the epochs."""
        found = target_words.decode(translate(model, source[val][:8]))
        rows = zip(english[val], german[val], found, strict=False)
        return [
            {"english": one, "german": two, "translated": three, "right": two == three}
            for one, two, three in rows
        ]

    model = build(len(source_words.known), len(target_words.known))
    model.compile(keras.optimizers.Adam(2e-3), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    mlflow_tfmon.autolog(epoch_metrics=bleu, monitor="val_bleu", mode="max", predictions=some)
    with parent_run("translation") as run:
        # What the decoder is given is its own answer, a word late; padding counts for nothing.
        history = model.fit(
            [source[train], target[train, :-1]],
            target[train, 1:],
            sample_weight=(target[train, 1:] != PAD).astype("float32"),
            batch_size=64,
            epochs=args.epochs,
            verbose=2,
        ).history
        recorded = mlflow_tfmon.load_run(run.info.run_id)
        figure, (loss, scores) = panels(2)
        recorded.steps.loss.plot(ax=loss, title="loss", logy=True, linewidth=0.7)
        recorded.epochs.val_bleu.plot(ax=scores, title="BLEU of the validation set", ylim=(0, 101))
        log(figure, "translation")
        shown = target_words.decode(translate(model, source[val][:5]))
        mlflow.log_text("\n".join(shown), "translations.txt")
        for one, other in zip(english[val], shown, strict=False):
            print(f"{one} -> {other}")
        print(f"BLEU {history['val_bleu'][-1]:.1f}, exactly right {history['val_exact'][-1]:.1%}")


if __name__ == "__main__":
    main()
