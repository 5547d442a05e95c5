"""Custom models, layers and losses as users write them."""

import keras


class Unregistered(keras.Model):
    """A model as users write it: no get_config, no registration, random in inference."""

    def __init__(self, units):
        super().__init__()
        self.hidden, self.out = keras.layers.Dense(units), keras.layers.Dense(2)
        self.noise = keras.layers.Dropout(0.5)

    def call(self, x, training=False):
        return self.out(self.noise(self.hidden(x), training=training))


@keras.saving.register_keras_serializable("tests")
class Registered(Unregistered):
    def __init__(self, units, **kwargs):
        super().__init__(units)
        self.units = units

    def get_config(self):
        return {"units": self.units}


@keras.saving.register_keras_serializable("tests")
class NarrowConstructor(Unregistered):
    def __init__(self, units=3):
        super().__init__(units)


class WithoutConfig(Unregistered):
    def __init__(self):
        super().__init__(3)

    def get_config(self):
        raise NotImplementedError("there is none")


def own_loss(truth, guess):
    return keras.ops.mean(keras.ops.square(truth - guess), axis=-1)
