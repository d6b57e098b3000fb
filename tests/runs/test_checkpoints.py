"""Checkpoints: round trips are compared bit by bit with the arrays that went in, and every kind of
damage is done to the files by hand."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ndsm_jax.runs import Checkpoints, read_host

# TensorStore reports to an event loop that orbax has closed when a read of another array failed.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

HOST = {"config": {"lr": 0.1, "widths": [8, 8], "name": "é"}, "versions": {"jax": jax.__version__}}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    params: Any
    opt_state: Any
    key: jax.Array
    step: jax.Array
    epoch: int
    name: str = dataclasses.field(default="net", metadata={"static": True})


def make_state(seed: int = 0, width: int = 64) -> TrainState:
    """Random parameters, and an Adam state that has seen one random gradient."""
    rng = np.random.default_rng(seed)
    params, gradient = (
        {
            "dense": {"kernel": jnp.asarray(rng.normal(size=(32, width)), jnp.float32)},
            "scale/shift": jnp.asarray(rng.normal(size=3), jnp.bfloat16),
        }
        for _ in range(2)
    )
    optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3))
    _, opt_state = optimiser.update(gradient, optimiser.init(params))
    key = jax.random.split(jax.random.key(seed), 2)
    return TrainState(params, opt_state, key, jnp.int32(seed), epoch=seed + 7)


def to_bytes(array: jax.Array) -> bytes:
    is_key = jnp.issubdtype(array.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(array) if is_key else array).tobytes()


def assert_identical(actual: Any, expected: Any) -> None:
    leaves, structure = jax.tree.flatten(jax.tree.map(jnp.asarray, actual))
    expected_leaves, expected_structure = jax.tree.flatten(jax.tree.map(jnp.asarray, expected))
    assert str(structure) == str(expected_structure)
    for a, b in zip(leaves, expected_leaves, strict=True):
        assert (a.dtype, a.shape, to_bytes(a)) == (b.dtype, b.shape, to_bytes(b))


def save_steps(directory: pathlib.Path, steps: list[int]) -> None:
    """Saves `make_state(step)` at each step."""
    with Checkpoints(directory) as checkpoints:
        for step in steps:
            checkpoints.save(step, make_state(step), {**HOST, "step": step})


def largest_file(directory: pathlib.Path) -> pathlib.Path:
    files = [path for path in directory.rglob("*") if path.is_file()]
    return max(files, key=lambda path: path.stat().st_size)


def flip_bit(path: pathlib.Path) -> None:
    content = bytearray(path.read_bytes())
    # A file holds one to four compressed arrays of one size, and the first bytes of each have bits
    # that change nothing: at none of their ends.
    content[int(0.43 * len(content))] ^= 1
    path.write_bytes(content)


def flip_bit_of_state(step: pathlib.Path) -> None:
    flip_bit(largest_file(step / "state"))


def truncate_state(step: pathlib.Path) -> None:
    path = largest_file(step / "state")
    path.write_bytes(path.read_bytes()[:100])


def remove_state(step: pathlib.Path) -> None:
    shutil.rmtree(step / "state")


def truncate_manifest(step: pathlib.Path) -> None:
    path = step / "manifest" / "metadata"
    path.write_bytes(path.read_bytes()[:50])


def change_manifest(step: pathlib.Path) -> None:
    path = step / "manifest" / "metadata"
    text = path.read_text()
    assert '"lr": 0.1' in text
    path.write_text(text.replace('"lr": 0.1', '"lr": 0.2'))


def empty_step(step: pathlib.Path) -> None:
    shutil.rmtree(step)
    step.mkdir()


DAMAGES = [
    (flip_bit_of_state, "state does not match its CRC32"),
    (truncate_state, "state unreadable"),
    (remove_state, "state unreadable"),
    (truncate_manifest, "manifest unreadable"),
    (change_manifest, "manifest does not match its CRC32"),
    (empty_step, "manifest unreadable"),
]


@pytest.mark.parametrize("abstract", [False, True])
def test_round_trip_is_bitwise(tmp_path, abstract):
    state = make_state(3)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(12, state, HOST)
        like = jax.eval_shape(lambda: make_state(0)) if abstract else make_state(0)
        restored = checkpoints.restore(like)
    assert_identical(restored.state, state)
    assert (restored.step, restored.host, restored.skipped) == (12, HOST, [])
    assert isinstance(restored.state.opt_state[1][0], optax.ScaleByAdamState)
    assert restored.state.epoch == 10
    assert isinstance(restored.state.epoch, jax.Array if abstract else int)
    draw = jax.random.normal(restored.state.key[1], (4,))
    np.testing.assert_array_equal(draw, jax.random.normal(state.key[1], (4,)))


def test_key_of_another_generator(tmp_path):
    state = {"key": jax.random.key(5, impl="rbg")}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(0, state, {})
        assert_identical(checkpoints.restore(state).state, state)
        with pytest.raises(ValueError, match=r"key<rbg>\[\] in the checkpoint, key<fry>\[\] now"):
            checkpoints.restore({"key": jax.random.key(5)})


def test_restored_arrays_have_the_sharding_of_like(tmp_path):
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("batch",))
    replicated = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    state = {"w": jnp.arange(6.0).reshape(2, 3), "key": jax.random.key(1)}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(0, state, {})
        on_mesh = checkpoints.restore(jax.device_put(state, replicated)).state
        default = checkpoints.restore(jax.eval_shape(lambda: state)).state
    for name in state:
        assert on_mesh[name].sharding == replicated
        assert default[name].sharding == jnp.zeros(()).sharding


def test_numpy_arrays_keep_their_dtype(tmp_path):
    state = {"w": np.arange(3) / 3, "scalar": np.float64(0.1)}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(0, state, {})
        restored = checkpoints.restore({"w": np.zeros(3), "scalar": np.float64(0)}).state
    assert restored["w"].dtype == restored["scalar"].dtype == np.float64
    np.testing.assert_array_equal(restored["w"], state["w"])
    assert restored["scalar"] == 0.1


def test_host_comes_back_as_json_gives_it(tmp_path):
    host: dict[Any, Any] = {
        "betas": (0.9, 1 / 3),
        "none": None,
        "big": 2**60,
        "inf": float("inf"),
        3: "three",
    }
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(4, {"w": jnp.ones(2)}, host)
        with pytest.raises(ValueError, match="JSON"):
            checkpoints.save(5, {"w": jnp.ones(2)}, {"array": np.ones(2)})
    assert read_host(tmp_path) == json.loads(json.dumps(host))
    assert read_host(tmp_path, step=4)["betas"] == [0.9, 1 / 3]


def test_leaf_that_is_not_an_array(tmp_path):
    with (
        Checkpoints(tmp_path) as checkpoints,
        pytest.raises(ValueError, match=r"\['tag'\] is a str"),
    ):
        checkpoints.save(0, {"w": jnp.ones(2), "tag": "a"}, {})


@pytest.mark.parametrize(("damage", "reason"), DAMAGES)
def test_damaged_newest_step_is_skipped(tmp_path, damage: Callable, reason: str):
    save_steps(tmp_path, [1, 2])
    damage(tmp_path / "2")
    with Checkpoints(tmp_path) as checkpoints:
        restored = checkpoints.restore(make_state(0))
        assert restored.step == 1
        assert restored.host["step"] == 1
        assert_identical(restored.state, make_state(1))
        [(step, why)] = restored.skipped
        assert step == 2
        assert reason in why
        with pytest.raises(ValueError, match=r"step 2: (state|manifest)"):
            checkpoints.restore(make_state(0), step=2)
    if "manifest" in reason:
        assert read_host(tmp_path)["step"] == 1
        with pytest.raises(ValueError, match=r"step 2: manifest"):
            read_host(tmp_path, step=2)


def test_one_flipped_byte_in_any_file(tmp_path):
    """Whatever file it is in: the newest step as it was, or the one before."""
    save_steps(tmp_path / "good", [1, 2])
    files = [path for path in (tmp_path / "good" / "2").rglob("*") if path.is_file()]
    found = []
    for number, path in enumerate(files):
        folder = tmp_path / str(number)
        shutil.copytree(tmp_path / "good", folder)
        if path.stat().st_size:
            flip_bit(folder / path.relative_to(tmp_path / "good"))
        with Checkpoints(folder) as checkpoints:
            restored = checkpoints.restore(make_state(0))
        assert_identical(restored.state, make_state(restored.step))
        found.append(restored.step)
    assert len(files) > 5
    assert set(found) == {1, 2}


def change_content(step: pathlib.Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Changes a manifest and gives it the checksum of what it holds then."""
    path = step / "manifest" / "metadata"
    manifest = json.loads(path.read_text())
    del manifest["crc32"]
    change(manifest)
    crc32 = zlib.crc32(json.dumps(manifest, sort_keys=True).encode())
    path.write_text(json.dumps(manifest | {"crc32": crc32}))


@pytest.mark.parametrize("field", ["host", "leaves", "keys", "state_crc32"])
def test_a_manifest_without_a_field_is_damaged(field, tmp_path):
    save_steps(tmp_path, [1, 2])
    change_content(tmp_path / "2", lambda manifest: manifest.pop(field))
    with Checkpoints(tmp_path) as checkpoints:
        restored = checkpoints.restore(make_state(0))
    assert restored.skipped == [(2, f"manifest has no {field}")]
    change_content(tmp_path / "1", lambda manifest: manifest.update({field: "x"}))
    with pytest.raises(ValueError, match=f"step 1: manifest has no {field}"):
        read_host(tmp_path)


def test_a_later_format_says_so_and_one_without_a_number_is_read(tmp_path):
    save_steps(tmp_path, [1, 2])
    change_content(tmp_path / "2", lambda manifest: manifest.pop("format"))
    assert Checkpoints(tmp_path).restore(make_state(0)).step == 2
    change_content(tmp_path / "2", lambda manifest: manifest.update(format=7))
    with pytest.raises(ValueError, match=r"2 has format 7, and this version .* reads format 1"):
        Checkpoints(tmp_path).restore(make_state(0))


def test_the_first_checkpoint_is_read_back(tmp_path, monkeypatch):
    """Where the files do not come back the training is not to go on as if they did."""
    original = Checkpoints.wait

    def losing(self: Checkpoints) -> None:
        original(self)
        for step in self.steps():
            remove_state(tmp_path / str(step))

    monkeypatch.setattr(Checkpoints, "wait", losing)
    with (
        pytest.raises(OSError, match=r"first checkpoint cannot be read back .*another file system"),
        Checkpoints(tmp_path) as checkpoints,
    ):
        checkpoints.save(0, make_state(0), HOST)


@pytest.mark.parametrize("name", ["a#b", "a|b", "100%", "{a}", "a\nb", "é", "a'b", "a b"])
def test_folders_of_other_names_are_fine(name, tmp_path):
    save_steps(tmp_path / name, [1])
    assert_identical(Checkpoints(tmp_path / name).restore(make_state(0)).state, make_state(1))


def test_a_folder_that_got_brackets_later_can_be_read(tmp_path):
    save_steps(tmp_path / "a", [1, 2])
    (tmp_path / "a").rename(tmp_path / "b [v1]")
    assert Checkpoints(tmp_path / "b [v1]").restore(make_state(0)).step == 2
    with (
        pytest.raises(ValueError, match=r"cannot be kept below a folder with \[ in its name"),
        Checkpoints(tmp_path / "b [v1]") as checkpoints,
    ):
        checkpoints.save(3, make_state(3), HOST)


def test_skipping_is_logged(tmp_path, caplog):
    save_steps(tmp_path, [1, 2])
    remove_state(tmp_path / "2")
    with caplog.at_level("WARNING", logger="ndsm_jax"), Checkpoints(tmp_path) as checkpoints:
        checkpoints.restore(make_state(0))
    assert any("step 2 skipped: state unreadable" in message for message in caplog.messages)
    assert caplog.messages[-1] == "checkpoint step 1 is read"


def test_every_step_damaged(tmp_path):
    save_steps(tmp_path, [1, 2])
    flip_bit_of_state(tmp_path / "1")
    truncate_manifest(tmp_path / "2")
    with pytest.raises(
        ValueError, match=r"(?s)step 2: manifest unreadable.*step 1: state does not"
    ):
        Checkpoints(tmp_path).restore(make_state(0))


def test_damaged_orbax_metadata_is_harmless(tmp_path):
    save_steps(tmp_path, [1, 2])
    (tmp_path / "2" / "_CHECKPOINT_METADATA").write_text('{"commit_timestamp_nsecs": "x"}')
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore(make_state(0)).step == 2
        checkpoints.save(3, make_state(3), HOST)
        assert checkpoints.restore(make_state(0)).step == 3


def test_no_checkpoint(tmp_path):
    missing = tmp_path / "absent"
    with Checkpoints(missing) as checkpoints:
        with pytest.raises(FileNotFoundError, match="absent"):
            checkpoints.restore(make_state(0))
        with pytest.raises(FileNotFoundError, match="absent"):
            read_host(missing)
        assert checkpoints.steps() == []
    assert not missing.exists()
    save_steps(tmp_path, [1, 2])
    with pytest.raises(FileNotFoundError, match=r"step 5 .*\[1, 2\]"):
        Checkpoints(tmp_path).restore(make_state(0), step=5)


def narrower() -> TrainState:
    return make_state(0, width=16)


def without_scale() -> TrainState:
    state = make_state(0)
    return dataclasses.replace(state, params={"dense": state.params["dense"]})


def all_float32() -> TrainState:
    def widen(leaf: Any) -> Any:
        return jnp.float32(leaf) if getattr(leaf, "dtype", None) == jnp.bfloat16 else leaf

    return jax.tree.map(widen, make_state(0))


@pytest.mark.parametrize(
    ("make_like", "message"),
    [
        (narrower, r"\['kernel'\]: float32\[32, 64\] in the checkpoint, float32\[32, 16\] now"),
        (without_scale, r"\['scale/shift'\]: bfloat16\[3\] in the checkpoint, absent now"),
        (all_float32, r"\['scale/shift'\]: bfloat16\[3\] in the checkpoint, float32\[3\] now"),
    ],
    ids=["shape", "structure", "dtype"],
)
def test_another_config_is_not_damage(tmp_path, make_like, message):
    like = make_like()
    save_steps(tmp_path, [2])
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, like, HOST)  # an older step that would fit
        with pytest.raises(ValueError, match=rf"(?s)config differs.*{message}"):
            checkpoints.restore(like)


def test_damaged_step_is_replaced(tmp_path):
    save_steps(tmp_path, [1, 2])
    flip_bit_of_state(tmp_path / "2")
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore(make_state(0)).step == 1
        checkpoints.save(2, make_state(2), HOST)
        restored = checkpoints.restore(make_state(0))
        assert (restored.step, restored.skipped) == (2, [])
        assert_identical(restored.state, make_state(2))


def test_step_before_a_damaged_one_is_saved(tmp_path):
    save_steps(tmp_path, [10, 30])
    remove_state(tmp_path / "30")
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore(make_state(0)).step == 10
        checkpoints.save(20, make_state(20), HOST)
        assert_identical(checkpoints.restore(make_state(0)).state, make_state(20))


def test_good_step_is_not_overwritten(tmp_path):
    save_steps(tmp_path, [1, 2])
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(2, make_state(2), HOST)
        with pytest.raises(ValueError, match="another state"):
            checkpoints.save(2, make_state(5), HOST)
        with pytest.raises(ValueError, match="config differs"):
            checkpoints.save(2, make_state(2, width=16), HOST)
        assert_identical(checkpoints.restore(make_state(0)).state, make_state(2))


def test_the_newest_are_kept_across_restarts(tmp_path):
    state = {"w": jnp.ones(2)}
    for step in range(1, 5):
        with Checkpoints(tmp_path, keep=2) as checkpoints:
            checkpoints.save(step, state, {})
        assert checkpoints.steps() == list(range(max(1, step - 1), step + 1))
    with pytest.raises(ValueError, match="keep"):
        Checkpoints(tmp_path, keep=0)


def test_leftovers_are_removed_by_the_first_save_only(tmp_path):
    save_steps(tmp_path, [1])
    leftover = tmp_path / "2.orbax-checkpoint-tmp"
    leftover.mkdir()
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore(make_state(0)).step == 1
        assert leftover.exists()  # it may belong to a run that is still saving
        checkpoints.save(3, make_state(3), HOST)
    assert not leftover.exists()
    assert checkpoints.steps() == [1, 3]


def test_donated_buffers(tmp_path):
    @functools.partial(jax.jit, donate_argnums=0)
    def train_step(state):
        return {"w": state["w"] + 1, "key": jax.random.fold_in(state["key"], 1)}

    w = np.random.default_rng(0).normal(size=(512, 1024)).astype(np.float32)
    state = {"w": jnp.array(w), "key": jax.random.key(0)}
    expected = []
    with Checkpoints(tmp_path, keep=5) as checkpoints:
        for step in range(5):
            expected.append((w, np.array(jax.random.key_data(state["key"]))))
            checkpoints.save(step, state, {})
            old, state, w = state, train_step(state), w + np.float32(1)
            jax.block_until_ready(state)
            assert old["w"].is_deleted()
        for step, (w, key) in enumerate(expected):
            restored = checkpoints.restore(state, step=step).state
            np.testing.assert_array_equal(restored["w"], w)
            np.testing.assert_array_equal(jax.random.key_data(restored["key"]), key)


SAVE_UNTIL_KILLED = """
import sys
import numpy as np
from ndsm_jax.runs import Checkpoints

noise = np.random.default_rng(0).normal(size=(4, 200_000)).astype(np.float32)
checkpoints = Checkpoints(sys.argv[1], keep=2)
for step in range(10_000):
    # returns when the step before is on disk
    checkpoints.save(step, {"noise": noise + step, "step": np.int32(step)}, {"step": step})
    print(step - 1, flush=True)
"""


def test_killed_while_saving(tmp_path):
    trials = [tmp_path / str(trial) for trial in range(3)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    children = [
        subprocess.Popen(
            [sys.executable, "-c", SAVE_UNTIL_KILLED, str(directory)],
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for directory in trials
    ]
    rng = np.random.default_rng(0)
    noise = np.random.default_rng(0).normal(size=(4, 200_000)).astype(np.float32)
    for child, directory in zip(children, trials, strict=True):
        assert child.stdout is not None
        while (line := child.stdout.readline()) and int(line) < 2:
            pass
        time.sleep(rng.uniform(0.0, 0.2))
        child.send_signal(signal.SIGKILL)
        rest = child.communicate()[0].split()
        on_disk = int((rest or [line])[-1])

        like = {"noise": noise, "step": np.int32(0)}
        with Checkpoints(directory, keep=2) as checkpoints:
            restored = checkpoints.restore(like)
            assert restored.step >= on_disk >= 2
            assert restored.skipped == []
            assert restored.host == {"step": restored.step}
            assert restored.state["step"] == restored.step
            np.testing.assert_array_equal(restored.state["noise"], noise + restored.step)
            checkpoints.save(restored.step + 1, restored.state, {})
        assert sorted(path.name for path in directory.iterdir()) == sorted(
            [str(restored.step), str(restored.step + 1)]
        )
