"""Further loops between whose losses and updates something stands, written without a look at how a loss is told.

As in `published_loops`, each returns the losses of its steps as it sees them itself. NaN is a step whose gradient is
that of no one loss: it has none.
"""

from __future__ import annotations

import collections
import pickle
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tests.probes.published_loops import X, Y, adam, differentiate, fitted, mse, net, pairs, sgd, together

LOOPS: dict[str, Any] = {}
NO = float("nan")


def loop(make: Any) -> Any:
    LOOPS[make.__name__] = make
    return make


def apply(optimizer: Any, found: Any, model: Any) -> None:
    optimizer.apply_gradients(together(found, model.trainable_variables))


# -- a library or another process stands between gradient and update --------------------------------------------------
def _through_numpy(also: Any) -> Any:
    """Gradients leave TensorFlow and are clipped there; a second loss is looked at, by `also`."""
    model = net()
    optimizer, losses = sgd(model.trainable_variables), []
    for x, y in pairs():
        value, found = differentiate(model, x, y)
        also(model, x, y)
        arrays = [g.numpy() for g in found]
        norm = np.sqrt(sum((a**2).sum() for a in arrays))
        apply(optimizer, [tf.constant(a * min(1.0, 0.05 / norm)) for a in arrays], model)
        losses.append(float(value))
    return losses


@loop
def clipped_by_numpy_beside_a_part_of_the_batch() -> Any:
    """The noise scale of gradients: the same loss of a part of the batch is looked at."""
    return _through_numpy(lambda model, x, y: differentiate(model, x[:6], y[:6]))


@loop
def clipped_by_numpy_beside_a_multiple_of_the_loss() -> Any:
    def also(model: Any, x: Any, y: Any) -> None:
        with tf.GradientTape() as tape:
            value = tf.reduce_sum((model(x) - y) ** 2)
        tape.gradient(value, model.trainable_variables)

    return _through_numpy(also)


@loop
def clipped_by_numpy_beside_a_loss_with_the_same_gradient() -> Any:
    """As cross entropy and divergence have."""

    def also(model: Any, x: Any, y: Any) -> None:
        with tf.GradientTape() as tape:
            value = mse(model, x, y) + 3.0
        tape.gradient(value, model.trainable_variables)

    return _through_numpy(also)


@loop
def reduced_by_a_tape_of_a_library() -> Any:
    """Horovod's way: a tape that averages over processes what it gives."""

    @tf.function
    def reduced(found: Any) -> Any:
        return [tf.numpy_function(lambda a: 0.5 * (a + a), [g], tf.float32) for g in found]

    class Distributed(tf.GradientTape):
        def gradient(self, target: Any, sources: Any, output_gradients: Any = None) -> Any:  # type: ignore[override]
            return reduced(super().gradient(target, sources, output_gradients))

    model = net()
    optimizer, losses = sgd(model.trainable_variables), []
    for x, y in pairs():
        with Distributed() as tape:
            value = mse(model, x, y)
        found = tape.gradient(value, model.trainable_variables)
        differentiate(model, X[9], Y[9])
        found = [tf.ensure_shape(g, v.shape) for g, v in zip(found, model.trainable_variables, strict=True)]
        apply(optimizer, found, model)
        losses.append(float(value))
    return losses


@loop
def gradients_of_threads_are_averaged() -> Any:
    model = net()
    optimizer, losses = sgd(model.trainable_variables), []
    with ThreadPoolExecutor(2) as pool:
        for at in range(0, 8, 2):
            found = list(pool.map(lambda n: differentiate(model, X[n], Y[n]), (at, at + 1)))
            apply(optimizer, [(a + b) / 2 for a, b in zip(found[0][1], found[1][1], strict=True)], model)
            losses.append(float(found[0][0] + found[1][0]) / 2)
    return losses


@loop
def gradients_sent_as_bytes() -> Any:
    """A parameter server: what workers send is a step behind."""
    model = net()
    optimizer, losses, sent = sgd(model.trainable_variables), [], collections.deque()
    for x, y in pairs(5):
        value, found = differentiate(model, x, y)
        sent.append((float(value), pickle.dumps([g.numpy() for g in found])))
        if len(sent) == 2:
            value, raw = sent.popleft()
            apply(optimizer, [tf.constant(a) for a in pickle.loads(raw)], model)
            losses.append(value)
    return losses


def _stale(clipped: Any) -> Any:
    """Gradients that are two steps late, clipped before they are applied; batches are alike, so gradients are."""
    model = net()
    optimizer, losses, late = sgd(model.trainable_variables, 0.01), [], collections.deque()
    for at in range(7):
        value, found = differentiate(model, X[0] + 0.02 * X[at], Y[0])
        late.append((float(value), found))
        if len(late) == 3:
            value, found = late.popleft()
            apply(optimizer, clipped(found), model)
            losses.append(value)
    return losses


@loop
def late_gradients_clipped_in_a_function() -> Any:
    return _stale(tf.function(lambda found: tf.clip_by_global_norm(found, 0.05)[0]))


@loop
def late_gradients_clipped_by_value_in_a_function() -> Any:
    return _stale(tf.function(lambda found: [tf.clip_by_value(g, -0.05, 0.05) for g in found]))


@loop
def late_gradients_clipped_by_value() -> Any:
    return _stale(lambda found: [tf.clip_by_value(g, -0.05, 0.05) for g in found])


@loop
def late_gradients_whose_function_also_updates() -> Any:
    model = net()
    optimizer, losses, late = sgd(model.trainable_variables, 0.01), [], collections.deque()

    @tf.function
    def update(found: Any) -> None:
        apply(optimizer, [tf.tanh(g) for g in found], model)

    for at in range(6):
        value, found = differentiate(model, X[0] + 0.02 * X[at], Y[0])
        late.append((float(value), found))
        if len(late) == 2:
            value, found = late.popleft()
            update(found)
            losses.append(value)
    return losses


def _in_a_store(clip: Any) -> Any:
    """Gradients that wait in variables until the next step, as delayed updates keep them."""
    model = net()
    optimizer, losses = sgd(model.trainable_variables, 0.01), []
    kept = [tf.Variable(tf.zeros_like(v)) for v in model.trainable_variables]

    @tf.function
    def step(x: Any, y: Any) -> Any:
        before = [tf.identity(k) for k in kept]
        value, found = differentiate(model, x, y)
        apply(optimizer, [clip(b) for b in before], model)
        for k, g in zip(kept, found, strict=True):
            k.assign(g)
        return value

    last = NO
    for at in range(5):
        value = float(step(X[0] + 0.02 * X[at], Y[0]))
        losses.append(last)
        last = value
    return losses


@loop
def gradients_of_the_step_before_from_variables() -> Any:
    return _in_a_store(tf.identity)


@loop
def gradients_of_the_step_before_from_variables_clipped() -> Any:
    return _in_a_store(lambda g: tf.clip_by_norm(g, 0.05))


@loop
def noise_beside_a_tape_that_is_looked_at() -> Any:
    """Random directions that lie near the gradient, made by a function: no tape gave them."""
    model = net()
    optimizer = sgd(model.trainable_variables, 0.01)

    @tf.function
    def guessed(x: Any, y: Any) -> Any:
        """Differences of the loss along each axis: the gradient, to three digits."""
        start = mse(model, x, y)
        out = []
        for variable in model.trainable_variables:
            flat = []
            for index in np.ndindex(*variable.shape):
                variable.assign(tf.tensor_scatter_nd_add(variable, [index], [1e-2]))
                flat.append((mse(model, x, y) - start) / 1e-2)
                variable.assign(tf.tensor_scatter_nd_add(variable, [index], [-1e-2]))
            out.append(tf.reshape(tf.stack(flat), variable.shape))
        return out

    for x, y in pairs(2):
        differentiate(model, 1.1 * x, y)
        apply(optimizer, guessed(x, y), model)
    return [NO] * 2


# -- several losses, one update ---------------------------------------------------------------------------------------
def _halves(in_function: bool) -> Any:
    """Encoder and decoder get gradients of different losses in one update, which both are made less by."""
    model = net()
    optimizer = sgd(model.trainable_variables)

    def step(x: Any, y: Any) -> Any:
        with tf.GradientTape(persistent=True) as tape:
            one = mse(model, x, y)
            two = tf.reduce_mean(tf.abs(model(x) - y))
        variables = model.trainable_variables
        apply(optimizer, tape.gradient(one, variables[:2]) + tape.gradient(two, variables[2:]), model)
        return one + two

    step = tf.function(step) if in_function else step
    return [float(step(x, y)) for x, y in pairs()]


@loop
def two_halves_of_two_losses_eagerly() -> Any:
    return _halves(in_function=False)


@loop
def two_halves_of_two_losses_in_a_function() -> Any:
    return _halves(in_function=True)


def _each_variable(in_function: bool) -> Any:
    """Each variable's gradient is asked for by itself, of one loss."""
    model = net()
    optimizer = sgd(model.trainable_variables)

    def step(x: Any, y: Any) -> Any:
        with tf.GradientTape(persistent=True) as tape:
            value = mse(model, x, y)
        found = [tape.gradient(value, variable) for variable in model.trainable_variables]
        apply(optimizer, found, model)
        return value

    step = tf.function(step) if in_function else step
    return [float(step(x, y)) for x, y in pairs()]


@loop
def a_gradient_at_a_time_eagerly() -> Any:
    return _each_variable(in_function=False)


@loop
def a_gradient_at_a_time_in_a_function() -> Any:
    return _each_variable(in_function=True)


def _episodic(in_function: bool) -> Any:
    """Gradients of the moves of a game, weighted by what each brought in the end (Géron, Hands-On ML, chapter 18)."""
    model = net(outputs=1)
    optimizer, losses = adam(model.trainable_variables), []

    def move(x: Any) -> Any:
        with tf.GradientTape() as tape:
            value = tf.reduce_mean(tf.nn.softplus(model(x)))
        return value, tape.gradient(value, model.trainable_variables)

    move = tf.function(move) if in_function else move
    for start in (0, 3, 6):
        moves = [move(X[at]) for at in range(start, start + 3)]
        weights = [1.3, -0.4, 0.7]
        found = [
            tf.reduce_mean(
                [w * gradients[at] for w, (_, gradients) in zip(weights, moves, strict=True)], axis=0
            )
            for at in range(len(model.trainable_variables))
        ]
        apply(optimizer, found, model)
        losses.append(sum(w * float(v) for w, (v, _) in zip(weights, moves, strict=True)) / 3)
    return losses


@loop
def rewards_weigh_the_gradients_eagerly() -> Any:
    return _episodic(in_function=False)


@loop
def rewards_weigh_the_gradients_of_functions() -> Any:
    return _episodic(in_function=True)


@loop
def clients_weighed_by_how_much_they_have() -> Any:
    """Federated SGD."""
    model = net()
    optimizer, losses = sgd(model.trainable_variables), []
    find = tf.function(lambda x, y: differentiate(model, x, y), reduce_retracing=True)
    for start in (0, 3, 6):
        sizes = [2, 3, 8]
        found = [find(X[start + at][:size], Y[start + at][:size]) for at, size in enumerate(sizes)]
        mean = [
            tf.add_n([g[at] * (size / 13) for size, (_, g) in zip(sizes, found, strict=True)])
            for at in range(len(model.trainable_variables))
        ]
        apply(optimizer, mean, model)
        losses.append(sum(float(v) * size for size, (v, _) in zip(sizes, found, strict=True)) / 13)
    return losses


def _remembered(in_function: bool) -> Any:
    """A-GEM: a gradient that would undo what was learned before is projected, another is applied as it is."""
    model = net()
    optimizer, losses = sgd(model.trainable_variables), []

    def step(x: Any, y: Any, old: Any) -> Any:
        value, found = differentiate(model, x, y)
        _, kept = differentiate(model, x, old)
        dot = tf.add_n([tf.reduce_sum(a * b) for a, b in zip(found, kept, strict=True)])
        size = tf.add_n([tf.reduce_sum(b * b) for b in kept])
        by = tf.maximum(-dot, 0.0) / size
        apply(optimizer, [a + by * b for a, b in zip(found, kept, strict=True)], model)
        return value, dot < 0

    step = tf.function(step) if in_function else step
    for at, (x, y) in enumerate(pairs()):
        value, projected = step(x, y, y if at % 2 else -y)
        losses.append(NO if projected else float(value))
    return losses


@loop
def projected_where_a_memory_disagrees_eagerly() -> Any:
    return _remembered(in_function=False)


@loop
def projected_where_a_memory_disagrees_in_a_function() -> Any:
    return _remembered(in_function=True)


def _dropped(in_function: bool) -> Any:
    """GradDrop: of each weight's two gradients one is kept, by its sign."""
    model = net()
    optimizer = sgd(model.trainable_variables)

    def step(x: Any, y: Any) -> None:
        _, one = differentiate(model, x, y)
        _, two = differentiate(model, x, 0.5 * y + 0.1)
        both = zip(one, two, strict=True)
        found = [tf.where(a + b > 0, tf.maximum(a, b), tf.minimum(a, b)) for a, b in both]
        apply(optimizer, found, model)

    step = tf.function(step) if in_function else step
    for x, y in pairs():
        step(x, y)
    return [NO] * 4


@loop
def signs_choose_between_two_gradients_eagerly() -> Any:
    return _dropped(in_function=False)


@loop
def signs_choose_between_two_gradients_in_a_function() -> Any:
    return _dropped(in_function=True)


@loop
def a_dict_of_losses() -> Any:
    model = net()
    optimizer = sgd(model.trainable_variables)

    @tf.function
    def step(x: Any, y: Any) -> Any:
        with tf.GradientTape() as tape:
            out = model(x)
            values = {"squared": tf.reduce_mean((out - y) ** 2), "absolute": tf.reduce_mean(tf.abs(out - y))}
        apply(optimizer, tape.gradient(values, model.trainable_variables), model)
        return values["squared"] + values["absolute"]

    return [float(step(x, y)) for x, y in pairs()]


@loop
def the_norm_of_the_gradient_is_minimized_too() -> Any:
    model = net()
    optimizer = sgd(model.trainable_variables)

    @tf.function
    def step(x: Any, y: Any) -> Any:
        with tf.GradientTape() as outer:
            with tf.GradientTape() as tape:
                value = mse(model, x, y)
            found = tape.gradient(value, model.trainable_variables)
            total = value + 0.1 * tf.add_n([tf.reduce_sum(g**2) for g in found])
        apply(optimizer, outer.gradient(total, model.trainable_variables), model)
        return total

    return [float(step(x, y)) for x, y in pairs()]


def _running_mean(in_function: bool) -> Any:
    """Micro-batches whose running mean is kept in variables; the last batch has fewer."""
    model = net()
    optimizer, losses = sgd(model.trainable_variables), []
    kept = [tf.Variable(tf.zeros_like(v)) for v in model.trainable_variables]
    count = tf.Variable(0.0)

    def collect(x: Any, y: Any) -> Any:
        value, found = differentiate(model, x, y)
        count.assign_add(1.0)
        for k, g in zip(kept, found, strict=True):
            k.assign_add((g - k) / count)
        return value

    def update() -> None:
        apply(optimizer, [tf.clip_by_norm(k, 0.5) for k in kept], model)
        for k in kept:
            k.assign(tf.zeros_like(k))
        count.assign(0.0)

    if in_function:
        collect, update = tf.function(collect), tf.function(update)
    values: list[float] = []
    for at in range(8):
        values.append(float(collect(X[at], Y[at])))
        if at % 3 == 2 or at == 7:
            update()
            losses.append(float(np.mean(values)))
            values = []
    return losses


@loop
def a_running_mean_of_micro_batches_eagerly() -> Any:
    return _running_mean(in_function=False)


@loop
def a_running_mean_of_micro_batches_in_functions() -> Any:
    return _running_mean(in_function=True)


# -- steps that are made again, taken back, left out ------------------------------------------------------------------
@loop
def a_step_made_again_at_half_the_rate() -> Any:
    model = net()
    optimizer, losses = sgd(model.trainable_variables, 2.0), []
    for x, y in pairs():
        value, found = differentiate(model, x, y)
        start = [tf.identity(v) for v in model.trainable_variables]
        for power in range(4):
            apply(optimizer, [g * 0.5**power for g in found], model)
            losses.append(float(value))
            if mse(model, x, y) < value:
                break
            for variable, begun in zip(model.trainable_variables, start, strict=True):
                variable.assign(begun)
    return losses


@loop
def a_loop_in_the_graph_with_steps_left_out() -> Any:
    model = net()
    optimizer = sgd(model.trainable_variables)
    x, y = tf.stack(X[:8]), tf.stack(Y[:8])

    @tf.function
    def epoch() -> Any:
        kept = tf.TensorArray(tf.float32, 0, dynamic_size=True)
        for at in tf.range(8):
            value, found = differentiate(model, x[at], y[at])
            if at % 3 == 1:
                continue
            if at > 6:
                break
            apply(optimizer, found, model)
            kept = kept.write(kept.size(), value)
        return kept.stack()

    return epoch().numpy().tolist()


@loop
def a_gradient_multiplied_by_zero_where_it_is_too_large() -> Any:
    model = net()
    optimizer = sgd(model.trainable_variables)

    @tf.function
    def step(x: Any, y: Any) -> Any:
        value, found = differentiate(model, x, y)
        fine = tf.cast(tf.linalg.global_norm(found) < 0.6, tf.float32)
        apply(optimizer, [fine * g for g in found], model)
        return value

    return [float(step(x, y)) for x, y in pairs(6)]


@loop
def an_unrolled_adversary() -> Any:
    """The critic goes three steps on, the generator learns against it, the critic is put back but for one."""
    critic, generator = net(1, 4, 1), net(2, 2, 4)
    by_critic, by_generator = sgd(critic.trainable_variables), sgd(generator.trainable_variables)
    losses: list[list[float]] = [[], []]
    for x, y in pairs():
        first = None
        for _ in range(3):
            with tf.GradientTape() as tape:
                value = tf.reduce_mean(critic(generator(y)) ** 2) + tf.reduce_mean((critic(x) - 1) ** 2)
            apply(by_critic, tape.gradient(value, critic.trainable_variables), critic)
            losses[0].append(float(value))
            first = first or [tf.identity(v) for v in critic.trainable_variables]
        with tf.GradientTape() as tape:
            value = tf.reduce_mean((critic(generator(y)) - 1) ** 2)
        apply(by_generator, tape.gradient(value, generator.trainable_variables), generator)
        losses[1].append(float(value))
        for variable, begun in zip(critic.trainable_variables, first, strict=True):
            variable.assign(begun)
    return losses


@loop
def weights_rewound_after_a_bad_loss() -> Any:
    model = net()
    optimizer, losses = adam(model.trainable_variables), []
    kept = [v.numpy() for v in model.trainable_variables + optimizer.variables]
    for at, (x, y) in enumerate(pairs(6)):
        value, found = differentiate(model, x * (float("inf") if at == 3 else 1.0), y)
        if not np.isfinite(value):
            for variable, array in zip(model.trainable_variables + optimizer.variables, kept, strict=True):
                variable.assign(array)
            continue
        apply(optimizer, found, model)
        losses.append(float(value))
    return losses


# -- several models and optimizers ------------------------------------------------------------------------------------
@loop
def pseudo_labels_of_a_teacher_that_learns() -> Any:
    """The teacher's gradient is weighted by how much better its pupil became, and its own is added."""
    teacher, pupil = net(1), net(2)
    by_teacher, by_pupil = sgd(teacher.trainable_variables), sgd(pupil.trainable_variables)
    losses: list[list[float]] = [[], []]
    for at in range(3):
        x, y = X[at], Y[at]
        before = mse(pupil, X[9], Y[9])
        value, found = differentiate(pupil, x, teacher(x))
        apply(by_pupil, found, pupil)
        losses[0].append(float(value))
        gain = float(before - mse(pupil, X[9], Y[9]))
        one, first = differentiate(teacher, x, tf.round(teacher(x)))
        two, second = differentiate(teacher, x, y)
        apply(by_teacher, [gain * a + b for a, b in zip(first, second, strict=True)], teacher)
        losses[1].append(gain * float(one) + float(two))
    return losses


@loop
def layers_trained_one_by_one_with_local_losses() -> Any:
    """Each layer has a loss of its own, and one optimizer updates them in turn."""
    keras.utils.set_random_seed(4)
    layers = [keras.layers.Dense(4, "tanh") for _ in range(3)]
    for layer in layers:
        layer.build((None, 4))
    variables = [v for layer in layers for v in layer.trainable_variables]
    optimizer, losses = adam(variables), []

    @tf.function
    def step(x: Any) -> Any:
        out = []
        for layer in layers:
            with tf.GradientTape() as tape:
                made = layer(tf.stop_gradient(x))
                value = tf.reduce_mean((made - tf.roll(x, 1, 1)) ** 2)
            optimizer.apply(tape.gradient(value, layer.trainable_variables), layer.trainable_variables)
            out.append(value)
            x = made
        return out

    for x, _ in pairs():
        losses += [float(v) for v in step(x)]
    return losses


@loop
def policy_epochs_over_shuffled_minibatches() -> Any:
    """PPO with two optimizers and one persistent tape, in a function; the policy stops before the critic."""
    policy, critic = net(1), net(2, 4, 1)
    by_policy, by_critic = adam(policy.trainable_variables), adam(critic.trainable_variables)
    losses: list[list[float]] = [[], []]

    @tf.function
    def step(x: Any, old: Any, advantage: Any, still: Any) -> Any:
        with tf.GradientTape(persistent=True) as tape:
            ratio = tf.exp(tf.nn.log_softmax(policy(x))[:, 0] - old)
            actor = -tf.reduce_mean(
                tf.minimum(ratio * advantage, tf.clip_by_value(ratio, 0.8, 1.2) * advantage)
            )
            value = tf.reduce_mean((critic(x)[:, 0] - advantage) ** 2)
        apply(by_critic, tape.gradient(value, critic.trainable_variables), critic)
        if still:
            found, _ = tf.clip_by_global_norm(tape.gradient(actor, policy.trainable_variables), 0.3)
            apply(by_policy, found, policy)
        return value, actor

    x, advantage = tf.concat(X[:3], 0), tf.concat(Y[:3], 0)[:, 0]
    old = tf.nn.log_softmax(policy(x))[:, 0]
    order = np.random.default_rng(0)
    for epoch in range(3):
        for rows in np.split(order.permutation(24), 3):
            still = epoch < 2
            value, actor = step(*(tf.gather(a, rows) for a in (x, old, advantage)), tf.constant(still))
            losses[0].append(float(value))
            if still:
                losses[1].append(float(actor))
    return losses


@loop
def a_deep_q_network() -> Any:
    model, target = net(1), net(2)
    optimizer, losses = adam(model.trainable_variables), []
    huber = keras.losses.Huber()
    for at, (x, y) in enumerate(pairs(8)):
        if at % 3 == 0:
            target.set_weights(model.get_weights())
        if at % 2:
            continue
        wanted = y[:, 0] + 0.9 * tf.reduce_max(target(x), 1)
        with tf.GradientTape() as tape:
            got = tf.reduce_sum(model(x) * tf.one_hot(tf.zeros(8, tf.int32), 2), 1)
            value = huber(wanted, got)
        found = [tf.clip_by_value(g, -1.0, 1.0) for g in tape.gradient(value, model.trainable_variables)]
        apply(optimizer, found, model)
        losses.append(float(value))
    return losses


@loop
def adversarial_training_for_free() -> Any:
    """One tape gives the gradient of the weights and that of the noise; each batch is used three times."""
    model = net()
    optimizer, losses = sgd(model.trainable_variables), []
    noise = tf.Variable(tf.zeros_like(X[0]))
    for x, y in pairs(3):
        for _ in range(3):
            with tf.GradientTape() as tape:
                value = mse(model, x + noise, y)
            found, up = tape.gradient(value, (model.trainable_variables, noise))
            apply(optimizer, found, model)
            noise.assign(tf.clip_by_value(noise + 0.1 * tf.sign(up), -0.2, 0.2))
            losses.append(float(value))
    return losses


@loop
def virtual_adversarial_training() -> Any:
    model = net()
    optimizer = sgd(model.trainable_variables)

    @tf.function
    def step(x: Any, y: Any) -> Any:
        direction = tf.math.l2_normalize(tf.cos(x), 1)
        for _ in range(2):
            with tf.GradientTape() as inner:
                inner.watch(direction)
                far = tf.reduce_mean((model(x + 0.1 * direction) - model(x)) ** 2)
            direction = tf.stop_gradient(tf.math.l2_normalize(inner.gradient(far, direction), 1))
        with tf.GradientTape() as tape:
            value = mse(model, x, y) + tf.reduce_mean(
                (model(x + direction) - tf.stop_gradient(model(x))) ** 2
            )
        apply(optimizer, tape.gradient(value, model.trainable_variables), model)
        return value

    return [float(step(x, y)) for x, y in pairs()]


# -- ways to differentiate --------------------------------------------------------------------------------------------
@loop
def gradients_without_a_tape_object() -> Any:
    """`tf.gradients`, as code of TensorFlow 1 does within functions."""
    model = net()
    optimizer = sgd(model.trainable_variables)

    @tf.function
    def step(x: Any, y: Any) -> Any:
        value = mse(model, x, y)
        apply(optimizer, tf.gradients(value, [v.value for v in model.trainable_variables]), model)
        return value

    return [float(step(x, y)) for x, y in pairs()]


@loop
def a_tape_that_is_reset() -> Any:
    model = net()
    optimizer, losses = sgd(model.trainable_variables), []
    for x, y in pairs():
        with tf.GradientTape() as tape:
            mse(model, X[9], Y[9])
            tape.reset()
            value = mse(model, x, y)
            with tape.stop_recording():
                mse(model, X[10], Y[10])
        apply(optimizer, tape.gradient(value, model.trainable_variables), model)
        losses.append(float(value))
    return losses


@loop
def an_update_within_the_tape() -> Any:
    model = net()
    optimizer, losses = sgd(model.trainable_variables), []
    with tf.GradientTape(persistent=True) as tape:
        for x, y in pairs():
            value = mse(model, x, y)
            found = tape.gradient(value, model.trainable_variables)
            with tape.stop_recording():
                apply(optimizer, found, model)
            losses.append(float(value))
    return losses


def _mapped(how: Any) -> Any:
    """The gradient of each example by a map, and their mean."""
    model = net()
    optimizer = sgd(model.trainable_variables)

    @tf.function
    def step(x: Any, y: Any) -> Any:
        def one(pair: Any) -> Any:
            return differentiate(model, pair[0][None], pair[1][None])

        kinds = (tf.float32, [tf.float32] * len(model.trainable_variables))
        values, found = how(one, (x, y), kinds)
        apply(optimizer, [tf.reduce_mean(g, 0) for g in found], model)
        return tf.reduce_mean(values)

    return [float(step(x, y)) for x, y in pairs()]


@loop
def the_mean_of_a_map_over_examples() -> Any:
    return _mapped(lambda one, pairs, kinds: tf.map_fn(one, pairs, fn_output_signature=kinds))


@loop
def a_gradient_of_ones_own() -> Any:
    """An identity that clips what flows back, and an estimate that goes straight through a rounding."""

    @tf.custom_gradient
    def clip(x: Any) -> Any:
        return x, lambda up: tf.clip_by_value(up, -0.01, 0.01)

    model = net()
    optimizer = sgd(model.trainable_variables)

    @tf.function
    def step(x: Any, y: Any) -> Any:
        with tf.GradientTape() as tape:
            out = clip(model(x))
            out = out + tf.stop_gradient(tf.round(out) - out)
            value = tf.reduce_mean((out - y) ** 2)
        apply(optimizer, tape.gradient(value, model.trainable_variables), model)
        return value

    return [float(step(x, y)) for x, y in pairs()]


@loop
def the_gradient_from_the_jacobian() -> Any:
    """The residuals' Jacobian and residuals themselves make the gradient; no tape is asked for a loss."""
    model = net()
    optimizer = sgd(model.trainable_variables)

    @tf.function
    def step(x: Any, y: Any) -> None:
        with tf.GradientTape() as tape:
            residual = tf.reshape(model(x) - y, [-1])
        found = tape.jacobian(residual, model.trainable_variables, experimental_use_pfor=False)
        apply(optimizer, [tf.tensordot(2 * residual / 16, j, 1) for j in found], model)

    for x, y in pairs(2):
        step(x, y)
    return [NO] * 2


def _langevin(in_function: bool) -> Any:
    model = net()
    optimizer = sgd(model.trainable_variables, 0.01)
    noise = [
        tf.cos(tf.reshape(tf.range(float(np.prod(v.shape))), v.shape)) for v in model.trainable_variables
    ]

    def step(x: Any, y: Any) -> Any:
        value, found = differentiate(model, x, y)
        apply(optimizer, [g + 3.0 * n for g, n in zip(found, noise, strict=True)], model)
        return value

    step = tf.function(step) if in_function else step
    return [float(step(x, y)) for x, y in pairs()]


@loop
def noise_larger_than_the_gradient_eagerly() -> Any:
    return _langevin(in_function=False)


@loop
def noise_larger_than_the_gradient_in_a_function() -> Any:
    return _langevin(in_function=True)


@loop
def a_large_penalty_added_to_a_gradient_by_hand() -> Any:
    """Weight decay by hand: more is minimized than the tape's loss, which is that of the step all the same."""
    model = net()
    optimizer = sgd(model.trainable_variables)

    @tf.function
    def step(x: Any, y: Any) -> Any:
        value, found = differentiate(model, x, y)
        apply(optimizer, [g + 0.1 * v for g, v in zip(found, model.trainable_variables, strict=True)], model)
        return value

    return [float(step(x, y)) for x, y in pairs()]


# -- train steps ------------------------------------------------------------------------------------------------------
class Twice(keras.Model):
    """A train step that makes Keras's own twice."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = net()

    def call(self, x: Any) -> Any:
        return self.inside(x)

    def train_step(self, data: Any) -> Any:
        x, y = data
        with tf.GradientTape() as tape:
            first = self.compute_loss(x, y, self(x, training=True))
        self.optimizer.apply(tape.gradient(first, self.trainable_variables), self.trainable_variables)
        with tf.GradientTape() as tape:
            second = self.compute_loss(x, y, self(x, training=True))
        self.optimizer.apply(tape.gradient(second, self.trainable_variables), self.trainable_variables)
        return {"first": first, "second": second}


@loop
def two_updates_a_batch() -> Any:
    found = fitted(Twice(), "first", "second", optimizer="sgd", loss="mse")
    return np.array(found).T.ravel().tolist()


@loop
def two_updates_a_batch_run_eagerly() -> Any:
    found = fitted(Twice(), "first", "second", optimizer="sgd", loss="mse", run_eagerly=True)
    return np.array(found).T.ravel().tolist()


class Scaled(keras.Model):
    """A train step that scales its loss by a scale that adapts, and leaves out what overflows."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = net()
        self.scale = tf.Variable(4.0, trainable=False)

    def call(self, x: Any) -> Any:
        return self.inside(x)

    def train_step(self, data: Any) -> Any:
        x, y = data
        with tf.GradientTape() as tape:
            value = tf.reduce_mean((self(x) - y) ** 2)
            scaled = value * self.scale
        found = [g / self.scale for g in tape.gradient(scaled, self.trainable_variables)]
        fine = tf.reduce_all([tf.reduce_all(tf.math.is_finite(g)) for g in found])
        tf.cond(fine, lambda: self.optimizer.apply(found, self.trainable_variables) or 0, lambda: 0)
        return {"scaled": scaled}


@loop
def scaled_by_hand_in_a_train_step() -> Any:
    """Recorded as it was differentiated: scaled."""
    return fitted(Scaled(), "scaled", optimizer="sgd")[0]


class Imagined(keras.Model):
    """A train step with three losses, three optimizers and networks that share a part."""

    def __init__(self) -> None:
        super().__init__()
        self.shared, self.one, self.two = net(1, 4, 3), net(2, 3, 2), net(3, 3, 2)

    def compile(self, optimizers: Any, **more: Any) -> None:
        super().compile(**more)
        self.by = optimizers

    def train_step(self, data: Any) -> Any:
        x, y = data
        with tf.GradientTape(persistent=True) as tape:
            inside = self.shared(x)
            one = tf.reduce_mean((self.one(inside) - y) ** 2)
            two = tf.reduce_mean(tf.abs(self.two(tf.stop_gradient(inside)) - y))
            both = one + 0.5 * tf.reduce_mean(inside**2)
        for value, part, by in zip((both, one, two), (self.shared, self.one, self.two), self.by, strict=True):
            by.apply(tape.gradient(value, part.trainable_variables), part.trainable_variables)
        return {"one": one, "two": two, "both": both}


def _imagined(**more: Any) -> Any:
    by = [keras.optimizers.SGD(rate) for rate in (0.01, 0.02, 0.03)]
    return fitted(Imagined(), "both", "one", "two", optimizers=by, **more)


@loop
def three_optimizers_with_a_shared_part() -> Any:
    return _imagined()


@loop
def three_optimizers_with_a_shared_part_run_eagerly() -> Any:
    return _imagined(run_eagerly=True)


# -- distributed ------------------------------------------------------------------------------------------------------
@loop
def several_steps_in_one_run_of_a_strategy() -> Any:
    strategy = tf.distribute.OneDeviceStrategy("/cpu:0")
    with strategy.scope():
        model = net()
        optimizer = adam(model.trainable_variables)
    batches = tf.data.Dataset.from_tensor_slices((tf.stack(X[:6]), tf.stack(Y[:6])))

    def step(data: Any) -> Any:
        value, found = differentiate(model, *data)
        apply(optimizer, found, model)
        return value

    @tf.function
    def steps(iterator: Any) -> Any:
        kept = tf.TensorArray(tf.float32, 3)
        for at in tf.range(3):
            value = strategy.run(step, args=(next(iterator),))
            kept = kept.write(at, strategy.reduce("MEAN", value, axis=None))
        return kept.stack()

    iterator = iter(strategy.experimental_distribute_dataset(batches))
    return [value for _ in range(2) for value in steps(iterator).numpy().tolist()]
