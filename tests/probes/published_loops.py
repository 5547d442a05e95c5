"""Loops in the manner of public tutorials, guides and libraries, written without a look at how a loss is told.

Each trains and returns the losses of its steps as it sees them itself, a list for each optimizer in the order of their
first updates: the values that were minimized by the updates that were made. What each stands for is named beside it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

Loop = Callable[[], Any]
random = np.random.default_rng(7)
X = [tf.constant(random.normal(size=(8, 4)).astype("float32")) for _ in range(24)]
Y = [tf.constant(random.normal(size=(8, 2)).astype("float32")) for _ in range(24)]
LOOPS: dict[str, Loop] = {}


def loop(make: Loop) -> Loop:
    LOOPS[make.__name__] = make
    return make


def net(seed: int = 3, inputs: int = 4, outputs: int = 2) -> keras.Model:
    keras.utils.set_random_seed(seed)
    layers = [keras.Input((inputs,)), keras.layers.Dense(5, "tanh"), keras.layers.Dense(outputs)]
    return keras.Sequential(layers)


def sgd(variables: Any, rate: float = 0.05) -> Any:
    optimizer = keras.optimizers.SGD(rate)
    optimizer.build(variables)
    return optimizer


def adam(variables: Any) -> Any:
    optimizer = keras.optimizers.Adam(0.01)
    optimizer.build(variables)
    return optimizer


def mse(model: Any, x: Any, y: Any) -> Any:
    return tf.reduce_mean((model(x) - y) ** 2)


def differentiate(model: Any, x: Any, y: Any) -> Any:
    with tf.GradientTape() as tape:
        value = mse(model, x, y)
    return value, tape.gradient(value, model.trainable_variables)


def pairs(count: int = 4, start: int = 0) -> Any:
    return zip(X[start : start + count], Y[start : start + count], strict=True)


def together(found: Any, variables: Any) -> Any:
    return zip(found, variables, strict=True)


class Seen(keras.callbacks.Callback):
    """What a model's own train step returns at each batch, by name."""

    def __init__(self, *names: str) -> None:
        super().__init__()
        self.names, self.losses = names, [[] for _ in names]

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        for name, losses in zip(self.names, self.losses, strict=True):
            losses.append(float(logs[name]))


def fitted(model: Any, *names: str, count: int = 4, **compiled: Any) -> list[list[float]]:
    model.compile(**compiled)
    seen = Seen(*names)
    x, y = np.concatenate(X[:count]), np.concatenate(Y[:count])
    model.fit(x, y, batch_size=8, shuffle=False, verbose=0, callbacks=[seen])
    return seen.losses


# -- train steps of models (keras.io: guides "Customizing what happens in fit()", examples of generative models) -------
class Gan(keras.Model):
    """keras.io, dcgan_overriding_train_step and wgan_gp."""

    def __init__(self, critics: int = 1, penalty: bool = False) -> None:
        super().__init__()
        self.critic, self.generator = net(1, 4, 1), net(2, 2, 4)
        self.critics, self.penalty = critics, penalty

    def compile(self, critic: Any, generator: Any, **more: Any) -> None:
        super().compile(**more)
        self.by_critic, self.by_generator = critic, generator

    def train_step(self, data: Any) -> Any:
        real, noise = data
        out = {}
        for turn in range(self.critics):
            with tf.GradientTape() as tape:
                fake = self.generator(noise + 0.1 * turn)
                loss = tf.reduce_mean(self.critic(fake)) - tf.reduce_mean(self.critic(real))
                if self.penalty:
                    between = 0.3 * real + 0.7 * fake
                    with tf.GradientTape() as inner:
                        inner.watch(between)
                        value = self.critic(between)
                    slope = tf.sqrt(tf.reduce_sum(inner.gradient(value, between) ** 2, 1) + 1e-6)
                    loss += 10.0 * tf.reduce_mean((slope - 1.0) ** 2)
            found = tape.gradient(loss, self.critic.trainable_variables)
            self.by_critic.apply_gradients(together(found, self.critic.trainable_variables))
            out[f"critic{turn}"] = loss
        with tf.GradientTape() as tape:
            loss = -tf.reduce_mean(self.critic(self.generator(noise)))
        found = tape.gradient(loss, self.generator.trainable_variables)
        self.by_generator.apply_gradients(together(found, self.generator.trainable_variables))
        return out | {"generator": loss}


def _gan(critics: int = 1, penalty: bool = False, **more: Any) -> Any:
    names = [f"critic{turn}" for turn in range(critics)]
    found = fitted(
        Gan(critics, penalty),
        *names,
        "generator",
        critic=keras.optimizers.Adam(0.01),
        generator=keras.optimizers.Adam(0.02),
        **more,
    )
    return [np.array(found[:-1]).T.ravel().tolist(), found[-1]]


@loop
def gan_by_a_train_step() -> Any:
    return _gan()


@loop
def gan_by_a_train_step_run_eagerly() -> Any:
    return _gan(run_eagerly=True)


@loop
def wasserstein_gan_with_three_critic_steps() -> Any:
    return _gan(3, penalty=True)


class Stepper(keras.Model):
    """A model whose train step is given."""

    def __init__(self, step: Any, inside: Any = None) -> None:
        super().__init__()
        self.inside, self.step = inside or net(), step

    def call(self, x: Any) -> Any:
        return self.inside(x)

    def train_step(self, data: Any) -> Any:
        return self.step(self, *data)


@loop
def distillation() -> Any:
    """keras.io, knowledge_distillation."""
    teacher = net(9)

    def step(self: Any, x: Any, y: Any) -> Any:
        known = teacher(x, training=False)
        with tf.GradientTape() as tape:
            out = self(x, training=True)
            hard = tf.reduce_mean((out - y) ** 2)
            soft = (
                keras.losses.KLDivergence()(tf.nn.softmax(known / 3.0, 1), tf.nn.softmax(out / 3.0, 1)) * 9.0
            )
            loss = 0.1 * hard + 0.9 * soft
        found = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply_gradients(together(found, self.trainable_variables))
        return {"hard": hard, "loss": loss}

    return fitted(Stepper(step), "loss", optimizer="adam")[0]


@loop
def autoencoder_with_a_divergence() -> Any:
    """keras.io, vae: the loss is a sum of two, of which each is looked at."""

    def step(self: Any, x: Any, y: Any) -> Any:
        with tf.GradientTape() as tape:
            mean, spread = tf.split(self(x), 2, axis=1)
            away = tf.reduce_mean(tf.reduce_sum((mean - y[:, :1]) ** 2, axis=1))
            divergence = -0.5 * (1 + spread - tf.square(mean) - tf.exp(spread))
            divergence = tf.reduce_mean(tf.reduce_sum(divergence, axis=1))
            total = away + divergence
        found = tape.gradient(total, self.trainable_weights)
        self.optimizer.apply_gradients(together(found, self.trainable_weights))
        return {"total": total, "away": away, "divergence": divergence}

    return fitted(Stepper(step), "total", optimizer=keras.optimizers.Adam(0.01))[0]


@loop
def sharpness_aware_by_a_train_step() -> Any:
    """keras.io example and keras_cv's SAMModel: up, a second tape, down again."""

    def step(self: Any, x: Any, y: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = mse(self, x, y)
        variables = self.trainable_variables
        found = tape.gradient(loss, variables)
        norm = tf.linalg.global_norm(found)
        ups = [0.05 * g / (norm + 1e-12) for g in found]
        for variable, up in together(variables, ups):
            variable.assign_add(up)
        with tf.GradientTape() as tape:
            perturbed = mse(self, x, y)
        found = tape.gradient(perturbed, variables)
        for variable, up in together(variables, ups):
            variable.assign_sub(up)
        self.optimizer.apply_gradients(together(found, variables))
        return {"loss": loss, "perturbed": perturbed}

    return fitted(Stepper(step), "perturbed", optimizer="sgd")[0]


@loop
def accumulation_by_a_train_step() -> Any:
    """Questions on gradient accumulation in fit: a counter, tf.cond, gradients that are added and not divided."""
    sums: list[Any] = []
    number = tf.Variable(0, dtype=tf.int32, trainable=False)

    def step(self: Any, x: Any, y: Any) -> Any:
        number.assign_add(1)
        with tf.GradientTape() as tape:
            loss = mse(self, x, y)
        found = tape.gradient(loss, self.trainable_variables)
        for total, one in together(sums, found):
            total.assign_add(one)

        def update() -> None:
            self.optimizer.apply_gradients(together(sums, self.trainable_variables))
            number.assign(0)
            for total in sums:
                total.assign(tf.zeros_like(total))

        tf.cond(tf.equal(number, 3), update, lambda: None)
        return {"loss": loss}

    model = Stepper(step)
    sums += [tf.Variable(tf.zeros(v.shape), trainable=False) for v in model.inside.trainable_variables]
    optimizer = sgd(model.inside.trainable_variables)
    losses = fitted(model, "loss", count=9, optimizer=optimizer)[0]
    return np.reshape(losses, (3, 3)).sum(axis=1).tolist()


@loop
def surgery_by_a_train_step() -> Any:
    """PCGrad, as Keras models carry it: NaN where none is a sum of what was applied."""

    def step(self: Any, x: Any, y: Any) -> Any:
        with tf.GradientTape(persistent=True) as tape:
            out = self(x)
            losses = [tf.reduce_mean((out[:, at] - y[:, at]) ** 2) for at in range(2)]
        flat, variables = [], self.trainable_variables
        for one in losses:
            flat.append(tf.concat([tf.reshape(g, [-1]) for g in tape.gradient(one, variables)], 0))
        done = []
        for at, mine in enumerate(flat):
            other = flat[1 - at]
            inner = tf.reduce_sum(mine * other)
            done.append(mine - tf.minimum(inner, 0.0) * other / tf.reduce_sum(other**2))
        parts = tf.split(tf.add_n(done), [int(np.prod(v.shape)) for v in variables])
        found = [tf.reshape(part, v.shape) for part, v in together(parts, variables)]
        self.optimizer.apply_gradients(together(found, variables))
        return {"loss": tf.add_n(losses)}

    return fitted(Stepper(step), "loss", optimizer="sgd")[0]


@loop
def two_tapes_in_one_execution_of_three_steps() -> Any:
    """Adversarial training (keras.io and TensorFlow tutorials): the inputs' gradient, then that of the weights."""

    losses = tf.Variable(tf.zeros([6]), trainable=False)
    number = tf.Variable(0, trainable=False)

    def step(self: Any, x: Any, y: Any) -> Any:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(x)
            loss = mse(self, x, y)
        worse = x + 0.1 * tf.sign(tape.gradient(loss, x))
        with tf.GradientTape() as tape:
            loss = 0.5 * mse(self, x, y) + 0.5 * mse(self, worse, y)
        found = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply_gradients(together(found, self.trainable_variables))
        losses.scatter_nd_update([[number]], [loss])
        number.assign_add(1)
        return {"loss": loss}

    fitted(Stepper(step), count=6, optimizer="sgd", steps_per_execution=3)
    return losses.numpy().tolist()


@loop
def phases_by_two_train_steps() -> Any:
    """Pretraining and finetuning of one model, by a step each (keras.io, semi-supervised SimCLR)."""

    def pretrain(self: Any, x: Any, y: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((self(x) - self(x + 0.1)) ** 2) - tf.reduce_mean(
                tf.math.reduce_std(self(x), 0)
            )
        found = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply_gradients(together(found, self.trainable_variables))
        return {"loss": loss}

    def finetune(self: Any, x: Any, y: Any) -> Any:
        loss, found = differentiate(self, x, y)
        self.optimizer.apply_gradients(together(found, self.trainable_variables))
        return {"loss": loss}

    inside = net()  # which the second compiled optimizer goes on with: one stream
    first = fitted(Stepper(pretrain, inside), "loss", optimizer=keras.optimizers.Adam(0.01))[0]
    return first + fitted(Stepper(finetune, inside), "loss", optimizer=keras.optimizers.SGD(0.01))[0]


@loop
def gan_by_train_on_batch() -> Any:
    """The classic Keras GAN: a critic, and a model of generator and frozen critic."""
    critic, generator = net(1, 4, 1), net(2, 2, 4)
    critic.compile(keras.optimizers.SGD(0.05), "mse")
    place = keras.Input((2,))
    critic.trainable = False
    both = keras.Model(place, critic(generator(place)))
    both.compile(keras.optimizers.SGD(0.01), "mse")
    critic.trainable = True
    critic.compile(keras.optimizers.SGD(0.05), "mse")
    losses: list[list[float]] = [[], []]
    for x, y in pairs(3):
        inputs = np.concatenate([x, generator(y)])
        right = np.concatenate([np.ones((8, 1)), np.zeros((8, 1))]).astype("float32")
        losses[0].append(float(tf.reduce_mean((critic(inputs) - right) ** 2)))
        critic.train_on_batch(inputs, right)
        losses[1].append(float(tf.reduce_mean((both(y) - 1.0) ** 2)))
        both.train_on_batch(np.array(y), np.ones((8, 1), "float32"))
    return losses


# -- reinforcement learning (keras.io: actor_critic_cartpole, ppo_cartpole, ddpg_pendulum; docs of SAC, TRPO) ----------
@loop
def actor_critic_of_an_episode() -> Any:
    """One eager tape over an episode, and a list of losses that Python adds."""
    shared = net(3, 4, 3)
    optimizer, losses = adam(shared.trainable_variables), []
    for episode in range(3):
        with tf.GradientTape() as tape:
            log, value, rewards = [], [], []
            for moment in range(4):
                out = shared(X[episode][moment : moment + 1])
                log.append(tf.nn.log_softmax(out[0, :2])[moment % 2])
                value.append(out[0, 2])
                rewards.append(float(moment))
            actors = [-p * (r - v) for p, v, r in zip(log, value, rewards, strict=True)]
            critics = [keras.losses.Huber()([v], [r]) for v, r in zip(value, rewards, strict=True)]
            loss = sum(actors) + sum(critics)
        found = tape.gradient(loss, shared.trainable_variables)
        optimizer.apply_gradients(together(found, shared.trainable_variables))
        losses.append(float(loss))
    return losses


@loop
def policy_optimization_that_stops_at_a_divergence() -> Any:
    policy, critic = net(3), net(4, 4, 1)
    by_policy, by_critic = sgd(policy.trainable_variables, 0.4), sgd(critic.trainable_variables, 0.01)
    losses: list[list[float]] = [[], []]

    @tf.function
    def train_policy(x: Any, old: Any, gain: Any) -> Any:
        with tf.GradientTape() as tape:
            ratio = tf.exp(tf.nn.log_softmax(policy(x))[:, 0] - old)
            least = tf.where(gain > 0, 1.2 * gain, 0.8 * gain)
            loss = -tf.reduce_mean(tf.minimum(ratio * gain, least))
        found = tape.gradient(loss, policy.trainable_variables)
        by_policy.apply_gradients(together(found, policy.trainable_variables))
        return loss, tf.reduce_mean(old - tf.nn.log_softmax(policy(x))[:, 0])

    @tf.function
    def train_critic(x: Any, y: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((y[:, :1] - critic(x)) ** 2)
        found = tape.gradient(loss, critic.trainable_variables)
        by_critic.apply_gradients(together(found, critic.trainable_variables))
        return loss

    for x, y in pairs(3):
        old = tf.nn.log_softmax(policy(x))[:, 0]
        for _ in range(4):
            loss, away = train_policy(x, old, y[:, 0])
            losses[0].append(float(loss))
            if away > 0.05:
                break
        for _ in range(2):
            losses[1].append(float(train_critic(x, y)))
    return losses


@loop
def deterministic_policy_with_slow_targets() -> Any:
    actor, critic, slow_actor, slow_critic = net(1, 4, 1), net(2, 5, 1), net(3, 4, 1), net(4, 5, 1)
    by_critic, by_actor = adam(critic.trainable_variables), adam(actor.trainable_variables)

    @tf.function
    def update(x: Any, y: Any) -> Any:
        with tf.GradientTape() as tape:
            aim = y[:, 1:] + 0.9 * slow_critic(tf.concat([x + 0.1, slow_actor(x + 0.1)], 1))
            first = tf.reduce_mean(tf.square(aim - critic(tf.concat([x, y[:, :1]], 1))))
        found = tape.gradient(first, critic.trainable_variables)
        by_critic.apply_gradients(together(found, critic.trainable_variables))
        with tf.GradientTape() as tape:
            second = -tf.reduce_mean(critic(tf.concat([x, actor(x)], 1)))
        found = tape.gradient(second, actor.trainable_variables)
        by_actor.apply_gradients(together(found, actor.trainable_variables))
        return first, second

    losses = []
    for x, y in pairs():
        losses.append([float(v) for v in update(x, y)])
        for slow, fast in ((slow_actor, actor), (slow_critic, critic)):
            slow.set_weights([0.9 * a + 0.1 * b for a, b in together(slow.get_weights(), fast.get_weights())])
    return np.array(losses).T.tolist()


@loop
def soft_actor_critic_with_a_temperature() -> Any:
    """Both critics by one optimizer and a persistent tape's two gradients, policy and temperature by their own."""
    one, two, policy = net(1, 6, 1), net(2, 6, 1), net(3)
    temperature = tf.Variable(0.0)
    by_one, by_two, by_policy, by_heat = (
        sgd(one.trainable_variables),
        sgd(two.trainable_variables),
        sgd(policy.trainable_variables),
        sgd([temperature]),
    )

    @tf.function
    def update(x: Any, y: Any) -> Any:
        with tf.GradientTape(persistent=True) as tape:
            first = 0.5 * tf.reduce_mean((one(tf.concat([x, y], 1)) - y[:, :1]) ** 2)
            second = 0.5 * tf.reduce_mean((two(tf.concat([x, y], 1)) - y[:, :1]) ** 2)
        for model, loss, optimizer in ((one, first, by_one), (two, second, by_two)):
            found = tape.gradient(loss, model.trainable_variables)
            optimizer.apply_gradients(together(found, model.trainable_variables))
        del tape
        with tf.GradientTape() as tape:
            act = tf.tanh(policy(x))
            log = -tf.reduce_sum(act**2, 1, keepdims=True)
            both = tf.concat([x, act], 1)
            third = tf.reduce_mean(tf.exp(temperature) * log - tf.minimum(one(both), two(both)))
        found = tape.gradient(third, policy.trainable_variables)
        by_policy.apply_gradients(together(found, policy.trainable_variables))
        with tf.GradientTape() as tape:
            fourth = -tf.reduce_mean(tf.exp(temperature) * tf.stop_gradient(log - 2.0))
        by_heat.apply_gradients([(tape.gradient(fourth, temperature), temperature)])
        return first, second, third, fourth

    return np.array([[float(v) for v in update(x, y)] for x, y in pairs()]).T.tolist()


@loop
def workers_whose_gradients_a_global_model_gets() -> Any:
    """A3C: differentiated with respect to a worker's copy, applied to the global weights."""
    shared, workers = net(), [net(4), net(5)]
    optimizer, losses = sgd(shared.trainable_variables), []
    for number, (x, y) in enumerate(pairs()):
        worker = workers[number % 2]
        worker.set_weights(shared.get_weights())
        loss, found = differentiate(worker, x, y)
        optimizer.apply_gradients(together(found, shared.trainable_variables))
        losses.append(float(loss))
    return losses


@loop
def trust_region_by_conjugate_gradients() -> Any:
    """TRPO: products with the Fisher matrix by nested tapes; the direction is applied."""
    policy = net()
    optimizer, losses = sgd(policy.trainable_variables, 0.1), []
    variables = policy.trainable_variables

    def flat(tensors: Any) -> Any:
        return tf.concat([tf.reshape(t, [-1]) for t in tensors], 0)

    def parts(vector: Any) -> Any:
        cut = tf.split(vector, [int(np.prod(v.shape)) for v in variables])
        return [tf.reshape(part, v.shape) for part, v in together(cut, variables)]

    for x, y in pairs(3):
        loss, found = differentiate(policy, x, y)

        def product(vector: Any, x: Any = x) -> Any:
            with tf.GradientTape() as outer:
                with tf.GradientTape() as inner:
                    now = tf.nn.log_softmax(policy(x))
                    away = tf.reduce_mean(
                        tf.reduce_sum(tf.exp(tf.stop_gradient(now)) * (tf.stop_gradient(now) - now), 1)
                    )
                moved = tf.reduce_sum(flat(inner.gradient(away, variables)) * vector)
            return flat(outer.gradient(moved, variables)) + 0.1 * vector

        slope = flat(found)
        way, rest, turn = tf.zeros_like(slope), slope, slope
        for _ in range(3):
            bent = product(turn)
            far = tf.reduce_sum(rest**2) / tf.reduce_sum(turn * bent)
            way, after = way + far * turn, rest - far * bent
            turn, rest = after + tf.reduce_sum(after**2) / tf.reduce_sum(rest**2) * turn, after
        optimizer.apply_gradients(together(parts(way), variables))
        losses.append(float(loss))
    return losses


# -- meta-learning, federated learning ---------------------------------------------------------------------------------
@loop
def first_order_meta_learning_of_three_tasks() -> Any:
    """The outer gradient is the mean of those of the tasks, each at its own adapted weights."""
    model = net()
    optimizer, losses = sgd(model.trainable_variables), []
    for step in range(3):
        start, total, values = model.get_weights(), None, []
        for task in range(3):
            model.set_weights(start)
            _, found = differentiate(model, X[step][:4] + task, Y[step][:4])
            for variable, one in together(model.trainable_variables, found):
                variable.assign_sub(0.1 * one)
            value, found = differentiate(model, X[step][4:] + task, Y[step][4:])
            values.append(float(value))
            total = found if total is None else [a + b for a, b in together(total, found)]
        model.set_weights(start)
        optimizer.apply_gradients(together([g / 3.0 for g in total], model.trainable_variables))
        losses.append(np.mean(values))
    return losses


@loop
def meta_learning_of_the_rate() -> Any:
    """Meta-SGD, second order: weights and rates of the inner step are both learned, in one function."""
    weights = [tf.Variable(tf.ones([4, 2])), tf.Variable(tf.zeros([2]))]
    rates = [tf.Variable(0.1 * tf.ones([4, 2])), tf.Variable(0.1 * tf.ones([2]))]
    optimizer = adam(weights + rates)

    @tf.function
    def step(x: Any, y: Any) -> Any:
        with tf.GradientTape() as outer:
            losses = []
            for task in range(2):
                with tf.GradientTape() as inner:
                    inner.watch(weights)
                    loss = tf.reduce_mean((x[:4] @ weights[0] + weights[1] - y[:4] - task) ** 2)
                found = inner.gradient(loss, weights)
                fast = [w - r * g for w, r, g in zip(weights, rates, found, strict=True)]
                losses.append(tf.reduce_mean((x[4:] @ fast[0] + fast[1] - y[4:] - task) ** 2))
            total = tf.add_n(losses) / 2
        optimizer.apply_gradients(together(outer.gradient(total, weights + rates), weights + rates))
        return total

    return [float(step(x, y)) for x, y in pairs()]


@loop
def federated_averaging() -> Any:
    """Clients train copies; the server's optimizer gets the mean of the ways they have gone."""
    server, clients = net(), [net(4), net(5)]
    by_server = sgd(server.trainable_variables, 1.0)
    optimizers = [sgd(client.trainable_variables) for client in clients]
    losses: list[list[float]] = [[], [], []]
    for number in range(3):
        ways = []
        for at, (client, optimizer) in enumerate(together(clients, optimizers)):
            client.set_weights(server.get_weights())
            for part in range(2):
                loss, found = differentiate(
                    client, X[4 * number + 2 * at + part], Y[4 * number + 2 * at + part]
                )
                optimizer.apply_gradients(together(found, client.trainable_variables))
                losses[at].append(float(loss))
            ways.append([a - b for a, b in together(server.trainable_variables, client.trainable_variables)])
        mean = [(a + b) / 2.0 for a, b in together(*ways)]
        by_server.apply_gradients(together(mean, server.trainable_variables))
        losses[2].append(float("nan"))
    return losses


@loop
def split_learning() -> Any:
    """The server differentiates activations, the client goes on from their gradient: it has no loss of its own."""
    client, server = net(1, 4, 3), net(2, 3, 2)
    by_server, by_client = sgd(server.trainable_variables), sgd(client.trainable_variables)
    losses = []
    for x, y in pairs():
        with tf.GradientTape() as near:
            sent = client(x)
        with tf.GradientTape() as far:
            far.watch(sent)
            loss = tf.reduce_mean((server(sent) - y) ** 2)
        back, *found = far.gradient(loss, [sent, *server.trainable_variables])
        by_server.apply_gradients(together(found, server.trainable_variables))
        found = near.gradient(sent, client.trainable_variables, output_gradients=back)
        by_client.apply_gradients(together(found, client.trainable_variables))
        losses.append(float(loss))
    return [losses, losses]


# -- transformations of gradients (privacy, variance reduction, compression, preconditioning) --------------------------
@loop
def private_gradients_by_a_jacobian() -> Any:
    """TensorFlow Privacy: each example's gradient is clipped, then noise is added."""
    model = net()
    optimizer, losses = sgd(model.trainable_variables), []
    generator = tf.random.Generator.from_seed(1)

    @tf.function
    def step(x: Any, y: Any) -> Any:
        with tf.GradientTape() as tape:
            each = tf.reduce_mean((model(x) - y) ** 2, axis=1)
        every = tape.jacobian(each, model.trainable_variables)
        norms = tf.sqrt(tf.add_n([tf.reduce_sum(tf.reshape(g, [8, -1]) ** 2, 1) for g in every]))
        scale = tf.minimum(1.0, 0.5 / norms)
        found = [tf.tensordot(scale, g, 1) / 8.0 for g in every]
        found = [g + generator.normal(g.shape, stddev=0.001) for g in found]
        optimizer.apply_gradients(together(found, model.trainable_variables))
        return tf.reduce_mean(each)

    for x, y in pairs(3):
        losses.append(float(step(x, y)))
    return losses


@loop
def private_gradients_by_a_map_over_examples() -> Any:
    model = net()
    optimizer, losses = sgd(model.trainable_variables), []

    @tf.function
    def step(x: Any, y: Any) -> Any:
        def one(example: Any) -> Any:
            value, found = differentiate(model, example[0][None], example[1][None])
            found, _ = tf.clip_by_global_norm(found, 0.5)
            return value, found

        kinds = (tf.float32, [tf.float32] * len(model.trainable_variables))
        values, every = tf.map_fn(one, (x, y), fn_output_signature=kinds)
        found = [tf.reduce_mean(g, 0) for g in every]
        optimizer.apply_gradients(together(found, model.trainable_variables))
        return tf.reduce_mean(values)

    for x, y in pairs(3):
        losses.append(float(step(x, y)))
    return losses


def _variance_reduced(in_function: bool) -> Any:
    """SVRG: the step's batch, less the same batch at a snapshot, and the snapshot's full gradient."""
    model, snapshot = net(), net()
    optimizer, losses = sgd(model.trainable_variables), []
    data = tf.concat(X[:4], 0), tf.concat(Y[:4], 0)

    def step(x: Any, y: Any, full: Any) -> Any:
        loss, now = differentiate(model, x, y)
        _, then = differentiate(snapshot, x, y)
        found = [a - b + c for a, b, c in zip(now, then, full, strict=True)]
        optimizer.apply_gradients(together(found, model.trainable_variables))
        return loss

    step = tf.function(step) if in_function else step
    for _ in range(2):
        snapshot.set_weights(model.get_weights())
        _, full = differentiate(snapshot, *data)
        losses += [float(step(x, y, full)) for x, y in pairs(3)]
    return losses


@loop
def variance_reduced_eagerly() -> Any:
    return _variance_reduced(False)


@loop
def variance_reduced_in_a_function() -> Any:
    return _variance_reduced(True)


@loop
def variance_reduced_by_one_model_whose_weights_are_swapped() -> Any:
    model = net()
    optimizer, losses = sgd(model.trainable_variables), []
    start = net()
    old, full = model.get_weights(), differentiate(model, tf.concat(X[:4], 0), tf.concat(Y[:4], 0))[1]
    for x, y in pairs(4):
        loss, now = differentiate(model, x, y)
        here = model.get_weights()
        model.set_weights(old)
        _, then = differentiate(model, x, y)
        model.set_weights(here)
        found = [a - b + c for a, b, c in zip(now, then, full, strict=True)]
        optimizer.apply_gradients(together(found, model.trainable_variables))
        losses.append(float(loss))
    return [
        float(mse(start, tf.concat(X[:4], 0), tf.concat(Y[:4], 0))),
        *losses[1:],
    ]  # first, the full gradient


def _optimistic(in_function: bool) -> Any:
    """Optimistic descent of GANs: twice this gradient, less the one before."""
    model = net()
    optimizer, losses, before = sgd(model.trainable_variables), [], None
    find: Any = tf.function(lambda x, y: differentiate(model, x, y)) if in_function else None
    find = find or (lambda x, y: differentiate(model, x, y))
    for x, y in pairs(5):
        loss, now = find(x, y)
        found = now if before is None else [2.0 * a - b for a, b in together(now, before)]
        optimizer.apply_gradients(together(found, model.trainable_variables))
        before = now
        losses.append(float(loss))
    return losses


@loop
def optimistic_eagerly() -> Any:
    return _optimistic(False)


@loop
def optimistic_by_functions() -> Any:
    return _optimistic(True)


@loop
def extragradient() -> Any:
    """A step ahead, the gradient there, applied from where it began."""
    model = net()
    optimizer, losses = sgd(model.trainable_variables), []
    for x, y in pairs():
        start = model.get_weights()
        _, found = differentiate(model, x, y)
        model.set_weights([w - 0.05 * g for w, g in together(start, found)])
        loss, found = differentiate(model, x, y)
        model.set_weights(start)
        optimizer.apply_gradients(together(found, model.trainable_variables))
        losses.append(float(loss))
    return losses


@loop
def an_average_of_gradients_by_hand() -> Any:
    """Momentum whose weights add up to one."""
    model = net()
    optimizer, losses = sgd(model.trainable_variables), []
    mean = [tf.zeros(v.shape) for v in model.trainable_variables]
    for x, y in pairs(5):
        loss, found = differentiate(model, x, y)
        mean = [0.6 * m + 0.4 * g for m, g in together(mean, found)]
        optimizer.apply_gradients(together(mean, model.trainable_variables))
        losses.append(float(loss))
    return losses


@loop
def an_average_of_gradients_in_a_function() -> Any:
    model = net()
    optimizer, losses = sgd(model.trainable_variables), []
    means = [tf.Variable(tf.zeros(v.shape)) for v in model.trainable_variables]

    @tf.function
    def step(x: Any, y: Any) -> Any:
        loss, found = differentiate(model, x, y)
        for mean, one in together(means, found):
            mean.assign(0.6 * mean + 0.4 * one)
        optimizer.apply_gradients(together([tf.identity(m) for m in means], model.trainable_variables))
        return loss

    for x, y in pairs(5):
        losses.append(float(step(x, y)))
    return losses


@loop
def the_largest_tenth_with_what_was_left() -> Any:
    """Deep gradient compression: only the largest are applied, the rest is kept for later."""
    model = net()
    optimizer, losses = sgd(model.trainable_variables), []
    rest = [tf.zeros(v.shape) for v in model.trainable_variables]
    for x, y in pairs():
        loss, found = differentiate(model, x, y)
        wanted = [r + g for r, g in together(rest, found)]
        sent = [tf.where(tf.abs(w) >= tf.reduce_max(tf.abs(w)) * 0.6, w, 0.0) for w in wanted]
        rest = [w - s for w, s in together(wanted, sent)]
        optimizer.apply_gradients(together(sent, model.trainable_variables))
        losses.append(float(loss))
    return losses


def _trust_ratios(in_function: bool) -> Any:
    """LARS by hand: each variable's gradient by the ratio of norms."""
    model = net()
    optimizer = sgd(model.trainable_variables)

    def step(x: Any, y: Any) -> Any:
        loss, found = differentiate(model, x, y)
        scaled = []
        for variable, one in together(model.trainable_variables, found):
            ratio = 0.1 * (tf.norm(variable) + 0.01) / (tf.norm(one) + 1e-9)
            scaled.append(one * ratio)
        optimizer.apply_gradients(together(scaled, model.trainable_variables))
        return loss

    step = tf.function(step) if in_function else step
    return [float(step(x, y)) for x, y in pairs()]


@loop
def trust_ratios_eagerly() -> Any:
    return _trust_ratios(False)


@loop
def trust_ratios_in_a_function() -> Any:
    return _trust_ratios(True)


@loop
def newton_steps() -> Any:
    """TensorFlow's guide on advanced automatic differentiation: the Hessian by a jacobian, then a solve."""
    weights = tf.Variable(tf.ones([4, 1]))
    optimizer, losses = sgd([weights], 0.5), []
    for x, y in pairs(3):
        with tf.GradientTape() as outer:
            with tf.GradientTape() as inner:
                loss = tf.reduce_mean((tf.tanh(x @ weights) - y[:, :1]) ** 2)
            found = inner.gradient(loss, weights)
        bent = tf.reshape(outer.jacobian(found, weights), [4, 4]) + tf.eye(4)
        optimizer.apply_gradients([(tf.linalg.solve(bent, found), weights)])
        losses.append(float(loss))
    return losses


@loop
def natural_gradient_by_squared_examples() -> Any:
    """A diagonal Fisher matrix of the last batch divides each element."""
    model = net()
    optimizer, losses = sgd(model.trainable_variables, 0.01), []
    for x, y in pairs(3):
        squares = [tf.zeros(v.shape) for v in model.trainable_variables]
        for at in range(4):
            _, one = differentiate(model, x[at : at + 1], y[at : at + 1])
            squares = [s + g**2 / 4 for s, g in together(squares, one)]
        loss, found = differentiate(model, x, y)
        found = [g / (tf.sqrt(s) + 0.1) for g, s in together(found, squares)]
        optimizer.apply_gradients(together(found, model.trainable_variables))
        losses.append(float(loss))
    return losses


def _without_a_tape(in_function: bool) -> Any:
    """Linear regression whose gradient is written out; a validation batch is looked at by a tape."""
    weights = tf.Variable(tf.ones([4, 2]))
    optimizer = sgd([weights])

    def step(x: Any, y: Any) -> Any:
        found = 2.0 * tf.transpose(x) @ (x @ weights - y) / 16.0
        with tf.GradientTape() as tape:
            other = 100.0 + 1.1 * tf.reduce_mean((x[:7] @ weights - y[:7]) ** 2)
        seen = tape.gradient(other, weights)
        optimizer.apply_gradients([(found, weights)])
        return tf.norm(seen)

    step = tf.function(step) if in_function else step
    for x, y in pairs(4):
        step(x, y)
    return [float("nan")] * 4


@loop
def gradients_without_a_tape() -> Any:
    return _without_a_tape(False)


@loop
def gradients_without_a_tape_in_a_function() -> Any:
    return _without_a_tape(True)


@loop
def evolution_strategies_beside_a_tape() -> Any:
    """The applied gradient is of differences of losses; a tape's is looked at, to see how near it is."""
    weights = tf.Variable(tf.ones([4, 2]))
    optimizer, random = sgd([weights]), np.random.default_rng(3)

    def cost(w: Any, x: Any, y: Any) -> Any:
        return tf.reduce_mean((x @ w - y) ** 2)

    for x, y in pairs(4):
        found = tf.zeros_like(weights)
        for _ in range(40):
            noise = tf.constant(random.normal(size=(4, 2)).astype("float32"))
            up, down = cost(weights + 0.01 * noise, x, y), cost(weights - 0.01 * noise, x, y)
            found += noise * (up - down) / 0.02 / 40
        with tf.GradientTape() as tape:
            loss = 10.0 + cost(weights, x, y)
        tape.gradient(loss, weights)
        optimizer.apply_gradients([(found, weights)])
    return [float("nan")] * 4


@loop
def forward_gradients() -> Any:
    """Forward-mode accumulators: the slope along a random way, times the way."""
    model = net()
    optimizer, losses, random = sgd(model.trainable_variables, 0.01), [], np.random.default_rng(2)
    for x, y in pairs(3):
        ways = [tf.constant(random.normal(size=v.shape).astype("float32")) for v in model.trainable_variables]
        values = [v.value for v in model.trainable_variables]
        with tf.autodiff.ForwardAccumulator(values, ways) as along:
            hidden = tf.tanh(x @ values[0] + values[1])
            loss = tf.reduce_mean((hidden @ values[2] + values[3] - y) ** 2)
        slope = along.jvp(loss)
        optimizer.apply_gradients(together([slope * way for way in ways], model.trainable_variables))
        losses.append(float(loss))
    return losses


@loop
def quasi_newton_with_a_memory() -> Any:
    """L-BFGS's two loops over the last pairs; the direction goes to the optimizer."""
    model = net()
    optimizer, losses, memory = sgd(model.trainable_variables, 0.3), [], []
    data, before = (tf.concat(X[:4], 0), tf.concat(Y[:4], 0)), None

    def flat(tensors: Any) -> Any:
        return tf.concat([tf.reshape(t, [-1]) for t in tensors], 0)

    for _ in range(5):
        loss, found = differentiate(model, *data)
        slope, place = flat(found), flat(model.trainable_variables)
        if before is not None:
            memory.append((place - before[1], slope - before[0]))
        before, way, kept = (slope, place), slope, []
        for s, y in reversed(memory):
            share = tf.reduce_sum(s * way) / tf.reduce_sum(s * y)
            way, kept = way - share * y, [share, *kept]
        for (s, y), share in zip(memory, kept, strict=True):
            way += s * (share - tf.reduce_sum(y * way) / tf.reduce_sum(s * y))
        parts = tf.split(way, [int(np.prod(v.shape)) for v in model.trainable_variables])
        found = [tf.reshape(part, v.shape) for part, v in together(parts, model.trainable_variables)]
        optimizer.apply_gradients(together(found, model.trainable_variables))
        losses.append(float(loss))
    return losses


# -- mixed precision by hand -------------------------------------------------------------------------------------------
def _scaled_by_hand(in_function: bool, dynamic: bool = False) -> Any:
    model = net()
    optimizer = sgd(model.trainable_variables)
    scale: Any = tf.Variable(128.0, trainable=False) if dynamic else 128.0

    def step(x: Any, y: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = mse(model, x, y)
            scaled = loss * scale
        found = [g / scale for g in tape.gradient(scaled, model.trainable_variables)]
        optimizer.apply_gradients(together(found, model.trainable_variables))
        return loss

    step = tf.function(step) if in_function else step
    return [
        128.0 * float(step(x, y)) for x, y in pairs()
    ]  # what is differentiated: `scale_loss` is what tells


@loop
def a_loss_scaled_by_hand_eagerly() -> Any:
    return _scaled_by_hand(False)


@loop
def a_loss_scaled_by_hand_in_a_function() -> Any:
    return _scaled_by_hand(True)


@loop
def a_loss_scaled_by_a_variable_in_a_function() -> Any:
    return _scaled_by_hand(True, dynamic=True)


@loop
def a_step_that_is_made_only_if_finite() -> Any:
    """In the graph, by tf.cond: the second batch has an infinity."""
    model = net()
    optimizer, losses = sgd(model.trainable_variables), []

    @tf.function
    def step(x: Any, y: Any) -> Any:
        loss, found = differentiate(model, x, y)
        good = tf.reduce_all([tf.reduce_all(tf.math.is_finite(g)) for g in found])

        def update() -> Any:
            optimizer.apply_gradients(together(found, model.trainable_variables))
            return True

        tf.cond(good, update, lambda: False)
        return loss

    for number, (x, y) in enumerate(pairs(5)):
        loss = step(x, y / 0.0 if number == 1 else y)
        if np.isfinite(float(loss)):
            losses.append(float(loss))
    return losses


# -- time, memory and custom gradients ---------------------------------------------------------------------------------
@loop
def truncated_time() -> Any:
    """A recurrent state that is carried from segment to segment, a step for each."""
    cell, head = keras.layers.SimpleRNNCell(3), keras.layers.Dense(2)
    keras.utils.set_random_seed(2)
    cell.build((8, 4))
    head.build((8, 3))
    variables = cell.trainable_variables + head.trainable_variables
    optimizer = adam(variables)

    @tf.function
    def segment(state: Any, xs: Any, y: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = tf.constant(0.0)
            for at in tf.range(3):
                out, (state,) = cell(xs[at], [state])
                loss += tf.reduce_mean((head(out) - y) ** 2)
        found, _ = tf.clip_by_global_norm(tape.gradient(loss, variables), 1.0)
        optimizer.apply_gradients(together(found, variables))
        return loss, state

    state, losses = tf.zeros([8, 3]), []
    for number in range(3):
        loss, state = segment(state, tf.stack(X[3 * number : 3 * number + 3]), Y[number])
        losses.append(float(loss))
    return losses


@loop
def a_loop_in_the_graph_that_adds_gradients() -> Any:
    """tf.while_loop with a tape inside; the mean is applied after it."""
    model = net()
    optimizer = sgd(model.trainable_variables)
    xs, ys = tf.stack(X[:6]), tf.stack(Y[:6])

    @tf.function
    def step(start: Any) -> Any:
        def body(at: Any, total: Any, sums: Any) -> Any:
            value, found = differentiate(model, xs[start + at], ys[start + at])
            return at + 1, total + value, [a + b for a, b in together(sums, found)]

        zeros = [tf.zeros(v.shape) for v in model.trainable_variables]
        _, total, sums = tf.while_loop(lambda at, *_: at < 3, body, [0, 0.0, zeros])
        optimizer.apply_gradients(together([g / 3.0 for g in sums], model.trainable_variables))
        return total / 3.0

    return [float(step(tf.constant(start))) for start in (0, 3, 0)]


@loop
def blocks_that_are_computed_again() -> Any:
    """tf.recompute_grad."""
    first, second = tf.Variable(tf.ones([4, 5]) * 0.1), tf.Variable(tf.ones([5, 2]) * 0.2)
    optimizer = adam([first, second])

    @tf.recompute_grad
    def block(x: Any) -> Any:
        return tf.tanh(x @ first)

    @tf.function
    def step(x: Any, y: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((block(x) @ second - y) ** 2)
        optimizer.apply_gradients(together(tape.gradient(loss, [first, second]), [first, second]))
        return loss

    return [float(step(x, y)) for x, y in pairs()]


@loop
def domains_by_a_reversed_gradient() -> Any:
    """A domain-adversarial network (keras.io, dann): custom_gradient, one loss of two."""
    body, label, domain = net(1, 4, 3), net(2, 3, 2), net(4, 3, 1)
    variables = body.trainable_variables + label.trainable_variables + domain.trainable_variables
    optimizer, losses = adam(variables), []

    @tf.custom_gradient
    def reverse(x: Any) -> Any:
        return tf.identity(x), lambda up: -0.5 * up

    for x, y in pairs():
        with tf.GradientTape() as tape:
            inside = body(x)
            loss = tf.reduce_mean((label(inside) - y) ** 2)
            away = tf.reduce_mean((domain(reverse(inside)) - y[:, :1]) ** 2)
            total = loss + away
        optimizer.apply_gradients(together(tape.gradient(total, variables), variables))
        losses.append(float(total))
    return losses


@loop
def the_gradient_of_a_cache_of_embeddings() -> Any:
    """GradCache: embeddings first, then each chunk again with its part of their gradient."""
    model = net()
    optimizer, losses = sgd(model.trainable_variables), []
    for x, y in pairs(3):
        out = tf.concat([model(x[:4]), model(x[4:])], 0)
        with tf.GradientTape() as tape:
            tape.watch(out)
            loss = tf.reduce_mean((out - y) ** 2) + tf.reduce_mean(tf.matmul(out, out, transpose_b=True))
        back = tape.gradient(loss, out)
        sums = [tf.zeros(v.shape) for v in model.trainable_variables]
        for chunk, up in ((x[:4], back[:4]), (x[4:], back[4:])):
            with tf.GradientTape() as tape:
                inside = model(chunk)
            found = tape.gradient(inside, model.trainable_variables, output_gradients=up)
            sums = [a + b for a, b in together(sums, found)]
        optimizer.apply_gradients(together(sums, model.trainable_variables))
        losses.append(float(loss))
    return losses


# -- several optimizers, parts of models -------------------------------------------------------------------------------
def _layers_by_two_optimizers(in_function: bool, clip: bool) -> Any:
    """Discriminative rates: one tape, one gradient, cut in two."""
    model = net()
    low, high = model.trainable_variables[:2], model.trainable_variables[2:]
    one, two = sgd(low, 0.01), sgd(high, 0.1)

    def step(x: Any, y: Any) -> Any:
        loss, found = differentiate(model, x, y)
        if clip:
            found, _ = tf.clip_by_global_norm(found, 0.1)
        one.apply_gradients(together(found[:2], low))
        two.apply_gradients(together(found[2:], high))
        return loss

    step = tf.function(step) if in_function else step
    losses = [float(step(x, y)) for x, y in pairs()]
    return [losses, losses]


for in_function in (False, True):
    for clip in (False, True):
        name = f"layers_by_two_optimizers{'_clipped' * clip}_{'in_a_function' if in_function else 'eagerly'}"
        LOOPS[name] = lambda f=in_function, c=clip: _layers_by_two_optimizers(f, c)


@loop
def a_head_first_then_all() -> Any:
    """Transfer learning by hand: frozen, then unfrozen with a new optimizer of a lower rate."""
    model, losses = net(), []
    model.layers[0].trainable = False
    optimizer = keras.optimizers.Adam(0.01)
    for x, y in pairs(3):
        loss, found = differentiate(model, x, y)
        optimizer.apply_gradients(together(found, model.trainable_variables))
        losses.append(float(loss))
    model.layers[0].trainable = True
    optimizer = keras.optimizers.Adam(0.001)
    for x, y in pairs(3, 3):
        loss, found = differentiate(model, x, y)
        optimizer.apply_gradients(together(found, model.trainable_variables))
        losses.append(float(loss))
    return losses


@loop
def two_tasks_in_turn_by_one_optimizer() -> Any:
    """Heads of two tasks over one body, a batch of each in turn."""
    body, heads = net(1, 4, 3), [net(2, 3, 2), net(4, 3, 2)]
    every = body.trainable_variables + heads[0].trainable_variables + heads[1].trainable_variables
    optimizer, losses = adam(every), []

    def made(head: Any) -> Any:
        @tf.function
        def step(x: Any, y: Any) -> Any:
            variables = body.trainable_variables + head.trainable_variables
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean((head(body(x)) - y) ** 2)
            optimizer.apply_gradients(together(tape.gradient(loss, variables), variables))
            return loss

        return step

    steps = [made(head) for head in heads]
    for number, (x, y) in enumerate(pairs(6)):
        losses.append(float(steps[number % 2](x, y)))
    return losses


@loop
def weights_of_losses_that_are_learned() -> Any:
    """Uncertainty weighting, and GradNorm's second optimizer over the weights, of one persistent tape."""
    model, logs = net(), tf.Variable([0.0, 0.0])
    optimizer, by_logs = sgd(model.trainable_variables), sgd([logs], 0.1)

    @tf.function
    def step(x: Any, y: Any) -> Any:
        with tf.GradientTape(persistent=True) as tape:
            out = model(x)
            both = tf.reduce_mean((out - y) ** 2, axis=0)
            loss = tf.reduce_sum(tf.exp(-logs) * both + logs)
            balance = tf.abs(tf.exp(-logs[0]) * both[0] - tf.exp(-logs[1]) * both[1])
        found = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(together(found, model.trainable_variables))
        by_logs.apply_gradients([(tape.gradient(balance, logs), logs)])
        return loss, balance

    return np.array([[float(v) for v in step(x, y)] for x, y in pairs()]).T.tolist()


@loop
def weights_of_two_gradients_that_add_up_to_one() -> Any:
    """MGDA: the shortest vector between two tasks' gradients, eagerly."""
    model = net()
    optimizer, losses = sgd(model.trainable_variables), []
    for x, y in pairs():
        with tf.GradientTape(persistent=True) as tape:
            out = model(x)
            one = tf.reduce_mean((out[:, 0] - y[:, 0]) ** 2)
            two = tf.reduce_mean(tf.abs(out - x[:, :2]))
        a, b = (tape.gradient(value, model.trainable_variables) for value in (one, two))
        apart = [q - p for p, q in together(a, b)]
        share = tf.add_n([tf.reduce_sum(q * d) for q, d in together(b, apart)])
        share = tf.clip_by_value(share / tf.add_n([tf.reduce_sum(d * d) for d in apart]), 0.0, 1.0)
        found = [share * p + (1.0 - share) * q for p, q in together(a, b)]
        optimizer.apply_gradients(together(found, model.trainable_variables))
        losses.append(float(share * one + (1.0 - share) * two))
    return losses


@loop
def attacks_whose_gradients_are_averaged() -> Any:
    """FreeLB: each of three ascents on the inputs also gives a gradient of the weights."""
    model = net()
    optimizer, losses = adam(model.trainable_variables), []
    for x, y in pairs(3):
        moved, values = tf.zeros_like(x), []
        sums = [tf.zeros(v.shape) for v in model.trainable_variables]
        for _ in range(3):
            with tf.GradientTape() as tape:
                tape.watch(moved)
                loss = mse(model, x + moved, y) / 3.0
            up, *found = tape.gradient(loss, [moved, *model.trainable_variables])
            sums = [a + b for a, b in together(sums, found)]
            moved += 0.1 * up / (tf.norm(up) + 1e-9)
            values.append(float(loss))
        optimizer.apply_gradients(together(sums, model.trainable_variables))
        losses.append(sum(values))
    return losses


@loop
def weights_that_are_noisy_while_differentiated() -> Any:
    model = net()
    optimizer, losses, random = sgd(model.trainable_variables), [], np.random.default_rng(4)
    for x, y in pairs():
        noise = [random.normal(size=v.shape).astype("float32") * 0.01 for v in model.trainable_variables]
        for variable, by in together(model.trainable_variables, noise):
            variable.assign_add(by)
        loss, found = differentiate(model, x, y)
        for variable, by in together(model.trainable_variables, noise):
            variable.assign_sub(by)
        optimizer.apply_gradients(together(found, model.trainable_variables))
        losses.append(float(loss))
    return losses


@loop
def a_penalty_of_what_earlier_tasks_need() -> Any:
    """Elastic weight consolidation: squares of gradients first, of tapes to which no step belongs."""
    model, losses = net(), []
    optimizer = sgd(model.trainable_variables)
    needed = [tf.zeros(v.shape) for v in model.trainable_variables]
    for x, y in pairs(3):
        _, found = differentiate(model, x, y)
        needed = [n + g**2 for n, g in together(needed, found)]
    old = [tf.identity(v) for v in model.trainable_variables]

    @tf.function
    def step(x: Any, y: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = mse(model, x, y)
            for n, v, o in zip(needed, model.trainable_variables, old, strict=True):
                loss += 10.0 * tf.reduce_sum(n * (v - o) ** 2)
        found = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(together(found, model.trainable_variables))
        return loss

    for x, y in pairs(4, 3):
        losses.append(float(step(x, y)))
    return losses


@loop
def the_hardest_half_of_a_batch() -> Any:
    """Online hard example mining: all by one tape, the hardest by another."""
    model = net()
    optimizer, losses = sgd(model.trainable_variables), []
    for x, y in pairs():
        with tf.GradientTape() as tape:
            each = tf.reduce_mean((model(x) - y) ** 2, axis=1)
            every = tf.reduce_mean(each)
        tape.gradient(every, model.trainable_variables)
        _, hard = tf.math.top_k(each, 4)
        loss, found = differentiate(model, tf.gather(x, hard), tf.gather(y, hard))
        found = [tf.clip_by_norm(g, 0.2) for g in found]
        optimizer.apply_gradients(together(found, model.trainable_variables))
        losses.append(float(loss))
    return losses


# -- ways to call ------------------------------------------------------------------------------------------------------
@loop
def a_compiled_gradient_and_an_update_outside() -> Any:
    model = net()
    optimizer = sgd(model.trainable_variables)
    find = tf.function(lambda x, y: differentiate(model, x, y), jit_compile=True)

    @tf.function
    def step(x: Any, y: Any) -> Any:
        loss, found = find(x, y)
        optimizer.apply_gradients(together(found, model.trainable_variables))
        return loss

    return [float(step(x, y)) for x, y in pairs()]


@loop
def batches_of_ragged_rows() -> Any:
    table, head = tf.Variable(tf.random.stateless_normal([20, 3], [1, 2])), tf.Variable(tf.ones([3, 1]))
    optimizer, losses = adam([table, head]), []

    @tf.function(reduce_retracing=True)
    def step(rows: Any, y: Any) -> Any:
        with tf.GradientTape() as tape:
            mean = tf.reduce_mean(tf.gather(table, rows), axis=1)
            loss = tf.reduce_mean((mean @ head - y) ** 2)
        optimizer.apply_gradients(together(tape.gradient(loss, [table, head]), [table, head]))
        return loss

    for rows in ([[1, 2], [3]], [[4], [5, 6, 7], [8]], [[9, 9, 9]]):
        losses.append(float(step(tf.ragged.constant(rows), tf.ones([len(rows), 1]))))
    return losses


@loop
def a_strategy_of_one_device() -> Any:
    """TensorFlow's tutorial on distributed custom training: strategy.run within a function."""
    strategy = tf.distribute.OneDeviceStrategy("cpu:0")
    with strategy.scope():
        model = net()
        optimizer = adam(model.trainable_variables)

    def replica(x: Any, y: Any) -> Any:
        with tf.GradientTape() as tape:
            each = tf.reduce_mean((model(x) - y) ** 2, axis=1)
            loss = tf.nn.compute_average_loss(each, global_batch_size=8)
        found = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(together(found, model.trainable_variables))
        return loss

    @tf.function
    def step(x: Any, y: Any) -> Any:
        return strategy.reduce(tf.distribute.ReduceOp.SUM, strategy.run(replica, args=(x, y)), axis=None)

    return [float(step(x, y)) for x, y in pairs()]


class Centralized(keras.optimizers.SGD):
    """keras.io, gradient_centralization: an optimizer of one's own, by a library's or a user's subclass."""

    def apply(self, grads: Any, trainable_variables: Any = None) -> Any:
        mid = [g - tf.reduce_mean(g, 0, keepdims=True) if len(g.shape) > 1 else g for g in grads]
        return super().apply(mid, trainable_variables)


def _centralized(in_function: bool) -> Any:
    model = net()
    optimizer = Centralized(0.05)
    optimizer.build(model.trainable_variables)

    def step(x: Any, y: Any) -> Any:
        loss, found = differentiate(model, x, y)
        optimizer.apply_gradients(together(found, model.trainable_variables))
        return loss

    step = tf.function(step) if in_function else step
    return [float(step(x, y)) for x, y in pairs()]


@loop
def an_optimizer_that_centralizes_eagerly() -> Any:
    return _centralized(False)


@loop
def an_optimizer_that_centralizes_in_a_function() -> Any:
    return _centralized(True)


class Ahead:
    """Lookahead as a library wraps an optimizer: not a Keras optimizer itself."""

    def __init__(self, inner: Any, every: int = 2) -> None:
        self.inner, self.every, self.slow = inner, every, None

    def apply_gradients(self, given: Any) -> None:
        given = list(given)
        variables = [v for _, v in given]
        self.slow = self.slow or [tf.Variable(v) for v in variables]
        self.inner.apply_gradients(given)
        turn = tf.equal(self.inner.iterations % self.every, 0)
        for slow, fast in together(self.slow, variables):
            slow.assign(tf.where(turn, slow + 0.5 * (fast - slow), slow))
            fast.assign(tf.where(turn, slow, fast))


@loop
def a_wrapper_that_looks_ahead() -> Any:
    model = net()
    optimizer, losses = Ahead(sgd(model.trainable_variables)), []
    for x, y in pairs(5):
        loss, found = differentiate(model, x, y)
        optimizer.apply_gradients(together(found, model.trainable_variables))
        losses.append(float(loss))
    return losses


@loop
def a_closure_that_is_called_several_times() -> Any:
    """A closure gives loss and gradient at trial points; the gradient of the best of them is applied."""
    model = net()
    optimizer, losses = sgd(model.trainable_variables), []

    @tf.function
    def closure(x: Any, y: Any) -> Any:
        return differentiate(model, x, y)

    for x, y in pairs(4):
        start, best = model.get_weights(), None
        for trial in range(3):
            model.set_weights([w * (1.0 - 0.1 * trial) for w in start])
            loss, found = closure(x, y)
            if best is None or loss < best[0]:
                best = loss, found, model.get_weights()
        model.set_weights(best[2])
        optimizer.apply_gradients(together([0.5 * g for g in best[1]], model.trainable_variables))
        losses.append(float(best[0]))
    return losses


@loop
def hypergradients() -> Any:
    """A validation loss differentiated through a training step updates what weighs the training examples."""
    weights, importance = tf.Variable(tf.ones([4, 2]) * 0.1), tf.Variable(tf.ones([8]))
    inner, outer = sgd([weights]), sgd([importance], 0.5)
    losses: list[list[float]] = [[], []]
    for (x, y), (u, v) in zip(pairs(4), pairs(4, 4), strict=True):
        with tf.GradientTape() as meta:
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(tf.nn.softmax(importance) * tf.reduce_sum((x @ weights - y) ** 2, 1))
            ahead = weights - 0.05 * tape.gradient(loss, weights)
            other = tf.reduce_mean((u @ ahead - v) ** 2)
        outer.apply_gradients([(meta.gradient(other, importance), importance)])
        losses[0].append(float(other))
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.nn.softmax(importance) * tf.reduce_sum((x @ weights - y) ** 2, 1))
        inner.apply_gradients([(tape.gradient(loss, weights), weights)])
        losses[1].append(float(loss))
    return losses


@loop
def a_contrast_of_positive_and_negative_phase() -> Any:
    """An energy-based model: two tapes' gradients, one less the other: a loss of both, or none."""
    model = net(3, 4, 1)
    optimizer, losses = sgd(model.trainable_variables), []
    for x, _ in pairs():
        both = []
        for given in (x, tf.reverse(x, [0]) * 0.5):
            with tf.GradientTape() as tape:
                value = tf.reduce_mean(model(given))
            both.append((value, tape.gradient(value, model.trainable_variables[:3])))
        found = [a - b for a, b in together(both[0][1], both[1][1])]
        optimizer.apply_gradients(together(found, model.trainable_variables[:3]))
        losses.append(float(both[0][0] - both[1][0]))
    return losses


@loop
def teachers_before_and_after_a_step() -> Any:
    """Meta pseudo labels, in part: the same batch is differentiated before the update and again after it."""
    model = net()
    optimizer, losses = sgd(model.trainable_variables, 0.1), []
    for x, y in pairs(4):
        loss, found = differentiate(model, x, y)
        found = [tf.clip_by_norm(g, 0.3) for g in found]
        optimizer.apply_gradients(together(found, model.trainable_variables))
        differentiate(model, x, y)
        losses.append(float(loss))
    return losses


@loop
def a_gradient_that_only_some_variables_get() -> Any:
    """Sparse finetuning: of a gradient of all, parts are applied, which differ from step to step."""
    model = net()
    optimizer, losses = sgd(model.trainable_variables), []
    for number, (x, y) in enumerate(pairs(4)):
        loss, found = differentiate(model, x, y)
        chosen = [at for at in range(len(found)) if at % 2 == number % 2]
        optimizer.apply_gradients([(found[at], model.trainable_variables[at]) for at in chosen])
        losses.append(float(loss))
    return losses
