"""The simulated world: its exact truths by hand, against brute force, and against its own samples."""

from itertools import product

import numpy as np
import pytest

from benchmarks.boundary.world import World, make_world, world_at
from stagealign.stats.votes import cross_votes, top_vote


def small() -> World:
    return World(
        rewards=np.array([0.0, 1.0, 1.0]),
        policy=np.array([[0.2, 0.3, 0.5], [0.6, 0.4, 0.0]]),
        static=np.array([0.5, 0.25, 0.25]),
        kinds=np.array([0.5, 0.5]),
    )


def by_brute_force(world: World):
    """Mean share of cross votes, its variance, and mean top vote, over all four candidates of all kinds."""
    first = second = top = 0.0
    places = range(len(world.rewards))
    for share, policy in zip(world.kinds, world.policy, strict=True):
        for a, b, c, d in product(places, repeat=4):
            chance = share * policy[a] * policy[b] * world.static[c] * world.static[d]
            on, off = world.rewards[[a, b]], world.rewards[[c, d]]
            won = cross_votes(on, off)[0] / 4
            first, second = first + chance * won, second + chance * won**2
            top += chance * top_vote(on, off)[0]
    return first, second - first**2, top


def test_exact_truths_by_hand():
    world = World(np.array([0.0, 1.0]), np.array([[0.2, 0.8]]), np.array([0.5, 0.5]), np.array([1.0]))
    # The policy's good text (0.8) ties with good (half) and beats bad; its bad text ties with bad only.
    assert world.cross_score == pytest.approx(0.8 * 0.75 + 0.2 * 0.25)
    # Best of two is good with 0.96 and 0.75.
    assert world.top_score() == pytest.approx(0.96 * 0.25 + 0.5 * (0.96 * 0.75 + 0.04 * 0.25))
    assert world.top_score(candidates=1) == pytest.approx(world.cross_score)
    assert world.ground_truth == pytest.approx([1 / (1 + np.e), np.e / (1 + np.e)])


@pytest.mark.parametrize("world", [small(), make_world(0.4, 0.8, completions=6, kinds=3)], ids=["ties", "made"])
def test_exact_truths_equal_brute_force(world):
    score, variance, top = by_brute_force(world)
    assert world.cross_score == pytest.approx(score)
    assert world.vote_variance == pytest.approx(variance)
    assert world.top_score() == pytest.approx(top)


@pytest.mark.parametrize("reading", ["cross", "top"])
def test_samples_have_the_exact_moments(reading):
    world = world_at(0.6)
    votes = world.votes(np.random.default_rng(0), (100_000,), reading)
    share = votes[:, 0] / votes.sum(1)
    truth = world.cross_score if reading == "cross" else world.top_score()
    assert share.mean() == pytest.approx(truth, abs=4 * share.std() / 100_000**0.5)
    if reading == "cross":
        assert share.var() == pytest.approx(world.vote_variance, rel=0.02)


def test_votes_are_those_of_the_sampled_rewards():
    world = small()
    on, off = world.sample(np.random.default_rng(1), (50,))
    cross = world.votes(np.random.default_rng(1), (50,))
    top = world.votes(np.random.default_rng(1), (50,), "top")
    assert [tuple(one) for one in cross] == [cross_votes(a, b)[:2] for a, b in zip(on, off, strict=True)]
    assert [tuple(one) for one in top] == [top_vote(a, b) for a, b in zip(on, off, strict=True)]


def test_samples_follow_the_tables_and_the_generator():
    world = World(np.arange(3.0), np.array([[1, 0, 0], [0, 0, 1]], dtype=float), np.array([0, 1.0, 0]), np.ones(2) / 2)
    on, off = world.sample(np.random.default_rng(2), (500, 4), candidates=3)
    assert on.shape == off.shape == (500, 4, 3)
    assert set(on.ravel()) == {0.0, 2.0}
    assert set(off.ravel()) == {1.0}
    assert (on == on[..., :1]).all()  # one kind a prompt
    again, _ = world.sample(np.random.default_rng(2), (500, 4), candidates=3)
    assert (again == on).all()


@pytest.mark.parametrize(
    ("score", "correlation"),
    [(0.05, 1 / 3), (0.05, None), (0.3, 1 / 3), (0.3, 0.5), (0.5, None), (0.5, 0.5), (0.7, 1 / 3), (0.95, 1 / 3)],
)
def test_worlds_are_where_they_are_asked_to_be(score, correlation):
    world = world_at(score, correlation)
    assert world.cross_score == pytest.approx(score, abs=1e-9)
    if correlation is not None:
        assert world.correlation == pytest.approx(correlation, abs=1e-9)
    assert world.policy.sum(1) == pytest.approx(1)


def test_mirrored_world_mirrors_the_score():
    world = world_at(0.62)
    assert world.mirrored().cross_score == pytest.approx(0.38)
    assert world.mirrored().top_score(1) == pytest.approx(0.38)
    assert world.mirrored().vote_variance == pytest.approx(world.vote_variance)


@pytest.mark.parametrize("tilt", [-1.0, -0.1, 0.1, 1.0])
def test_the_score_names_who_is_nearer_to_the_ground_truth(tilt):
    """The paper's claim, where prompts are alike: votes for on beat votes for off just when the policy is nearer."""
    world = make_world(tilt)
    policy, static = world.distances
    assert (world.cross_score > 0.5) == (policy < static)


def test_worlds_that_do_not_exist_are_refused():
    with pytest.raises(ValueError, match=r"score 0\.99"):
        world_at(0.99)
    with pytest.raises(ValueError, match=r"correlation 0.05: no world with it at score 0.4; take one from 0.2"):
        world_at(0.4, 0.05)
    with pytest.raises(ValueError, match="reading 'both'"):
        small().votes(np.random.default_rng(0), (3,), "both")
